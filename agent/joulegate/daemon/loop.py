"""The loop: readings and span edges in, one ledger transaction, then acknowledgements, figures and the snapshot.

One thread runs it. It decides the order of the steps and calculates nothing; whoever reads the snapshot or the figures
never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from joulegate.daemon.ports import LedgerWriter, LoadAware, Source
from joulegate.metering.batch import Batch, add_entry, totals_key
from joulegate.metering.entry import RequestEntry
from joulegate.metering.host_meter import HostMeter
from joulegate.metering.reading import GpuProcess, Quality
from joulegate.metering.snapshot import AgentState, DeviceState, RequestTotals, Snapshot
from joulegate.metering.span import Outcome, Span

TICK_S = 0.2
INBOX_MESSAGES = 200_000
KEPT_FIGURES = 50_000
RETRY_S = 1.0
BACKLOG_ENTRIES = 200_000
PROCESSES_EVERY_S = 10.0
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Began:
    """A span began, or is told whole when it has an end."""

    span: Span


@dataclass(frozen=True, slots=True)
class Ended:
    """A span ended."""

    request_id: str
    ended_s: float
    outcome: Outcome


Edge = Began | Ended


@dataclass(frozen=True, slots=True)
class Delivery:
    """An edge with whoever wants to know that it is durable; ``done`` is told whether it was new."""

    edge: Edge
    done: Callable[[bool], None] | None = None


@dataclass(slots=True)
class _Written:
    """What a commit must be told about once it is durable."""

    batch: Batch
    told: list[tuple[Callable[[bool], None], bool]] = field(default_factory=list)
    provisional: list[RequestEntry] = field(default_factory=list)


class MeterLoop:
    """Runs the meter. ``step`` is one turn with the time given; ``start`` runs it in a thread of its own.

    ``publish`` gets the entries of each turn, provisional and final, after the commit.
    """

    def __init__(
        self,
        source: Source,
        meter: HostMeter,
        ledger: LedgerWriter | None,
        *,
        faults: tuple[type[Exception], ...] = (),
        publish: Callable[[Sequence[RequestEntry]], None] | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self.meter = meter
        self.source = source
        self.snapshot: Snapshot | None = None
        self.dropped = 0
        self._ledger = ledger
        self._faults = faults
        self._publish = publish
        self._tick_s = tick_s
        self._inbox: deque[Delivery] = deque()
        self._unwritten: list[_Written] = []
        self._figures: OrderedDict[str, RequestEntry] = OrderedDict()
        self._final = threading.Condition()
        self._totals: dict[tuple[str, str, Quality], RequestTotals] = {}
        self._agent = AgentState(started_wall_s=time.time())
        self._processes: tuple[GpuProcess, ...] = ()
        self._began_s = time.monotonic()
        self._retry_s = self._asked_s = self._rss_s = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._open()

    def _open(self) -> None:
        if self._ledger is not None:
            restored = self._ledger.restore()
            self.meter.restore(restored)
            for totals in restored.requests:
                self._totals[totals.model, totals.tier, totals.quality] = totals
            self._add_devices()
            self.meter.reopen(restored.pending_mj)
        else:
            self._add_devices()

    def _add_devices(self) -> None:
        for device in self.source.devices():
            self.meter.add_device(device)

    # Any thread

    def submit(self, delivery: Delivery) -> bool:
        """Take an edge; False when the inbox is full or the ledger cannot keep up. Never blocks."""
        if len(self._inbox) >= INBOX_MESSAGES or self._backlog() >= BACKLOG_ENTRIES:
            self.dropped += 1
            return False
        self._inbox.append(delivery)
        return True

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The newest figures of a request of this run."""
        return self._figures.get(request_id)

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Block until the entry is final, or ``None`` after ``timeout_s``."""
        with self._final:
            self._final.wait_for(lambda: self._is_final(request_id), timeout_s)
        entry = self._figures.get(request_id)
        return entry if entry is not None and entry.status.value == "final" else None

    def _is_final(self, request_id: str) -> bool:
        entry = self._figures.get(request_id)
        return entry is not None and entry.status.value == "final"

    def start(self) -> None:
        """Run in a thread until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="joulegate-meter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take what is in the inbox, settle what readings reach, write it, and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
            self._thread = None
        self.step(time.monotonic(), time.time(), last=True)

    # The loop's thread

    def _run(self) -> None:
        deadline_s = time.monotonic()
        while not self._stop.is_set():
            self.step(time.monotonic(), time.time())
            deadline_s = max(deadline_s + self._tick_s, time.monotonic())
            self._stop.wait(deadline_s - time.monotonic())

    def step(self, now_s: float, wall_s: float, *, last: bool = False) -> None:
        """One turn: edges, readings, attribution, commit, figures, snapshot."""
        began_s = time.perf_counter()
        self._add_devices()
        written = self._take_edges(now_s)
        readings = self.source.drain(now_s, wall_s)
        self.meter.feed(readings)
        progress = self.meter.advance(now_s)
        if last:
            rest = self.meter.finish()
            progress = replace(
                rest, entries=progress.entries + rest.entries, accounts=progress.accounts + rest.accounts
            )
        written.batch = replace(
            written.batch, entries=progress.entries, accounts=progress.accounts, positions=progress.positions
        )
        if written.batch != Batch() or written.told:
            self._unwritten.append(written)
        self._write(now_s, last=last)
        self._agent = replace(
            self._agent,
            readings=self._agent.readings + len(readings),
            requests_finished=self._agent.requests_finished + len(progress.entries),
            loop_s=time.perf_counter() - began_s,
        )
        self._publish_snapshot(now_s, wall_s)

    def _take_edges(self, now_s: float) -> _Written:
        opened: list[Span] = []
        closed: list[Span] = []
        written = _Written(Batch())
        for _ in range(len(self._inbox)):
            delivery = self._inbox.popleft()
            new = self._take_edge(delivery.edge, now_s, opened, closed, written)
            if delivery.done is not None:
                written.told.append((delivery.done, new))
        written.batch = Batch(opened=tuple(opened), closed=tuple(closed))
        return written

    def _take_edge(self, edge: Edge, now_s: float, opened: list[Span], closed: list[Span], written: _Written) -> bool:
        if isinstance(edge, Began):
            known = self.meter.span(edge.span.request_id) is not None
            new = not self._was_final(edge.span) and self.meter.begin(edge.span)
            span = self.meter.span(edge.span.request_id)
            if new and not known and span is not None:
                opened.append(span)
                self._tell_load(span, started=True, now_s=now_s)
        else:
            new = self.meter.end(edge.request_id, edge.ended_s, edge.outcome)
            span = self.meter.span(edge.request_id)
        if new and span is not None and span.ended_s is not None:
            closed.append(span)
            self._tell_load(span, started=False, now_s=now_s)
            written.provisional.extend(self.meter.provisional(span, now_s))
        return new

    def _was_final(self, span: Span) -> bool:
        """A span told again after its figure became final, in this run or an earlier one, must not be billed again."""
        ids = {member.request_id for member in span.members} or {span.request_id}
        if any(self._is_final(request_id) for request_id in ids):
            return True
        if self._ledger is None or span.started_s > self._began_s:
            return False
        try:
            return bool(self._ledger.final_ids(ids))
        except self._faults:
            return False

    def _tell_load(self, span: Span, *, started: bool, now_s: float) -> None:
        if isinstance(self.source, LoadAware):
            (self.source.span_started if started else self.source.span_ended)(span, now_s)

    def _write(self, now_s: float, *, last: bool) -> None:
        """Commit what waits, oldest first; after a fault everything is kept and tried again a little later."""
        if self._unwritten and (last or now_s >= self._retry_s):
            try:
                for _ in range(len(self._unwritten)):
                    if self._ledger is not None:
                        self._ledger.commit(self._unwritten[0].batch)
                    self._made_durable(self._unwritten.pop(0))
                self._agent = replace(self._agent, ledger_error=None)
            except self._faults as fault:
                self._retry_s = now_s + RETRY_S
                self._agent = replace(self._agent, ledger_error=str(fault))
                self._merge_unwritten()

    def _merge_unwritten(self) -> None:
        """One batch instead of many, so that a long outage costs memory only for what is new in it."""
        if len(self._unwritten) < 2:
            return
        batches = [written.batch for written in self._unwritten]
        accounts = {(a.device, a.epoch, a.bucket_s): a for batch in batches for a in batch.accounts}
        positions = {p.device: p for batch in batches for p in batch.positions}
        merged = Batch(
            opened=tuple(s for batch in batches for s in batch.opened),
            closed=tuple(s for batch in batches for s in batch.closed),
            entries=tuple(e for batch in batches for e in batch.entries),
            accounts=tuple(accounts.values()),
            positions=tuple(positions.values()),
        )
        told = [item for written in self._unwritten for item in written.told]
        provisional = [item for written in self._unwritten for item in written.provisional]
        self._unwritten = [_Written(merged, told, provisional)]

    def _made_durable(self, written: _Written) -> None:
        for done, new in written.told:
            done(new)
        for entry in written.batch.entries:
            key = totals_key(entry)
            self._totals[key] = add_entry(self._totals.get(key), entry)
        news = [*written.provisional, *written.batch.entries]
        self._keep(news)
        if self._publish is not None and news:
            self._publish(news)

    def _keep(self, entries: Iterable[RequestEntry]) -> None:
        with self._final:
            for entry in entries:
                self._figures[entry.request_id] = entry
                self._figures.move_to_end(entry.request_id)
            while len(self._figures) > KEPT_FIGURES:
                self._figures.popitem(last=False)
            self._final.notify_all()

    def _backlog(self) -> int:
        return sum(len(written.batch.entries) + len(written.batch.opened) for written in self._unwritten)

    def _publish_snapshot(self, now_s: float, wall_s: float) -> None:
        states = self._with_processes(self.meter.states(now_s, self.source.errors()), now_s)
        if now_s - self._rss_s >= 1.0:
            self._rss_s = now_s
            self._agent = replace(self._agent, cpu_s=time.process_time(), rss_bytes=_rss_bytes())
        self._agent = replace(
            self._agent,
            requests_pending=self.meter.pending,
            spans_late=self.meter.late_spans,
            messages_dropped=self.dropped,
            ledger_backlog=self._backlog(),
        )
        self.snapshot = Snapshot(
            t_s=now_s,
            wall_s=wall_s,
            source=self.source.name,
            devices=states,
            sensors=tuple(self.source.sensors()),
            requests=tuple(self._totals.values()),
            agent=self._agent,
        )

    def _with_processes(self, states: Mapping[str, DeviceState], now_s: float) -> Mapping[str, DeviceState]:
        """Foreign processes are looked for only while energy goes unattributed."""
        suspects = {device for device, meter in self.meter.devices.items() if meter.unattributed_lately}
        if not suspects:
            return states
        if now_s - self._asked_s >= PROCESSES_EVERY_S:
            self._asked_s = now_s
            self._processes = tuple(self.source.processes())
        return {
            device: replace(state, processes=tuple(p for p in self._processes if p.device == device))
            if device in suspects
            else state
            for device, state in states.items()
        }


def _rss_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0

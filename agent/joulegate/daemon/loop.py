"""The loop: readings and span edges in, one ledger transaction, then acknowledgements, figures and the snapshot.

One thread runs it. It decides the order of the steps and calculates nothing; whoever reads the snapshot or the figures
never waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from joulegate.daemon.ports import LedgerWriter, LoadAware, Source
from joulegate.metering.batch import Batch, add_entry, totals_key
from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.host_meter import HostMeter, Progress
from joulegate.metering.reading import GpuProcess, Quality, Reading, Sensor
from joulegate.metering.snapshot import AgentState, DeviceState, DeviceTotals, RequestTotals, Snapshot
from joulegate.metering.span import Outcome, Span

TICK_S = 0.2
INBOX_MESSAGES = 200_000
EDGES_A_TURN = 20_000
KEPT_FIGURES = 50_000
RETRY_S = 1.0
BACKLOG_ENTRIES = 200_000
PROCESSES_EVERY_S = 10.0
PROCESSES_FIRST_S = 1.0
"""A source may answer the first question with nothing and look only then."""
SLOW_EVERY_S = 1.0

FRESH_S = 5.0
"""A span that began this lately cannot have become final and been forgotten; an older one is looked up."""

ORPHAN_GRACE_S = 30.0
"""So long a pipeline whose connection broke may come back before its running requests are ended."""

RESTORED_GRACE_S = 120.0
"""So long running requests of an earlier run may be answered for; HTTP clients have no connection to come back with."""

TROUBLE_SHOWN_S = 60.0
STOP_WAIT_S = 10.0
_PAGE_BYTES = 4096
_LOG = logging.getLogger("joulegate.daemon")
_T = TypeVar("_T")


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


@dataclass(frozen=True, slots=True)
class Orphaned:
    """The connection that told of these requests broke at ``at_s``."""

    request_ids: tuple[str, ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """A pipeline asks for these requests: it is there."""

    request_ids: tuple[str, ...]


Edge = Began | Ended | Orphaned | Claimed


@dataclass(frozen=True, slots=True)
class Delivery:
    """An edge with whoever wants to know that it is durable; ``done`` is told whether it was new."""

    edge: Edge
    done: Callable[[bool], None] | None = None


@dataclass(slots=True)
class _Written:
    """One turn's transaction while it grows, and who must be told once it is durable."""

    opened: list[Span] = field(default_factory=list)
    closed: list[Span] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    told: list[tuple[Callable[[bool], None], bool]] = field(default_factory=list)
    provisional: list[RequestEntry] = field(default_factory=list)

    @property
    def batch(self) -> Batch:
        """What the ledger is given."""
        p = self.progress
        return Batch(tuple(self.opened), tuple(self.closed), p.entries, p.accounts, p.positions)

    @property
    def size(self) -> int:
        """Records of requests, which are what a long outage piles up."""
        return len(self.progress.entries) + len(self.opened)

    @property
    def empty(self) -> bool:
        """Nothing to write and nobody to tell."""
        return not self.told and self.batch == Batch()


class MeterLoop:
    """Runs the meter. ``step`` is one turn with the time given; ``start`` runs it in a thread of its own.

    ``began`` gets each span that is new, ``publish`` the entries of each turn, provisional and final, after the commit;
    both are called on the loop's thread. What goes wrong in a turn and
    was not foreseen is counted in ``faults``, shown in the snapshot's ledger error for a minute, and never ends the
    thread; a turn that fails whole leaves the snapshot to grow old, which is what ``/healthz`` looks at.
    """

    def __init__(
        self,
        source: Source,
        meter: HostMeter,
        ledger: LedgerWriter | None,
        *,
        faults: tuple[type[Exception], ...] = (),
        publish: Callable[[Sequence[RequestEntry]], None] | None = None,
        began: Callable[[Span], None] | None = None,
        tick_s: float = TICK_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.meter = meter
        self.source = source
        self.snapshot: Snapshot | None = None
        self.dropped = 0
        self.faults = 0
        self.device_ids: frozenset[str] = frozenset()
        self.after_commit: Callable[[], None] | None = None
        self.metered_pids: Callable[[], Collection[int]] = tuple
        """Processes whose requests are metered: they are never named as foreign."""
        """Called on the loop's thread once what a commit holds is durable and its senders were told."""
        self._ledger = ledger
        self._ledger_faults = faults
        self._publish = publish
        self._tell_began = began
        self._tick_s = tick_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._inbox: deque[Delivery] = deque()
        self._unwritten: list[_Written] = []
        self._figures: OrderedDict[str, RequestEntry] = OrderedDict()
        self._final = threading.Condition()
        self._totals: dict[tuple[str, str, Quality], RequestTotals] = {}
        self._durable: dict[str, DeviceTotals] = {}
        self._agent = AgentState(started_wall_s=wall_clock())
        self._ledger_error: str | None = None
        self._trouble: tuple[str, float] | None = None
        self._orphans: dict[str, float] = {}
        self._processes: tuple[GpuProcess, ...] = ()
        self._sensors: tuple[Sensor, ...] = ()
        self._began_s = clock()
        self._restored_checked = False
        self._retry_s = self._asked_s = self._slow_s = float("-inf")
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open()

    def _open(self) -> None:
        if self._ledger is None:
            self._add_devices()
            return
        restored = self._ledger.restore()
        self.meter.restore(restored)
        self._durable.update(restored.totals)
        for totals in restored.requests:
            self._totals[totals.model, totals.tier, totals.quality] = totals
        self._add_devices()
        self.meter.reopen(restored.pending_mj)
        for span in self.meter.running():
            self._tell_load(replace(span, started_s=self._began_s), started=True, now_s=self._began_s)

    def _add_devices(self) -> None:
        for device in self.source.devices():
            self.meter.add_device(device)
        if len(self.device_ids) != len(self.meter.devices):
            self.device_ids = frozenset(self.meter.devices)

    # Any thread

    def submit(self, *deliveries: Delivery) -> bool:
        """Take all edges, or none: False when the inbox is full or the ledger cannot keep up. Never blocks."""
        if len(self._inbox) + len(deliveries) > INBOX_MESSAGES or self._agent.ledger_backlog >= BACKLOG_ENTRIES:
            self.dropped += len(deliveries)
            return False
        self._inbox.extend(deliveries)
        return True

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The newest figures of a request of this run."""
        return self._figures.get(request_id)

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Block until the entry is final, or ``None`` after ``timeout_s`` or once the loop has stopped."""
        with self._final:
            self._final.wait_for(lambda: self._is_final(request_id) or self._stop.is_set(), timeout_s)
        entry = self._figures.get(request_id)
        return entry if entry is not None and entry.status is Status.FINAL else None

    def _is_final(self, request_id: str) -> bool:
        entry = self._figures.get(request_id)
        return entry is not None and entry.status is Status.FINAL

    def start(self) -> None:
        """Run in a thread until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="joulegate-meter", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = STOP_WAIT_S) -> bool:
        """Take what is in the inbox, settle what readings reach, write it, and stop.

        False when a turn still runs after ``timeout_s``; what it has not written stays in the journal.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if not self._turn.acquire(timeout=timeout_s if self._thread is None else 0.1):
            return False
        self._turn.release()
        self._thread = None
        self._attempt(last=True)
        with self._final:
            self._final.notify_all()
        return True

    # The loop's thread

    def _run(self) -> None:
        deadline_s = self._clock()
        while not self._stop.is_set():
            self._attempt()
            deadline_s = max(deadline_s + self._tick_s, self._clock())
            self._stop.wait(deadline_s - self._clock())

    def _attempt(self, *, last: bool = False) -> None:
        """One turn that ends whatever happens in it."""
        try:
            self.step(self._clock(), self._wall_clock(), last=last)
        except Exception as error:  # noqa: BLE001 - the thread must live on: without it nothing is metered, in silence
            self._note(error)
            if self.snapshot is not None:
                self.snapshot = replace(self.snapshot, agent=replace(self._agent, ledger_error=self._error_now()))

    def _note(self, error: Exception) -> None:
        """Count an unforeseen fault and say it once in one line."""
        self.faults += 1
        text = f"the meter had an internal fault ({type(error).__name__}: {' '.join(str(error).split())})"
        if self._trouble is None or self._trouble[0] != text:
            _LOG.error("%s; please report it", text)
        self._trouble = (text, self._clock())

    def _error_now(self) -> str | None:
        if self._ledger_error is not None:
            return self._ledger_error
        if self._trouble is not None and self._clock() - self._trouble[1] < TROUBLE_SHOWN_S:
            return f"{self._trouble[0]}, {self.faults} in all; please report it"
        return None

    def _ask(self, call: Callable[[], _T], otherwise: _T) -> _T:
        """What the source says; it promises not to raise, and a broken promise costs one turn's answer."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - a broken source must not keep edges from being journalled
            self._note(error)
            return otherwise

    def step(self, now_s: float, wall_s: float, *, last: bool = False) -> None:
        """One turn: edges, readings, attribution, commit, figures, snapshot."""
        with self._turn:
            began_s = time.perf_counter()
            self._ask(self._add_devices, None)
            self.meter.reanchor(wall_s - now_s)
            written = _Written()
            self._unwritten.append(written)
            self._take_edges(written, now_s)
            self._end_orphans(written, now_s)
            none: Sequence[Reading] = ()
            readings = self._ask(lambda: self.source.drain(now_s, wall_s), none)
            self.meter.feed(readings)
            progress = self.meter.advance(now_s)
            if last:
                progress = _joined(progress, self.meter.finish())
            written.progress = progress
            if written.empty:
                self._unwritten.pop()
            self._write(now_s, last=last)
            self._agent = replace(
                self._agent,
                readings=self._agent.readings + len(readings),
                requests_finished=self._agent.requests_finished + len(progress.entries),
                loop_s=time.perf_counter() - began_s,
            )
            self._publish_snapshot(now_s, wall_s)

    def _take_edges(self, written: _Written, now_s: float) -> None:
        taken = [self._inbox.popleft() for _ in range(min(len(self._inbox), EDGES_A_TURN))]
        try:
            final = self._final_among(taken, now_s)
        except self._ledger_faults as fault:
            self._ledger_error = str(fault)
            self._inbox.extendleft(reversed(taken))
            return
        for delivery in taken:
            try:
                new = self._take_edge(delivery.edge, now_s, final, written)
            except Exception as error:  # noqa: BLE001 - one edge that cannot be taken must not keep the others back
                self._note(error)
                self.dropped += 1
                new = False
            if delivery.done is not None:
                written.told.append((delivery.done, new))

    def _final_among(self, taken: Sequence[Delivery], now_s: float) -> set[str]:
        """Ids that have a final figure: told again, such a span must not be billed again.

        Asked of the ledger in one query, and only where this run's memory cannot tell.
        """
        final: set[str] = set()
        asked: set[str] = set()
        for delivery in taken:
            edge = delivery.edge
            if isinstance(edge, Began) and self.meter.span(edge.span.request_id) is None:
                ids = _billed(edge.span)
                known = {request_id for request_id in ids if self._is_final(request_id)}
                final |= known
                if edge.span.ended_s is not None or now_s - edge.span.started_s > FRESH_S:
                    asked |= ids - known
            elif isinstance(edge, Ended) and self.meter.span(edge.request_id) is None:
                (final if self._is_final(edge.request_id) else asked).add(edge.request_id)
        if asked and self._ledger is not None:
            final |= self._ledger.final_ids(asked)
        return final

    def _take_edge(self, edge: Edge, now_s: float, final: set[str], written: _Written) -> bool:
        if isinstance(edge, Orphaned):
            self._orphans.update(dict.fromkeys(edge.request_ids, edge.at_s))
            return True
        if isinstance(edge, Claimed):
            for request_id in edge.request_ids:
                self._orphans.pop(request_id, None)
            self.meter.claim(edge.request_ids)
            return True
        return (
            self._began(edge.span, now_s, final, written)
            if isinstance(edge, Began)
            else self._ended(edge, now_s, final, written)
        )

    def _began(self, span: Span, now_s: float, final: set[str], written: _Written) -> bool:
        known = self.meter.span(span.request_id) is not None
        if not known:
            members = tuple(member for member in span.members if member.request_id not in final)
            if _billed(span) <= final:
                return False
            span = replace(span, members=members)
        for request_id in _billed(span):
            self._orphans.pop(request_id, None)
        new = self.meter.begin(span)
        taken = self.meter.span(span.request_id)
        if new and not known and taken is not None:
            written.opened.append(taken)
            self._tell_load(taken, started=True, now_s=now_s)
            if self._tell_began is not None:
                tell = self._tell_began
                self._ask(lambda: tell(taken), None)
        if new:
            self._closed(taken, now_s, written)
        return new

    def _ended(self, edge: Ended, now_s: float, final: set[str], written: _Written) -> bool:
        new = self.meter.end(edge.request_id, edge.ended_s, edge.outcome)
        if new:
            self._closed(self.meter.span(edge.request_id), now_s, written)
        elif edge.request_id not in final and self.meter.span(edge.request_id) is None:
            self.dropped += 1
        return new

    def _closed(self, span: Span | None, now_s: float, written: _Written) -> None:
        if span is not None and span.ended_s is not None:
            written.closed.append(span)
            self._tell_load(span, started=False, now_s=now_s)
            written.provisional.extend(self.meter.provisional(span, now_s))

    def _end_orphans(self, written: _Written, now_s: float) -> None:
        """End what nobody will end any more: requests of connections that did not come back."""
        late = [(request_id, at_s) for request_id, at_s in self._orphans.items() if now_s - at_s > ORPHAN_GRACE_S]
        ended = []
        for request_id, at_s in late:
            del self._orphans[request_id]
            ended += self.meter.abandon([request_id], at_s)
        if not self._restored_checked and now_s - self._began_s > RESTORED_GRACE_S:
            self._restored_checked = True
            ended += self.meter.abandon_unclaimed()
        for span in ended:
            self._closed(span, now_s, written)

    def _tell_load(self, span: Span, *, started: bool, now_s: float) -> None:
        source = self.source
        if isinstance(source, LoadAware):
            tell = source.span_started if started else source.span_ended
            self._ask(lambda: tell(span, now_s), None)

    def _write(self, now_s: float, *, last: bool) -> None:
        """Commit what waits, oldest first; after a fault everything is kept and tried again a little later."""
        if not self._unwritten:
            self._ledger_error = None
            return
        if now_s < self._retry_s and not last:
            return
        try:
            while self._unwritten:
                if self._ledger is not None:
                    self._ledger.commit(self._unwritten[0].batch)
                self._made_durable(self._unwritten.pop(0))
            self._ledger_error = None
        except self._ledger_faults as fault:
            self._retry_s = now_s + RETRY_S
            self._ledger_error = str(fault)
            self._merge_unwritten()

    def _merge_unwritten(self) -> None:
        """One batch instead of many, so that a long outage costs memory only for what is new in it."""
        if len(self._unwritten) < 2:
            return
        all_of = self._unwritten
        accounts = {(a.device, a.epoch, a.bucket_s): a for one in all_of for a in one.progress.accounts}
        positions = {p.device: p for one in all_of for p in one.progress.positions}
        entries = tuple(entry for one in all_of for entry in one.progress.entries)
        merged = _Written(progress=Progress(entries, tuple(accounts.values()), tuple(positions.values())))
        for one in all_of:
            merged.opened += one.opened
            merged.closed += one.closed
            merged.told += one.told
            merged.provisional += one.provisional
        self._unwritten = [merged]

    def _made_durable(self, written: _Written) -> None:
        for done, new in written.told:
            self._ask(lambda done=done, new=new: done(new), None)  # type: ignore[misc]
        if self.after_commit is not None:
            self._ask(self.after_commit, None)
        for entry in written.progress.entries:
            key = totals_key(entry)
            self._totals[key] = add_entry(self._totals.get(key), entry)
        news = [*written.provisional, *written.progress.entries]
        self._keep(news)
        if self._publish is not None and news:
            publish = self._publish
            self._ask(lambda: publish(news), None)

    def _keep(self, entries: Iterable[RequestEntry]) -> None:
        with self._final:
            for entry in entries:
                self._figures[entry.request_id] = entry
                self._figures.move_to_end(entry.request_id)
            while len(self._figures) > KEPT_FIGURES:
                self._figures.popitem(last=False)
            self._final.notify_all()

    def _backlog(self) -> int:
        return sum(written.size for written in self._unwritten)

    def _publish_snapshot(self, now_s: float, wall_s: float) -> None:
        states = self.meter.states(now_s, self._ask(self.source.errors, {}))
        states = self._as_durable(self._with_processes(states, now_s))
        if now_s - self._slow_s >= SLOW_EVERY_S:
            self._slow_s = now_s
            self._sensors = tuple(self._ask(self.source.sensors, ()))
            self._agent = replace(self._agent, cpu_s=time.process_time(), rss_bytes=_rss_bytes())
        self._agent = replace(
            self._agent,
            requests_pending=self.meter.pending,
            spans_late=self.meter.late_spans,
            messages_dropped=self.dropped,
            ledger_error=self._error_now(),
            ledger_backlog=self._backlog(),
        )
        self.snapshot = Snapshot(
            t_s=now_s,
            wall_s=wall_s,
            source=self.source.name,
            devices=states,
            sensors=self._sensors,
            requests=tuple(self._totals.values()),
            agent=self._agent,
        )

    def _as_durable(self, states: dict[str, DeviceState]) -> dict[str, DeviceState]:
        """Totals are shown once they are in the ledger: a kill would make others fall."""
        if not self._unwritten:
            self._durable = {device: state.totals for device, state in states.items()}
            return states
        none = DeviceTotals()
        return {device: replace(state, totals=self._durable.get(device, none)) for device, state in states.items()}

    def _with_processes(self, states: dict[str, DeviceState], now_s: float) -> dict[str, DeviceState]:
        """Foreign processes are looked for only while energy goes unattributed."""
        suspects = {device for device, meter in self.meter.devices.items() if meter.unattributed_lately}
        if not suspects:
            return states
        if now_s - self._asked_s >= (PROCESSES_EVERY_S if self._processes else PROCESSES_FIRST_S):
            self._asked_s = now_s
            nobody: Sequence[GpuProcess] = ()
            no_pids: Collection[int] = ()
            found = self._ask(self.source.processes, nobody)
            metered = self._ask(self.metered_pids, no_pids)
            self._processes = tuple(process for process in found if process.pid not in metered)
        return {
            device: replace(state, processes=tuple(p for p in self._processes if p.device == device))
            if device in suspects
            else state
            for device, state in states.items()
        }


def _billed(span: Span) -> set[str]:
    return {member.request_id for member in span.members} or {span.request_id}


def _joined(first: Progress, rest: Progress) -> Progress:
    return Progress(first.entries + rest.entries, first.accounts + rest.accounts, first.positions + rest.positions)


def _rss_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0

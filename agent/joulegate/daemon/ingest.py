"""How span edges reach the loop: from this process, over the socket, over HTTP; and how the answers go back."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from weakref import WeakSet

from joulegate.daemon.loop import Began, Claimed, Delivery, Ended, MeterLoop, Orphaned
from joulegate.http.ports import IngestBusy, Receipt, SpansRefused
from joulegate.metering.entry import RequestEntry
from joulegate.metering.reading import Device
from joulegate.metering.span import Outcome, Span
from joulegate.pipelines.socket_server import Message, MessagesDropped, SpanBegan, SpanEnded, Ticket
from joulegate.pipelines.visible import visible_devices

OPEN_SPANS = 20_000
RETRY_AFTER_S = 1


class LocalSink:
    """The meter in this very process. Implements ``pipelines.ports.SpanSink``; ``close`` runs ``on_close`` once.

    A forked child has no loop: there, and after ``close``, edges are counted as dropped and there are no figures.
    """

    def __init__(
        self,
        loop: MeterLoop,
        environ: dict[str, str],
        on_close: Callable[[], None],
        views: Callable[[RequestEntry], Mapping[str, object]] | None = None,
    ) -> None:
        """``views`` gives the CO2e, water and cost of an entry, where they can be given."""
        self.dropped = 0
        self._views = views
        self._loop: MeterLoop | None = loop
        self._environ = environ
        self._on_close: Callable[[], None] | None = on_close
        self._spans: OrderedDict[str, Span] = OrderedDict()
        self._ends: dict[str, tuple[float, Outcome]] = {}
        _sinks.add(self)

    def begin(self, span: Span) -> None:
        """Queue the start; constant work, no lock."""
        spans, loop = self._spans, self._loop
        spans[span.request_id] = span
        if len(spans) > OPEN_SPANS:
            forgotten, _ = spans.popitem(last=False)
            self._ends.pop(forgotten, None)
        if loop is None or not loop.submit(Delivery(Began(span))):
            self.dropped += 1

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """Queue the end."""
        self._ends[request_id] = (ended_s, outcome)
        loop = self._loop
        if loop is None or not loop.submit(Delivery(Ended(request_id, ended_s, outcome))):
            self.dropped += 1

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The loop's figures, or before its next turn what the model says of the span."""
        loop = self._loop
        if loop is None:
            return None
        entry = loop.lookup(request_id)
        if entry is not None:
            return self._seen(entry)
        span, end = self._spans.get(request_id), self._ends.get(request_id)
        if span is None:
            return None
        if end is not None:
            span = replace(span, ended_s=end[0], outcome=end[1])
        drafts = loop.meter.provisional(span, time.monotonic())
        return self._seen(next((draft for draft in drafts if draft.request_id == request_id), None))

    def _seen(self, entry: RequestEntry | None) -> RequestEntry | None:
        """The entry with the views on its energy."""
        if entry is None or self._views is None:
            return entry
        return replace(entry, views=self._views(entry))

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Block until the entry is final."""
        loop = self._loop
        return None if loop is None else self._seen(loop.wait(request_id, timeout_s))

    def visible_devices(self) -> tuple[str, ...]:
        """Devices of this host that this process may use."""
        loop = self._loop
        return () if loop is None else visible_devices(loop.source.devices(), self._environ)

    def close(self) -> None:
        """Settle and stop the loop; the figures that are known can still be looked up."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def after_fork(self) -> None:
        """In a forked child: the loop's thread, its locks and its devices are the parent's."""
        self._loop = self._on_close = None
        self._spans.clear()
        self._ends.clear()


_sinks: WeakSet[LocalSink] = WeakSet()


def _after_fork_in_child() -> None:
    for sink in tuple(_sinks):
        sink.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class SocketIngest:
    """Implements ``pipelines.socket_server.SpanIngest`` over the loop.

    ``acknowledge`` is called with the tickets of a commit, once for each commit.
    """

    def __init__(self, loop: MeterLoop) -> None:
        self.acknowledge: Callable[[list[Ticket]], None] = _nobody
        self._loop = loop
        self._durable: list[Ticket] = []
        loop.after_commit = self._flush

    def submit(self, message: Message, ticket: Ticket) -> bool:
        """Hand the message over; its ticket is acknowledged when the ledger has it."""
        if isinstance(message, MessagesDropped):
            self._loop.dropped += message.count
            self.acknowledge([ticket])
            return True
        return self._loop.submit(Delivery(_edge(message), lambda _new: self._durable.append(ticket)))

    def _flush(self) -> None:
        durable, self._durable = self._durable, []
        if durable:
            self.acknowledge(durable)

    def lookup(self, request_id: str) -> RequestEntry | None:
        """Figures at hand; who asks for a request answers for it."""
        self._loop.submit(Delivery(Claimed((request_id,))))
        return self._loop.lookup(request_id)

    def devices(self) -> Sequence[Device]:
        """The metered devices."""
        return self._loop.source.devices()

    def lost(self, request_ids: Sequence[str]) -> None:
        """The connection that told of these requests broke just now."""
        self._loop.submit(Delivery(Orphaned(tuple(request_ids), time.monotonic())))


def _nobody(tickets: list[Ticket]) -> None:
    del tickets


def _edge(message: SpanBegan | SpanEnded) -> Began | Ended:
    if isinstance(message, SpanBegan):
        return Began(message.span)
    return Ended(message.request_id, message.ended_s, message.outcome)


class HttpIngest:
    """Implements ``http.ports.SpanIngest``: answers when the commit is durable."""

    def __init__(self, loop: MeterLoop) -> None:
        self._loop = loop

    async def submit(self, spans: Sequence[Span]) -> Receipt:
        """Take all spans or none.

        Raises ``SpansRefused`` for a device that is not metered, ``IngestBusy`` when the loop cannot take them now.
        """
        self._refuse_unknown(spans)
        running = asyncio.get_running_loop()
        answers: list[asyncio.Future[bool]] = [running.create_future() for _ in spans]
        deliveries = [
            Delivery(Began(span), _answering(running, answer)) for span, answer in zip(spans, answers, strict=True)
        ]
        if not self._loop.submit(*deliveries):
            raise IngestBusy("the ledger cannot keep up", RETRY_AFTER_S)
        new = await asyncio.gather(*answers)
        return Receipt(accepted=sum(new), duplicates=len(new) - sum(new))

    def _refuse_unknown(self, spans: Sequence[Span]) -> None:
        known = self._loop.device_ids
        faults = []
        for place, span in enumerate(spans):
            unknown = [device for device in span.devices if device not in known]
            if unknown:
                names = ", ".join(unknown[:3])
                faults.append((place, "devices", f"{names}: not a metered device; GET /v1/devices lists them"))
        if faults:
            raise SpansRefused(faults)


def _answering(running: asyncio.AbstractEventLoop, answer: asyncio.Future[bool]) -> Callable[[bool], None]:
    def set_result(new: bool) -> None:
        if not answer.done():
            answer.set_result(new)

    def tell(new: bool) -> None:
        with suppress(RuntimeError):  # the server has stopped: its client posts again, and counts as a duplicate
            running.call_soon_threadsafe(set_result, new)

    return tell

"""How span edges reach the loop: from this process, over the socket, over HTTP; and how the answers go back."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from joulegate.daemon.loop import Began, Delivery, Ended, MeterLoop
from joulegate.http.ports import IngestBusy, Receipt
from joulegate.metering.entry import RequestEntry
from joulegate.metering.reading import Device
from joulegate.metering.span import Outcome, Span
from joulegate.pipelines.socket_server import Message, MessagesDropped, SpanBegan, SpanEnded, Ticket
from joulegate.pipelines.visible import visible_devices

OPEN_SPANS = 20_000
RETRY_AFTER_S = 1


class LocalSink:
    """The meter in this very process. Implements ``pipelines.ports.SpanSink``; ``close`` runs ``on_close`` once."""

    def __init__(self, loop: MeterLoop, environ: dict[str, str], on_close: Callable[[], None]) -> None:
        self.dropped = 0
        self._loop = loop
        self._environ = environ
        self._on_close: Callable[[], None] | None = on_close
        self._spans: OrderedDict[str, Span] = OrderedDict()

    def begin(self, span: Span) -> None:
        """Queue the start; constant work, no lock."""
        self._spans[span.request_id] = span
        if len(self._spans) > OPEN_SPANS:
            self._spans.popitem(last=False)
        if not self._loop.submit(Delivery(Began(span))):
            self.dropped += 1

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """Queue the end."""
        span = self._spans.get(request_id)
        if span is not None:
            self._spans[request_id] = replace(span, ended_s=ended_s, outcome=outcome)
        if not self._loop.submit(Delivery(Ended(request_id, ended_s, outcome))):
            self.dropped += 1

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The loop's figures, or before its next turn what the model says of the span."""
        entry = self._loop.lookup(request_id)
        if entry is not None:
            return entry
        span = self._spans.get(request_id)
        if span is None:
            return None
        drafts = self._loop.meter.provisional(span, time.monotonic())
        return next((draft for draft in drafts if draft.request_id == request_id), None)

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Block until the entry is final."""
        return self._loop.wait(request_id, timeout_s)

    def visible_devices(self) -> tuple[str, ...]:
        """Devices of this host that this process may use."""
        return visible_devices(self._loop.source.devices(), self._environ)

    def close(self) -> None:
        """Settle and stop the loop."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class SocketIngest:
    """Implements ``pipelines.socket_server.SpanIngest`` over the loop; ``acknowledge`` is called after the commit."""

    def __init__(self, loop: MeterLoop) -> None:
        self.acknowledge: Callable[[list[Ticket]], None] = _nobody
        self._loop = loop

    def submit(self, message: Message, ticket: Ticket) -> bool:
        """Hand the message over; its ticket is acknowledged when the ledger has it."""
        if isinstance(message, MessagesDropped):
            self._loop.dropped += message.count
            self.acknowledge([ticket])
            return True
        return self._loop.submit(Delivery(_edge(message), lambda _new: self.acknowledge([ticket])))

    def lookup(self, request_id: str) -> RequestEntry | None:
        """Figures at hand."""
        return self._loop.lookup(request_id)

    def devices(self) -> Sequence[Device]:
        """The metered devices."""
        return self._loop.source.devices()


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
        """Take all spans; raises ``IngestBusy`` when the loop cannot take them now."""
        running = asyncio.get_running_loop()
        answers: list[asyncio.Future[bool]] = []
        for span in spans:
            answer: asyncio.Future[bool] = running.create_future()
            if not self._loop.submit(Delivery(Began(span), _answering(running, answer))):
                raise IngestBusy("the ledger cannot keep up", RETRY_AFTER_S)
            answers.append(answer)
        new = await asyncio.gather(*answers)
        return Receipt(accepted=sum(new), duplicates=len(new) - sum(new))


def _answering(running: asyncio.AbstractEventLoop, answer: asyncio.Future[bool]) -> Callable[[bool], None]:
    def set_result(new: bool) -> None:
        if not answer.done():
            answer.set_result(new)

    return lambda new: None if running.is_closed() else _call(running, set_result, new)


def _call(running: asyncio.AbstractEventLoop, set_result: Callable[[bool], None], new: bool) -> None:
    running.call_soon_threadsafe(set_result, new)

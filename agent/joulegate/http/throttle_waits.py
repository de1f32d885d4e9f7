"""Answers that take their time: the long-poll and the stream of server-sent events. Both end with the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from joulegate.http.parts import ThrottleParts
from joulegate.http.problems import unavailable
from joulegate.http.throttle_pages import ROOT, Desk
from joulegate.http.throttle_ports import Prepared

STREAM = f"{ROOT}/stream"
RETRY_MS = 5000
"""After how long a client that lost the stream comes back."""

_EVENTS = "text/event-stream"
_NO_BUFFERING = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_SEND_PATIENCE_S = 30.0
_T = TypeVar("_T")


async def first(work: Coroutine[Any, Any, _T], *others: Coroutine[Any, Any, object]) -> _T | None:
    """The result of ``work``, or ``None`` where one of ``others`` ends before it; none of them runs on."""
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(each) for each in (work, *others)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        result: _T | None = tasks[0].result() if tasks[0].done() else None
        return result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Waits:
    """The long-polls and streams over ``parts``, so many of each at once and no more."""

    def __init__(self, parts: ThrottleParts, desk: Desk) -> None:
        self.parts = parts
        self.desk = desk
        self.stop = asyncio.Event() if parts.stop is None else parts.stop
        self.polls = 0
        self.streams = 0

    def poll(self, sequence: int, tags: bytes | None, wait_s: float) -> Response:
        """The answer once there is a recommendation later than ``sequence``, at the latest after ``wait_s``."""
        return _LongPoll(self, sequence, tags, wait_s)

    def stream(self, last_id: str | None) -> Response:
        """Every change from now on, after those that were missed since ``last_id``."""
        return _EventStream(self, last_id)


def stream_head() -> Response:
    """The head of a stream alone, for HEAD."""
    return Response(None, 200, {**_NO_BUFFERING, "Content-Type": _EVENTS})


class _LongPoll(Response):
    def __init__(self, waits: Waits, sequence: int, tags: bytes | None, wait_s: float) -> None:
        super().__init__()
        self._waits = waits
        self._sequence = sequence
        self._tags = tags
        self._wait_s = wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waits = self._waits
        if waits.polls < waits.parts.max_polls:
            waits.polls += 1
            try:
                change = waits.parts.reader.changed(self._sequence, self._wait_s)
                await first(change, waits.stop.wait(), _left(receive))
            finally:
                waits.polls -= 1
        await waits.desk.present().by_path[ROOT].answer(self._tags)(scope, receive, send)


async def _left(receive: Receive) -> None:
    """Returns when the client has gone; what it still sends is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    def __init__(self, waits: Waits, last_id: str | None) -> None:
        super().__init__(_frames(waits, last_id), 200, _NO_BUFFERING, _EVENTS)
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waits = self._waits
        if waits.streams >= waits.parts.max_streams:
            raise unavailable("too-many-streams", f"{waits.streams} streams are open; poll {ROOT} instead", 5.0)

        async def send_soon(message: Message) -> None:
            try:
                async with asyncio.timeout(_SEND_PATIENCE_S):
                    await send(message)
            except TimeoutError as error:
                raise ClientDisconnect from error

        waits.streams += 1
        try:
            await super().__call__(scope, receive, send_soon)
        finally:
            waits.streams -= 1


async def _frames(waits: Waits, last_id: str | None) -> AsyncIterator[bytes]:
    """The frames of one client. Only the newest waits for a slow one: what it misses is not kept for it."""
    reader, heartbeat_s = waits.parts.reader, waits.parts.heartbeat_s
    yield b"retry: %d\n\n" % RETRY_MS
    sequence = -1
    for prepared in _missed(reader.after(-1), reader.newest(), last_id):
        sequence = prepared.sequence
        if prepared.decision_id != last_id:
            yield prepared.event
    while not waits.stop.is_set():
        change = await first(reader.changed(sequence, heartbeat_s), waits.stop.wait())
        if waits.stop.is_set():
            break
        if change is None:
            yield b":\n\n"
        else:
            sequence = change.sequence
            yield change.event


def _missed(kept: Sequence[Prepared], newest: Prepared | None, last_id: str | None) -> Sequence[Prepared]:
    """From the one that the client had last; the newest alone for a client that had none of those kept."""
    for index, prepared in enumerate(kept):
        if prepared.decision_id == last_id:
            return kept[index:]
    return () if newest is None else (newest,)

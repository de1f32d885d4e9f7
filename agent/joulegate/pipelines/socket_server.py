"""The daemon's end of the unix socket by which pipelines in other processes report their spans.

The protocol, version 1: one JSON object a line, UTF-8, at most 64 KiB from a client. Every object has ``"v": 1`` and a
``type``. Times are CLOCK_MONOTONIC seconds, which all processes of a machine share.

Client to daemon:
    {"v":1, "type":"hello", "pid":4711}                       first; the daemon answers with ``welcome``
    {"v":1, "type":"begin", "seq":1, "span":{...}}            fields of ``metering.wire.span_from_wire``
    {"v":1, "type":"end", "seq":2, "request_id":"a", "ended_s":12.5, "outcome":"ok"}
    {"v":1, "type":"dropped", "seq":3, "count":17}            messages that the client had to drop
    {"v":1, "type":"watch", "request_ids":["a"]}              after a reconnection: send these figures to me
Daemon to client:
    {"v":1, "type":"welcome", "devices":[{"id":"GPU-...", "index":0, "scope":"gpu"}]}
    {"v":1, "type":"ack", "seqs":[[1,2],[5,5]]}               these ranges are durable; forget them
    {"v":1, "type":"rejected", "seq":3, "why":"steps: ..."}   this one never will be; forget it
    {"v":1, "type":"entry", "entry":{...}}                    figures, provisional or final (``entry_to_wire``)
    {"v":1, "type":"error", "why":"..."}                      the connection is closed for this reason

A client keeps what is not acknowledged and sends it again after a reconnection; whoever takes the messages is
idempotent by request id, so that each span counts once.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import NoReturn, Protocol

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.span import Outcome, Span
from joulegate.metering.wire import WireFault, end_from_wire, entry_to_wire, span_from_wire
from joulegate.pipelines.visible import Identified

VERSION = 1
_CREDENTIALS = struct.Struct("3i")
MAX_LINE_BYTES = 64 * 1024
SOCKET_MODE = 0o660
_BACKLOG = 128
_PROBE_S = 0.5
_MESSAGES_A_TURN = 64
_ACCEPT_PAUSE_S = 0.5


class SocketFault(Exception):
    """The socket cannot be served; one line: what, where and what to do."""


class SocketInUse(SocketFault):
    """Somebody answers on this socket already."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names a message until it is durable: the connection it came by and its number there."""

    connection: int
    seq: int


@dataclass(frozen=True, slots=True)
class SpanBegan:
    """A span began (or, sent again, had begun). ``span.devices`` may be empty: the sender knew of none."""

    span: Span


@dataclass(frozen=True, slots=True)
class SpanEnded:
    """A span ended (or, sent again, had ended)."""

    request_id: str
    ended_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class MessagesDropped:
    """A client had to drop ``count`` messages that nobody will see."""

    count: int


Message = SpanBegan | SpanEnded | MessagesDropped


class SpanIngest(Protocol):
    """Whoever meters: it takes messages on the server's event loop, and must neither block nor raise there.

    After the durable commit it calls ``SocketServer.acknowledge`` with the tickets, from any thread, and
    ``SocketServer.publish`` with new figures.
    """

    def submit(self, message: Message, ticket: Ticket) -> bool:
        """Take a message; False when full, and then it is offered again a little later."""

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The newest figures at hand, for a client that comes back; ``None`` when there are none."""

    def devices(self) -> Sequence[Identified]:
        """The devices that are metered."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take of the daemon; beyond it the client is dropped and counted."""

    connections: int = 256
    line_bytes: int = MAX_LINE_BYTES
    unsent_bytes: int = 1024 * 1024
    ahead_s: float = 1.0
    watched: int = 16_384
    hello_s: float = 5.0
    linger_s: float = 0.5
    full_pause_s: float = 0.05


@dataclass(slots=True)
class ServerCounts:
    """What the server went through since its start; ``refused_clients`` names a reason for each dropped client."""

    connections: int = 0
    messages: int = 0
    rejected: int = 0
    unsendable: int = 0
    broken_connections: int = 0
    dropped_by_clients: int = 0
    refused_clients: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Connection:
    number: int
    writer: asyncio.StreamWriter
    pid: int
    watched: dict[str, None] = field(default_factory=dict)


class _Refusal(Exception):
    """This client is not served any longer."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class SocketServer:
    """Serves the socket at ``path`` on the event loop that ``start`` is called on; hands messages to ``ingest``.

    ``on_lost`` is told which requests without final figures a broken connection leaves behind; a client that comes
    back asks for them with ``watch``.
    """

    def __init__(
        self,
        path: Path,
        ingest: SpanIngest,
        limits: Limits | None = None,
        on_lost: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.path = path
        self.counts = ServerCounts()
        self._ingest = ingest
        self._on_lost = on_lost
        self._limits = Limits() if limits is None else limits
        self._connections: dict[int, _Connection] = {}
        self._watchers: dict[str, _Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Bind and serve. Raises ``SocketFault``; a file that nobody answers on is taken over."""
        self._loop = asyncio.get_running_loop()
        self._listener = await asyncio.to_thread(_listen, self.path)
        self._inode = self.path.stat().st_ino
        self._loop.add_reader(self._listener.fileno(), self._accept, self._loop, self._listener)

    async def close(self) -> None:
        """Stop serving, drop the clients (they keep what is not acknowledged) and remove the socket file."""
        if self._listener is None or self._loop is None:
            return
        listener, self._listener = self._listener, None
        self._loop.remove_reader(listener.fileno())
        listener.close()
        for connection in self._connections.values():
            connection.writer.close()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=2 * self._limits.linger_s)
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def peer_pids(self) -> frozenset[int]:
        """Processes that are connected now, as the kernel names them; from any thread."""
        return frozenset(connection.pid for connection in tuple(self._connections.values()))

    def acknowledge(self, tickets: Iterable[Ticket]) -> None:
        """Tell the senders that these messages are durable; from any thread, once per commit."""
        self._from_any_thread(self._acknowledge, tuple(tickets))

    def publish(self, entries: Iterable[RequestEntry]) -> None:
        """Send new figures to the connections that watch these requests; from any thread, once per commit."""
        self._from_any_thread(self._publish, tuple(entries))

    def _from_any_thread(self, call: object, items: tuple[object, ...]) -> None:
        if items and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the clients will ask again
                self._loop.call_soon_threadsafe(call, items)  # type: ignore[arg-type]

    def _acknowledge(self, tickets: tuple[Ticket, ...]) -> None:
        seqs: dict[int, list[int]] = {}
        for ticket in tickets:
            seqs.setdefault(ticket.connection, []).append(ticket.seq)
        for number, acknowledged in seqs.items():
            connection = self._connections.get(number)
            if connection is not None:
                self._send(connection, {"type": "ack", "seqs": ranges(acknowledged)})

    def _publish(self, entries: tuple[RequestEntry, ...]) -> None:
        for entry in entries:
            connection = self._watchers.get(entry.request_id)
            if connection is not None:
                self._send_entry(connection, entry)

    def _accept(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:  # too many open files: leave them in the queue for a while
            self.counts.broken_connections += 1
            loop.remove_reader(listener.fileno())
            loop.call_later(_ACCEPT_PAUSE_S, self._accept_again, loop, listener)
            return
        accepted.setblocking(False)
        self.counts.connections += 1
        task = loop.create_task(self._serve(accepted, self.counts.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept_again(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        if listener is self._listener:
            loop.add_reader(listener.fileno(), self._accept, loop, listener)

    async def _serve(self, accepted: socket.socket, number: int) -> None:
        pid = _peer_pid(accepted)
        reader, writer = await asyncio.open_unix_connection(sock=accepted, limit=self._limits.line_bytes)
        connection = self._connections[number] = _Connection(number, writer, pid)
        try:
            await self._converse(connection, reader)
        except _Refusal as refusal:
            self._refuse(connection, refusal.reason, str(refusal))
        except OSError:
            self.counts.broken_connections += 1
        finally:
            await self._hang_up(writer)
            self._forget(connection)

    async def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        try:
            await asyncio.wait_for(writer.wait_closed(), self._limits.linger_s)
        except (TimeoutError, OSError):
            writer.transport.abort()

    async def _converse(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        if self._listener is None:
            raise _Refusal("closing", "the daemon is stopping")
        if len(self._connections) > self._limits.connections:
            raise _Refusal("too_many_connections", f"{self._limits.connections} connections are open already")
        try:
            hello = await asyncio.wait_for(self._receive(reader), self._limits.hello_s)
        except TimeoutError:
            raise _Refusal("no_hello", f"no hello within {self._limits.hello_s:g} s") from None
        if hello is None:
            return
        if hello.get("type") != "hello":
            raise _Refusal("no_hello", "the first message must be a hello")
        devices = [{"id": device.id, "index": device.index, "scope": device.scope} for device in self._ingest.devices()]
        self._send(connection, {"type": "welcome", "devices": devices})
        turn = 0
        while (message := await self._receive(reader)) is not None:
            await self._take(connection, message)
            turn += 1
            if turn % _MESSAGES_A_TURN == 0:
                await asyncio.sleep(0)

    async def _receive(self, reader: asyncio.StreamReader) -> Mapping[str, object] | None:
        """The next object, or ``None`` at the end of the stream."""
        try:
            line = await reader.readline()
        except ValueError:
            raise _Refusal("line_too_long", f"a line has more than {self._limits.line_bytes} bytes") from None
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise _Refusal("not_json", "a line is not JSON") from None
        if not isinstance(message, dict):
            raise _Refusal("not_json", "a line is not a JSON object")
        if message.get("v") != VERSION:
            raise _Refusal("version", f"this daemon speaks version {VERSION}")
        self.counts.messages += 1
        return message

    async def _take(self, connection: _Connection, message: Mapping[str, object]) -> None:
        if message.get("type") == "watch":
            self._watch_again(connection, message.get("request_ids"))
            return
        seq = message.get("seq")
        if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
            raise _Refusal("no_seq", "seq: must be a whole number that is not negative")
        try:
            parsed = _parse(message)
            _no_future(parsed, monotonic() + self._limits.ahead_s)
        except WireFault as fault:
            self.counts.rejected += 1
            self._send(connection, {"type": "rejected", "seq": seq, "why": str(fault)})
            return
        if isinstance(parsed, SpanBegan):
            for request_id in billed_ids(parsed.span):
                self._watch(connection, request_id)
        elif isinstance(parsed, MessagesDropped):
            self.counts.dropped_by_clients += parsed.count
        ticket = Ticket(connection.number, seq)
        while not self._ingest.submit(parsed, ticket):  # noqa: ASYNC110 - the ingest has no event loop to signal
            await asyncio.sleep(self._limits.full_pause_s)

    def _watch(self, connection: _Connection, request_id: str) -> None:
        before = self._watchers.get(request_id)
        if before is not None and before is not connection:
            before.watched.pop(request_id, None)
        if len(connection.watched) >= self._limits.watched:
            oldest = next(iter(connection.watched))
            del connection.watched[oldest], self._watchers[oldest]
        connection.watched[request_id] = None
        self._watchers[request_id] = connection

    def _watch_again(self, connection: _Connection, request_ids: object) -> None:
        if not isinstance(request_ids, list):
            raise _Refusal("bad_watch", "request_ids: must be a list")
        for request_id in request_ids:
            if not isinstance(request_id, str):
                raise _Refusal("bad_watch", "request_ids: must be a list of text")
            self._watch(connection, request_id)
            entry = self._ingest.lookup(request_id)
            if entry is not None:
                self._send_entry(connection, entry)

    def _unwatch(self, connection: _Connection, request_id: str) -> None:
        connection.watched.pop(request_id, None)
        if self._watchers.get(request_id) is connection:
            del self._watchers[request_id]

    def _send_entry(self, connection: _Connection, entry: RequestEntry) -> None:
        self._send(connection, {"type": "entry", "entry": entry_to_wire(entry)})
        if entry.status is Status.FINAL:
            self._unwatch(connection, entry.request_id)

    def _send(self, connection: _Connection, message: Mapping[str, object]) -> None:
        transport = connection.writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._limits.unsent_bytes:
            self._count_refusal("does_not_read")
            transport.abort()
            return
        try:
            line = json.dumps({"v": VERSION, **message}, separators=(",", ":"), allow_nan=False)
        except ValueError:
            self.counts.unsendable += 1
            return
        connection.writer.write(line.encode() + b"\n")

    def _refuse(self, connection: _Connection, reason: str, why: str) -> None:
        self._count_refusal(reason)
        self._send(connection, {"type": "error", "why": why})

    def _count_refusal(self, reason: str) -> None:
        self.counts.refused_clients[reason] = self.counts.refused_clients.get(reason, 0) + 1

    def _forget(self, connection: _Connection) -> None:
        del self._connections[connection.number]
        left = [request_id for request_id in connection.watched if self._watchers.get(request_id) is connection]
        for request_id in left:
            del self._watchers[request_id]
        if left and self._on_lost is not None:
            self._on_lost(left)


def _peer_pid(accepted: socket.socket) -> int:
    pid, _, _ = _CREDENTIALS.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Whole numbers as sorted closed ranges: 1, 2, 3, 7 -> [[1, 3], [7, 7]]."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number <= runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def billed_ids(span: Span) -> tuple[str, ...]:
    """Ids of the requests that get figures from ``span``."""
    return tuple(member.request_id for member in span.members) or (span.request_id,)


def _parse(message: Mapping[str, object]) -> Message:
    kind = message.get("type")
    if kind == "begin":
        span = message.get("span")
        if not isinstance(span, dict):
            raise WireFault("span: must be an object")
        return SpanBegan(span_from_wire(span, now_s=monotonic(), wall_s=time()))
    if kind == "end":
        return SpanEnded(*end_from_wire(message))
    if kind == "dropped":
        count = message.get("count")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise WireFault("count: must be a whole number that is not negative")
        return MessagesDropped(count)
    raise WireFault("type: must be one of begin, end, dropped, watch")


def _no_future(message: Message, latest_s: float) -> None:
    """An edge that has not happened yet would hold the books open for ever."""
    if isinstance(message, SpanEnded) and message.ended_s > latest_s:
        raise WireFault("ended_s: is in the future")
    if isinstance(message, SpanBegan):
        if message.span.started_s > latest_s:
            raise WireFault("started_s: is in the future")
        if message.span.ended_s is not None and message.span.ended_s > latest_s:
            raise WireFault("ended_s: is in the future")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` that only the owner and the group may connect to."""
    _make_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(SOCKET_MODE)  # before listen(): until then nobody can connect, whatever the umask made of the file
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise SocketFault(f"socket {path}: {why}; choose another place with JOULEGATE_SOCKET") from None
    return listener


def _make_way(path: Path) -> None:
    """Remove a socket file that nobody answers on; raise ``SocketInUse`` when somebody does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketFault(f"socket {path}: {error.strerror}; choose another place with JOULEGATE_SOCKET") from None
    if not stat.S_ISSOCK(mode):
        raise SocketFault(f"socket {path}: is a file of another kind; remove it or choose another JOULEGATE_SOCKET")
    if answers(path, _PROBE_S):
        raise SocketInUse(f"socket {path}: another joulegate answers there; stop it or choose another JOULEGATE_SOCKET")
    with suppress(FileNotFoundError):
        path.unlink()


def answers(path: Path, timeout_s: float = 0.0) -> bool:
    """Whether a process listens on the socket at ``path``; one with a full queue does. Waits ``timeout_s`` at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(os.fspath(path))
        except (BlockingIOError, TimeoutError):
            return True
        except OSError:
            return False
        return True

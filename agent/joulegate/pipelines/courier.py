"""The courier: the one thread of a process that carries its spans to the daemon and brings figures back.

It alone touches the socket. Whatever the daemon does (dead, hung, slow, full, restarting), the pipeline's threads only
append to a bounded box; the courier keeps what is not acknowledged and sends it again after a reconnection.
"""

from __future__ import annotations

import json
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import monotonic

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.span import Outcome, Span
from joulegate.metering.wire import WireFault, entry_from_wire, span_to_wire
from joulegate.pipelines.socket_server import MAX_LINE_BYTES, VERSION, billed_ids
from joulegate.pipelines.visible import KnownDevice, resolve_devices

Edge = Span | tuple[str, float, Outcome]
"""A span that began, or the request id, end and outcome of one that ended."""

_IDS_A_WATCH = 32
_READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Pace:
    """Bounds and rhythm of a courier. Counts are messages, times seconds."""

    box: int = 16_384
    unacknowledged: int = 4_096
    figures: int = 4_096
    unsent_bytes: int = 256 * 1024
    unread_bytes: int = 4 * 1024 * 1024
    tick_s: float = 0.02
    calm_s: float = 0.5
    longest_sleep_s: float = 30.0
    first_retry_s: float = 0.05
    slowest_retry_s: float = 5.0
    welcome_s: float = 5.0
    close_s: float = 0.5


@dataclass(slots=True)
class CourierCounts:
    """What happened to the messages of this process."""

    dropped: int = 0
    rejected: int = 0
    unreadable: int = 0
    faults: int = 0
    connections: int = 0
    last_rejection: str | None = None


class Courier:
    """Carries ``box`` to the socket at ``path``; tells ``on_entry`` of figures and ``on_devices`` of the devices.

    Both are called on the courier's thread. ``on_devices`` returns the device ids that this process sees.
    """

    def __init__(
        self,
        path: Path,
        counts: CourierCounts,
        pace: Pace,
        on_entry: Callable[[RequestEntry], None],
        on_devices: Callable[[Sequence[KnownDevice]], tuple[str, ...]],
    ) -> None:
        self.box: deque[Edge] = deque(maxlen=pace.box)
        self.asleep = True
        self._path = path
        self._counts = counts
        self._pace = pace
        self._on_entry = on_entry
        self._on_devices = on_devices
        self._visible: tuple[str, ...] = ()
        self._seq = 0
        self._told_dropped = 0
        self._unacknowledged: dict[int, bytes] = {}
        self._awaited: dict[str, None] = {}
        self._connection: socket.socket | None = None
        self._welcomed = False
        self._unsent = bytearray()
        self._unread = bytearray()
        self._connected_s = 0.0
        self._busy_until_s = 0.0
        self._retry_s = pace.first_retry_s
        self._retry_at_s = 0.0
        self._close_by_s: float | None = None
        self._alarm_in, self._alarm_out = socket.socketpair()
        self._alarm_in.setblocking(False)
        self._alarm_out.setblocking(False)
        self._finished = Event()
        self._thread = Thread(target=self._run, name="joulegate-courier", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.asleep = False
        self._thread.start()

    def wake(self) -> None:
        """Rouse a courier that sleeps because there was nothing to carry."""
        self.asleep = False
        with suppress(OSError):  # full of alarms already, or closed
            self._alarm_in.send(b"!")

    def close(self) -> None:
        """Carry what can be carried within ``Pace.close_s``, then stop."""
        if self._thread.ident is None:
            self._leave()
            return
        if self._close_by_s is None:
            self._close_by_s = monotonic() + self._pace.close_s
            self.wake()
        self._finished.wait(self._pace.close_s)

    def abandon(self) -> None:
        """Let go of the descriptors; also what a forked child does, for the parent's messages are not its to send."""
        self._disconnect()
        self._alarm_in.close()
        self._alarm_out.close()

    def _run(self) -> None:
        while not self._is_finished():
            try:
                self._turn()
            except OSError:
                self._disconnect()
                self._retry_later()
            except Exception:  # noqa: BLE001 - one bad turn must not end the metering of this process
                self._counts.faults += 1
                self._disconnect()
                self._retry_later()
        self._leave()

    def _leave(self) -> None:
        self._close_by_s = monotonic()
        self.abandon()
        self._counts.dropped += len(self.box)
        self.box.clear()
        self._finished.set()

    def _is_finished(self) -> bool:
        if self._close_by_s is None:
            return False
        idle = not (self.box or self._unacknowledged or self._unsent)
        return idle or monotonic() >= self._close_by_s

    def _turn(self) -> None:
        now_s = monotonic()
        if self._connection is None and now_s >= self._retry_at_s:
            self._connect(now_s)
        if self._connection is not None and not self._welcomed and now_s > self._connected_s + self._pace.welcome_s:
            raise TimeoutError("no welcome")
        if self._welcomed:
            self._pack(now_s)
        self._exchange(self._patience_s(now_s))

    def _connect(self, now_s: float) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        self._connection = connection
        self._connected_s = now_s
        connection.connect(os.fspath(self._path))
        self._counts.connections += 1
        self._put({"type": "hello", "pid": os.getpid()})

    def _pack(self, now_s: float) -> None:
        """Take edges out of the box as far as the bounds allow."""
        dropped = self._counts.dropped - self._told_dropped
        if dropped > 0 and len(self._unacknowledged) < self._pace.unacknowledged:
            self._told_dropped += dropped
            self._carry({"type": "dropped", "count": dropped})
        if self.box:
            self._busy_until_s = now_s + self._pace.calm_s
        while (
            self.box
            and len(self._unsent) < self._pace.unsent_bytes
            and len(self._unacknowledged) < self._pace.unacknowledged
        ):
            self._carry_edge(self.box.popleft())

    def _carry_edge(self, edge: Edge) -> None:
        if isinstance(edge, Span):
            wire = span_to_wire(edge)
            wire["devices"] = resolve_devices(edge.devices, self._visible) if edge.devices else self._visible
            for request_id in billed_ids(edge):
                self._await(request_id)
            self._carry({"type": "begin", "span": wire})
        else:
            request_id, ended_s, outcome = edge
            self._carry({"type": "end", "request_id": request_id, "ended_s": ended_s, "outcome": outcome.value})

    def _carry(self, message: dict[str, object]) -> None:
        self._seq += 1
        message["seq"] = self._seq
        try:
            line = _line(message)
        except (TypeError, ValueError):
            line = b""
        if not line or len(line) >= MAX_LINE_BYTES:
            self._counts.dropped += 1
            return
        self._unacknowledged[self._seq] = line
        self._unsent += line

    def _put(self, message: dict[str, object]) -> None:
        self._unsent += _line(message)

    def _await(self, request_id: str) -> None:
        if len(self._awaited) >= self._pace.figures:
            del self._awaited[next(iter(self._awaited))]
        self._awaited[request_id] = None

    def _patience_s(self, now_s: float) -> float:
        """How long this turn may wait; it may sleep long only when nothing can come that nobody would tell of."""
        if self._close_by_s is not None:
            return max(0.0, min(self._pace.tick_s, self._close_by_s - now_s))
        if self._connection is None:
            return max(0.0, self._retry_at_s - now_s)
        if not self._welcomed or self._unsent or now_s < self._busy_until_s:
            return self._pace.tick_s
        if len(self._unacknowledged) >= self._pace.unacknowledged:
            return self._pace.longest_sleep_s
        self.asleep = True
        if self.box:
            self.asleep = False
            return 0.0
        return self._pace.longest_sleep_s

    def _exchange(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._alarm_out, select.POLLIN)
        connection = self._connection
        if connection is not None:
            poll.register(connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        ready = dict(poll.poll(timeout_s * 1e3))
        self.asleep = False
        if self._alarm_out.fileno() in ready:
            self._alarm_out.recv(4096)
        events = ready.get(connection.fileno(), 0) if connection is not None else 0
        if connection is None or not events:
            return
        with suppress(BlockingIOError):  # poll() may promise more than the socket then takes
            if events & ~select.POLLOUT:
                self._read(connection)
            if events & select.POLLOUT:
                del self._unsent[: connection.send(self._unsent)]

    def _read(self, connection: socket.socket) -> None:
        data = connection.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the daemon closed the connection")
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        for line in lines:
            self._take(bytes(line))
        if len(self._unread) > self._pace.unread_bytes:
            raise ConnectionAbortedError("the daemon sends a line without end")

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            kind = message["type"]
            if kind == "welcome":
                self._welcome(message)
            elif kind == "ack":
                self._acknowledge(message)
            elif kind == "rejected":
                self._reject(message)
            elif kind == "entry":
                self._figures(entry_from_wire(message["entry"]))
            elif kind == "error":
                self._counts.last_rejection = str(message["why"])
                self._retry_s = self._pace.slowest_retry_s
        except (WireFault, ValueError, TypeError, KeyError, RecursionError):
            self._counts.unreadable += 1

    def _welcome(self, message: Mapping[str, list[dict[str, object]]]) -> None:
        devices = [
            KnownDevice(str(item["id"]), item["index"] if isinstance(item["index"], int) else None, str(item["scope"]))
            for item in message["devices"]
        ]
        self._visible = self._on_devices(devices)
        self._welcomed = True
        self._retry_s = self._pace.first_retry_s
        for line in self._unacknowledged.values():
            self._unsent += line
        awaited = tuple(self._awaited)
        for start in range(0, len(awaited), _IDS_A_WATCH):
            self._put({"type": "watch", "request_ids": awaited[start : start + _IDS_A_WATCH]})

    def _acknowledge(self, message: Mapping[str, list[list[int]]]) -> None:
        for first, last in message["seqs"]:
            for seq in range(first, min(last, self._seq) + 1):
                self._unacknowledged.pop(seq, None)

    def _reject(self, message: Mapping[str, object]) -> None:
        if self._unacknowledged.pop(int(str(message["seq"])), None) is not None:
            self._counts.rejected += 1
            self._counts.last_rejection = str(message["why"])

    def _figures(self, entry: RequestEntry) -> None:
        if entry.status is Status.FINAL:
            self._awaited.pop(entry.request_id, None)
        self._on_entry(entry)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._welcomed = False
        self._unsent.clear()
        self._unread.clear()

    def _retry_later(self) -> None:
        self._retry_at_s = monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, self._pace.slowest_retry_s)


def _line(message: dict[str, object]) -> bytes:
    text = json.dumps({"v": VERSION, **message}, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode() + b"\n"

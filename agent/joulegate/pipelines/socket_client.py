"""The pipeline's end of the daemon's socket: a sink that only appends, and the search for the socket."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Condition, Lock
from time import monotonic
from weakref import WeakSet

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.span import Outcome, Span
from joulegate.pipelines.courier import Courier, CourierCounts, Pace
from joulegate.pipelines.socket_server import answers
from joulegate.pipelines.visible import KnownDevice, visible_devices

SOCKET_NAME = "joulegate.sock"
SYSTEM_SOCKET = Path("/run/joulegate") / SOCKET_NAME


def find_socket(environ: Mapping[str, str]) -> Path | None:
    """The first socket that somebody answers on, or ``None``.

    Looked at in this order: $JOULEGATE_SOCKET, joulegate.sock in $JOULEGATE_STATE_DIR, /run/joulegate/joulegate.sock.
    """
    candidates = [SYSTEM_SOCKET]
    if environ.get("JOULEGATE_STATE_DIR"):
        candidates.insert(0, Path(environ["JOULEGATE_STATE_DIR"]) / SOCKET_NAME)
    if environ.get("JOULEGATE_SOCKET"):
        candidates.insert(0, Path(environ["JOULEGATE_SOCKET"]))
    return next((path for path in candidates if answers(path)), None)


class SocketSink:
    """Reports spans to the daemon at ``path``. The caller's thread stamps and appends, no more.

    The daemon may be dead, hung, slow, full or restarting: the newest messages are kept within ``Pace.box``, what does
    not fit is counted in ``dropped`` and told to the daemon later. ``counts`` tells the rest.
    """

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ, pace: Pace | None = None) -> None:
        self.path = path
        self._environ = environ
        self._pace = Pace() if pace is None else pace
        self._visible: tuple[str, ...] = ()
        self._figures: dict[str, RequestEntry] = {}
        self._closed = False
        self._new_courier()
        _sinks.add(self)

    @property
    def dropped(self) -> int:
        """Messages that were not delivered: box full, closed, or rejected by the daemon."""
        return self.counts.dropped + self.counts.rejected

    def begin(self, span: Span) -> None:
        """Hand on that ``span`` began."""
        self._append(span)

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """Hand on that a span ended."""
        self._append((request_id, ended_s, outcome))

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The newest figures that the daemon sent."""
        return self._figures.get(request_id)

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Block until the final figures have come, at most ``timeout_s``."""
        deadline_s = monotonic() + timeout_s
        with self._news:
            while True:
                entry = self._figures.get(request_id)
                if entry is not None and entry.status is Status.FINAL:
                    return entry
                left_s = deadline_s - monotonic()
                if left_s <= 0:
                    return None
                self._news.wait(left_s)

    def visible_devices(self) -> tuple[str, ...]:
        """The daemon's devices that this process sees; none before its first welcome (the courier fills them in)."""
        return self._visible

    def close(self) -> None:
        """Deliver what can be delivered within half a second."""
        self._closed = True
        self._courier.close()

    def after_fork(self) -> None:
        """In a forked child: begin anew, with none of the parent's messages, sockets or locks."""
        self._courier.abandon()
        self._new_courier()
        if self._closed:
            self._courier.close()

    def _new_courier(self) -> None:
        self.counts = CourierCounts()
        self._news = Condition()
        self._starting = Lock()
        self._started = False
        self._courier = Courier(self.path, self.counts, self._pace, self._keep, self._see)
        self._box = self._courier.box

    def _append(self, edge: Span | tuple[str, float, Outcome]) -> None:
        box = self._box
        if self._closed:
            self.counts.dropped += 1
            return
        if len(box) == box.maxlen:
            self.counts.dropped += 1
        box.append(edge)
        if self._courier.asleep:
            self._rouse()

    def _rouse(self) -> None:
        with self._starting:
            first, self._started = not self._started, True
        if not first:
            self._courier.wake()
            return
        self._courier.start()
        finalizers = sys.modules.get("multiprocessing.util")
        if finalizers is not None:
            finalizers.Finalize(None, self.close, exitpriority=10)  # its workers leave without running atexit

    def _keep(self, entry: RequestEntry) -> None:
        figures = self._figures
        with self._news:
            known = figures.pop(entry.request_id, None)
            figures[entry.request_id] = entry if known is None or known.status is not Status.FINAL else known
            if len(figures) > self._pace.figures:
                del figures[next(iter(figures))]
            if entry.status is Status.FINAL:
                self._news.notify_all()

    def _see(self, devices: Sequence[KnownDevice]) -> tuple[str, ...]:
        self._visible = visible_devices(devices, self._environ)
        return self._visible


_sinks: WeakSet[SocketSink] = WeakSet()


@atexit.register
def _close_all() -> None:
    for sink in tuple(_sinks):
        sink.close()


def _after_fork_in_child() -> None:
    for sink in tuple(_sinks):
        sink.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

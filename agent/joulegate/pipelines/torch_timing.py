"""Edges on the GPU's own clock: CUDA events on the pipeline's stream, read later and never waited for.

A kernel launch returns before the kernel runs, so the host's clock at begin and end is not when the GPU worked. An
event recorded on the current stream is reached in order with the work. A background thread asks ``event.query()`` and
places the event on the host's clock in two ways: it lies between the last time it was not reached and the first time
it was (the bracket), and, more finely, at a known distance from an anchor: an event on an idle stream of our own whose
moment the host saw (CUDA streams of torch's pool do not wait for the default stream). The user's streams are never
synchronised; an anchor is renewed before drift and the float32 milliseconds of ``elapsed_time`` matter.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from time import monotonic, sleep
from types import ModuleType
from typing import Any, Protocol

from joulegate.pipelines.request import EdgeMark

ASYNC_EDGE_S = 0.010
"""Standard uncertainty of a host edge while launches may be asynchronous (5 to 20 ms, notes/measurement.md 6.2)."""
ANCHOR_AGE_S = 10.0
DRIFT = 1e-4
"""Relative drift allowed between GPU and host clocks: ten times what oscillators of 10 ppm do."""
MAX_OUTSTANDING = 4096
_FIRST_POLL_S, _SLOWEST_POLL_S = 0.001, 0.02
_ANCHOR_TRIES = 8
_ANCHOR_PATIENCE_S = 0.005


class DeviceEvent(Protocol):
    """An event that was recorded on a device's stream; ``torch.cuda.Event`` is one."""

    def query(self) -> bool:
        """Whether the device has reached it; returns at once."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to ``end_event`` on the device's clock, both of them reached."""


class DeviceEvents(Protocol):
    """Where events come from: CUDA through torch, or a recorded clock in tests."""

    def record(self) -> tuple[Hashable, DeviceEvent] | None:
        """Record an event on the caller's current stream; its device and itself, or ``None`` where that cannot be."""

    def record_idle(self, device: Hashable) -> DeviceEvent:
        """Record an event on a stream of ``device`` that nobody else uses."""


@dataclass(slots=True)
class CudaMark:
    """An event on a stream, and the host's times between which the device reached it."""

    device: Hashable
    event: DeviceEvent
    not_before_s: float
    reached_by_s: float | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """An event whose moment on the host's clock is known to within ``error_s`` to both sides."""

    event: DeviceEvent
    at_s: float
    error_s: float


@dataclass(slots=True, eq=False)
class _Pending:
    mark: CudaMark
    tell: Callable[[float, float], None]
    previous: _Pending | None
    done: bool = False


@dataclass(slots=True)
class EdgeReader:
    """Places reached marks on the host's clock. One thread uses it; ``now`` is its clock, ``pause`` lets time pass."""

    events: DeviceEvents
    now: Callable[[], float]
    pause: Callable[[float], object]
    anchors: dict[Hashable, Anchor] = field(default_factory=dict)

    def reached(self, mark: CudaMark) -> bool:
        """Ask the device once, and narrow the bracket."""
        asked_s = self.now()
        if mark.event.query():
            mark.reached_by_s = self.now()
            return True
        mark.not_before_s = max(mark.not_before_s, asked_s)
        return False

    def place(self, mark: CudaMark) -> tuple[float, float]:
        """The mark's moment in CLOCK_MONOTONIC seconds and its standard uncertainty; the mark has been reached."""
        first_s, last_s = mark.not_before_s, mark.reached_by_s
        assert last_s is not None
        bracket = (first_s + last_s) / 2, (last_s - first_s) / 2 / math.sqrt(3)
        anchor = self._anchor(mark.device)
        if anchor is None:
            return bracket
        away_s = anchor.event.elapsed_time(mark.event) / 1e3
        error_s = anchor.error_s + DRIFT * abs(away_s)
        at_s = anchor.at_s + away_s
        if not first_s - error_s <= at_s <= last_s + error_s:
            return bracket
        fine = min(max(at_s, first_s), last_s), error_s / math.sqrt(3)
        return fine if fine[1] < bracket[1] else bracket

    def _anchor(self, device: Hashable) -> Anchor | None:
        known = self.anchors.get(device)
        if known is not None and self.now() - known.at_s < ANCHOR_AGE_S:
            return known
        found = [anchor for anchor in (self._drop_anchor(device) for _ in range(_ANCHOR_TRIES)) if anchor is not None]
        if not found:
            return known
        self.anchors[device] = best = min(found, key=lambda anchor: anchor.error_s)
        return best

    def _drop_anchor(self, device: Hashable) -> Anchor | None:
        """Record on an idle stream and watch: the device reached it between the record and the answer."""
        before_s = self.now()
        event = self.events.record_idle(device)
        while not event.query():
            if self.now() - before_s > _ANCHOR_PATIENCE_S:
                return None
            self.pause(0.0)
        after_s = self.now()
        return Anchor(event, (before_s + after_s) / 2, (after_s - before_s) / 2)


class CudaTiming:
    """Times edges by CUDA events where torch runs on CUDA, by the host otherwise; an ``EdgeTiming``.

    ``dropped`` counts edges that could not be told on, ``fallbacks`` marks that the host's clock had to stand in for.
    """

    def __init__(self, events: DeviceEvents | None = None, modules: Mapping[str, ModuleType] = sys.modules) -> None:
        self.dropped = 0
        self.fallbacks = 0
        self._modules = modules
        self._events: DeviceEvents = TorchEvents(modules) if events is None else events
        self._needs_torch = events is None
        self._pending: deque[_Pending] = deque()
        self._work = Event()
        self._starting = Lock()
        self._thread: Thread | None = None

    def mark(self) -> CudaMark | None:
        """Record an event on the current stream; ``None`` where there is none, or too many are outstanding."""
        if self._needs_torch and "torch" not in self._modules:
            return None
        try:
            recorded = self._events.record()
        except Exception:  # noqa: BLE001 - whatever CUDA says, the pipeline goes on with host times (law 4)
            self.fallbacks += 1
            return None
        if recorded is None:
            return None
        if len(self._pending) >= MAX_OUTSTANDING:
            self.fallbacks += 1
            return None
        return CudaMark(*recorded, monotonic())

    def host_error_s(self) -> float:
        """``ASYNC_EDGE_S`` when something in this process may launch work and return before it is done."""
        return ASYNC_EDGE_S if may_launch_asynchronously(self._modules) else 0.0

    def after(self, mark: EdgeMark, tell: Callable[[float, float], None], previous: object | None) -> object:
        """Call ``tell(t_s, error_s)`` on the background thread once the mark is reached and ``previous`` is told."""
        assert isinstance(mark, CudaMark)
        pending = _Pending(mark, tell, previous if isinstance(previous, _Pending) else None)
        self._pending.append(pending)
        if self._thread is None:
            self._start()
        if not self._work.is_set():
            self._work.set()
        return pending

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="joulegate-edges", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        reader = EdgeReader(self._events, monotonic, sleep)
        pause_s = _FIRST_POLL_S
        while True:
            if not self._pending:
                self._work.clear()
                if not self._pending:
                    self._work.wait()
                pause_s = _FIRST_POLL_S
            told = self.settle(reader)
            pause_s = _FIRST_POLL_S if told else min(2 * pause_s, _SLOWEST_POLL_S)
            if not told:
                sleep(pause_s)

    def settle(self, reader: EdgeReader) -> int:
        """Tell of the marks that were reached; how many."""
        told = 0
        for _ in range(len(self._pending)):
            pending = self._pending.popleft()
            if self._try(pending, reader):
                told += 1
            else:
                self._pending.append(pending)
        return told

    def _try(self, pending: _Pending, reader: EdgeReader) -> bool:
        mark = pending.mark
        try:
            if mark.reached_by_s is None and not reader.reached(mark):
                return False
            if pending.previous is not None and not pending.previous.done:
                return False
            at_s, error_s = reader.place(mark)
        except Exception:  # noqa: BLE001 - a broken CUDA context must not end the metering of this process
            self.fallbacks += 1
            at_s, error_s = mark.not_before_s, ASYNC_EDGE_S
        pending.done = True
        try:
            pending.tell(at_s, error_s)
        except Exception:  # noqa: BLE001 - counted, as everywhere on the pipeline's side (law 4)
            self.dropped += 1
        return True


class TorchEvents:
    """CUDA events of torch, if it is loaded already and has begun to use CUDA; nothing is imported or initialised."""

    def __init__(self, modules: Mapping[str, ModuleType] = sys.modules) -> None:
        self._modules = modules
        self._idle: dict[Hashable, Any] = {}

    def record(self) -> tuple[Hashable, DeviceEvent] | None:
        """An event on the current device's current stream; ``None`` without CUDA and while a graph is captured."""
        cuda = _cuda(self._modules)
        if cuda is None or cuda.is_current_stream_capturing():
            return None
        event = cuda.Event(enable_timing=True)
        event.record()
        return cuda.current_device(), event

    def record_idle(self, device: Hashable) -> DeviceEvent:
        """An event on an own stream of ``device``."""
        cuda = _cuda(self._modules)
        stream = self._idle.get(device)
        if stream is None:
            stream = self._idle[device] = cuda.Stream(device)
        event: DeviceEvent = cuda.Event(enable_timing=True)
        with cuda.device(device):
            event.record(stream)  # type: ignore[attr-defined]
        return event


def may_launch_asynchronously(modules: Mapping[str, ModuleType]) -> bool:
    """Whether a library in ``modules`` may run work on an accelerator after its call returned."""
    torch: Any = modules.get("torch")
    if torch is not None:
        if _cuda(modules) is not None:
            return True
        if _in_use(getattr(torch, "mps", None)) or _in_use(getattr(torch, "xpu", None)):
            return True
    return "jax" in modules or "cupy" in modules or "tensorflow" in modules


def _cuda(modules: Mapping[str, ModuleType]) -> Any:
    """``torch.cuda`` once it is in use in this process, else ``None``."""
    torch = modules.get("torch")
    if torch is None:
        return None
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and getattr(cuda, "is_initialized", bool)() else None


def _in_use(backend: Any) -> bool:
    if hasattr(backend, "is_initialized"):
        return bool(backend.is_initialized())
    return bool(getattr(backend, "is_available", bool)())

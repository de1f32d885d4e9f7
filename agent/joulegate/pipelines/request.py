"""A request at a pipeline: it begins, it ends, and it gives its figures.

Begin and end run on the pipeline's own thread: they stamp the time, build one record and hand it to the sink. They
never wait and never raise; what could not be handed on is counted.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.reading import Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource
from joulegate.pipelines.figures import Result
from joulegate.pipelines.labels import Labels
from joulegate.pipelines.ports import SpanSink

_FIRST_POLL_S, _SLOWEST_POLL_S = 0.005, 0.05
_NEW, _RUNNING, _ENDED = range(3)


class EdgeMark(Protocol):
    """A moment on a device's own clock that becomes known later."""


class EdgeTiming(Protocol):
    """Times edges on the device instead of the host; no method blocks or raises."""

    def mark(self) -> EdgeMark | None:
        """Mark "now" on the device's queue, or ``None`` when the host's clock has to do."""

    def host_error_s(self) -> float:
        """Standard uncertainty of an edge that the host's clock stamps."""

    def after(self, mark: EdgeMark, tell: Callable[[float, float], None], previous: object | None) -> object:
        """Call ``tell(t_s, error_s)`` from another thread once the mark is reached, and never before ``previous``."""


class HostTiming:
    """Edges are the host's: right where the pipeline's work is done when its call returns."""

    __slots__ = ()

    def mark(self) -> EdgeMark | None:
        """No device clock."""
        return None

    def host_error_s(self) -> float:
        """Synchronous work has no error beyond the sensor's own."""
        return 0.0

    def after(self, mark: EdgeMark, tell: Callable[[float, float], None], previous: object | None) -> object:  # noqa: ARG002 - the port's parameters
        """There are no marks, so nothing can come after one."""
        raise RuntimeError("the host's clock gives no marks")


@dataclass(slots=True)
class Faults:
    """What went wrong inside the meter, counted instead of raised."""

    dropped: int = 0
    mislabelled: int = 0
    unlabelled: int = 0


Draft = tuple[str, tuple[str, ...], float | None, StartSource, tuple[Member, ...], str | None, Labels]
"""What is known of a request before it begins: id, devices, arrival, start source, members, batch, labels."""


class RequestIds:
    """Request ids that no other process and no forked child gives: process, random token, running number."""

    def __init__(self) -> None:
        self.generation = 0
        self._new_prefix()

    def renew(self) -> None:
        """A forked child starts anew; requests of its parent are not its own."""
        self.generation += 1
        self._new_prefix()

    def next_id(self) -> str:
        """The next id; ``itertools.count`` needs no lock."""
        return self._prefix + str(next(self._count))

    def _new_prefix(self) -> None:
        self._prefix = f"{os.getpid():x}-{secrets.token_hex(6)}-"
        self._count = count(1)


request_ids = RequestIds()
os.register_at_fork(after_in_child=request_ids.renew)


class Request:
    """One request: a context manager, sync and async, or ``begin`` and ``stop`` by hand.

    The figures are ``None`` until anything is known, provisional after, and never make the caller wait. ``steps_s`` are
    the CLOCK_MONOTONIC ends of the denoising steps, where somebody marks them.
    """

    __slots__ = (
        "_draft",
        "_faults",
        "_final",
        "_generation",
        "_mark",
        "_outer",
        "_pending",
        "_state",
        "_timing",
        "request_id",
        "sink",
        "started_s",
        "steps_s",
    )

    def __init__(self, sink: SpanSink, timing: EdgeTiming, faults: Faults, draft: Draft) -> None:
        self.request_id = draft[0]
        self.sink = sink
        self.started_s: float | None = None
        self.steps_s: list[float] = []
        self._timing = timing
        self._faults = faults
        self._draft = draft
        self._state = _NEW
        self._mark: EdgeMark | None = None
        self._pending: object | None = None
        self._final: Result | None = None
        self._outer: Request | None = None
        self._generation = request_ids.generation

    def __enter__(self) -> Self:
        self._outer = _open_request.get()
        _open_request.set(self)
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop(Outcome.OK if kind is None else outcome_of(kind))
        _open_request.set(self._outer)
        self._outer = None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, where)

    @property
    def is_open(self) -> bool:
        """Begun and not ended, in this process."""
        return self._state == _RUNNING and self._generation == request_ids.generation

    @property
    def members(self) -> tuple[Member, ...]:
        """The requests that share this span; a single request is its own only member."""
        return self._draft[4]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices it was told to use."""
        return self._draft[1]

    def begin(self) -> None:
        """The devices begin to work on it; a second call does nothing."""
        if self._state != _NEW:
            return
        self._state = _RUNNING
        self.started_s = started_s = monotonic()
        try:
            self._mark = mark = self._timing.mark()
            span = self._span(started_s)
            if mark is None:
                self.sink.begin(span)
            else:
                self._pending = self._timing.after(mark, _Begin(self.sink, span), None)
        except Exception:  # noqa: BLE001 - no fault of the meter may reach the pipeline (law 4)
            self._faults.dropped += 1

    def stop(self, outcome: Outcome = Outcome.OK) -> None:
        """The devices are done with it; a second call, and one in a forked child, does nothing."""
        ended_s = monotonic()
        if self._state != _RUNNING or self._generation != request_ids.generation:
            return
        self._state = _ENDED
        try:
            if self._mark is None:
                self.sink.end(self.request_id, ended_s, outcome)
                return
            mark = self._timing.mark()
            end = _End(self.sink, self.request_id, outcome, ended_s if mark is None else None)
            self._timing.after(self._mark if mark is None else mark, end, self._pending)
        except Exception:  # noqa: BLE001 - no fault of the meter may reach the pipeline (law 4)
            self._faults.dropped += 1

    def step(self) -> None:
        """Mark the end of a denoising step."""
        self.steps_s.append(monotonic())

    @property
    def energy_j(self) -> float | None:
        """Joules so far known."""
        figures = self._figures()
        return None if figures is None else figures.energy_j

    @property
    def uncertainty_j(self) -> float | None:
        """Expanded uncertainty (k=2) in joules, measurement and allocation in one."""
        figures = self._figures()
        return None if figures is None else figures.uncertainty_j

    @property
    def co2e_g(self) -> float | None:
        """Grams of CO2e, where a factor is known for the place."""
        figures = self._figures()
        return None if figures is None else figures.co2e_g

    @property
    def water_l(self) -> float | None:
        """Litres of water used on site, where the site's use is known."""
        figures = self._figures()
        return None if figures is None else figures.water_l

    @property
    def cost(self) -> float | None:
        """Cost of the electricity in the site's currency, where its price is known."""
        figures = self._figures()
        return None if figures is None else figures.cost

    @property
    def quality(self) -> Quality | None:
        """How far the figures can be trusted."""
        figures = self._figures()
        return None if figures is None else figures.quality

    def result(self, timeout: float = 5.0) -> Result:
        """Wait for the final figures. Raises ``TimeoutError`` after ``timeout`` seconds."""
        if self._final is not None:
            return self._final
        deadline_s = monotonic() + timeout
        entries: list[RequestEntry] = []
        for request_id in self._billed():
            entry = self.sink.wait(request_id, max(0.0, deadline_s - monotonic()))
            if entry is None:
                raise TimeoutError(self._not_final(timeout))
            entries.append(entry)
        self._final = Result.of(self.request_id, tuple(entries))
        return self._final

    async def result_async(self, timeout: float = 5.0) -> Result:  # noqa: ASYNC109 - the same name as in ``result``
        """``result`` for an event loop: it holds no thread and can be cancelled."""
        deadline_s = monotonic() + timeout
        pause_s = _FIRST_POLL_S
        while True:
            figures = self._figures()
            if figures is not None and figures.status is Status.FINAL:
                return figures
            left_s = deadline_s - monotonic()
            if left_s <= 0:
                raise TimeoutError(self._not_final(timeout))
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _SLOWEST_POLL_S)

    def _span(self, started_s: float) -> Span:
        request_id, devices, arrived_s, start_source, members, batch_id, labels = self._draft
        return Span(
            request_id,
            devices,
            started_s,
            None,
            arrived_s,
            start_source,
            labels[1],
            members,
            batch_id,
            labels[0],
            labels[2],
            labels[3],
            Outcome.OK,
            self._timing.host_error_s() if self._mark is None else 0.0,
        )

    def _billed(self) -> tuple[str, ...]:
        return tuple(member.request_id for member in self._draft[4]) or (self.request_id,)

    def _figures(self) -> Result | None:
        if self._final is not None:
            return self._final
        entries = []
        try:
            for request_id in self._billed():
                entry = self.sink.lookup(request_id)
                if entry is None:
                    return None
                entries.append(entry)
        except Exception:  # noqa: BLE001 - no fault of the meter may reach the pipeline (law 4)
            self._faults.dropped += 1
            return None
        figures = Result.of(self.request_id, tuple(entries))
        if figures.status is Status.FINAL:
            self._final = figures
        return figures

    def _not_final(self, timeout_s: float) -> str:
        why = "no counter has passed its end yet, or nothing meters it" if self._state == _ENDED else "it has not ended"
        return f"request {self.request_id}: no final figures after {timeout_s:g} s: {why}"


_open_request: ContextVar[Request | None] = ContextVar("joulegate_open_request", default=None)


def open_request(sink: SpanSink) -> Request | None:
    """The request of ``sink`` whose ``with`` block this thread or task is in."""
    request = _open_request.get()
    return request if request is not None and request.is_open and request.sink is sink else None


@contextmanager
def inside(request: Request) -> Iterator[None]:
    """What runs in this block belongs to ``request``, which somebody else begins and stops."""
    token = _open_request.set(request)
    try:
        yield
    finally:
        _open_request.reset(token)


@contextmanager
def ending(request: Request) -> Iterator[None]:
    """Begin ``request`` here and stop it with the block, for a generator: what its consumer calls is not inside."""
    request.begin()
    try:
        yield
    except BaseException as error:
        request.stop(outcome_of(type(error)))
        raise
    request.stop()


def outcome_of(kind: type[BaseException]) -> Outcome:
    """``failed`` for an error; ``cancelled`` for what is none (CancelledError, GeneratorExit, KeyboardInterrupt)."""
    return Outcome.FAILED if issubclass(kind, Exception) else Outcome.CANCELLED


@dataclass(slots=True)
class _Begin:
    """Tells the sink of a span whose start the device has reached."""

    sink: SpanSink
    span: Span

    def __call__(self, started_s: float, error_s: float) -> None:
        self.sink.begin(replace(self.span, started_s=started_s, edge_error_s=error_s))


@dataclass(slots=True)
class _End:
    """Tells the sink of an end that the device has reached, or of the host's where the device could not be asked."""

    sink: SpanSink
    request_id: str
    outcome: Outcome
    host_ended_s: float | None

    def __call__(self, ended_s: float, _error_s: float) -> None:
        self.sink.end(self.request_id, ended_s if self.host_ended_s is None else self.host_ended_s, self.outcome)

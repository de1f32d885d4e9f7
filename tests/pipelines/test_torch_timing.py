"""Edges by a device's own clock, on a recorded device: no GPU is needed to hold the arithmetic to its word."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import SimpleNamespace

import pytest
from tests.pipelines.recording import BrokenSink, RecordingSink

from joulegate.metering.span import Outcome
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.torch_timing import (
    ANCHOR_AGE_S,
    ASYNC_EDGE_S,
    CudaMark,
    CudaTiming,
    EdgeReader,
    TorchEvents,
    may_launch_asynchronously,
)


@dataclass
class RecordedEvent:
    """An event that the device reaches at a host time fixed beforehand, on a device clock of its own."""

    device: RecordedDevice
    at_s: float

    def query(self) -> bool:
        """Reached once the host's clock has passed; asking takes a little time."""
        self.device.queries += 1
        self.device.pass_time(self.device.query_s)
        return self.device.now() >= self.at_s

    def elapsed_time(self, end_event: RecordedEvent) -> float:
        """Milliseconds of the device's clock, which drifts."""
        if self.device.broken:
            raise RuntimeError("device-side assert")
        return (end_event.at_s - self.at_s) * (1 + self.device.drift) * 1e3


@dataclass
class RecordedDevice:
    """A device whose queue holds work until ``busy_until_s``; an idle stream answers after ``idle_s``."""

    t_s: float = 1000.0
    busy_until_s: float = 0.0
    idle_s: float = 20e-6
    query_s: float = 5e-6
    drift: float = 2e-5
    broken: bool = False
    queries: int = 0
    idle_records: int = 0

    def now(self) -> float:
        """The host's clock."""
        return self.t_s

    def pass_time(self, seconds_s: float) -> None:
        """Let time go by."""
        self.t_s += seconds_s

    def record(self) -> tuple[Hashable, RecordedEvent]:
        """After the work in the queue."""
        return 0, RecordedEvent(self, max(self.t_s, self.busy_until_s))

    def record_idle(self, device: Hashable) -> RecordedEvent:
        """Soon."""
        assert device == 0
        self.idle_records += 1
        return RecordedEvent(self, self.t_s + self.idle_s)


def mark_on(device: RecordedDevice) -> CudaMark:
    """A mark recorded now."""
    return CudaMark(*device.record(), device.now())


def watch(device: RecordedDevice, reader: EdgeReader, mark: CudaMark, every_s: float) -> None:
    """Ask as the background thread does, until the mark is reached."""
    while not reader.reached(mark):
        device.pass_time(every_s)


@pytest.mark.parametrize("queued_s", [0.0, 0.003, 0.0479, 2.5])
def test_an_edge_is_placed_where_the_device_reached_it(queued_s: float) -> None:
    """However long the queue was and however seldom it was asked, the edge is where the device put it."""
    device = RecordedDevice()
    reader = EdgeReader(device, device.now, device.pass_time)
    device.busy_until_s = device.now() + queued_s
    mark = mark_on(device)
    watch(device, reader, mark, 0.02)
    at_s, error_s = reader.place(mark)
    assert at_s == pytest.approx(mark.event.at_s, abs=3 * error_s)
    assert error_s < 1e-4


def test_a_bad_anchor_is_not_believed_against_what_was_seen() -> None:
    """Where the anchor contradicts the bracket of queries, the bracket is the answer, with its own uncertainty."""
    device = RecordedDevice(drift=0.5)
    reader = EdgeReader(device, device.now, device.pass_time)
    reader.place(_reached(device, reader))
    device.pass_time(5.0)
    mark = _reached(device, reader)
    at_s, error_s = reader.place(mark)
    assert mark.not_before_s <= at_s <= mark.reached_by_s
    assert abs(at_s - mark.event.at_s) <= 2 * error_s


def _reached(device: RecordedDevice, reader: EdgeReader) -> CudaMark:
    device.busy_until_s = device.now() + 0.03
    mark = mark_on(device)
    watch(device, reader, mark, 0.02)
    return mark


def test_an_idle_stream_that_is_held_up_leaves_the_bracket() -> None:
    """When no anchor can be had in time, nothing waits longer and the bracket of queries stands."""
    device = RecordedDevice(idle_s=1.0)
    reader = EdgeReader(device, device.now, device.pass_time)
    mark = _reached(device, reader)
    at_s, error_s = reader.place(mark)
    assert (at_s, error_s) == pytest.approx(((mark.not_before_s + mark.reached_by_s) / 2, 0.02 / 12**0.5), rel=1e-2)
    assert reader.anchors == {}


def test_an_anchor_is_renewed_before_the_clocks_drift_apart() -> None:
    """Within its age an anchor is used again; later a new one is dropped."""
    device = RecordedDevice()
    reader = EdgeReader(device, device.now, device.pass_time)
    reader.place(_reached(device, reader))
    first = device.idle_records
    reader.place(_reached(device, reader))
    assert device.idle_records == first
    device.pass_time(ANCHOR_AGE_S)
    mark = _reached(device, reader)
    at_s, error_s = reader.place(mark)
    assert device.idle_records == 2 * first
    assert at_s == pytest.approx(mark.event.at_s, abs=3 * error_s)


@dataclass
class LiveDevice:
    """A device on the real clock whose events are reached when the test says so."""

    events: list[LiveEvent] = field(default_factory=list)
    refuse: Exception | None = None
    capturing: bool = False

    def record(self) -> tuple[Hashable, LiveEvent] | None:
        """An event that waits for the test."""
        if self.refuse is not None:
            raise self.refuse
        if self.capturing:
            return None
        self.events.append(LiveEvent())
        return 0, self.events[-1]

    def record_idle(self, device: Hashable) -> LiveEvent:
        """Reached at once."""
        assert device == 0
        event = LiveEvent()
        event.reach()
        return event


class LiveEvent:
    """An event on the real clock."""

    def __init__(self) -> None:
        self.at_s: float | None = None

    def reach(self) -> None:
        """The device is there."""
        self.at_s = monotonic()

    def query(self) -> bool:
        """Whether it is."""
        return self.at_s is not None

    def elapsed_time(self, end_event: LiveEvent) -> float:
        """Milliseconds between."""
        return (end_event.at_s - self.at_s) * 1e3


def test_a_request_on_a_device_is_timed_by_the_device_and_waits_for_nothing() -> None:
    """Begin and end return at once; the sink hears of them when the device got there, with the device's times."""
    device, sink = LiveDevice(), RecordingSink()
    meter = Meter(sink, timing=CudaTiming(device))
    with meter.request("m", request_id="r"):
        pass
    left_s = monotonic()
    assert (sink.begun, sink.ended, len(device.events)) == ([], [], 2)
    device.events[1].reach()
    sleep(0.01)
    assert sink.ended == []
    device.events[0].reach()
    assert sink.told.wait(5)
    span, ((_, ended_s, outcome),) = sink.span, sink.ended
    assert span.started_s == pytest.approx(device.events[0].at_s, abs=0.005)
    assert span.started_s > left_s
    assert ended_s == pytest.approx(device.events[1].at_s, abs=0.02)
    assert 0 < span.edge_error_s < ASYNC_EDGE_S
    assert (outcome, meter.dropped) == (Outcome.OK, 0)


def test_many_requests_share_one_thread() -> None:
    """Requests of many threads are followed by one thread that sleeps when there is nothing to follow."""
    device, sink = LiveDevice(), RecordingSink()
    meter = Meter(sink, timing=CudaTiming(device))
    before = threading.active_count()
    requests = [meter.start("m") for _ in range(50)]
    for request in requests:
        request.stop(Outcome.FAILED)
    for event in device.events:
        event.reach()
    deadline_s = monotonic() + 5
    while len(sink.ended) < 50 and monotonic() < deadline_s:
        sleep(0.002)
    assert {request_id for request_id, _, _ in sink.ended} == {request.request_id for request in requests}
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize("device", [LiveDevice(refuse=RuntimeError("CUDA error")), LiveDevice(capturing=True)])
def test_where_no_event_can_be_recorded_the_host_stands_in(device: LiveDevice) -> None:
    """A broken context or a graph being captured gives host times at once."""
    sink = RecordingSink()
    with Meter(sink, timing=CudaTiming(device)).request("m"):
        pass
    assert (len(sink.begun), sink.outcome) == (1, Outcome.OK)


def test_an_end_that_cannot_be_marked_is_the_hosts_and_comes_after_its_start() -> None:
    """When only the start could be marked, the end is the host's time, told after the start."""
    device, sink = LiveDevice(), RecordingSink()
    request = Meter(sink, timing=CudaTiming(device)).start("m")
    device.events[0].reach()
    device.refuse = RuntimeError("CUDA error")
    before_s = monotonic()
    request.stop()
    assert sink.told.wait(5)
    assert before_s <= sink.ended[0][1] <= monotonic()
    assert sink.span.request_id == request.request_id


def test_a_device_that_breaks_later_does_not_lose_the_request() -> None:
    """An event that can no longer be asked gives the best time known, with the uncertainty of an asynchronous edge."""

    class Breaking(LiveEvent):
        def query(self) -> bool:
            raise RuntimeError("device-side assert")

    sink, timing = RecordingSink(), CudaTiming(LiveDevice())
    mark = CudaMark(0, Breaking(), monotonic())
    done = threading.Event()
    told: list[tuple[float, float]] = []

    def tell(at_s: float, error_s: float) -> None:
        told.append((at_s, error_s))
        done.set()

    timing.after(mark, tell, None)
    assert done.wait(5)
    assert told == [(mark.not_before_s, ASYNC_EDGE_S)]
    assert (timing.fallbacks, sink.begun) == (1, [])


def test_a_sink_that_raises_on_the_background_thread_is_counted() -> None:
    """A broken sink does not end the thread that follows the device."""
    device = LiveDevice()
    meter = Meter(BrokenSink(), timing=CudaTiming(device))
    for _ in range(2):
        with meter.request("m"):
            pass
    for event in device.events:
        event.reach()
    deadline_s = monotonic() + 5
    while meter.dropped < 4 and monotonic() < deadline_s:
        sleep(0.002)
    assert meter.dropped >= 4


def library(**parts: object) -> SimpleNamespace:
    """A stand-in for a loaded torch."""
    return SimpleNamespace(**parts)


@pytest.mark.parametrize(
    ("modules", "asynchronous"),
    [
        ({}, False),
        ({"torch": library()}, False),
        ({"torch": library(cuda=library(is_initialized=lambda: False))}, False),
        ({"torch": library(cuda=library(is_initialized=lambda: True))}, True),
        ({"torch": library(mps=library(is_available=lambda: True))}, True),
        ({"torch": library(xpu=library(is_initialized=lambda: False, is_available=lambda: True))}, False),
        ({"jax": library()}, True),
    ],
)
def test_a_host_edge_says_when_launches_may_be_asynchronous(modules: dict, asynchronous: bool) -> None:
    """The edge's uncertainty is 10 ms where an accelerator may still be at work when a call returns, else nothing."""
    assert may_launch_asynchronously(modules) is asynchronous
    timing = CudaTiming(LiveDevice(capturing=True), modules)
    assert timing.host_error_s() == (ASYNC_EDGE_S if asynchronous else 0.0)
    sink = RecordingSink()
    with Meter(sink, timing=timing).request("m"):
        pass
    assert sink.span.edge_error_s == timing.host_error_s()


def test_without_cuda_nothing_is_recorded_or_imported() -> None:
    """With torch absent, or present and not on CUDA, there are no events."""
    assert TorchEvents({}).record() is None
    assert TorchEvents({"torch": library(cuda=library(is_initialized=lambda: False))}).record() is None

"""The meter in a pipeline's hands."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from time import monotonic

import pytest
from tests.pipelines.recording import BrokenSink, RecordingSink, entry

from joulegate.metering.entry import Status
from joulegate.metering.reading import Quality
from joulegate.metering.span import Member, Outcome, StartSource, Work
from joulegate.pipelines.meter import Meter, NoSink
from joulegate.pipelines.visible import KnownDevice, device_names, resolve_devices, visible_devices


@pytest.fixture
def sink() -> RecordingSink:
    """An empty sink."""
    return RecordingSink()


@pytest.fixture
def meter(sink: RecordingSink) -> Meter:
    """A meter into the sink."""
    return Meter(sink)


def test_a_request_tells_who_what_and_when(meter: Meter, sink: RecordingSink) -> None:
    """The span has the labels, the visible devices and monotonic times around the block."""
    before_s = monotonic()
    with meter.request(
        "sdxl", images=4, steps=30, width=1024, height=768, tier="free", tenant="acme", arrived_s=before_s - 2
    ) as request:
        inside_s = monotonic()
    span = sink.span
    assert (span.request_id, span.model, span.power_class) == (request.request_id, "sdxl", "sdxl")
    assert (span.tier, span.tenant, span.start_source) == ("free", "acme", StartSource.DECLARED)
    assert (span.work, span.devices) == (Work(4, 30, 1024, 768), ("GPU-aaaa", "GPU-bbbb"))
    assert (span.arrived_s, span.ended_s, span.edge_error_s) == (before_s - 2, None, 0.0)
    ((request_id, ended_s, outcome),) = sink.ended
    assert (request_id, outcome) == (request.request_id, Outcome.OK)
    assert before_s <= span.started_s <= inside_s <= ended_s <= monotonic()
    assert (meter.dropped, meter.mislabelled) == (0, 0)


def test_the_start_is_when_the_block_is_entered(meter: Meter, sink: RecordingSink) -> None:
    """A request that was made earlier starts when its block is entered, not before."""
    request = meter.request("m")
    made_s = monotonic()
    with request:
        pass
    assert sink.span.started_s >= made_s


def test_begin_and_stop_by_hand_count_once(meter: Meter, sink: RecordingSink) -> None:
    """``start`` and ``stop`` do what the block does, and a second ``stop`` or ``begin`` does nothing."""
    request = meter.start("m", images=2)
    request.begin()
    request.stop(Outcome.CANCELLED)
    request.stop()
    assert (sink.span.work.images, sink.outcome) == (2, Outcome.CANCELLED)


def test_a_request_that_never_began_has_no_end(meter: Meter, sink: RecordingSink) -> None:
    """``stop`` before ``begin`` tells nobody anything."""
    meter.request("m").stop()
    assert (sink.begun, sink.ended) == ([], [])


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("boom"), Outcome.FAILED),
        (asyncio.CancelledError(), Outcome.CANCELLED),
        (GeneratorExit(), Outcome.CANCELLED),
        (KeyboardInterrupt(), Outcome.CANCELLED),
    ],
)
def test_an_error_raises_on_unchanged_and_is_the_outcome(
    meter: Meter, sink: RecordingSink, error: BaseException, outcome: Outcome
) -> None:
    """An error in the block reaches the caller as it is; a cancellation is told from a failure."""
    with pytest.raises(type(error)) as raised, meter.request("m"):
        raise error
    assert raised.value is error
    assert sink.outcome is outcome


async def test_a_cancelled_task_is_a_cancelled_request(meter: Meter, sink: RecordingSink) -> None:
    """A task that is cancelled inside ``async with`` is recorded as cancelled."""

    async def work() -> None:
        async with meter.request("m"):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.outcome is Outcome.CANCELLED


def test_a_broken_meter_never_reaches_the_pipeline() -> None:
    """When everything inside fails the block still runs, the figures are None, and the faults are counted."""
    meter = Meter(BrokenSink())
    with meter.request("m", images=1) as request:
        ran = True
    assert ran
    assert (request.energy_j, request.uncertainty_j, request.co2e_g, request.quality) == (None, None, None, None)
    assert meter.dropped >= 2


def test_figures_are_none_then_provisional_then_final(meter: Meter, sink: RecordingSink) -> None:
    """The properties follow what is known; the uncertainty is both parts in one; a final figure stays."""
    with meter.request("m", request_id="r") as request:
        assert (request.energy_j, request.quality) == (None, None)
        sink.know(entry("r", 1_000, Status.PENDING, Quality.APPORTIONED))
        assert (request.energy_j, request.uncertainty_j, request.quality) == (1.0, 0.5, Quality.APPORTIONED)
    with pytest.raises(TimeoutError, match=r"request r: no final figures after 0\.01 s"):
        request.result(timeout=0.01)
    sink.know(entry("r", 2_000))
    result = request.result()
    assert (result.energy_j, result.uncertainty_j, result.co2e_g, result.quality) == (2.0, 0.5, None, Quality.MEASURED)
    assert (result.queue_s, result.outcome, result.status) == (0.5, Outcome.OK, Status.FINAL)
    sink.know(entry("r", 9_000))
    assert (request.energy_j, request.result()) == (2.0, result)


def test_missing_energy_is_none_with_its_quality(meter: Meter, sink: RecordingSink) -> None:
    """A request that no reading saw has no joules and no uncertainty, and says that they are missing."""
    sink.know(entry("r", None, quality=Quality.MISSING, u_measurement_mj=None, u_allocation_mj=None))
    with meter.request("m", request_id="r") as request:
        pass
    result = request.result()
    assert (result.energy_j, result.uncertainty_j, result.quality) == (None, None, Quality.MISSING)


async def test_awaiting_a_result_times_out(meter: Meter) -> None:
    """``result_async`` raises TimeoutError when nothing becomes final."""
    async with meter.request("m", request_id="r") as request:
        pass
    with pytest.raises(TimeoutError, match="request r"):
        await request.result_async(0.01)


def test_a_batch_is_one_span_with_its_members(meter: Meter, sink: RecordingSink) -> None:
    """Members keep their own ids and work, the batch has one span, and its figures are theirs together."""
    members = [{"request_id": "a", "images": 1, "steps": 20}, Member("b", Work(images=3, steps=30)), {"images": 2}]
    with meter.batch(members, "sdxl", batch_id="batch-7") as batch:
        pass
    span = sink.span
    assert (span.batch_id, span.members[:2]) == ("batch-7", (Member("a", Work(1, 20)), Member("b", Work(3, 30))))
    assert [member.work.images for member in batch.members] == [1, 3, 2]
    sink.know(entry("a", 1_000))
    sink.know(entry("b", 3_000, quality=Quality.APPORTIONED))
    assert batch.energy_j is None
    sink.know(entry(batch.members[2].request_id, 2_000))
    assert (batch.energy_j, batch.quality) == (6.0, Quality.APPORTIONED)
    assert batch.uncertainty_j == pytest.approx(((3 * 0.3) ** 2 + 3 * 0.4**2) ** 0.5)
    assert len(batch.result().entries) == 3


def test_labels_that_cannot_be_used_are_left_out_and_counted(meter: Meter, sink: RecordingSink) -> None:
    """Whatever a pipeline gives as a label, the request is metered, and the faults are counted."""
    with meter.request(
        "x" * 1000,
        images=-1,
        steps="30",
        width=True,
        height=[5],
        tier="a\nb",
        arrived_s=monotonic() + 50,
        request_id="",
    ):
        pass
    with meter.request(object(), devices=object(), members=3):
        pass
    first, second = sink.begun
    assert (first.model, first.work, first.arrived_s) == (None, Work(), None)
    assert first.request_id
    assert second.members == ()
    with meter.request("x" * 1000, images=-1, tier="a\nb"):
        pass
    third = sink.begun[2]
    assert (third.model, third.tier, third.work) == ("x" * 256, "a?b", Work())
    assert meter.mislabelled >= 8
    assert len(sink.ended) == 3


def test_requests_of_threads_do_not_meet(meter: Meter, sink: RecordingSink) -> None:
    """Requests of many threads all get their own id, begin and end."""

    def work() -> None:
        for _ in range(200):
            with meter.request("m"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {span.request_id for span in sink.begun}
    assert len(ids) == len(sink.begun) == 1600
    assert {request_id for request_id, _, _ in sink.ended} == ids


def test_a_forked_child_gives_ids_of_its_own(meter: Meter) -> None:
    """A fork does not repeat the ids of its parent."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads; they are the point here
        child = os.fork()
    if child == 0:
        os.write(writing, meter.request("m").request_id.encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 200).decode()
    os.close(reading)
    os.close(writing)
    ours = meter.request("m").request_id
    assert theirs.rpartition("-")[0] != ours.rpartition("-")[0]


def test_defaults_of_the_meter_are_those_of_its_requests(sink: RecordingSink) -> None:
    """Tier, tenant and devices of the meter hold where a request names none."""
    meter = Meter(sink, tier="free", tenant="acme", devices=1)
    with meter.request("m"), meter.request("m", tier="pro", devices="GPU-aaaa"):
        pass
    first, second = sink.begun
    assert (first.tier, first.tenant, first.devices) == ("free", "acme", ("GPU-bbbb",))
    assert (second.tier, second.tenant, second.devices) == ("pro", "acme", ("GPU-aaaa",))


def test_where_nobody_meters_requests_run_and_are_counted() -> None:
    """Without a daemon and without a meter in this process every span is counted as dropped."""
    with Meter(NoSink()) as meter:
        with meter.request("m") as request:
            pass
        assert (request.energy_j, meter.dropped) == (None, 1)
        with pytest.raises(TimeoutError):
            request.result(timeout=0)


def test_closing_the_meter_closes_its_sink(meter: Meter, sink: RecordingSink) -> None:
    """``close`` reaches the sink."""
    meter.close()
    assert sink.closed == 1


GPUS = (
    KnownDevice("GPU-11aa", 0, "gpu"),
    KnownDevice("GPU-11bb", 1, "module"),
    KnownDevice("GPU-22cc", 2, "board"),
    KnownDevice("package-0", None, "package"),
)


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (None, ("GPU-11aa", "GPU-11bb", "GPU-22cc")),
        ("", ()),
        ("-1", ()),
        ("2,0", ("GPU-22cc", "GPU-11aa")),
        (" 1 , 2 ", ("GPU-11bb", "GPU-22cc")),
        ("0,7,1", ("GPU-11aa",)),
        ("0,-1,1", ("GPU-11aa",)),
        ("0,0", ("GPU-11aa",)),
        ("GPU-22", ("GPU-22cc",)),
        ("GPU-11", ()),
        ("GPU-11bb,GPU-11aa", ("GPU-11bb", "GPU-11aa")),
        ("MIG-GPU-11bb/1/0", ("GPU-11bb",)),
        ("MIG-4d5e", ()),
        ("nonsense", ()),
    ],
)
def test_cuda_visible_devices_is_honoured_as_cuda_does(setting: str | None, seen: tuple[str, ...]) -> None:
    """GPUs are those that CUDA lets the process see, in its order; the processor package is seen in any case."""
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert visible_devices(GPUS, environ) == (*seen, "package-0")


def test_a_mig_uuid_can_only_mean_the_only_gpu() -> None:
    """A MIG instance's UUID does not name its GPU; where there is just one it is that."""
    assert visible_devices(GPUS[:1], {"CUDA_VISIBLE_DEVICES": "MIG-4d5e"}) == ("GPU-11aa",)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (1, ("GPU-22cc",)),
        ("1", ("GPU-22cc",)),
        ("cuda", ("GPU-11aa",)),
        (["cuda:1", 0], ("GPU-22cc", "GPU-11aa")),
        ("GPU-22", ("GPU-22cc",)),
        (("GPU-11aa", "GPU-11aa"), ("GPU-11aa",)),
        (7, ("cuda:7",)),
        ("GPU-elsewhere", ("GPU-elsewhere",)),
    ],
)
def test_devices_are_named_by_index_or_uuid(given: object, ids: tuple[str, ...]) -> None:
    """An index counts among the visible devices, a UUID may be cut short, and what is unknown stays visible as such."""
    assert resolve_devices(device_names(given), ("GPU-11aa", "GPU-22cc")) == ids

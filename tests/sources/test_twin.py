"""The twin as a source that is told of spans."""

from __future__ import annotations

import pytest

from joulegate.daemon.ports import LoadAware, Source
from joulegate.metering.reading import Method, Quality, SensorStatus
from joulegate.metering.span import Span
from joulegate.sources.fault import SourceFault
from joulegate.sources.gpu_profiles import A100, H100
from joulegate.sources.twin import HOLDBACK_S, TwinSource


def span(
    request_id: str, started_s: float, ended_s: float | None = None, devices: tuple[str, ...] = ("twin-0",)
) -> Span:
    """A span of class sdxl."""
    return Span(request_id, devices, started_s, ended_s, power_class="sdxl")


def opened(*profiles: str, **options: float) -> TwinSource:
    """A source that has seen its first time, 100 s."""
    twin = TwinSource(profiles or ("H100",), **options)  # type: ignore[arg-type]
    twin.open()
    twin.drain(100.0, 1_000_100.0)
    return twin


def test_it_is_a_source_and_load_aware() -> None:
    """The twin has the shape of both ports."""
    source: Source = TwinSource()
    load_aware: LoadAware = TwinSource()
    assert source.name == "twin"
    assert load_aware is not source


def test_everything_is_labelled_simulated() -> None:
    """Devices and sensors say so, with the board's limits."""
    twin = TwinSource(["H100", A100])
    first, second = twin.devices()
    assert [(d.method, d.quality) for d in (first, second)] == [(Method.SIMULATED, Quality.SIMULATED)] * 2
    assert (first.id, first.slowdown_c, second.power_limit_max_w, second.index) == ("twin-0", 87.0, 400.0, 1)
    assert {sensor.status for sensor in twin.sensors()} == {SensorStatus.SIMULATED}


def test_readings_come_at_the_poll_rate_in_order() -> None:
    """A second gives twenty readings a device, a little behind now, with wall times beside."""
    twin = opened("H100", "L40S")
    readings = twin.drain(101.0, 1_000_101.0)
    times = [reading.t_s for reading in readings if reading.device == "twin-1"]
    assert len(times) == 20
    assert times == sorted(times)
    assert times[-1] == pytest.approx(101.0 - HOLDBACK_S, abs=0.051)
    assert all(reading.wall_s - reading.t_s == pytest.approx(1_000_000.0) for reading in readings)
    assert twin.drain(101.0, 1_000_101.0) == []


def test_an_edge_told_late_burns_at_its_own_time() -> None:
    """Edges told 100 ms after they happened still have their exact energy."""
    twin = opened()
    twin.span_started(span("r", 101.0), 101.1)
    twin.drain(102.0, 0.0)
    twin.span_ended(span("r", 101.0, 103.0), 103.1)
    twin.drain(105.0, 0.0)
    model = twin.model("twin-0")
    assert model.work_true_s("r") == pytest.approx(2.0)
    assert twin.errors() == {}
    assert model.energy_true_mj("r") / 2000 > 0.58 * 605


def test_an_edge_told_too_late_is_counted() -> None:
    """An edge older than the holdback burns from the model's present, and the device's errors show it."""
    twin = opened()
    twin.drain(103.0, 0.0)
    twin.span_started(span("r", 101.0), 103.0)
    twin.span_ended(span("r", 101.0, 104.0), 104.0)
    twin.drain(105.0, 0.0)
    assert twin.errors()["twin-0"]["edges_late"] == 1
    assert twin.model("twin-0").work_true_s("r") == pytest.approx(104.0 - (103.0 - HOLDBACK_S))


def test_a_span_burns_on_each_of_its_devices() -> None:
    """Two of three devices work, a stranger's id is nobody's business."""
    twin = opened("H100", "H100", "H100")
    twin.span_started(span("r", 101.0, devices=("twin-0", "twin-2", "GPU-elsewhere")), 101.0)
    newest = {reading.device: reading for reading in twin.drain(103.0, 0.0)}
    assert [newest[f"twin-{n}"].utilization for n in range(3)] == [pytest.approx(1.0), 0.0, pytest.approx(1.0)]
    assert (newest["twin-0"].power_w or 0) > 300
    assert (newest["twin-1"].power_w or 0) == pytest.approx(95.0)


def test_the_same_calls_give_the_same_readings() -> None:
    """Seed and calls decide everything."""

    def run(seed: int) -> list[object]:
        twin = TwinSource([H100.varied(7)], seed=seed)
        twin.drain(50.0, 0.0)
        twin.span_started(span("a", 51.0), 51.0)
        twin.span_started(span("b", 52.0), 52.0)
        twin.span_ended(span("a", 51.0, 56.0), 56.0)
        readings = list(twin.drain(60.0, 0.0))
        return [*readings, twin.model("twin-0").energy_true_mj("a")]

    assert run(1) == run(1)
    assert run(1)[-1] != run(2)[-1]


def test_faults_hit_one_device_only() -> None:
    """A lost GPU is down and counted, its neighbour goes on; a command may come before the first reading."""
    twin = TwinSource(["H100", "H100"])
    twin.fault("lost", "twin-1", at_s=101.0)
    twin.drain(100.0, 0.0)
    readings = twin.drain(103.0, 0.0)
    down = [reading for reading in readings if not reading.up]
    assert {reading.device for reading in down} == {"twin-1"}
    assert min(reading.t_s for reading in down) == pytest.approx(101.0, abs=0.051)
    assert twin.errors() == {"twin-1": {"GPU_IS_LOST": len(down)}}


def test_wrong_names_are_one_line() -> None:
    """Unknown profiles, devices and faults are refused with what there is."""
    with pytest.raises(SourceFault, match="H100, A100, L40S, B200"):
        TwinSource(["H900"])
    twin = TwinSource()
    with pytest.raises(SourceFault, match="twin-0"):
        twin.fault("lost", "twin-9", 0.0)
    with pytest.raises(SourceFault, match="stuck"):
        twin.fault("melted", "twin-0", 0.0)  # type: ignore[arg-type]
    with pytest.raises(SourceFault, match="not started"):
        twin.model("twin-0")


def test_memory_is_bounded_when_nobody_drains() -> None:
    """Waiting readings are capped, the dropped are counted, and a long sleep skips polls but no energy."""
    twin = opened()
    for second in range(101, 1201):
        twin.span_started(span(f"r{second}", float(second)), float(second))
        twin.span_ended(span(f"r{second}", float(second), second + 0.5), second + 0.5)
    assert len(twin.drain(1201.0, 0.0)) == 20_000
    assert twin.errors()["twin-0"]["readings_dropped"] > 1000
    before = twin.model("twin-0").total_true_mj()
    assert len(twin.drain(10_000.0, 0.0)) <= 60 / 0.05 + 1
    assert twin.errors()["twin-0"]["readings_skipped"] > 100_000
    assert twin.model("twin-0").total_true_mj() - before == pytest.approx(8_799 * 95_000, rel=0.01)


def test_a_time_that_goes_back_changes_nothing() -> None:
    """An earlier now gives no reading and no fault."""
    twin = opened()
    twin.drain(105.0, 0.0)
    assert twin.drain(104.0, 0.0) == []
    assert len(twin.drain(105.5, 0.0)) == 10

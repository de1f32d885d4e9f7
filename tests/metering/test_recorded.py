"""The parts of the meter on recorded data: the log of requests, the log of readings, and figures from both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.interval import Kind
from joulegate.metering.policy import IdlePolicy
from joulegate.metering.reading import Method, Quality
from joulegate.metering.recorded import Options, attribute
from joulegate.metering.recorded_lines import changes_of, read_line
from joulegate.metering.recorded_spans import group_spans
from joulegate.metering.span import StartSource


@dataclass(frozen=True)
class Columns:
    """One device's readings."""

    device: str
    t_s: list[float]
    energy_mj: list[int | None] | None = None
    power_w: list[float | None] | None = None


@dataclass(frozen=True)
class Row:
    """One request of the log."""

    request_id: str
    start_s: float | None
    end_s: float
    devices: tuple[str, ...] = ("G0",)
    power_class: str = ""
    images: int | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    batch_id: str | None = None
    arrived_s: float | None = None


def counted(device: str, power_w: float, seconds: float = 20.0, step_s: float = 0.1) -> Columns:
    """A counter under constant power."""
    t_s = [step_s * i for i in range(round(seconds / step_s) + 1)]
    return Columns(device, t_s, [round(1000 * power_w * t) for t in t_s])


# The log of requests


def test_batch_is_one_span_of_its_members_in_their_order() -> None:
    """Rows of one batch become one span, whatever lies between them, with members by request id and their work."""
    rows = [
        Row("c", 1.0, 2.0, batch_id="b", steps=10),
        Row("x", 0.5, 2.0),
        Row("a", 1.0, 2.0, batch_id="b", steps=30, images=2),
    ]
    lone, batch = group_spans(rows, None)
    assert (lone.span_id, batch.span_id) == ("rx", "bb")
    assert [(m.request_id, m.work.units) for m in batch.members] == [("a", 60), ("c", 10)]
    assert batch.start_source is StartSource.DECLARED


def test_request_and_batch_of_one_name_are_two_spans() -> None:
    """A batch may be called like a request."""
    assert len(group_spans([Row("b", 0.0, 1.0), Row("m", 0.0, 1.0, batch_id="b")], None)) == 2


def test_missing_starts_are_inferred_per_set_of_devices() -> None:
    """Each set of devices is a server of its own; the order in which devices are named means nothing."""
    rows = [
        Row("a", None, 4.0, ("G0", "G1"), arrived_s=0.0),
        Row("b", None, 9.0, ("G1", "G0"), arrived_s=1.0),
        Row("c", None, 5.0, ("G2",), arrived_s=2.0),
        Row("d", 3.0, 8.0, ("G2",), arrived_s=1.0),
    ]
    starts = {group.span_id: (group.start_s, group.start_source) for group in group_spans(rows, 1)}
    assert starts == {
        "ra": (0.0, StartSource.FIFO),
        "rb": (4.0, StartSource.FIFO),
        "rc": (5.0, StartSource.FIFO),
        "rd": (3.0, StartSource.DECLARED),
    }


def test_batch_waits_for_its_last_member() -> None:
    """Its arrival is that of the last, and its start not before."""
    rows = [Row(name, None, 9.0, batch_id="b", arrived_s=t_s) for name, t_s in (("m", 1.0), ("n", 5.0))]
    (group,) = group_spans(rows, 1)
    assert group.start_s == 5.0
    assert group.arrivals_s == (1.0, 5.0)


# The log of readings


def test_counter_beside_empty_cells_stays_a_counter() -> None:
    """Readings without the counter's value, however long, are one interval: it counted on, and the file shows it."""
    t_s = [0.1 * i for i in range(300)]
    energy_mj = [None if 50 < i < 200 else 40_000 * i for i in range(300)]
    line = read_line(Columns("G0", t_s, energy_mj, [400.0] * 300), Method.INSTANT)
    assert line.method is Method.COUNTER
    assert {interval.method for interval in line.intervals} == {Method.COUNTER}
    assert sum(interval.energy_mj or 0 for interval in line.intervals) == 40_000 * 299
    assert [interval.kind for interval in line.intervals].count(Kind.GAP) == 1
    assert line.warnings == []


def test_empty_counter_column_is_no_stuck_counter() -> None:
    """A file whose counter column is empty has power only, and nothing to warn of."""
    line = read_line(Columns("G0", [0.0, 0.1, 0.2], [None] * 3, [400.0] * 3), Method.INSTANT)
    assert line.method is Method.INSTANT
    assert line.warnings == []


@pytest.mark.parametrize(("gain", "doubted"), [(1.0, False), (0.9, False), (0.57, True), (1.4, True)])
def test_counter_is_compared_with_the_power_beside_it(gain: float, doubted: bool) -> None:
    """Beyond 15 % the counter is doubted, said so, and how far off it is widens U."""
    made = counted("G0", 400.0 * gain)
    line = read_line(replace(made, power_w=[400.0] * len(made.t_s)), Method.INSTANT)
    assert bool(line.warnings) == doubted
    assert line.disagreement == pytest.approx(abs(1 / gain - 1) if doubted else 0.0, abs=1e-3)


def test_changes_are_placed_by_their_rhythm() -> None:
    """Polls at 23 ms of a counter that steps every 0.1 s give intervals of 0.1 s to two milliseconds."""
    t_s = [0.023 * i for i in range(2000)]
    energy_mj = [40_000 * int(t / 0.1 + 0.3) for t in t_s]
    line = read_line(Columns("G0", t_s, energy_mj), Method.INSTANT)
    assert line.resolved
    lengths = changes_of(line.intervals).duration_s[20:-20]
    assert np.median(np.abs(lengths - 0.1)) < 2e-3
    assert all(before.end_s == pytest.approx(after.start_s) for before, after in pairwise(line.intervals))


# Figures


def test_span_on_two_devices_is_paid_on_both() -> None:
    """Its energy is the sum, by device to the millijoule, and each device's law closes."""
    devices = {"G0": counted("G0", 400.0), "G1": counted("G1", 300.0)}
    result = attribute(devices, [Row("r", 5.0, 10.0, ("G1", "G0"))], Options(lag_s=0.0))
    (request,) = result.requests
    assert request.energy_mj == sum(request.devices.values())
    assert request.devices == {"G0": 2_000_000, "G1": 1_500_000}
    for figures in result.devices.values():
        assert figures.counter_delta_mj == figures.requests_mj + figures.idle_mj + figures.unattributed_mj


def test_many_devices_are_many_meters() -> None:
    """Seventy-two devices with a request each get what each would get alone."""
    devices = {f"G{i}": counted(f"G{i}", 100.0 + i, seconds=5) for i in range(72)}
    rows = [Row(f"r{i}", 1.0, 3.0, (f"G{i}",)) for i in range(72)]
    result = attribute(devices, rows, Options(lag_s=0.0))
    energies = {request.request_id: request.energy_mj for request in result.requests}
    assert energies == {f"r{i}": 2000 * (100 + i) for i in range(72)}


@pytest.mark.parametrize("policy", IdlePolicy)
def test_policies_move_idle_and_close(policy: IdlePolicy) -> None:
    """Who pays for idle changes no total: devices' books and requests' figures agree under each policy."""
    t_s = [0.1 * i for i in range(201)]
    busy = np.array([50 <= i < 100 or 120 <= i < 140 for i in range(200)])
    energy_mj = np.concatenate([[0], np.cumsum(np.where(busy, 49_500, 9_500))]).tolist()
    rows = [Row("a", 5.0, 10.0), Row("b", 12.0, 14.0)]
    result = attribute({"G0": Columns("G0", t_s, energy_mj)}, rows, Options(policy, lag_s=0.0))
    device = result.devices["G0"]
    energies = [request.energy_mj or 0 for request in result.requests]
    assert sum(energies) == device.requests_mj
    assert device.requests_mj + device.idle_mj + device.unattributed_mj == device.counter_delta_mj == energy_mj[-1]
    expected = {
        IdlePolicy.SEPARATE: (2_475_000, 990_000),
        IdlePolicy.MARGINAL: (2_000_000, 800_000),
        IdlePolicy.RESERVED: (2_475_000 + 1_235_000 * 5 // 7, 990_000 + 1_235_000 * 2 // 7),
        IdlePolicy.USAGE: (2_475_000 + 1_235_000 * 5 // 7, 990_000 + 1_235_000 * 2 // 7),
    }
    assert energies == pytest.approx(expected[policy], rel=2e-3)


def test_coarse_power_readings_make_no_measured_figure() -> None:
    """A request of a second and a half in a log of one reading a second is apportioned, with a U that says so."""
    t_s = [float(i) for i in range(60)]
    power_w: list[float | None] = [495.0 if 20 <= i < 24 or 40 <= i < 42 else 95.0 for i in range(60)]
    rows = [Row("long", 20.0, 24.0), Row("short", 40.2, 41.7)]
    short = attribute({"G0": Columns("G0", t_s, None, power_w)}, rows).requests[1]
    assert short.quality is Quality.APPORTIONED
    assert short.energy_mj is not None
    assert (short.u_measurement_mj or 0) > 0.3 * short.energy_mj


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_members_share_their_span_exactly(count: int, energy_mj: int) -> None:
    """The figures of a batch's members add up to what its span got."""
    columns = Columns("G0", [0.0, 10.0], [0, energy_mj])
    rows = [Row(f"r{i}", 0.0, 10.0, batch_id="b", steps=i + 1) for i in range(count)]
    result = attribute({"G0": columns}, rows, Options(lag_s=0.0))
    assert sum(request.energy_mj or 0 for request in result.requests) == energy_mj

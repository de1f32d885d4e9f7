"""The worked oracle: A 1800 J, B 1200 J, idle 300 J (notes/measurement.md, 6.6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.meter import attribute, check_laws, requests_of
from tests.support.plant import GPU
from tests.support.scenarios import ORIGIN_S, Case, worked_case, worked_plant
from tests.support.sensors import Counter, PowerMeter, polls, readings_csv, record, spans_csv

TRUTH_MJ = {"A": 1_800_000, "B": 1_200_000}
WITHIN = 0.005


def check(result: dict[str, Any], *, idle: bool = True) -> None:
    """Each figure within 0.5 %, no residue, and U covers the truth."""
    check_laws(result)
    for request_id, truth_mj in TRUTH_MJ.items():
        request = requests_of(result)[request_id]
        assert request["energy_mj"] == pytest.approx(truth_mj, rel=WITHIN), request
        uncertainty_mj = np.hypot(request["u_measurement_mj"], request["u_allocation_mj"])
        assert abs(request["energy_mj"] - truth_mj) <= uncertainty_mj, request
    if idle:
        device = result["devices"][GPU]
        assert device["idle_mj"] == pytest.approx(300_000, rel=2 * WITHIN), device
        assert device["unattributed_mj"] <= 0.005 * 300_000, device


@pytest.mark.parametrize("lag", ["given", "auto"])
@pytest.mark.parametrize("lag_s", [0.0, 0.1, 0.25])
def test_late_counter(lag_s: float, lag: str) -> None:
    """A 0.1 s counter polled at 20 ms gives the hand-worked figures for every lag, told or found."""
    case = worked_case(lag_s)
    option = "auto" if lag == "auto" else str(round(1000 * lag_s))
    result = attribute(case.readings_csv, case.spans_csv, "--lag-ms", option)
    check(result)
    assert result["devices"][GPU]["lag_ms"] == pytest.approx(1000 * lag_s, abs=20 if lag == "auto" else 0)


def test_default_is_automatic() -> None:
    """Without an option the lag is found."""
    case = worked_case(0.25)
    check(attribute(case.readings_csv, case.spans_csv))


def test_own_process_gives_the_same_bytes() -> None:
    """The command in a process of its own answers what it answers in this one."""
    case = worked_case()
    assert attribute(case.readings_csv, case.spans_csv, own_process=True) == attribute(
        case.readings_csv, case.spans_csv
    )


@pytest.mark.parametrize("poll_s", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("lag", ["0", "auto"])
def test_ideal_counter(poll_s: float, lag: str) -> None:
    """A counter that is neither stepped nor late gives the same figures at any sampling that hits the edges."""
    plant = worked_plant()
    t_s = polls(ORIGIN_S, ORIGIN_S + 9, poll_s)
    recording = record(plant.lines[GPU], t_s, Counter(step_s=0, lag_s=0))
    check(attribute(readings_csv({GPU: recording}), spans_csv(plant.runs), "--lag-ms", lag))


@pytest.mark.parametrize("phase_s", np.linspace(0, 0.95, 6))
@pytest.mark.parametrize("classes", [True, False])
def test_ideal_slow_counter_off_the_edges(phase_s: float, classes: bool) -> None:
    """An ideal counter sampled at 1 s with any phase splits the intervals that edges cut by the model, within 2 %."""
    plant = worked_plant()
    t_s = polls(ORIGIN_S - 10 + float(phase_s), ORIGIN_S + 20 + float(phase_s), 1.0)
    recording = record(plant.lines[GPU], t_s, Counter(step_s=0, lag_s=0))
    result = attribute(readings_csv({GPU: recording}), spans_csv(plant.runs, classes=classes), "--lag-ms", "0")
    check_laws(result)
    for request_id, truth_mj in TRUTH_MJ.items():
        assert requests_of(result)[request_id]["energy_mj"] == pytest.approx(truth_mj, rel=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_any_phase(seed: int) -> None:
    """The counter's and the poll's phase do not matter: each request within 0.5 %."""
    rng = np.random.default_rng(seed)
    plant = worked_plant()
    counter = Counter(phase_s=float(rng.uniform(0, 0.1)))
    t_s = polls(ORIGIN_S - 2, ORIGIN_S + 12, 0.02) + float(rng.uniform(0, 0.02))
    recording = record(plant.lines[GPU], np.round(t_s, 6), counter)
    result = attribute(readings_csv({GPU: recording}), spans_csv(plant.runs))
    check(result, idle=False)
    device = result["devices"][GPU]
    assert device["idle_mj"] == pytest.approx(device["counter_delta_mj"] - 3_000_000, abs=0.005 * 3_000_000)


@pytest.mark.parametrize("lag", ["0", "auto"])
@pytest.mark.parametrize("poll_s", [0.02, 0.1])
def test_power_alone(poll_s: float, lag: str) -> None:
    """Instant power alone, integrated by trapezoids, gives the same figures."""
    plant = worked_plant()
    t_s = polls(ORIGIN_S - poll_s / 2, ORIGIN_S + 9 + poll_s / 2, poll_s)
    recording = record(plant.lines[GPU], t_s, power=PowerMeter())
    result = attribute(readings_csv({GPU: recording}), spans_csv(plant.runs), "--lag-ms", lag)
    check(result, idle=False)
    assert {request["method"] for request in result["requests"]} == {"instant"}


def test_one_second_average_power_alone() -> None:
    """The driver's one-second mean blurs every edge: the sum holds and U covers each truth."""
    plant = worked_plant()
    t_s = polls(ORIGIN_S - 5, ORIGIN_S + 15, 0.1)
    recording = record(plant.lines[GPU], t_s, power=PowerMeter(step_s=0.1, window_s=1.0))
    result = attribute(readings_csv({GPU: recording}), spans_csv(plant.runs))
    check_laws(result)
    requests = requests_of(result)
    assert sum(request["energy_mj"] for request in requests.values()) == pytest.approx(3_000_000, rel=0.05)
    for request_id, truth_mj in TRUTH_MJ.items():
        request = requests[request_id]
        uncertainty_mj = np.hypot(request["u_measurement_mj"], request["u_allocation_mj"])
        assert abs(request["energy_mj"] - truth_mj) <= uncertainty_mj, request


@pytest.mark.parametrize(
    ("policy", "a_mj", "b_mj", "idle_mj"),
    [
        ("separate", 1_800_000, 1_200_000, 300_000),
        ("reserved", 1_950_000, 1_350_000, 0),
        ("usage", 1_980_000, 1_320_000, 0),
        ("marginal", 1_500_000, 900_000, 900_000),
    ],
)
def test_idle_policies(policy: str, a_mj: int, b_mj: int, idle_mj: int) -> None:
    """Each policy gives its hand-worked split of the same 3300 J: reserved by held time 4:4, usage by energy 3:2."""
    case: Case = worked_case()
    result = attribute(case.readings_csv, case.spans_csv, "--idle-policy", policy)
    check_laws(result)
    requests, device = requests_of(result), result["devices"][GPU]
    assert requests["A"]["energy_mj"] == pytest.approx(a_mj, rel=WITHIN)
    assert requests["B"]["energy_mj"] == pytest.approx(b_mj, rel=WITHIN)
    assert device["idle_mj"] == pytest.approx(idle_mj, abs=WITHIN * 900_000)
    assert device["counter_delta_mj"] == pytest.approx(3_300_000, abs=2)


def test_shared_requests_are_apportioned() -> None:
    """A and B overlap, so both are apportioned, their U has an allocation part, and the source is the counter."""
    case = worked_case()
    for request in attribute(case.readings_csv, case.spans_csv)["requests"]:
        assert request["quality"] == "apportioned"
        assert request["method"] == "counter"
        assert request["u_allocation_mj"] > 0
        assert request["u_measurement_mj"] >= 0.05 * request["energy_mj"]

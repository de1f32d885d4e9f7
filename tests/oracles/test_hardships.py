"""The hard rows of notes/measurement.md 6.8: batches, devices, short requests, resets, gaps, liars, strangers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.meter import attribute, check_laws, requests_of
from tests.support.plant import GPU, Burst, Item, Job, Plant, PowerClass, Run, Slowdown, build, serve
from tests.support.scenarios import IDLE_W, ORIGIN_S, four_class_jobs, four_class_plant, recorded
from tests.support.sensors import Counter, PowerMeter, polls, readings_csv, record, spans_csv

SANA = PowerClass("sana", 435.0, 0.79)


def covered(plant: Plant, request: dict) -> bool:
    """Whether U (k=2) of a request covers its truth."""
    truth_mj = 1000 * plant.request_j(request["request_id"])
    return abs(request["energy_mj"] - truth_mj) <= np.hypot(request["u_measurement_mj"], request["u_allocation_mj"])


@pytest.mark.parametrize("shuffled", [False, True])
def test_unequal_batch(shuffled: bool) -> None:
    """Members owe by images x steps x pixels within 1 mJ, the sum is exact, and their order changes nothing."""
    items = (
        Item("a", 1, 20, 512, 512),
        Item("b", 1, 20, 768, 768),
        Item("c", 1, 28, 1024, 1024),
        Item("d", 1, 50, 1024, 1024),
    )
    order = items[::-1] if shuffled else items
    job = Job("batch", ORIGIN_S, PowerClass("k", 400.0), items=order)
    plant = build([Run(job, ORIGIN_S + 1, ORIGIN_S + 9)], IDLE_W)
    case = recorded(plant, 3)
    result = attribute(case.readings_csv, spans_csv(plant.runs, work=True))
    check_laws(result)
    requests = requests_of(result)
    total_mj = sum(request["energy_mj"] for request in requests.values())
    assert total_mj == result["devices"][GPU]["requests_mj"]
    assert total_mj == pytest.approx(8 * 495_000, rel=0.005)
    units = sum(item.units for item in items)
    for item in items:
        assert abs(requests[item.request_id]["energy_mj"] - total_mj * item.units / units) <= 1


def test_batch_without_work_columns_is_split_evenly() -> None:
    """A column that is absent counts as 1, so members without figures owe the same within 1 mJ."""
    job = Job("batch", ORIGIN_S, PowerClass("k", 400.0), items=tuple(Item(name) for name in "abc"))
    plant = build([Run(job, ORIGIN_S + 1, ORIGIN_S + 4)], IDLE_W)
    case = recorded(plant, 3)
    energies = [request["energy_mj"] for request in attribute(case.readings_csv, case.spans_csv)["requests"]]
    assert max(energies) - min(energies) <= 1


def test_batch_is_one_tenant_beside_a_request() -> None:
    """A batch of eight beside one request counts as one span: half of the idle power each, not eight ninths."""
    kind = PowerClass("k", 400.0)
    batch = Job("batch", ORIGIN_S, kind, items=tuple(Item(f"m{i}") for i in range(8)))
    lone = Job("lone", ORIGIN_S, kind)
    plant = build([Run(job, ORIGIN_S + 1, ORIGIN_S + 9) for job in (batch, lone)], IDLE_W)
    case = recorded(plant, 4)
    request = requests_of(attribute(case.readings_csv, case.spans_csv))["lone"]
    assert request["energy_mj"] / 1000 == pytest.approx(plant.request_j("lone"), rel=0.005)


def test_two_devices_with_different_sensors() -> None:
    """A request on two GPUs owes the sum of both, each under its own step, phase and lag."""
    kinds = (PowerClass("x", 300.0, 2.0), PowerClass("y", 450.0, 1.3))
    jobs = [
        Job(f"r{i}", ORIGIN_S + 1 + 1.1 * i, kinds[i % 2], devices=(("G0", "G1"), ("G0",), ("G1",))[i % 3])
        for i in range(30)
    ]
    plant = build(serve(jobs, 4), IDLE_W)
    t_s = polls(ORIGIN_S - 3, plant.last_edge_s + 3, 0.02)
    sensors = {"G0": Counter(phase_s=0.013, lag_s=0.1), "G1": Counter(step_s=0.05, phase_s=0.031, lag_s=0.03)}
    readings = readings_csv({name: record(plant.lines[name], t_s, sensor) for name, sensor in sensors.items()})
    result = attribute(readings, spans_csv(plant.runs))
    check_laws(result)
    for request in result["requests"]:
        truth_j = plant.truth_j[request["request_id"]]
        assert set(request["devices"]) == set(truth_j)
        for device, value_mj in request["devices"].items():
            assert value_mj / 1000 == pytest.approx(truth_j[device], rel=0.02)


def test_second_device_without_readings_is_partial() -> None:
    """A device whose cells are all empty leaves its part unknown; the other device's part stays."""
    job = Job("r", ORIGIN_S, SANA, devices=("G0", "G1"))
    plant = build([Run(job, ORIGIN_S + 1, ORIGIN_S + 4)], IDLE_W)
    t_s = polls(ORIGIN_S - 3, ORIGIN_S + 7, 0.02)
    readings = readings_csv({"G0": record(plant.lines["G0"], t_s, Counter())}) + "G1,11.0,\nG1,12.0,\n"
    result = attribute(readings, spans_csv(plant.runs))
    check_laws(result)
    (request,) = result["requests"]
    assert request["energy_mj"] / 1000 == pytest.approx(plant.truth_j["r"]["G0"], rel=0.005)
    assert request["devices"].get("G1") is None
    assert request["quality"] not in ("measured", "missing")


def test_request_shorter_than_the_step() -> None:
    """25 ms requests, lone and paired: more than 0 J, U over 80 % of E, apportioned."""
    kind = PowerClass("short", 300.0)
    runs = []
    for i in range(40):
        start_s = ORIGIN_S + 1 + 0.737 * i
        runs.append(Run(Job(f"lone{i}", start_s, kind), start_s, start_s + 0.025))
    for i in range(10):
        start_s = ORIGIN_S + 40 + 0.737 * i
        runs += [Run(Job(f"pair{i}{side}", start_s, kind), start_s, start_s + 0.025) for side in "ab"]
    plant = build(runs, IDLE_W)
    case = recorded(plant, 9)
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    for request in result["requests"]:
        assert request["energy_mj"] > 0
        assert request["quality"] == "apportioned"
        uncertainty_mj = np.hypot(request["u_measurement_mj"], request["u_allocation_mj"])
        assert uncertainty_mj > 0.8 * request["energy_mj"]


def test_many_short_requests_add_up() -> None:
    """A thousand lone 25 ms requests add up within 2 %: what one cannot resolve, many do."""
    rng = np.random.default_rng(4)
    kind = PowerClass("short", 300.0)
    starts = ORIGIN_S + 1 + 0.4 * np.arange(1000) + rng.uniform(0, 0.3, 1000)
    plant = build([Run(Job(f"r{i}", float(t), kind), float(t), float(t) + 0.025) for i, t in enumerate(starts)], IDLE_W)
    case = recorded(plant, 9)
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    booked_j = sum(request["energy_mj"] for request in result["requests"]) / 1000
    assert booked_j == pytest.approx(sum(plant.request_j(name) for name in plant.truth_j), rel=0.02)
    assert sum(covered(plant, request) for request in result["requests"]) >= 930


def test_counter_reset() -> None:
    """A counter that restarts opens a second epoch; the law closes in each and nothing is negative."""
    plant = four_class_plant(7, count=60, duration_s=150)
    reset_s = ORIGIN_S + 70.0
    case = recorded(plant, 7, Counter(resets_s=(reset_s,)))
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    device = result["devices"][GPU]
    assert len(device["epochs"]) == 2
    before, after = device["epochs"]
    assert before["end_s"] <= reset_s + 0.2
    assert reset_s - 0.2 <= after["start_s"]
    assert after["start_s"] == pytest.approx(reset_s, abs=0.25)
    errors = [abs(r["energy_mj"] / 1000 / plant.request_j(r["request_id"]) - 1) for r in result["requests"]]
    assert np.median(errors) < 0.01


def test_request_across_a_reset_loses_quality() -> None:
    """A request whose counter restarted under it keeps what was seen, is not measured, and the rest is estimated."""
    plant = build([Run(Job("r", ORIGIN_S, SANA), ORIGIN_S + 1, ORIGIN_S + 9)], IDLE_W)
    case = recorded(plant, 7, Counter(resets_s=(ORIGIN_S + 5.0,)), gaps=((ORIGIN_S + 4, ORIGIN_S + 6),))
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    (request,), device = result["requests"], result["devices"][GPU]
    truth_j = plant.request_j("r")
    assert 0.6 * truth_j < request["energy_mj"] / 1000 < truth_j
    assert request["quality"] != "measured"
    assert device["estimated_mj"] / 1000 == pytest.approx(2 * 530, rel=0.2)


def test_gap_without_a_reset_stays_inside_the_law() -> None:
    """A hole in the polling is one long interval: its energy is counted, nothing is estimated, U is wider inside."""
    plant = four_class_plant(7, count=100, duration_s=240)
    gap_s = (ORIGIN_S + 100.0, ORIGIN_S + 103.0)
    whole, holed = (
        attribute(case.readings_csv, case.spans_csv) for case in (recorded(plant, 7), recorded(plant, 7, gaps=(gap_s,)))
    )
    check_laws(holed)
    device = holed["devices"][GPU]
    assert device["counter_delta_mj"] == whole["devices"][GPU]["counter_delta_mj"]
    assert device["estimated_mj"] == 0
    assert len(device["epochs"]) == 1
    inside = [r for r in plant.runs if r.started_s < gap_s[1] and r.ended_s > gap_s[0]]
    assert inside
    for run in inside:
        name = run.job.request_id
        wide, narrow = requests_of(holed)[name], requests_of(whole)[name]
        u_mj = [np.hypot(r["u_measurement_mj"], r["u_allocation_mj"]) for r in (wide, narrow)]
        assert u_mj[0] > u_mj[1], name
        assert covered(plant, wide), name
        assert wide["quality"] != "measured"


def test_hole_in_power_only_readings_is_estimated() -> None:
    """What no counter saw cannot be inside the law: a hole of 3 s in power readings goes to the estimated account."""
    plant = build([Run(Job("r", ORIGIN_S, SANA), ORIGIN_S + 1, ORIGIN_S + 21)], IDLE_W)
    t_s = polls(ORIGIN_S - 5, ORIGIN_S + 25, 0.1, gaps=((ORIGIN_S + 10, ORIGIN_S + 13),))
    result = attribute(readings_csv({GPU: record(plant.lines[GPU], t_s, power=PowerMeter())}), spans_csv(plant.runs))
    check_laws(result)
    device = result["devices"][GPU]
    assert device["estimated_mj"] / 1000 == pytest.approx(3 * 530, rel=0.1)
    assert device["requests_mj"] / 1000 == pytest.approx(17 * 530, rel=0.02)


def test_stuck_counter_makes_no_free_images() -> None:
    """While the counter repeats itself and power is high, no request is booked as 0 J, and none of them is measured."""
    kind = PowerClass("k", 400.0, 1.0)
    starts = ORIGIN_S + 1 + 1.5 * np.arange(20)
    plant = build(
        [Run(Job(f"r{i:02d}", float(t), kind), float(t), float(t) + 1.0) for i, t in enumerate(starts)], IDLE_W
    )
    stuck_s = (ORIGIN_S + 10.0, ORIGIN_S + 15.0)
    case = recorded(plant, 5, Counter(stuck_s=(stuck_s,)), power=PowerMeter())
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    for run in plant.runs:
        request = requests_of(result)[run.job.request_id]
        assert request["energy_mj"] / 1000 == pytest.approx(plant.request_j(run.job.request_id), rel=0.15)
        if stuck_s[0] + 0.2 < run.started_s and run.ended_s < stuck_s[1] - 0.2:
            assert request["quality"] != "measured"


def test_lying_counter_is_not_believed_in_silence() -> None:
    """A counter at 0.57 of the integrated power (zeus #181) is never reported as a narrow measured figure."""
    plant = four_class_plant(2, count=60, duration_s=150)
    case = recorded(plant, 2, Counter(gain=0.57), power=PowerMeter())
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    inside = np.mean([covered(plant, request) for request in result["requests"]])
    assert inside > 0.9


def test_clocks_fall_mid_run() -> None:
    """When dynamic power falls by 30 % under way the law stays exact and the median error small."""
    rng = np.random.default_rng(3)
    runs = serve(four_class_jobs(rng, 120, 300), 4)
    plant = build(runs, IDLE_W, slowdowns=[Slowdown(ORIGIN_S + 150, ORIGIN_S + 1e4, 0.7)])
    case = recorded(plant, 3)
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    errors = [abs(r["energy_mj"] / 1000 / plant.request_j(r["request_id"]) - 1) for r in result["requests"]]
    assert np.median(errors) < 0.02
    booked_j = result["devices"][GPU]["requests_mj"] / 1000
    assert booked_j == pytest.approx(sum(plant.request_j(name) for name in plant.truth_j), rel=0.02)


@pytest.mark.parametrize("classes", [True, False])
def test_foreign_load_over_idle(classes: bool) -> None:
    """A stranger's 300 W over an idle device is unattributed to at least 90 %, and teaches the model nothing."""
    runs = serve(four_class_jobs(np.random.default_rng(8), 110, 280), 4)
    quiet_s = max(run.ended_s for run in runs) + 5
    later = [Run(Job("tail", quiet_s + 60, SANA), quiet_s + 60, quiet_s + 62)]
    plant = build((*runs, *later), IDLE_W, bursts=[Burst(quiet_s, quiet_s + 30, 300.0)])
    case = recorded(plant, 8, classes=classes)
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    device = result["devices"][GPU]
    assert device["unattributed_mj"] / 1000 >= 0.9 * plant.foreign_j(GPU)
    assert device["unattributed_mj"] / 1000 <= 1.05 * plant.foreign_j(GPU)
    assert device["idle_w"] == pytest.approx(IDLE_W, abs=3)
    errors = [abs(r["energy_mj"] / 1000 / plant.request_j(r["request_id"]) - 1) for r in result["requests"]]
    assert np.median(errors) < 0.03


def test_foreign_load_over_requests() -> None:
    """A stranger's 300 W over busy stretches is unattributed to at least 60 %; the touched requests lose quality."""
    burst = Burst(ORIGIN_S + 100, ORIGIN_S + 130, 300.0)
    plant = four_class_plant(6, bursts=(burst,))
    case = recorded(plant, 6)
    result = attribute(case.readings_csv, case.spans_csv)
    check_laws(result)
    device = result["devices"][GPU]
    assert device["unattributed_mj"] / 1000 >= 0.6 * plant.foreign_j(GPU)
    assert device["unattributed_mj"] / 1000 <= 1.1 * plant.foreign_j(GPU)
    clear = [r.job.request_id for r in plant.runs if r.ended_s < burst.started_s or r.started_s > burst.ended_s]
    requests = requests_of(result)
    assert np.median([abs(requests[name]["energy_mj"] / 1000 / plant.request_j(name) - 1) for name in clear]) < 0.01
    touched = [r for r in plant.runs if r.started_s < burst.ended_s - 1 and r.ended_s > burst.started_s + 1]
    assert all(requests[run.job.request_id]["quality"] != "measured" for run in touched)


def test_no_false_alarm() -> None:
    """Without a stranger, under 0.5 % of the energy is unattributed, over several seeds and poor polling."""
    for seed in range(3):
        plant = four_class_plant(seed, count=100, duration_s=250)
        case = recorded(plant, seed, drop=0.3 if seed == 2 else 0.0)
        device = attribute(case.readings_csv, case.spans_csv)["devices"][GPU]
        assert device["unattributed_mj"] <= 0.005 * device["counter_delta_mj"]


def test_device_that_is_never_used_is_all_idle() -> None:
    """Readings without spans: the whole delta is idle, whatever the power does."""
    plant = build([], IDLE_W)
    t_s = polls(ORIGIN_S, ORIGIN_S + 60, 0.02)
    readings = readings_csv({GPU: record(plant.lines[GPU], t_s, Counter())})
    result = attribute(readings, "request_id,devices,start_s,end_s\n")
    check_laws(result)
    device = result["devices"][GPU]
    assert result["requests"] == []
    assert device["requests_mj"] == 0
    assert device["idle_mj"] == pytest.approx(60 * IDLE_W * 1000, rel=0.01)

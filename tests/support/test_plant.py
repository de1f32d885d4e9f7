"""The simulator and the reference against closed forms: a wrong judge would make every other test worthless."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import reference
from tests.support.plant import GPU, Burst, Item, Job, PowerClass, Run, Slowdown, build, serve
from tests.support.reference import Interval, Model, Use
from tests.support.scenarios import (
    FOUR_CLASSES,
    ORIGIN_S,
    four_class_plant,
    recorded,
    serial_plant,
    worked_case,
    worked_plant,
)
from tests.support.sensors import Counter, PowerMeter, polls


def test_worked_oracle_by_hand() -> None:
    """The plant gives the hand-worked 1800, 1200 and 300 J."""
    plant = worked_plant()
    assert plant.request_j("A") == pytest.approx(1800)
    assert plant.request_j("B") == pytest.approx(1200)
    assert plant.idle_j(GPU, ORIGIN_S, ORIGIN_S + 9) == pytest.approx(300)
    line = plant.lines[GPU]
    assert float(line.energy_j(ORIGIN_S + 9) - line.energy_j(ORIGIN_S)) == pytest.approx(3300)
    assert [float(line.power_at_w(ORIGIN_S + t)) for t in (0.5, 2, 4, 6, 8)] == [100, 600, 500, 400, 100]


def test_worked_case_reads_the_whole_trace() -> None:
    """First and last reading of the worked case differ by the trace's 3300 J for every lag."""
    for lag_s in (0.0, 0.1, 0.25):
        rows = [line.split(",") for line in worked_case(lag_s).readings_csv.splitlines()[1:]]
        assert int(rows[-1][2]) - int(rows[0][2]) == pytest.approx(3_300_000, abs=2)


def test_time_slicing_halves_speed() -> None:
    """Two equal jobs that start together take twice as long, and a third waits for the cap of two."""
    kind = PowerClass("k", 300.0, 2.0)
    runs = {run.job.request_id: run for run in serve([Job(name, 0.0, kind) for name in "abc"], cap=2)}
    assert (runs["a"].started_s, runs["a"].ended_s) == pytest.approx((0.0, 4.0))
    assert (runs["b"].started_s, runs["b"].ended_s) == pytest.approx((0.0, 4.0))
    assert (runs["c"].started_s, runs["c"].ended_s) == pytest.approx((4.0, 6.0))


def test_overlap_of_unequal_jobs() -> None:
    """A 1 s job that joins a 3 s job after 1 s ends after 2 s more, and the long one 1 s later."""
    runs = serve([Job("long", 0.0, PowerClass("l", 1.0, 3.0)), Job("short", 1.0, PowerClass("s", 1.0, 1.0))], cap=4)
    ends = {run.job.request_id: run.ended_s for run in runs}
    assert ends == pytest.approx({"long": 4.0, "short": 3.0})


def test_serial_queue_is_lindley() -> None:
    """Behind one slot, every start is the later of arrival and the previous end."""
    runs = serial_plant(3, count=200).runs
    for before, run in pairwise(runs):
        assert run.started_s == pytest.approx(max(run.job.arrived_s, before.ended_s))
        assert run.ended_s - run.started_s == pytest.approx(run.job.work_s)


@pytest.mark.parametrize("hidden_sd", [0.0, 0.5])
def test_plant_conserves_energy(hidden_sd: float) -> None:
    """Requests, idle and foreign energy add up to the integral of power, whatever the hidden shares."""
    plant = four_class_plant(5, hidden_sd=hidden_sd, bursts=(Burst(20.0, 50.0, 300.0),))
    line, end_s = plant.lines[GPU], plant.last_edge_s + 1
    total_j = float(line.energy_j(end_s) - line.energy_j(0.0))
    parts_j = sum(plant.request_j(run.job.request_id) for run in plant.runs)
    assert parts_j + plant.idle_j(GPU, 0.0, end_s) + plant.foreign_j(GPU) == pytest.approx(total_j, rel=1e-9)


def test_lone_request_owes_idle_and_dynamic_power() -> None:
    """Alone, a request owes (P0 + D) x duration, on every device it holds, and less when clocks fall."""
    run = Run(Job("r", 1.0, PowerClass("k", 300.0), devices=("x", "y")), 1.0, 3.0)
    assert build([run], 100.0).truth_j["r"] == pytest.approx({"x": 800.0, "y": 800.0})
    slow = build([run], 100.0, slowdowns=[Slowdown(2.0, 9.0, 0.5)])
    assert slow.truth_j["r"]["x"] == pytest.approx(400.0 + 250.0)


def test_batch_truth_follows_declared_work() -> None:
    """Members of a batch owe by images x steps x pixels."""
    items = (Item("a", 1, 10, 8, 8), Item("b", 2, 10, 8, 16))
    plant = build([Run(Job("batch", 0.0, PowerClass("k", 300.0), items=items), 0.0, 1.0)], 100.0)
    assert plant.request_j("a") == pytest.approx(80.0)
    assert plant.request_j("b") == pytest.approx(320.0)


def test_four_class_trace_is_that_of_the_note() -> None:
    """Busy share and mean concurrency are near the 62 % and 2.13 of the note, over many seeds."""
    busy, crowd = [], []
    for seed in range(12):
        plant = four_class_plant(seed)
        busy_s = sum(b - a for a, b in plant.busy_s[GPU])
        busy.append(busy_s / 600)
        crowd.append(sum(run.ended_s - run.started_s for run in plant.runs) / busy_s)
    assert len(plant.runs) == 236
    assert 0.55 < np.mean(busy) < 0.70
    assert 1.8 < np.mean(crowd) < 2.4
    assert sum(kind.mix for kind in FOUR_CLASSES) == pytest.approx(1.0)


def test_counter_shows_energy_until_lag_before_its_refresh() -> None:
    """A stepped, late counter shows the energy of refresh minus lag, to the millijoule."""
    line = worked_plant().lines[GPU]
    counter = Counter(step_s=0.1, phase_s=0.03, lag_s=0.25)
    t_s = np.array([10.0, 12.0, 12.02, 12.04, 15.0])
    shown = counter.read_mj(line, t_s) - counter.base_mj
    refresh_s = np.array([9.93, 11.93, 11.93, 12.03, 14.93])
    expected = 1000 * (line.energy_j(refresh_s - 0.25) - line.energy_j(10.0 - 0.25 - 0.2))
    assert shown == pytest.approx(expected, abs=1.01)


def test_counter_resets_sticks_and_lies() -> None:
    """A reset restarts from 0, a stuck counter repeats, a lying one is off by its gain."""
    line = worked_plant().lines[GPU]
    t_s = polls(10.0, 20.0, 0.1)
    reset = Counter(step_s=0, lag_s=0, resets_s=(14.0,)).read_mj(line, t_s)
    assert reset[t_s < 14.0].min() > 0
    assert reset[-1] == pytest.approx(1000 * float(line.energy_j(20.0) - line.energy_j(14.0)), abs=1)
    stuck = Counter(step_s=0, lag_s=0, stuck_s=((12.0, 13.0),)).read_mj(line, t_s)
    assert len(set(stuck[(t_s >= 12.0) & (t_s < 12.99)])) == 1
    honest, lying = (Counter(step_s=0, lag_s=0, gain=gain).read_mj(line, t_s) for gain in (1.0, 0.57))
    assert (lying[-1] - lying[0]) / (honest[-1] - honest[0]) == pytest.approx(0.57, rel=1e-4)


def test_power_sensor_window() -> None:
    """An instant sensor shows the power now, a one-second sensor the mean of the last second."""
    line = worked_plant().lines[GPU]
    t_s = np.array([11.5, 12.5])
    assert list(PowerMeter().read_w(line, t_s)) == [600, 600]
    assert PowerMeter(window_s=1.0).read_w(line, t_s) == pytest.approx([350, 600])


def test_polls_lose_what_they_are_told_to_lose() -> None:
    """Dropped polls and gaps thin the recording and time stays strictly increasing."""
    t_s = polls(0.0, 100.0, 0.02, rng=np.random.default_rng(1), jitter_s=0.002, drop=0.3, gaps=((40.0, 43.0),))
    assert np.all(np.diff(t_s) > 0)
    assert not np.any((t_s > 40.0) & (t_s < 43.0))
    assert len(t_s) == pytest.approx(0.7 * 0.97 * 5001, rel=0.05)


def test_csv_has_a_row_a_poll_and_a_row_a_run() -> None:
    """The files have the columns of design 5.2 and nothing is lost in writing."""
    case = recorded(four_class_plant(1, count=20, duration_s=40), 1, power=PowerMeter())
    assert case.readings_csv.startswith("device,t_s,energy_mj,power_w\nGPU-0,")
    assert case.spans_csv.startswith("request_id,devices,start_s,end_s,class\nr0")
    assert len(case.spans_csv.splitlines()) == 21


MILLIS = st.integers(0, 40).map(lambda n: Fraction(n, 4))


@st.composite
def schedules(draw: st.DrawFn) -> list[Use]:
    """One to four requests with quarter-second edges."""
    uses = []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        start_s = draw(MILLIS)
        uses.append(Use(name, start_s, start_s + draw(st.integers(1, 16).map(lambda n: Fraction(n, 4))), name))
    return uses


@settings(max_examples=200, deadline=None)
@given(schedules())
def test_equal_split_of_idle_power_is_the_shapley_value(uses: list[Use]) -> None:
    """Brute-force Shapley values equal own dynamic energy plus P0 split equally, exactly (notes, section 2)."""
    dynamic_w = {use.request_id: Fraction(100 * (i + 1)) for i, use in enumerate(uses)}
    model = Model(Fraction(95), dynamic_w)
    whole = Interval(Fraction(0), Fraction(20), 0)
    rule_j = reference.interval_weights(whole, uses, model)
    static_j = reference.interval_weights(whole, uses, Model(Fraction(95), dict.fromkeys("abcd", Fraction(0))))
    own_j = {use.request_id: rule_j[use.request_id] - static_j[use.request_id] for use in uses}
    shapley_j = reference.shapley(uses, Fraction(95), own_j)
    assert shapley_j == {use.request_id: rule_j[use.request_id] for use in uses}


@settings(max_examples=100, deadline=None)
@given(schedules(), st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_reference_conserves(uses: list[Use], energies: list[int]) -> None:
    """The reference partitions every interval, guard or not."""
    intervals = [Interval(Fraction(i), Fraction(i + 1), energy) for i, energy in enumerate(energies)]
    for tolerance in (None, Fraction(15, 100)):
        model = Model(Fraction(95), dict.fromkeys("abcd", Fraction(300)), tolerance)
        accounts = reference.attribute(intervals, uses, model)
        parts = sum(accounts.requests_mj.values(), accounts.idle_mj + accounts.unattributed_mj)
        assert parts == sum(energies)


def test_reference_agrees_with_the_plant() -> None:
    """With an ideal counter and true parameters the exact reference gives the plant's truth."""
    plant = worked_plant()
    line = plant.lines[GPU]
    edges = [Fraction(10) + Fraction(i, 10) for i in range(91)]
    shown = [round(1000 * float(line.energy_j(float(t)))) for t in edges]
    intervals = [Interval(a, b, y - x) for a, b, x, y in zip(edges, edges[1:], shown, shown[1:], strict=False)]
    uses = [Use(r.job.request_id, Fraction(r.started_s), Fraction(r.ended_s), r.job.kind.name) for r in plant.runs]
    accounts = reference.attribute(intervals, uses, Model(Fraction(100), {"A": Fraction(500), "B": Fraction(300)}))
    assert float(accounts.requests_mj["A"]) == pytest.approx(1_800_000, abs=1)
    assert float(accounts.requests_mj["B"]) == pytest.approx(1_200_000, abs=1)
    assert float(accounts.idle_mj) == pytest.approx(300_000, abs=1)

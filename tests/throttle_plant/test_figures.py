"""How figures are counted, summed and judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.throttle.arrivals import Arrivals
from benchmarks.throttle.bars import bars
from benchmarks.throttle.families import FAMILIES
from benchmarks.throttle.figures import figures, jain, reversals
from benchmarks.throttle.judge import judge, main
from benchmarks.throttle.loop import Case, Recording
from benchmarks.throttle.scenarios import SCENARIOS
from benchmarks.throttle.service import Service
from benchmarks.throttle.summary import compared, summaries
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("series", "turns"),
    [
        ([100.0] * 5, 0),
        ([100.0, 80.0, 60.0], 0),
        ([100.0, 80.0, 85.0], 1),
        ([100.0, 80.0, 83.0, 80.0, 83.9, 79.0], 0),
        ([100.0, 95.0, 99.7, 95.0, 100.0], 1),
        ([100.0, 95.0, 99.75, 94.0, 99.0], 3),
        ([100.0, 96.0, 92.0, 94.0, 96.0, 98.0, 96.0, 93.0], 2),
        ([50.0, 52.0, 60.0, 57.5, 56.0, 70.0], 2),
        ([0.0, 5.0, 0.0], 1),
    ],
)
def test_reversals_of_known_series(series: list[float], turns: int):
    """A turn is a way back of at least 5 % of the last extreme, slow or sudden; ripple inside the band is none."""
    assert reversals(series) == turns


@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=40))
def test_reversals_know_no_unit_and_no_pause(series: list[float]):
    """A series in other units, or with every value held twice as long, turns as often; a sorted one never."""
    assert reversals([4.0 * value for value in series]) == reversals(series)
    assert reversals([value for value in series for _ in range(2)]) == reversals(series)
    assert reversals(sorted(series)) == 0
    assert reversals(sorted(series, reverse=True)) == 0


def test_jain_is_one_for_equals_and_one_nth_for_a_winner():
    """The ends of the scale are where Jain put them."""
    assert jain([0.3, 0.3, 0.3]) == pytest.approx(1.0)
    assert jain([0.0, 0.9, 0.0, 0.0]) == pytest.approx(0.25)


def by_hand() -> Recording:
    """Three seconds of two boards and six requests, written out."""
    rows = [(0.0, 0, 29.9), (0.0, 0, 30.1), (1.0, 2, 61.0), (1.0, 2, 61.1), (2.0, 1, None), (3.0, 2, None)]
    arrivals = Arrivals(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.ones(6))
    service = Service(2, arrivals)
    service.admitted[:] = [True, True, True, True, True, False]
    service.done_s[:] = [np.nan if r[2] is None else r[2] for r in rows]
    service.started_s[:4] = [4.0, 5.0, 6.0, 7.0]
    case = Case(replace(SCENARIOS["fanfail"], events_s=(1.0,)), FAMILIES["h100"], "normal", 1, "oracle")
    recording = Recording(case, arrivals, service)
    recording.t_s = [1, 61, 62]
    recording.hot_s = [3.0, 2.0, 1.5]
    recording.published_cap_w = [np.array([700.0, 700.0]), np.array([600.0, 700.0]), np.array([690.0, 700.0])]
    recording.published_per_minute = [192.0, 100.0, 192.0]
    recording.tier_per_minute = [(1.0, 1.0, 1.0)] * 3
    recording.energy_j, recording.budget_j = 7.2e6, 7.0e6
    return recording


def test_figures_of_a_case_by_hand():
    """Deadlines, grace after the event, endless waits, turns of capped boards only, and the budget are counted."""
    seen = figures(by_hand())
    assert (seen["good"], seen["refused"]) == (2, 1)
    assert (seen["paid_success"], seen["free_success"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (seen["hot_s"], seen["hot_after_s"]) == (6.5, 4.5)
    assert seen["paid_p99_s"] == pytest.approx(np.quantile([4.0, 5.0, 3598.0], 0.99))
    assert (seen["rate_reversals_h"], seen["cap_reversals_h"], seen["cap_reversals_worst_h"]) == (1.0, 1.0, 1.0)
    assert (seen["detect_s"], seen["capped_s"]) == (60.0, 1.0)
    assert (seen["kwh"], seen["j_per_good"]) == (pytest.approx(2.0), pytest.approx(3.6e6))
    assert seen["overshoot"] == pytest.approx(0.2 / 7.0)


def row(**changes: Any) -> dict[str, Any]:
    """A run of the adviser that meets every bar, but for the changes."""
    good: dict[str, Any] = {
        "scenario": "flash10", "family": "h100", "governor": "normal", "actuators": "rate+power_cap", "seed": 1,
        "controller": "joulegate", **figures(by_hand()), "good_pct": 99.0, "queue_only_pct": 100.0,
        "queue_only_hot_s": 50.0, "hard_s": 0.0, "hot_after_s": 0.0, "paid_p99_s": 5.0, "rate_reversals_h": 0.0,
        "cap_reversals_h": 0.0, "overshoot": 0.0,
    }  # fmt: skip
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"hard_s": 0.25}, {"HW slowdown s, worst run"}),
        ({"hard_s": 0.25, "family": "slow"}, {"not tuned on: HW slowdown s, worst run"}),
        ({"hard_s": 0.25, "scenario": "devices72"}, {"not tuned on: HW slowdown s, worst run"}),
        ({"hard_s": 0.25, "actuators": "rate"}, {"rate only: HW slowdown s, worst run"}),
        ({"hot_after_s": 3.0}, {"hot s from 60 s, driver on, mean"}),
        ({"hot_after_s": 10.5, "governor": "none"}, {"hot s from 60 s, driver off, worst run"}),
        ({"good_pct": 96.9}, {"goodput % of oracle, thermal"}),
        ({"good_pct": 96.9, "scenario": "workshift"}, set()),
        ({"good_pct": 94.9, "scenario": "workshift"}, {"goodput % of oracle, workshift"}),
        ({"paid_p99_s": 10.1}, {"paid p99 wait s, steady and thermal"}),
        ({"cap_reversals_h": 3.0}, {"cap reversals/h, air"}),
        ({"rate_reversals_h": 4.5, "scenario": "flash10_liquid"}, {"rate reversals/h, liquid"}),
        ({"rate_reversals_h": 4.5, "scenario": "diurnal"}, {"rate reversals/h, diurnal"}),
        ({"overshoot": 0.011, "scenario": "budget"}, {"budget overshoot, share"}),
        ({"scenario": "steady", "refused": 1, "capped_s": 0.0, "good_pct": 100.0}, {"steady: images refused"}),
    ],
)
def test_each_bar_is_missed_by_what_it_is_for(changes: dict[str, Any], missed: set[str]):
    """A run that breaks one bar misses that bar and no other."""
    assert {bar.name for bar in bars([row(**changes)]) if not bar.met} == missed


def test_goodput_is_never_without_heat_beside_it():
    """A goodput bar says how hot the adviser was and what queue_only reached, and how hot."""
    decided = {bar.name: bar.where for bar in bars([row()])}
    assert decided["goodput % of oracle, thermal"] == "flash10 h100 normal (6.5 hot s; queue_only 100.0 % with 50)"


def test_rows_are_compared_within_their_hour_and_averaged_over_seeds():
    """Each run is held against the oracle and queue_only of its own seed and governor; groups keep the worst heat."""
    rows = [
        row(controller=name, seed=seed, good=good, hot_s=hot_s, hot_after_s=hot_s)
        for seed, ones in ((1, (80, 100, 90)), (2, (150, 200, 210)))
        for name, good, hot_s in zip(("joulegate", "oracle", "queue_only"), ones, (1.0 * seed, 0.0, 7.0), strict=True)
    ]
    found = compared(rows)
    assert [one["good_pct"] for one in found] == pytest.approx([80, 100, 90, 75, 100, 105])
    assert {(one["queue_only_pct"], one["queue_only_hot_s"]) for one in found} == {(90.0, 7.0), (105.0, 7.0)}
    mine = summaries(found)[0]
    assert (mine["good_pct"], mine["hot_after_s"], mine["hot_after_worst_s"]) == (77.5, 1.5, 2.0)


def test_judge_prints_a_table_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Cases run in other processes come back as a table with hot seconds, and as JSON with every run."""
    short = replace(SCENARIOS["hot_steady"], duration_s=90)
    cases = [Case(short, FAMILIES["h100"], "none", 7, name) for name in ("static", "oracle", "queue_only")]
    assert judge(cases, 1, tmp_path / "all.json") == 0
    out = capsys.readouterr().out
    assert "== hot_steady on h100" in out
    assert "no bar: joulegate was not run" in out
    written = json.loads((tmp_path / "all.json").read_text())
    assert [run["controller"] for run in written["runs"]] == ["static", "oracle", "queue_only"]
    assert {"hot_s", "queue_only_pct", "hard_s", "free_jain"} <= written["means"][0].keys()


def test_trace_has_a_row_a_second(tmp_path: Path):
    """A trace gives true temperatures, caps, published rate, demand and queue of one run, second by second."""
    path = tmp_path / "trace.csv"
    words = [
        "--scenarios",
        "devices4",
        "--controllers",
        "pi",
        "--governor",
        "none",
        "--seeds",
        "3",
        "--trace",
        str(path),
    ]
    assert main(words) == 0
    head, *rows = (line.split(",") for line in path.read_text().splitlines())
    assert head[:6] == ["t_s", "die_max_c", "die_0_c", "die_1_c", "die_2_c", "die_3_c"]
    assert head[-6:] == ["published_per_minute", "arrivals", "done", "queue", "state", "binding"]
    assert [int(one[0]) for one in rows] == list(range(1, 3601))
    assert max(float(one[1]) for one in rows) > 80

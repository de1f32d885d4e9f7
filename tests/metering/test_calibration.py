"""Calibration finds what a recording was made with, and says when it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.metering.recordings import energy_at, record

from joulegate.metering.calibration import Changes, ShareTimes, calibrate, dynamic_energy, model_energy
from joulegate.metering.model import UNKNOWN_MODEL, PowerModel

BY_CLASS = {"large": 560.0, "small": 330.0}


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.floats(20.0, 200.0),
    st.lists(st.floats(50.0, 700.0), min_size=1, max_size=4),
    st.floats(0.0, 0.35),
)
def test_recovers_what_the_recording_was_made_with(
    seed: int, idle_w: float, dynamic_w: list[float], lag_s: float
) -> None:
    """Idle power within 2 W, each class within 3 %, the lag within 12 ms, for any of them, from 60 requests."""
    by_class = {f"c{index}": watts for index, watts in enumerate(dynamic_w)}
    made = record(np.random.default_rng(seed), 60, by_class, idle_w=idle_w, lag_s=lag_s, pause_s=1.5)
    found = calibrate(made.changes, made.starts_s, made.ends_s, made.classes)
    assert found.lag.known
    assert found.lag.lag_s == pytest.approx(lag_s, abs=0.012)
    assert found.model.calibrated
    assert found.model.idle_known
    assert found.model.idle_w == pytest.approx(idle_w, abs=2)
    for name in set(made.classes):
        assert found.model.dynamic_of(name) == pytest.approx(by_class[name], rel=0.03, abs=3)


@pytest.mark.parametrize("seed", range(4))
def test_foreign_tenant_teaches_nothing(seed: int) -> None:
    """With 10 % of the time under 250 W of a stranger the powers and the lag stay what they are."""
    rng = np.random.default_rng(seed)
    made = record(rng, 80, BY_CLASS, lag_s=0.1)
    energy_j = made.changes.energy_j.copy()
    begins = rng.integers(0, len(energy_j) - 40, size=max(1, len(energy_j) // 400))
    for begin in begins:
        energy_j[begin : begin + 40] += 250 * 0.1
    found = calibrate(replace(made.changes, energy_j=energy_j), made.starts_s, made.ends_s, made.classes)
    assert found.lag.lag_s == pytest.approx(0.1, abs=0.012)
    assert found.model.idle_w == pytest.approx(95, abs=2)
    for name, watts in BY_CLASS.items():
        assert found.model.dynamic_of(name) == pytest.approx(watts, rel=0.02)


def test_saturated_device_has_no_idle_power() -> None:
    """Without an idle moment only P0 + D is told: idle power is not claimed, and no class is squeezed to nothing."""
    made = record(np.random.default_rng(1), 400, BY_CLASS, pause_s=0.2)
    inside = (made.changes.start_s > made.starts_s[20]) & (made.changes.end_s < made.starts_s[-20])
    part = Changes(*(column[inside] for column in (made.changes.start_s, made.changes.end_s, made.changes.energy_j)))
    busy = ShareTimes(made.starts_s, made.ends_s, np.zeros(400, dtype=np.int64), 1).between(part.start_s, part.end_s)
    assert busy.sum() == pytest.approx(part.duration_s.sum())
    found = calibrate(part, made.starts_s, made.ends_s, made.classes)
    assert not found.model.idle_known
    assert found.model.idle_w < 120
    for name, watts in BY_CLASS.items():
        assert found.model.idle_w + found.model.dynamic_of(name) == pytest.approx(95 + watts, rel=0.03)


def test_rare_class_stays_near_the_others() -> None:
    """A class that was seen once, shortly, is no outlier, and its share is more doubtful than theirs."""
    made = record(np.random.default_rng(2), 80, {"usual": 400.0}, noise=0.05)
    shortest = int(np.argmin(made.ends_s - made.starts_s))
    made.classes[shortest] = "rare"
    found = calibrate(made.changes, made.starts_s, made.ends_s, made.classes)
    assert found.model.dynamic_of("rare") == pytest.approx(400, rel=0.25)
    assert found.model.share_error_of("rare") > found.model.share_error_of("usual")


def test_hundreds_of_classes_are_folded() -> None:
    """However many classes are named, each has a power, and the frequent ones the right one."""
    made = record(np.random.default_rng(3), 200, BY_CLASS, lag_s=0.1)
    classes = [name if index % 2 else f"once-{index}" for index, name in enumerate(made.classes)]
    found = calibrate(made.changes, made.starts_s, made.ends_s, classes)
    for name, watts in BY_CLASS.items():
        assert found.model.dynamic_of(name) == pytest.approx(watts, rel=0.1)
    assert 300 < found.model.dynamic_of("once-0") < 600


@pytest.mark.parametrize("rows", range(6))
def test_few_rows_give_a_model_that_claims_nothing(rows: int) -> None:
    """From none to a handful of intervals there is a usable model that says it is not calibrated."""
    ticks = np.arange(rows + 1) * 0.1
    changes = Changes(ticks[:-1], ticks[1:], np.full(rows, 40.0))
    found = calibrate(changes, np.array([0.0]), np.array([0.1]), [""])
    assert not found.model.idle_known
    assert found.model.dynamic_of("") > 0
    assert not found.lag.known
    if not rows:
        assert found.model is UNKNOWN_MODEL


def test_idle_recording_tells_idle_power_and_nothing_else() -> None:
    """Without a request the idle power is known and the lag is not."""
    ticks = np.arange(101) * 0.1
    changes = Changes(ticks[:-1], ticks[1:], np.full(100, 9.5))
    found = calibrate(changes, np.empty(0), np.empty(0), [])
    assert (found.model.idle_known, found.lag.known) == (True, False)
    assert found.model.idle_w == pytest.approx(95, abs=0.5)
    assert not found.model.calibrated


def test_lag_that_is_given_is_believed() -> None:
    """Then nothing is searched."""
    made = record(np.random.default_rng(4), 40, BY_CLASS, lag_s=0.1)
    found = calibrate(made.changes, made.starts_s, made.ends_s, made.classes, lag_s=0.3)
    assert (found.lag.lag_s, found.lag.known) == (0.3, True)


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_share_times_are_time_over_company(seed: int, count: int) -> None:
    """The share time of a class in an interval is the sum over moments of its part of those that run."""
    rng = np.random.default_rng(seed)
    starts = np.round(rng.uniform(0, 5, count), 1)
    ends = np.round(starts + rng.uniform(0, 3, count), 1)
    owners = rng.integers(0, 2, count)
    found = ShareTimes(starts, ends, owners, 2).between(np.array([1.05]), np.array([4.55]))
    moments = np.arange(1.055, 4.55, 0.01)
    active = (starts[None, :] <= moments[:, None]) & (ends[None, :] > moments[:, None])
    share = active / np.maximum(active.sum(axis=1, keepdims=True), 1)
    expected = [0.01 * share[:, owners == index].sum() for index in (0, 1)]
    assert found[0] == pytest.approx(expected, abs=0.011)


def test_energy_by_the_model_can_be_read_backwards() -> None:
    """``time_after`` finds when the model has used so much, before, within and after the spans."""
    starts, ends = np.array([2.0, 3.0]), np.array([5.0, 6.0])
    model = PowerModel(100.0, 1.0, {"a": 300.0, "b": 500.0})
    line = model_energy(model, starts, ends, ["a", "b"])
    t_s = np.linspace(0.0, 9.0, 50)
    truth_j = energy_at(t_s, starts, ends, np.array([300.0, 500.0]), 100.0)
    for begin, end in ((0, 5), (0, 49), (10, 30), (45, 49)):
        told_s = line.time_after(float(t_s[begin]), float(truth_j[end] - truth_j[begin]))
        assert told_s == pytest.approx(t_s[end])
    empty = model_energy(model, np.empty(0), np.empty(0), [])
    assert empty.time_after(1.0, 200.0) == pytest.approx(3.0)


def test_dynamic_energy_is_what_requests_add() -> None:
    """Interval by interval it is the true energy over idle power."""
    made = record(np.random.default_rng(5), 60, BY_CLASS, noise=0.0)
    found = calibrate(made.changes, made.starts_s, made.ends_s, made.classes, lag_s=0.0)
    dynamic_j = dynamic_energy(made.changes, made.starts_s, made.ends_s, made.classes, found)
    assert dynamic_j == pytest.approx(made.changes.energy_j - 9.5, abs=0.5)

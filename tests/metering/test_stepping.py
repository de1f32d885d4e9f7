"""The counter's rhythm: how near the placed changes are to the true ones, and what happens when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from joulegate.metering.stepping import StepClock, smoothed

Floats = NDArray[np.float64]
Brackets = list[tuple[float, float]]


def polled(
    changes_s: Floats, poll_s: float, rng: np.random.Generator, *, missed: float = 0.0, jitter: float = 0.1
) -> tuple[Brackets, Floats]:
    """Brackets that polls see, and the true time of the last change in each."""
    polls = np.arange(changes_s[0] - 1, changes_s[-1] + 1, poll_s)
    polls = polls + rng.uniform(-jitter * poll_s, jitter * poll_s, len(polls))
    polls = polls[rng.random(len(polls)) >= missed]
    seen_at = np.searchsorted(polls, changes_s)
    brackets, truths = [], []
    for poll in np.unique(seen_at):
        if 0 < poll < len(polls):
            brackets.append((float(polls[poll - 1]), float(polls[poll])))
            truths.append(changes_s[seen_at == poll][-1])
    return brackets, np.array(truths)


def steps(step_s: float, count: int, start_s: float = 5.0) -> Floats:
    """Changes at a constant step."""
    return start_s + step_s * np.arange(count)


def off(times_s: list[float], truths_s: Floats, skip: int = 0) -> Floats:
    """Distance from the truth."""
    return np.abs(np.array(times_s) - truths_s)[skip:]


def middles(brackets: Brackets) -> list[float]:
    """What a bracket tells by itself."""
    return [(after_s + until_s) / 2 for after_s, until_s in brackets]


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.floats(0.05, 1.0),
    st.floats(0.11, 0.45),
    st.floats(0.0, 0.3),
    st.floats(0.02, 0.4),
)
def test_rhythm_tells_more_than_the_bracket(
    seed: int, step_s: float, polls_a_step: float, missed: float, jitter: float
) -> None:
    """For any step, phase, jitter and up to 30 % missed polls the placed changes lie no farther than the midpoints."""
    rng = np.random.default_rng(seed)
    changes = steps(step_s, 300, float(rng.choice([5.0, 1e8])) + float(rng.uniform(0, step_s)))
    brackets, truths = polled(changes, step_s * polls_a_step, rng, missed=missed, jitter=jitter)
    allowed_s = 1.1 * np.median(off(middles(brackets), truths)) + 0.02 * step_s * polls_a_step
    assert np.median(off(smoothed(brackets), truths)) <= allowed_s


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("poll_s", [0.013, 0.023, 0.037, 0.044])
def test_polls_that_wander_through_the_step_tell_it_finely(seed: int, poll_s: float) -> None:
    """Where polls and steps have no common measure, a change is known to a tenth of the time between polls."""
    rng = np.random.default_rng(seed)
    for missed in (0.0, 0.3):
        brackets, truths = polled(steps(0.1, 400, 5 + float(rng.uniform(0, 0.1))), poll_s, rng, missed=missed)
        assert np.median(off(smoothed(brackets), truths)) < 0.1 * poll_s


@pytest.mark.parametrize("seed", range(4))
def test_twenty_ms_polls_tell_a_change_to_a_millisecond(seed: int) -> None:
    """The figure of the docstring: 0.1 s steps polled at 20 ms, also when a third of the polls is missing."""
    rng = np.random.default_rng(seed)
    for missed in (0.0, 0.3):
        brackets, truths = polled(steps(0.1, 600, 5 + float(rng.uniform(0, 0.1))), 0.02, rng, missed=missed)
        assert np.median(off(smoothed(brackets), truths)) < 1.5e-3


@given(st.lists(st.tuples(st.floats(1e-3, 3.0), st.floats(0.0, 3.0)), max_size=120))
def test_no_change_leaves_its_bracket(widths: list[tuple[float, float]]) -> None:
    """Whatever the brackets, with no rhythm in them at all, each change stays inside its own."""
    t_s, brackets = 0.0, []
    for width_s, pause_s in widths:
        brackets.append((t_s + pause_s, t_s + pause_s + width_s))
        t_s += pause_s + width_s
    for (after_s, until_s), placed_s in zip(brackets, smoothed(brackets), strict=True):
        assert after_s - 1e-9 <= placed_s <= until_s + 1e-9


@pytest.mark.parametrize("second_s", [0.05, 0.13, 0.2])
def test_new_rhythm_is_learned(second_s: float) -> None:
    """A counter that changes its step half way is followed again after some dozens of changes."""
    rng = np.random.default_rng(int(1000 * second_s))
    changes = np.concatenate([steps(0.1, 300), steps(second_s, 300, 5 + 30.0 + second_s)])
    brackets, truths = polled(changes, 0.02, rng)
    clock = StepClock()
    placed = [clock.place(*bracket) for bracket in brackets]
    assert np.median(off(placed, truths, 450)) < 2e-3


def test_slow_drift_is_followed() -> None:
    """A period that drifts by a thousandth over a minute costs no more than two milliseconds."""
    rng = np.random.default_rng(3)
    changes = 5 + np.cumsum(0.1 * (1 + 1e-3 * np.arange(600) / 600))
    brackets, truths = polled(changes, 0.023, rng)
    assert np.median(off(smoothed(brackets), truths, 50)) < 2e-3


def test_rhythm_that_polls_are_too_slow_for_is_not_claimed() -> None:
    """Polls as slow as the counter tell no rhythm: no step is named, and the middle of the bracket is the answer."""
    rng = np.random.default_rng(4)
    brackets, _ = polled(steps(0.1, 400), 0.1, rng)
    clock = StepClock()
    assert [clock.place(*bracket) for bracket in brackets] == middles(brackets)
    assert clock.period_s is None
    assert not clock.locked


def test_step_is_named_once_it_is_known() -> None:
    """After a dozen changes the step is known to a thousandth, and stays so over pauses in which nothing is polled."""
    rng = np.random.default_rng(5)
    brackets, _ = polled(np.concatenate([steps(0.1, 100), steps(0.1, 100, 35.0)]), 0.02, rng)
    clock = StepClock()
    for bracket in brackets:
        clock.place(*bracket)
    assert clock.locked
    assert clock.period_s == pytest.approx(0.1, rel=1e-3)


def test_nothing_to_smooth() -> None:
    """No bracket gives no time, and a single one its middle."""
    assert smoothed([]) == []
    assert smoothed([(1.0, 2.0)]) == [1.5]

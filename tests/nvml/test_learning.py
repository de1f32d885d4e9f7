"""The pure parts: step learning, self-check, pace, gates, gain; time is a parameter."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.sources.nvml.gain import gain_error_of
from joulegate.sources.nvml.pace import Gate, Pace, ZeroGuard
from joulegate.sources.nvml.probe import TLimits
from joulegate.sources.nvml.selfcheck import CounterCheck
from joulegate.sources.nvml.steps import StepLearner


def _counter(t_s, *, step_s, power_w, lag_s=0.1):
    return int(1e9 + power_w * 1e3 * math.floor((t_s - lag_s) / step_s) * step_s)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 0.25), st.floats(0.0, 1.0), st.floats(0.3, 0.5))
def test_a_step_is_learned_within_a_tenth(step_s, phase_s, polls):
    """Whatever the phase between polls and steps, the learned step is within a tenth of the true one."""
    learner, poll_s = StepLearner(), step_s * polls
    for number in range(200):
        t_s = 100 + phase_s + number * poll_s
        learner.observe(t_s, _counter(t_s, step_s=step_s, power_w=300))
    assert learner.step_s == pytest.approx(step_s, rel=0.1)


def test_a_reset_and_an_interruption_teach_no_step():
    """What lies across a fall of the counter or a pause is not taken for a step."""
    learner = StepLearner()
    learner.observe(0.0, 1_000)
    learner.observe(0.1, 2_000)
    learner.observe(0.2, 0)
    learner.restart()
    learner.observe(9.0, 500)
    learner.observe(9.1, 600)
    assert learner.step_s is None


def _run(check, *, seconds, power, counter_w, poll_s=0.05, start_s=10.0):
    energy_mj, verdicts = 1e9, []
    for number in range(int(seconds / poll_s)):
        t_s = start_s + number * poll_s
        energy_mj += counter_w(t_s) * 1e3 * poll_s
        shown = int(energy_mj) if number % 2 else int(energy_mj - counter_w(t_s) * 1e3 * poll_s)
        verdict = check.observe(t_s, shown, power(t_s))
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


@settings(max_examples=40, deadline=None)
@given(st.floats(20, 700), st.floats(0.3, 1.8))
def test_the_self_check_finds_the_ratio_of_counter_to_power(power_w, ratio):
    """Under steady power the verdict comes within two seconds and names the true ratio."""
    verdicts = _run(CounterCheck(), seconds=2.0, power=lambda _: power_w, counter_w=lambda _: power_w * ratio)
    assert verdicts[0].disagreement == pytest.approx(ratio - 1, abs=0.08)
    if abs(ratio - 1) > 0.25:
        assert not verdicts[0].agrees
    if abs(ratio - 1) < 0.08:
        assert verdicts[0].agrees


def test_a_late_counter_under_swinging_power_is_not_accused():
    """A sound counter 100 ms late under 60 to 600 W square waves is never found to disagree."""

    def power(t_s):
        return 600.0 if t_s % 3 < 1 else 60.0

    verdicts = _run(CounterCheck(), seconds=60.0, power=power, counter_w=lambda t_s: power(t_s - 0.1))
    assert verdicts
    assert all(verdict.agrees for verdict in verdicts)


def test_a_counter_still_at_idle_power_for_long_is_stuck_and_one_without_power_is_not():
    """Five seconds without a change are a fault only where power is drawn meanwhile."""
    for power_w, stuck in ((60.0, True), (1.0, False)):
        check = CounterCheck()
        for number in range(130):
            check.observe(10 + number * 0.05, 500, power_w)
        assert check.stuck is stuck


def test_a_counter_that_moves_again_is_trusted_after_a_window_that_agrees():
    """A stuck counter stays stuck at its first move and is trusted once five seconds agree with the power."""
    check = CounterCheck()
    for number in range(120):
        check.observe(10 + number * 0.05, int(1e9), 300.0)
    _run(check, seconds=2.0, power=lambda _: 300.0, counter_w=lambda _: 300.0, start_s=16.0)
    assert check.stuck
    _run(check, seconds=8.0, power=lambda _: 300.0, counter_w=lambda _: 300.0, start_s=18.0)
    assert not check.stuck


def test_missing_values_and_holes_start_the_check_over():
    """A hole of more than a second is not integrated across."""
    check = CounterCheck()
    _run(check, seconds=1.0, power=lambda _: 300.0, counter_w=lambda _: 300.0)
    assert check.observe(30.0, int(2e9), 300.0) is None
    assert check.observe(30.1, None, 300.0) is None
    assert check.verdict is None


def test_pace_is_two_polls_a_step_within_its_bounds():
    """The gap is half a step, but never under the fastest nor over 200 ms."""
    for step_s, period_s in ((0.1, 0.05), (0.02, 0.025), (0.9, 0.2)):
        pace = Pace()
        assert pace.period_s == 0.025
        pace.learned(step_s)
        assert pace.period_s == period_s


def test_spurious_answers_slow_the_pace_and_half_a_minute_of_good_ones_speeds_it_up():
    """Each doubles the gap up to 200 ms; a good half minute halves it again."""
    pace = Pace()
    for _ in range(9):
        pace.spurious(100.0)
    assert pace.period_s == 0.2
    pace.sound(120.0)
    assert pace.period_s == 0.2
    pace.sound(130.0)
    assert pace.period_s == 0.1


def test_a_gate_closes_for_long_on_what_never_worked_and_briefly_on_what_did():
    """Only a call that worked before is counted when it fails, and is asked again within a minute."""
    never, before = Gate(), Gate()
    before.passed()
    assert never.failed("NOT_SUPPORTED", 0.0) is False
    assert before.failed("NOT_SUPPORTED", 0.0) is True
    assert (never.open(61.0), before.open(1.0), before.open(61.0)) == (False, False, True)
    assert never.open(601.0)


def test_zero_power_needs_a_second_of_zeros():
    """Three zeros over a second are a reading, fewer or faster ones are not; power in between starts over."""
    guard = ZeroGuard()
    assert [guard.believes(t_s) for t_s in (0.0, 0.9)] == [False, False]
    guard.moved()
    assert [guard.believes(t_s) for t_s in (1.1, 1.2, 1.3, 2.2)] == [False, False, False, True]


def test_margins_subtract_their_offset_from_the_die():
    """At 61 C with a margin of 20 C, offsets 0, -2 and -7 are 81, 83 and 88 C; an absent one stays absent."""
    assert TLimits(0, -2, -7).degrees(61, 20) == (81, 83, 88)
    assert TLimits(None, -2, None).degrees(61, 20) == (None, 83, None)


def test_gain_error_is_wider_for_cards_nobody_measured():
    """Listed boards have their own figure, unlisted consumer cards 10 %, others 5 %."""
    assert gain_error_of("NVIDIA GeForce RTX 4090") == 0.05
    assert gain_error_of("NVIDIA GeForce RTX 4060") == 0.10
    assert gain_error_of("NVIDIA GeForce RTX 2060 SUPER") == 0.12
    assert gain_error_of("NVIDIA B200") == 0.05

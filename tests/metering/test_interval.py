"""How readings become a line: changes, gaps, resets, holes, stuck and vanished counters; no millijoule is lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.interval import STUCK_S, CounterLine, EnergyLine, Interval, Kind, PowerLine
from joulegate.metering.reading import Method, Reading


def reading(t_s: float, energy_mj: int | None = None, power_w: float | None = None) -> Reading:
    """One sample."""
    return Reading("G0", t_s, t_s, energy_mj=energy_mj, power_w=power_w)


def feed(line: EnergyLine, rows: list[tuple[float, int | None, float | None]]) -> list[Interval]:
    """All intervals of these readings."""
    return [interval for row in rows for interval in line.feed(reading(*row))]


ROWS = st.lists(
    st.tuples(
        st.floats(0.001, 7.0), st.one_of(st.none(), st.integers(0, 10**6)), st.one_of(st.none(), st.floats(0, 900))
    ),
    max_size=60,
)


@given(ROWS, st.booleans(), st.floats(0.5, 20.0))
def test_line_has_no_holes_and_goes_forward(
    rows: list[tuple[float, int | None, float | None]], rising: bool, patience_s: float
) -> None:
    """Whatever is read, each interval begins where the last one ended, and its energy is not negative."""
    t_s, total_mj, made = 0.0, 0, []
    for pause_s, energy_mj, power_w in rows:
        t_s += pause_s
        total_mj = total_mj + (energy_mj or 0) if rising else energy_mj or 0
        made.append((t_s, None if energy_mj is None else total_mj, power_w))
    intervals = feed(EnergyLine(patience_s=patience_s), made)
    for interval in intervals:
        assert interval.start_s <= interval.end_s <= t_s
        assert (interval.energy_mj is None) == (interval.kind is Kind.RESET) or interval.kind is Kind.GAP
        assert interval.energy_mj is None or interval.energy_mj >= 0
        assert interval.inside_law == (interval.energy_mj is not None)
    for before, after in pairwise(intervals):
        assert after.start_s == pytest.approx(before.end_s)


@given(st.lists(st.tuples(st.floats(0.001, 3.0), st.integers(0, 10**6)), min_size=1, max_size=80), st.booleans())
def test_counter_line_hands_on_every_millijoule(rises: list[tuple[float, int]], resolved: bool) -> None:
    """Between resets the intervals add up to last minus first, and each change lies where its polls allow."""
    line = CounterLine(resolved=resolved)
    t_s, value_mj, intervals = 0.0, 7, []
    line.feed(value_mj, t_s)
    for pause_s, rise_mj in rises:
        t_s, value_mj = t_s + pause_s, value_mj + rise_mj
        interval = line.feed(value_mj, t_s)
        intervals += [interval] if interval else []
    assert sum(interval.energy_mj or 0 for interval in intervals) == value_mj - 7
    for interval in intervals:
        assert (interval.after_s or 0.0) - 1e-9 <= interval.end_s <= (interval.until_s or 0.0) + 1e-9
        assert interval.kind is (Kind.GAP if interval.end_s - interval.start_s > 1.0 else Kind.MEASURED)
        assert interval.counter_mj is not None


def test_counter_that_falls_begins_anew() -> None:
    """A fall is a reset: nothing is known of the energy across it, and counting goes on from the new value."""
    line = CounterLine(resolved=False)
    closed = [line.feed(value, t) for t, value in enumerate([100, 300, 50, 90])]
    assert closed[0] is None
    assert [i and (i.kind, i.energy_mj, i.counter_mj) for i in closed[1:]] == [
        (Kind.MEASURED, 200, 300),
        (Kind.RESET, None, 50),
        (Kind.MEASURED, 40, 90),
    ]


def test_counter_goes_on_from_a_ledgers_position() -> None:
    """After a restart the energy since the kept position is one interval, a gap when it is long."""
    line = EnergyLine()
    line.start_from(1_000, 10.0)
    (interval,) = line.feed(reading(25.0, 61_000))
    assert (interval.kind, interval.start_s, interval.end_s, interval.energy_mj) == (Kind.GAP, 10.0, 25.0, 60_000)
    assert line.counter_mj == 61_000


@given(st.lists(st.floats(0.0, 1000.0), min_size=2, max_size=60), st.floats(0.01, 0.9))
def test_power_line_carries_its_residue(watts: list[float], step_s: float) -> None:
    """The whole millijoules of a power line never leave the exact trapezoids by as much as one."""
    line = PowerLine(Method.INSTANT, hole_s=1.0)
    whole_mj, exact_mj = 0, 0.0
    for index, power_w in enumerate(watts):
        interval = line.feed(power_w, index * step_s)
        if interval is not None:
            whole_mj += interval.energy_mj or 0
            exact_mj += 500 * (watts[index - 1] + power_w) * step_s
            assert abs(whole_mj - exact_mj) < 0.51


def test_hole_in_power_readings_is_only_estimated() -> None:
    """Where power readings pause, the trapezoid is an estimate outside the law."""
    (hole,) = feed(EnergyLine(), [(0.0, None, 100.0), (4.0, None, 300.0)])
    assert (hole.kind, hole.energy_mj, hole.estimate_mj) == (Kind.GAP, None, 800_000)


def test_stuck_counter_is_left_and_taken_back() -> None:
    """A counter that stands still for five seconds under load hands over to the power, and back when it moves."""
    line = EnergyLine(hole_s=2.0)
    stuck = [(float(t), 5_000, 400.0) for t in range(1, 9)]
    intervals = feed(line, [(0.0, 1_000, 400.0), *stuck])
    assert line.stuck
    kinds = [(i.kind, i.method) for i in intervals]
    assert kinds[:2] == [(Kind.MEASURED, Method.COUNTER), (Kind.RESET, Method.INSTANT)]
    assert set(kinds[2:]) == {(Kind.MEASURED, Method.INSTANT)}
    assert sum(i.energy_mj or 0 for i in intervals[2:]) == 6 * 400_000
    (back,) = line.feed(reading(9.0, 9_000_000, 400.0))
    assert (back.kind, back.method, line.stuck) == (Kind.RESET, Method.COUNTER, False)
    (again,) = line.feed(reading(10.0, 9_400_000, 400.0))
    assert again.energy_mj == 400_000


def test_idle_counter_that_stands_still_is_believed() -> None:
    """Without power there is nothing to count."""
    line = EnergyLine()
    assert feed(line, [(float(t), 5_000, 10.0) for t in range(20)]) == []
    assert not line.stuck


def test_vanished_counter_hands_over_to_the_power() -> None:
    """When the driver stops to deliver the counter, the integral takes over after five seconds, and gives it back."""
    line = EnergyLine()
    counted = feed(line, [(0.5 * t, 200_000 * t, 400.0) for t in range(5)])
    silent = feed(line, [(2.0 + 0.5 * t, None, 100.0) for t in range(1, 20)])
    assert sum(i.energy_mj or 0 for i in counted) == 800_000
    assert silent[0].kind is Kind.RESET
    assert {i.method for i in silent[1:]} == {Method.INSTANT}
    assert sum(i.energy_mj or 0 for i in silent[1:]) == pytest.approx(100_000 * (11.5 - silent[1].start_s))
    assert silent[1].start_s - 2.0 < STUCK_S
    (back,) = line.feed(reading(12.0, 5_000_000, 400.0))
    assert (back.kind, back.method) == (Kind.RESET, Method.COUNTER)


def test_short_silence_of_the_counter_is_one_interval() -> None:
    """A few readings without the counter change nothing: it counted meanwhile, and its energy is inside the law."""
    line = EnergyLine()
    silence = [(0.5 + 0.5 * t, None, 300.0) for t in range(6)]
    (interval,) = feed(line, [(0.0, 0, 300.0), *silence, (4.0, 1_200_000, 300.0)])
    assert (interval.kind, interval.energy_mj) == (Kind.GAP, 1_200_000)


def test_counter_that_comes_late_begins_an_epoch() -> None:
    """Power readings come first, then a counter: the line changes its source, and nothing is counted twice."""
    line = EnergyLine()
    intervals = feed(line, [(0.0, None, 100.0), (0.5, None, 100.0), (1.0, 70, 100.0), (1.5, 50_070, 100.0)])
    assert [(i.kind, i.energy_mj) for i in intervals] == [
        (Kind.MEASURED, 50_000),
        (Kind.RESET, None),
        (Kind.MEASURED, 50_000),
    ]

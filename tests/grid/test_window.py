"""The best window against a search that tries every minute, and what gaps and the clocks' changes do to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.sources.grid.intensity import Intensity, Label
from joulegate.sources.grid.series import merged
from joulegate.sources.grid.window import Timeline, best_window

MINUTE_S, HOUR_S = 60.0, 3600.0
T0 = 1_790_000_000.0 // HOUR_S * HOUR_S


def series(values: list[float | None], from_s: float = T0, step_s: float = HOUR_S) -> list[Intensity]:
    """One point a step; ``None`` is a gap."""
    return [
        Intensity(
            g_per_kwh=value,
            place="DE",
            source="test",
            label=Label.LIVE,
            start_s=from_s + number * step_s,
            end_s=from_s + (number + 1) * step_s,
        )
        for number, value in enumerate(values)
        if value is not None
    ]


def mean_by_the_minute(values: list[float | None], start_min: int, minutes: int) -> float | None:
    """Mean of ``values`` (one an hour) over whole minutes, ``None`` across a gap or beyond the end."""
    hours = [minute // 60 for minute in range(start_min, start_min + minutes)]
    if any(hour >= len(values) or values[hour] is None for hour in hours):
        return None
    return sum(values[hour] or 0.0 for hour in hours) / minutes


VALUES = st.lists(st.none() | st.integers(0, 30).map(float), min_size=1, max_size=12)


@given(VALUES, st.integers(1, 200), st.integers(0, 700), st.integers(0, 100))
def test_no_minute_is_better(values: list[float | None], minutes: int, deadline_min: int, now_min: int):
    """A search by the minute finds nothing lower, and finds nothing exactly where there is no window."""
    now_s, deadline_s = T0 + now_min * MINUTE_S, T0 + deadline_min * MINUTE_S
    found = best_window(series(values), minutes * MINUTE_S, deadline_s, now_s=now_s)
    means = {
        start: mean
        for start in range(now_min, deadline_min - minutes + 1)
        if (mean := mean_by_the_minute(values, start, minutes)) is not None
    }
    if not means:
        assert found is None
        return
    assert found is not None
    assert found.g_per_kwh == pytest.approx(min(means.values()), abs=1e-6)
    assert now_s <= found.start_s <= found.end_s <= deadline_s + 1e-6
    assert found.end_s - found.start_s == pytest.approx(minutes * MINUTE_S)
    started = round((found.start_s - T0) / MINUTE_S)
    assert means[started] == pytest.approx(found.g_per_kwh, abs=1e-6)
    assert not [start for start, mean in means.items() if start < started and mean < found.g_per_kwh + 1e-9]


@given(VALUES, st.integers(1, 200))
def test_saving_is_against_starting_now(values: list[float | None], minutes: int):
    """The saving is a share from 0 to 1 of what starting at once would cost, and unknown where that is unknown."""
    found = best_window(series(values), minutes * MINUTE_S, T0 + 12 * HOUR_S, now_s=T0)
    if found is None:
        return
    now = mean_by_the_minute(values, 0, minutes)
    if now is None:
        assert found.now_g_per_kwh is None
        assert found.saving_fraction is None
        return
    assert found.now_g_per_kwh == pytest.approx(now)
    assert (found.saving_fraction is None) == (now == 0.0)
    if found.saving_fraction is not None:
        assert found.saving_fraction == pytest.approx(max(0.0, 1.0 - found.g_per_kwh / now), abs=1e-9)


def test_the_earliest_of_equals():
    """On a flat forecast work starts at once and waiting saves nothing."""
    found = best_window(series([300.0] * 24), HOUR_S, T0 + 24 * HOUR_S, now_s=T0 + 600.0)
    assert found is not None
    assert (found.start_s, found.saving_fraction) == (T0 + 600.0, 0.0)


def test_a_window_never_bridges_a_gap():
    """A missing hour is not assumed to be clean: the window lies on one side of it."""
    values: list[float | None] = [300.0, 100.0, None, 100.0, 200.0]
    found = best_window(series(values), 2 * HOUR_S, T0 + 5 * HOUR_S, now_s=T0)
    assert found is not None
    assert (found.start_s, found.g_per_kwh) == (T0 + 3 * HOUR_S, 150.0)


@pytest.mark.parametrize(
    ("duration_s", "deadline_s"), [(0.0, HOUR_S), (-1.0, HOUR_S), (float("nan"), HOUR_S), (2.0, 1.0)]
)
def test_no_time_no_window(duration_s: float, deadline_s: float):
    """No length, or less time than the work takes, gives no window."""
    assert best_window(series([1.0, 2.0]), duration_s, T0 + deadline_s, now_s=T0) is None


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_days_of_23_and_25_hours(day: str, hours: int):
    """On the days on which clocks change, the window before local midnight has exactly its length."""
    zone = ZoneInfo("Europe/Berlin")
    from_s = datetime.fromisoformat(day).replace(tzinfo=zone).timestamp()
    to_s = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=zone).timestamp()
    values: list[float | None] = [500.0] * hours
    values[2:4] = [100.0, 200.0]
    found = best_window(series(values, from_s), 2 * HOUR_S, to_s, now_s=from_s)
    assert found is not None
    assert (found.start_s, found.end_s, found.g_per_kwh) == (from_s + 2 * HOUR_S, from_s + 4 * HOUR_S, 150.0)
    last = best_window(series(values, from_s), hours * HOUR_S, to_s, now_s=from_s)
    assert last is not None
    assert last.end_s == to_s


@given(VALUES, st.floats(-2.0, 14.0), st.floats(0.0, 14.0), st.floats(0.0, 1.0))
def test_means_are_additive(values: list[float | None], start_h: float, length_h: float, part: float):
    """Integral and cover of a stretch are the sums of those of its parts."""
    line = Timeline(series(values))
    start_s, end_s = T0 + start_h * HOUR_S, T0 + (start_h + length_h) * HOUR_S
    middle_s = start_s + part * (end_s - start_s)
    whole, one, two = (line.mean(*edges) for edges in ((start_s, end_s), (start_s, middle_s), (middle_s, end_s)))
    assert whole[1] == pytest.approx(one[1] + two[1], abs=1e-5)
    integrals = [(mean or 0.0) * covered_s for mean, covered_s in (whole, one, two)]
    assert integrals[0] == pytest.approx(integrals[1] + integrals[2], abs=1e-3)


def test_points_in_order_do_not_overlap():
    """Of points that overlap the earlier ends where the later begins; of two with one start the later given stays."""
    longer = [replace(point, end_s=(point.end_s or 0.0) + 1800.0) for point in series([100.0, 200.0, None, 300.0])]
    (again,) = series([250.0], T0 + HOUR_S)
    ordered = merged(reversed(longer), [again])
    assert [(point.start_s, point.end_s, point.g_per_kwh) for point in ordered] == [
        (T0, T0 + HOUR_S, 100.0),
        (T0 + HOUR_S, T0 + 2 * HOUR_S, 250.0),
        (T0 + 3 * HOUR_S, T0 + 4.5 * HOUR_S, 300.0),
    ]
    assert merged([]) == ()

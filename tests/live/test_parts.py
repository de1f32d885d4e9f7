"""The live meter's smaller parts: the queue, conditions, the learner, the share error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.calibration import Changes
from joulegate.metering.company import HIGHEST, LOWEST, share_error
from joulegate.metering.conditions import KEEP_S, Conditions
from joulegate.metering.fifo import FifoServer
from joulegate.metering.interval import Interval, Kind
from joulegate.metering.learning import Learner
from joulegate.metering.model import PRIOR_SHARE_ERROR
from joulegate.metering.queueing import infer_starts
from joulegate.metering.reading import Device, Method, Quality, Reading

GPU = Device("GPU-a", "a board", Method.COUNTER, Quality.MEASURED)


@given(
    slots=st.integers(1, 4),
    gaps=st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.1, 6)), min_size=1, max_size=40),
)
def test_announced_arrivals_start_as_in_a_recording(slots: int, gaps: list[tuple[float, float]]) -> None:
    """Told of arrivals and ends as they happen, the server gives the starts that ``infer_starts`` gives after."""
    arrivals = np.cumsum([gap for gap, _ in gaps]).tolist()
    free = [0.0] * slots
    ends, starts = [], []
    for arrived_s, (_, work_s) in zip(arrivals, gaps, strict=True):
        free.sort()
        starts.append(max(arrived_s, free[0]))
        free[0] = starts[-1] + work_s
        ends.append(free[0])
    server, found = FifoServer(slots), {}
    events = sorted([(t, 1, i) for i, t in enumerate(arrivals)] + [(t, 0, i) for i, t in enumerate(ends)])
    for t_s, arrives, number in events:
        if arrives:
            server.add(str(number), t_s, None, None)
        else:
            server.leave(str(number), t_s)
        found |= server.take_starts()
    assert [found[str(i)] for i in range(len(gaps))] == pytest.approx(starts)
    assert infer_starts(arrivals, ends, slots) == pytest.approx(starts)


def test_one_slot_told_after_the_fact() -> None:
    """Whole visits of a serial server start where the one before ended, also when two are told in the wrong order."""
    server = FifoServer(1)
    server.add("a", 0.0, 3.0, None)
    assert server.take_starts() == {"a": 0.0}
    server.add("c", 1.0, 9.0, 5.0)
    server.add("b", 0.5, 5.0, None)
    assert server.take_starts() == {"b": 3.0}
    server.add("d", 2.0, 12.0, None)
    assert server.take_starts() == {"d": 9.0}


def test_a_server_forgets() -> None:
    """A server remembers a bounded number of visits."""
    server = FifoServer(2)
    for number in range(2_000):
        server.add(str(number), float(number), number + 0.5, None)
        assert server.take_starts() == {str(number): float(number)}
    assert len(server._visits) <= 129


def reading(t_s: float, **fields: object) -> Reading:
    """A reading of the board."""
    return Reading("GPU-a", t_s, t_s, **fields)


def test_conditions_hold_until_the_next_reading() -> None:
    """Means are weighted by how long each reading held inside the span; what no reading told is ``None``."""
    conditions = Conditions()
    conditions.add(reading(0.0, power_w=100.0, temperature_c=50.0, clock_events=0x4, memory_used_bytes=7))
    conditions.add(reading(2.0, power_w=400.0, temperature_c=60.0, clock_events=0x24))
    conditions.add(reading(3.0, power_w=None, power_average_w=200.0))
    conditions.add(reading(2.5, power_w=9e9))
    use = conditions.during(1.0, 4.0, 5)
    assert use.energy_mj == 5
    assert use.power_mean_w == pytest.approx((100 + 400 + 200) / 3)
    assert use.power_max_w == 400.0
    assert use.temperature_max_c == 60.0
    assert use.utilization_mean is None
    assert use.memory_max_bytes == 7
    assert use.clock_event_s == pytest.approx({"sw_power_cap": 2.0, "sw_thermal": 1.0})
    assert conditions.during(-5.0, -4.0, 1).power_mean_w is None


def test_conditions_are_bounded() -> None:
    """A day of readings is kept for a quarter of an hour."""
    conditions = Conditions()
    for number in range(60_000):
        conditions.add(reading(number * 0.05, power_w=1.0))
    assert len(conditions._times) * 0.05 < KEEP_S + 4096 * 0.05 + 1
    assert conditions.during(2_990.0, 2_991.0, 0).power_mean_w == 1.0


def feed(
    learner: Learner, *, seconds: float = 60.0, busy_w: float = 500.0, from_s: float = 0.0, mask: int = 0
) -> float:
    """Alternating seconds of idle and of one lone class; returns the end."""
    steps = int(seconds * 10)
    for step in range(steps):
        start_s = from_s + step / 10
        power_w = busy_w if int(start_s) % 2 else 100.0
        learner.see_reading(reading(start_s, clock_events=mask, power_limit_w=700.0))
        learner.see_interval(
            Interval(Kind.MEASURED, start_s + 0.1, start_s + 0.2, round(power_w * 100), Method.COUNTER)
        )
        if int(start_s) % 2 and step % 10 == 9:
            learner.see_span(math.floor(start_s), math.floor(start_s) + 1.0, "m")
    return from_s + seconds


def test_learns_idle_and_class_power() -> None:
    """A minute of lone requests teaches idle power and the class's dynamic power."""
    learner = Learner(GPU, lag_s=0.1)
    end_s = feed(learner)
    assert learner.fit(end_s)
    assert learner.model.calibrated
    assert learner.model.idle_w == pytest.approx(100.0, rel=0.05)
    assert learner.model.dynamic_w["m"] == pytest.approx(400.0, rel=0.05)
    assert not learner.fit(end_s + 1.0)


def test_throttled_clocks_freeze_the_model() -> None:
    """A calibrated model is not taught by a board whose clocks are held back."""
    learner = Learner(GPU, lag_s=0.1)
    end_s = feed(learner)
    assert learner.fit(end_s)
    before = learner.model
    end_s = feed(learner, busy_w=350.0, from_s=end_s, mask=0x4)
    assert not learner.fit(end_s)
    assert learner.model is before


def test_another_power_limit_forgets_the_window() -> None:
    """After the power limit was changed nothing from before teaches the model."""
    learner = Learner(GPU, lag_s=0.1)
    feed(learner)
    learner.see_reading(reading(61.0, power_limit_w=400.0))
    assert len(learner._window) == 0
    assert not learner.fit(62.0)


def company(sd: float, seed: int) -> float:
    """The share error that is found in a trace of two unlike classes that overlap, with hidden shares of ``sd``."""
    rng = np.random.default_rng(seed)
    starts, ends, watts, changes = [], [], [], []
    for number in range(300):
        t = 10.0 * number
        shares = np.exp(rng.normal(0, sd, 2))
        powers = np.array([200.0, 500.0])
        together_w = 100 + float(shares @ powers / shares.sum())
        starts += [t, t + 2]
        ends += [t + 6, t + 8]
        watts += [200.0, 500.0]
        for begin, end, power_w in ((t, t + 2, 300.0), (t + 2, t + 6, together_w), (t + 6, t + 8, 600.0)):
            grid = np.arange(begin, end, 0.1)
            changes += [(g + 1e-9, g + 0.1 - 1e-9, power_w * (0.1 + rng.normal(0, 1e-4))) for g in grid]
    rows = np.array(changes)
    return share_error(
        Changes(rows[:, 0], rows[:, 1], rows[:, 2]), np.array(starts), np.array(ends), np.array(watts), 100.0
    )


def test_share_error_follows_the_shares() -> None:
    """Even shares are found even, uneven ones uneven."""
    even, uneven = company(0.0, 1), company(0.4, 1)
    assert LOWEST <= even < 0.15
    assert 0.3 < uneven <= HIGHEST


def test_share_error_without_company_is_the_prior() -> None:
    """Requests that never overlap, or are all alike, tell nothing."""
    changes = Changes(np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.array([100.0, 600.0]))
    assert share_error(changes, np.array([1.0]), np.array([2.0]), np.array([500.0]), 100.0) == PRIOR_SHARE_ERROR
    assert (
        share_error(changes, np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([5.0, 5.0]), 1.0) == PRIOR_SHARE_ERROR
    )

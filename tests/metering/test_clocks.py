"""The virtual clocks against sums that visit every moment."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.clocks import Clocks, ClockTimes

MOMENTS = st.lists(
    st.tuples(st.floats(1e-3, 100.0), st.integers(1, 50), st.floats(0.0, 1000.0), st.floats(0.0, 2.0), st.booleans()),
    min_size=1,
    max_size=30,
)


@given(MOMENTS, st.floats(1.0, 200.0), st.booleans())
def test_clocks_are_the_integrals_they_are_named_for(
    moments: list[tuple[float, int, float, float, bool]], idle_w: float, charged: bool
) -> None:
    """Each clock is the sum over moments of its own rate, and what spans get is the rate times their number."""
    clocks, charged_w, total_mj = Clocks(), idle_w if charged else 0.0, 0.0
    for dt_s, active, mean_w, scale, gap in moments:
        clocks.tune(idle_w=idle_w, charged_w=charged_w, scale=scale, gap=gap)
        total_mj += clocks.advance(dt_s, active, mean_w)
    now = clocks.now()

    def over(rate: dict[int, float]) -> float:
        return math.fsum(rate.values())

    each = {i: 1000 * dt_s / active for i, (dt_s, active, *_) in enumerate(moments)}
    scaled = {i: each[i] * moment[3] for i, moment in enumerate(moments)}
    assert now.covered_s == pytest.approx(sum(moment[0] for moment in moments))
    assert now.offset_mj_per_w == pytest.approx(over(each))
    assert now.dynamic_mj_per_w == pytest.approx(over(scaled))
    assert now.static_mj == pytest.approx(charged_w * over(scaled))
    competing = {i: scaled[i] * math.sqrt(1 - 1 / moments[i][1]) for i in scaled}
    assert now.shared_mj_per_w == pytest.approx(over(competing))
    slopes = {i: scaled[i] / (idle_w + moments[i][2]) for i in scaled}
    assert now.slope_per_w == pytest.approx(over(slopes) if charged else 0.0)
    gaps = {i: scaled[i] * moments[i][4] for i in scaled}
    assert now.gap_dynamic_mj_per_w == pytest.approx(over(gaps))
    assert now.gap_static_mj == pytest.approx(charged_w * over(gaps))
    paid = {i: scaled[i] * moments[i][1] * (charged_w + moments[i][2]) for i in scaled}
    assert total_mj == pytest.approx(over(paid))


def test_difference_and_reset() -> None:
    """A span pays the difference of two moments; after a reset all clocks stand at zero."""
    clocks = Clocks()
    clocks.advance(1.0, 2, 300.0)
    clocks.foreign_mj += 5.0
    before = clocks.now()
    clocks.advance(3.0, 1, 300.0)
    clocks.foreign_mj += 7.0
    passed = clocks.now().since(before)
    assert (passed.covered_s, passed.dynamic_mj_per_w, passed.offset_mj_per_w) == (3.0, 3000.0, 3000.0)
    assert (passed.shared_mj_per_w, passed.foreign_mj) == (0.0, 7.0)
    clocks.reset()
    assert clocks.now() == ClockTimes()

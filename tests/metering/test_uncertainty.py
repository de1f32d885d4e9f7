"""The two parts of U against their formulas, one term at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.uncertainty import GAP_ERROR, OFFSET_W, Evidence, SensorError, expanded

NOTHING = Evidence(0, 0, 0, 0, 0, 0, 0, 0, duration_s=10.0, edge_error_s=0.0, share_error=0.0, idle_error_w=0.0)
EXACT = SensorError(0.0, 0.0, 0.0, 0.0)
SIZES = st.floats(0.0, 1e7)


@pytest.mark.parametrize(
    ("evidence", "sensor", "measurement", "allocation"),
    [
        (replace(NOTHING, energy_mj=1000.0), replace(EXACT, gain=0.05), 2 * 50 / math.sqrt(3), 0.0),
        (replace(NOTHING, offset_mj_per_w=300.0), EXACT, 2 * 300 * OFFSET_W / math.sqrt(3), 0.0),
        (replace(NOTHING, start_w=300.0, end_w=400.0), replace(EXACT, lag_s=0.01), 2 * 1000 * 500 * 0.01, 0.0),
        (replace(NOTHING, start_w=300.0), replace(EXACT, poll_s=0.12), 2 * 1000 * 300 * 0.12 / math.sqrt(12), 0.0),
        (replace(NOTHING, end_w=300.0, edge_error_s=0.02), EXACT, 2 * 1000 * 300 * 0.02, 0.0),
        (replace(NOTHING, uncovered_mj=500.0), EXACT, 2 * GAP_ERROR * 500, 0.0),
        (replace(NOTHING, shared_mj=800.0, share_error=0.3), EXACT, 0.0, 2 * 240),
        (replace(NOTHING, idle_slope_mj_per_w=40.0, idle_error_w=5.0), EXACT, 0.0, 2 * 200),
        (replace(NOTHING, gap_mj=500.0), EXACT, 0.0, 2 * GAP_ERROR * 500),
    ],
)
def test_each_term_by_itself(evidence: Evidence, sensor: SensorError, measurement: float, allocation: float) -> None:
    """Gain, offset, edges and uncovered time are measurement; sharing, idle power and gaps are allocation; k = 2."""
    assert expanded(evidence, sensor) == (pytest.approx(measurement), pytest.approx(allocation))


def test_edge_is_no_further_off_than_the_request_is_long() -> None:
    """A wild lag cannot put a short request's energy in doubt by more than half its length on each side."""
    short = replace(NOTHING, duration_s=0.2, start_w=300.0, end_w=300.0)
    measurement, _ = expanded(short, replace(EXACT, lag_s=50.0))
    assert measurement == pytest.approx(2 * 1000 * 0.1 * math.hypot(300, 300))


@given(SIZES, SIZES, SIZES, st.floats(0, 0.1), st.floats(0, 500.0))
def test_more_doubt_is_never_less_u(
    energy_mj: float, shared_mj: float, gap_mj: float, gain: float, power_w: float
) -> None:
    """Terms are independent: adding one never shrinks U, and all together are at most their sum."""
    evidence = replace(NOTHING, energy_mj=energy_mj, start_w=power_w, end_w=power_w, share_error=0.3)
    sensor = SensorError(gain, 0.01, 0.02, 0.1)
    base = expanded(evidence, sensor)
    wider = expanded(replace(evidence, shared_mj=shared_mj, gap_mj=gap_mj), sensor)
    assert wider[0] == base[0]
    assert base[1] <= wider[1] <= base[1] + 2 * (0.3 * shared_mj + GAP_ERROR * gap_mj) * (1 + 1e-9)
    assert expanded(evidence, replace(sensor, gain=gain + 0.01))[0] >= base[0]

"""Idle policies work hour by hour: a night's idle energy is not billed to the morning's only image."""

from __future__ import annotations

import pytest
from tests.support.meter import attribute, check_laws, requests_of

HOUR_S = 3600
IDLE_MJ, BUSY_MJ = 90_000, 500_000


def three_hours() -> tuple[str, str]:
    """Idle at 90 W but for requests of 500 W in the middle of three hours; an ideal counter read every second."""
    busy = {"a": (4000, 4100), "b": (5000, 5300)}
    energy_mj, lines = 0, ["device,t_s,energy_mj"]
    for t_s in range(3 * HOUR_S + 1):
        lines.append(f"G0,{t_s},{energy_mj}")
        energy_mj += BUSY_MJ if any(start <= t_s < end for start, end in busy.values()) else IDLE_MJ
    spans = ["request_id,devices,start_s,end_s", *(f"{name},G0,{a},{b}" for name, (a, b) in busy.items())]
    return "\n".join(lines) + "\n", "\n".join(spans) + "\n"


@pytest.mark.parametrize(
    ("policy", "a_mj", "b_mj"),
    [
        ("separate", 100 * BUSY_MJ, 300 * BUSY_MJ),
        ("reserved", 100 * BUSY_MJ + 3200 * IDLE_MJ // 4, 300 * BUSY_MJ + 3200 * IDLE_MJ * 3 // 4),
        ("usage", 100 * BUSY_MJ + 3200 * IDLE_MJ // 4, 300 * BUSY_MJ + 3200 * IDLE_MJ * 3 // 4),
        ("marginal", 100 * (BUSY_MJ - IDLE_MJ), 300 * (BUSY_MJ - IDLE_MJ)),
    ],
)
def test_idle_is_spread_within_its_hour(policy: str, a_mj: int, b_mj: int) -> None:
    """The idle energy of the requests' own hour is spread 1:3, that of the hours before and after stays idle."""
    result = attribute(*three_hours(), "--idle-policy", policy, "--lag-ms", "0")
    check_laws(result)
    requests, device = requests_of(result), result["devices"]["G0"]
    assert requests["a"]["energy_mj"] == pytest.approx(a_mj, rel=0.002)
    assert requests["b"]["energy_mj"] == pytest.approx(b_mj, rel=0.002)
    total_mj = 400 * BUSY_MJ + (3 * HOUR_S - 400) * IDLE_MJ
    assert device["counter_delta_mj"] == total_mj
    assert device["idle_mj"] == total_mj - device["requests_mj"] - device["unattributed_mj"]
    assert device["unattributed_mj"] <= 0.002 * total_mj


def test_request_over_the_hour_pays_in_both_hours() -> None:
    """A request that crosses the full hour is one figure, and the law closes though it was booked in two hours."""
    readings, _ = three_hours()
    spans = "request_id,devices,start_s,end_s\nx,G0,3500,3700\ny,G0,3550,4000\n"
    for policy in ("separate", "reserved", "usage", "marginal"):
        result = attribute(readings, spans, "--idle-policy", policy, "--lag-ms", "0")
        check_laws(result)
        assert len(result["devices"]["G0"]["epochs"]) == 1

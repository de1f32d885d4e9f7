"""An adviser that has fallen silent is no adviser that goes on saying the same."""

from __future__ import annotations

import asyncio
import json

from joulegate.daemon.throttle_board import Board
from joulegate.http.throttle_bytes import prepare
from joulegate.throttle.adviser import Adviser
from joulegate.throttle.recommendation import Action, Recommendation, State
from joulegate.throttle.settings import ThrottleSettings, Tier


def seen(t: float, *, temperature_c: float = 85.0, **changes: object) -> dict[str, object]:
    """A hot, busy device that finishes two images a second while six are asked for."""
    device = {
        "id": "GPU-0",
        "up": True,
        "temperature_c": temperature_c,
        "power_w": 650.0,
        "energy_j": 650.0 * t,
        "utilization": 1.0,
        "power_limit_min_w": 200.0,
        "power_limit_max_w": 700.0,
        "max_operating_c": 87.0,
        "slowdown_c": 89.0,
    }
    told = {"images_done": 2.0, "arrivals": {"free": 6.0}, "queue": {"free": 12.0}}
    return {"t": t, "devices": [device]} | told | changes


def advised(settings: ThrottleSettings, lines: int = 60, **changes: object) -> Recommendation:
    """The answer after a while of this."""
    adviser = Adviser(settings)
    for second in range(lines):
        adviser.advise(seen(1.0 + second, **changes))
    assert adviser.newest is not None
    return adviser.newest


async def test_a_silent_adviser_is_stale_and_tighter() -> None:
    """Past its time to live a recommendation says that it is stale and lets in less; a new one ends that."""
    now_s = 100.0
    board = Board(asyncio.get_running_loop(), clock=lambda: now_s)
    recommendation = advised(ThrottleSettings())
    board.publish(prepare(recommendation, 1, now_s))
    fresh = board.newest()
    assert fresh is not None
    now_s += recommendation.ttl_s + 1.0
    old = board.newest()
    assert old is not None
    before, after = json.loads(fresh.body), json.loads(old.body)
    assert (after["state"], after["binding"], after["confidence"]) == ("stale", "telemetry", 0.0)
    assert after["reasons"][0]["code"] == "TELEMETRY_STALE"
    assert after["reasons"][0]["observed"] > after["reasons"][0]["limit"]
    assert after["max_images_per_minute"] < before["max_images_per_minute"]
    assert after["tiers"]["free"]["max_images_per_minute"] < before["tiers"]["free"]["max_images_per_minute"]
    assert after["power_cap_w"]["GPU-0"] <= min(400.0, before["power_cap_w"]["GPU-0"])
    assert old.etag != fresh.etag
    assert board.newest() is old
    board.publish(prepare(recommendation, 2, now_s))
    assert json.loads(board.newest().body)["state"] == before["state"]  # type: ignore[union-attr]


def test_deferrable_work_waits_for_a_cleaner_grid_only_while_the_budget_binds() -> None:
    """A deferrable tier learns of the cleanest moment in its time, and is put off while the CO2e budget binds."""
    tiers = (Tier("pro"), Tier("batch", deferrable=True, defer_max_s=3600.0))
    grid = {"grid_g_per_kwh": 500.0, "grid_forecast": [{"t": 1800.0, "g_per_kwh": 100.0}, {"t": 9e3, "g_per_kwh": 9.0}]}
    free = advised(ThrottleSettings(tiers=tiers), temperature_c=50.0, **grid)
    assert free.tiers["batch"].defer_until_t == 1800.0
    assert free.tiers["batch"].action is not Action.DEFER
    assert free.tiers["pro"].defer_until_t is None
    assert [(item.code, item.evidence["defer_until_t"]) for item in free.advice if item.code == "DEFER"] == [
        ("DEFER", 1800.0)
    ]
    budget = {"budget": {"co2e_g_left": 30.0, "until_t": 3600.0}}
    held = advised(ThrottleSettings(tiers=tiers), temperature_c=50.0, **grid, **budget)
    assert held.binding == "co2e"
    assert held.tiers["batch"].action is Action.DEFER
    assert held.tiers["pro"].action is not Action.DEFER
    assert held.state is State.CONSTRAINED


def test_simulated_devices_are_named_in_the_sentence() -> None:
    """What rests on simulated devices says so where a person reads; what rests on real ones does not."""
    real = seen(1.0)
    device = real["devices"][0]  # type: ignore[index]
    played = seen(1.0, devices=[device | {"quality": "simulated"}, device | {"id": "GPU-1"}])
    assert "1 of 2 devices are simulated" in Adviser(ThrottleSettings()).advise(played).explain
    assert "simulated" not in Adviser(ThrottleSettings()).advise(real).explain

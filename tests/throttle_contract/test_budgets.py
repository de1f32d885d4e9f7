"""Energy and CO2e budgets, the grid, and what becomes of a tier that may wait."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.throttle_contract.plant import Board, Story, drive
from tests.throttle_contract.promises import Json, Talk, about, number, observation, steady

from joulegate.throttle.settings import ThrottleSettings, Tier

WATTS = 500.0
COUNT = 2


def spending(t: float, budget: Json | None, **changes: Any) -> Json:
    """Two busy cool devices under a budget."""
    told: Json = {"images_done": 1, "arrivals": {"pro": 1, "plus": 1, "free": 2}, "queue": {"pro": 0, "free": 6}}
    return observation(t, steady(t, 58, WATTS, COUNT), **(told | {"budget": budget} | changes))


def budget_at(t: float, share: float, until_t: float = 1800.0, **changes: Any) -> Json:
    """An energy budget that leaves ``share`` of what two devices at full power would use until its end."""
    return {
        "energy_j_left": max(0.0, share * 1200.0 * (until_t - t)),
        "co2e_g_left": None,
        "until_t": until_t,
    } | changes


def test_energy_budget_binds_and_names_itself() -> None:
    """Half the energy for the time left: caps add up to no more than what is left per second, energy binds."""
    talk = Talk()
    for k in range(120):
        said = talk(spending(float(k), budget_at(float(k), 0.5)))
    assert said["binding"] == "energy"
    assert sum(said["power_cap_w"].values()) <= 600.0 * 1.02
    reason = about(said, "ENERGY_BUDGET")[0]
    assert number(reason["observed"])
    assert number(reason["limit"])
    assert reason["unit"]


def test_ample_budget_binds_nothing() -> None:
    """A budget above everything the host can use changes nothing."""
    talk = Talk()
    for k in range(120):
        said = talk(spending(float(k), budget_at(float(k), 3.0), arrivals={"free": 0.5}, queue={"free": 0}))
    assert said["binding"] is None


def test_co2e_budget_binds_by_the_grid() -> None:
    """A CO2e budget binds through the grid's intensity: a dirtier grid gives lower caps."""
    sums = []
    for intensity in (100.0, 300.0, 600.0):
        talk = Talk()
        for k in range(120):
            t = float(k)
            left_g = 300.0 * 600.0 * (1800 - t) / 3.6e6
            budget = {"energy_j_left": None, "co2e_g_left": left_g, "until_t": 1800.0}
            said = talk(spending(t, budget, grid_g_per_kwh=intensity))
        sums.append(sum(said["power_cap_w"].get(f"GPU-{j}") or 600.0 for j in range(COUNT)))
        if intensity >= 300.0:
            assert said["binding"] == "co2e"
            assert about(said, "CARBON_INTENSITY")
            assert sums[-1] <= 600.0 * 300.0 / intensity * 1.02 or sums[-1] == 300.0
    assert sums[0] > sums[1] > sums[2]


def test_co2e_budget_without_a_grid() -> None:
    """A CO2e budget whose grid nobody knows is named, and does not break anything."""
    talk = Talk()
    for k in range(60):
        said = talk(spending(float(k), {"energy_j_left": None, "co2e_g_left": 50.0, "until_t": 1800.0}))
    assert about(said, "CARBON_INTENSITY") or "grid_g_per_kwh" in str(said["reasons"])


@pytest.mark.parametrize("left", [0.0, -5.0, 1e-9])
@pytest.mark.parametrize("kind", ["energy_j_left", "co2e_g_left"])
def test_exhausted_budget_ends_at_floors(kind: str, left: float) -> None:
    """With nothing left, caps are at their least and tiers at their floors; nothing divides by zero."""
    talk = Talk()
    for k in range(200):
        budget = {"energy_j_left": None, "co2e_g_left": None, "until_t": 1800.0} | {kind: left}
        said = talk(spending(float(k), budget, grid_g_per_kwh=400.0))
    assert said["binding"] == ("energy" if kind.startswith("energy") else "co2e")
    assert all(cap == pytest.approx(150.0) for cap in said["power_cap_w"].values())
    assert said["max_images_per_minute"] is not None


def test_less_left_is_never_looser() -> None:
    """The less energy is left, the lower the sum of caps and the rate."""
    caps, rates = [], []
    for share in (2.0, 0.9, 0.6, 0.4, 0.2, 0.0):
        talk = Talk()
        for k in range(150):
            said = talk(spending(float(k), budget_at(float(k), share)))
        caps.append(sum(said["power_cap_w"].get(f"GPU-{j}") or 600.0 for j in range(COUNT)))
        rates.append(said["max_images_per_minute"])
    assert caps == sorted(caps, reverse=True)
    known = [float("inf") if rate is None else rate for rate in rates]
    assert all(later <= earlier * 1.02 for earlier, later in pairwise(known))


@pytest.mark.parametrize("until_t", [0.0, 99.0, 100.0, -1e9])
def test_expired_budget(until_t: float) -> None:
    """A budget that has ended does not divide by zero, and is either over or said to be expired."""
    talk = Talk()
    for k in range(120):
        budget = {"energy_j_left": 1e5, "co2e_g_left": 100.0, "until_t": until_t}
        said = talk(spending(float(k), budget, arrivals={"free": 0.5}, queue={"free": 0}))
    if said["binding"] is None:
        assert all(cap is None or cap == 600 for cap in said["power_cap_w"].values())
    else:
        assert about(said, "ENERGY_BUDGET") or about(said, "CARBON_INTENSITY")


def test_budget_lost_is_not_budget_lifted() -> None:
    """A budget that is suddenly not told is not at once forgotten."""
    talk = Talk()
    for k in range(120):
        before = talk(spending(float(k), budget_at(float(k), 0.3)))
    after = talk(spending(120.0, None))
    for name, cap in before["power_cap_w"].items():
        assert after["power_cap_w"][name] <= cap * 1.05


def test_budget_renewed_recovers_by_slew() -> None:
    """A new period lifts the caps step by step up to no cap, and the binding goes."""
    talk = Talk()
    caps = []
    for k in range(900):
        t = float(k)
        calm = {"arrivals": {"free": 0.5}, "queue": {"free": 0}}
        said = talk(spending(t, budget_at(t, 0.3 if k < 120 else 5.0, 1800.0 if k < 120 else 90_000.0), **calm))
        caps.append(said["power_cap_w"].get("GPU-0") or 600.0)
    assert all(later - earlier <= 40.0 for earlier, later in pairwise(caps[119:]))
    assert caps[-1] == 600.0
    assert said["binding"] is None


def test_budget_is_kept_in_a_closed_loop() -> None:
    """In a closed loop under an energy budget the host uses no more than 1 % over it, and most of it."""
    board = Board(air_c=22.0)
    total_j, period_s = 0.62 * 4 * 470.0 * 1200.0, 1200.0
    used: dict[str, float] = {}

    def shape(seen: Json) -> Json:
        sum_j = sum(item["energy_j"] for item in seen["devices"])
        used.setdefault("start", sum_j)
        used["now"] = sum_j - used["start"]
        return seen | {
            "budget": {"energy_j_left": max(0.0, total_j - used["now"]), "co2e_g_left": None, "until_t": period_s}
        }

    run = drive(board, Story(demand=lambda _: 2.0, shape=shape), Talk(), period_s)
    assert used["now"] <= total_j * 1.01
    assert used["now"] >= total_j * 0.93
    assert run.said[-100]["binding"] == "energy"


def test_deferrable_tier_waits_only_with_reason() -> None:
    """Only a deferrable tier is asked to wait for a cleaner grid, to a time in its bounds; never another."""
    settings = ThrottleSettings(
        tiers=(Tier("pro"), Tier("batch", floor=0.0, deferrable=True, defer_max_s=7200.0), Tier("free", floor=0.02))
    )
    talk = Talk(settings)
    for k in range(200):
        t = float(k)
        forecast = [{"t": 3600.0, "g_per_kwh": 90.0}, {"t": 9000.0, "g_per_kwh": 10.0}]
        said = talk(
            spending(
                t,
                None,
                grid_g_per_kwh=700.0,
                grid_forecast=forecast,
                arrivals={"pro": 1, "batch": 1, "free": 1},
                queue={"pro": 0, "batch": 0, "free": 0},
            )
        )
        for name in ("pro", "free"):
            assert said["tiers"][name]["action"] != "defer"
            assert said["tiers"][name]["defer_until_t"] is None
        until_t = said["tiers"]["batch"]["defer_until_t"]
        if said["tiers"]["batch"]["action"] == "defer":
            assert until_t is not None
        assert until_t is None or t < until_t <= t + 7200.0


def test_grid_age_is_shown() -> None:
    """The age of the grid's figure is among the inputs, or null, and grows while none comes."""
    talk = Talk()
    ages = []
    for k in range(60):
        told = {"grid_g_per_kwh": 300.0} if k < 10 else {"grid_g_per_kwh": None}
        ages.append(talk(spending(float(k), None, **told))["inputs"].get("grid_age_s"))
    assert ages[9] is not None
    assert ages[59] is None or ages[59] > ages[9]

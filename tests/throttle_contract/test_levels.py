"""States, reasons and the words that explain them."""

from __future__ import annotations

from itertools import pairwise, repeat

import pytest
from tests.throttle_contract.plant import Board, Run, Story, drive
from tests.throttle_contract.promises import (
    LEVELS,
    Json,
    Talk,
    about,
    codes,
    falls_by_one_level,
    number,
    observation,
    steady,
)

from joulegate.throttle.settings import ThrottleSettings, Tier

EMERGENCIES = {
    "hw_slowdown": "HW_SLOWDOWN",
    "hw_thermal": "HW_SLOWDOWN",
    "hw_power_brake": "POWER_BRAKE",
}


def calm_until(talk: Talk, end: int, begin: int = 0, temperature_c: int = 58) -> Json:
    """Calm seconds; the last answer."""
    for k in range(begin, end):
        said = talk(observation(float(k), steady(float(k), temperature_c)))
    return said


def test_calm_is_nominal() -> None:
    """A cool host that keeps up is nominal from the first readings on, with nothing bound and nothing taken away."""
    talk = Talk()
    for k in range(200):
        said = calm_until(talk, k + 1, k)
        assert said["binding"] is None
        assert said["state"] in {"nominal", "unknown"}
        assert said["admit_fraction"] == 1.0
        assert all(limit["admit_fraction"] == 1.0 for limit in said["tiers"].values())
    assert said["state"] == "nominal"


@pytest.mark.parametrize("event", EMERGENCIES)
def test_emergency_at_once_and_left_slowly(event: str) -> None:
    """Hardware slowdown or a brake is an emergency at once, with its reason; each lower level lasts a minute."""
    talk = Talk()
    calm_until(talk, 60)
    devices = steady(60.0, 58)
    devices[1] |= {"clock_events": [event]}
    said = talk(observation(60.0, devices))
    assert said["state"] == "emergency"
    assert {reason.get("device") for reason in about(said, EMERGENCIES[event])} == {"GPU-1"}
    states = [said["state"]] + [calm_until(talk, k + 1, k)["state"] for k in range(61, 700)]
    assert states[-1] == "nominal"
    falls_by_one_level(states)
    changes = [k for k, (before, after) in enumerate(pairwise(states)) if before != after]
    assert [states[k + 1] for k in changes] == ["critical", "constrained", "watch", "nominal"]
    assert all(later - earlier >= 59 for earlier, later in pairwise(changes))


def test_emergency_tightens() -> None:
    """A brake lowers what the device may draw, not only the word for it."""
    talk, calm = Talk(), Talk()
    calm_until(calm, 70, temperature_c=80)
    calm_until(talk, 60, temperature_c=80)
    for k in range(60, 70):
        said = talk(observation(float(k), steady(float(k), 80, clock_events=["hw_thermal", "hw_slowdown"])))
        plain = calm(observation(float(k + 10), steady(float(k + 10), 80)))
    for name, cap in said["power_cap_w"].items():
        other = plain["power_cap_w"].get(name)
        assert cap is not None
        assert cap <= (600 if other is None else other)


def test_slowdown_temperature_is_an_emergency() -> None:
    """A temperature at the slowdown limit is an emergency even where no event says so."""
    talk = Talk()
    calm_until(talk, 60)
    said = talk(observation(60.0, steady(60.0, 90)))
    assert said["state"] == "emergency"


def test_software_thermal_is_critical() -> None:
    """The driver's own thermal slowdown is at least critical, at once."""
    talk = Talk()
    calm_until(talk, 60)
    said = talk(observation(60.0, steady(60.0, 80, clock_events=["sw_thermal"])))
    assert LEVELS.index(said["state"]) >= LEVELS.index("critical")
    assert said["binding"] == "thermal"


@pytest.mark.parametrize(
    "events", [["gpu_idle"], ["clocks_setting"], ["sw_power_cap"], ["sync_boost"], ["display_clocks"]]
)
def test_harmless_events(events: list[str]) -> None:
    """Idle, clock settings, the driver's power cap, sync boost and display clocks are no trouble."""
    talk = Talk()
    for k in range(60):
        said = talk(observation(float(k), steady(float(k), 58, clock_events=events)))
    assert said["state"] == "nominal"
    assert said["binding"] is None


def test_heat_raises_the_level() -> None:
    """Nearer the limit the level is never lower: watch within 3 K at the latest, critical within 1 K of the limit."""
    order = []
    for temperature_c in (58, 70, 83, 85, 86, 90):
        talk = Talk()
        said = calm_until(talk, 90, temperature_c=temperature_c)
        order.append(LEVELS.index(said["state"]))
        if temperature_c > 83:
            assert said["binding"] == "thermal"
            reason = about(said, "THERMAL_HEADROOM_LOW")[0]
            assert reason["unit"] == "C"
            assert number(reason["observed"])
            assert number(reason["limit"])
            assert reason["limit"] < 86
    assert order == sorted(order)
    assert order[2] >= LEVELS.index("watch")
    assert order[4] >= LEVELS.index("critical")
    assert order[5] == LEVELS.index("emergency")


def test_memory_binds() -> None:
    """Memory at its limit while the core is cool binds as memory, with its own reason and a lower cap."""
    talk = Talk()
    for k in range(120):
        hot = {"memory_temperature_c": 95, "memory_max_operating_c": 95}
        said = talk(observation(float(k), steady(float(k), 58, 500.0, **hot)))
    assert said["binding"] == "memory"
    reason = about(said, "MEMORY_TEMP")[0]
    assert reason["observed"] == 95
    assert reason["limit"] <= 95
    assert all(cap < 500 for cap in said["power_cap_w"].values())
    assert said["state"] in LEVELS[2:]


def test_memory_without_a_limit_or_cool_does_not_bind() -> None:
    """Memory whose limit nobody knows, or that is far from it, binds nothing."""
    for facts in (
        {"memory_temperature_c": 92, "memory_max_operating_c": 110},
        {"memory_temperature_c": None, "memory_max_operating_c": 95},
    ):
        talk = Talk()
        for k in range(120):
            said = talk(observation(float(k), steady(float(k), 58, **facts)))
        assert said["binding"] is None


def test_host_power_limit_binds() -> None:
    """Caps add up to no more than the host's power limit; power binds where devices want more."""
    talk = Talk(ThrottleSettings(host_power_limit_w=900.0))
    for k in range(120):
        said = talk(observation(float(k), steady(float(k), 58, 550.0), arrivals={"free": 9}))
    assert sum(said["power_cap_w"].values()) <= 900.0 * 1.001
    assert said["host_power_cap_w"] <= 900.0
    assert said["binding"] == "power"
    assert codes(said) & {"POWER_BUDGET", "POWER_CAP"}
    reason = next(r for r in said["reasons"] if r["code"] in {"POWER_BUDGET", "POWER_CAP"} and number(r["limit"]))
    assert reason["unit"] == "W"


def test_host_power_limit_that_cannot_be_met() -> None:
    """A host limit under the sum of the least caps gives the least caps, not less and not an error."""
    talk = Talk(ThrottleSettings(host_power_limit_w=100.0))
    for k in range(60):
        said = talk(observation(float(k), steady(float(k), 58, 550.0)))
    assert said["power_cap_w"] == {"GPU-0": 150, "GPU-1": 150}
    assert said["binding"] == "power"


def test_generous_host_power_limit() -> None:
    """A host limit above everything binds nothing."""
    talk = Talk(ThrottleSettings(host_power_limit_w=5000.0))
    for k in range(60):
        said = talk(observation(float(k), steady(float(k), 58, 550.0)))
    assert said["binding"] is None


def test_a_run_explains_itself(melting: Run) -> None:
    """Through a flash crowd every held line has a sentence with numbers, evidence for advice, a fresh age, a TTL."""
    for said in melting.said:
        if said["binding"] is not None:
            assert len(said["explain"].split()) >= 4
            assert said["explain"].rstrip().endswith(".")
        assert said["ttl_s"] == 10
        assert said["poll_after_s"] == 5
        for item in said["advice"]:
            assert item["evidence"]
        age_s = said["inputs"]["telemetry_age_s"]
        assert age_s is None or 0 <= age_s <= 10


def test_a_run_is_held_by_heat(melting: Run) -> None:
    """In the hot aisle thermal binds, with prediction and horizon, and states step down one level at a time."""
    late = [said for said in melting.said if said["t"] > 500]
    assert sum(said["binding"] == "thermal" for said in late) > 0.9 * len(late)
    reasons = [reason for said in late for reason in about(said, "THERMAL_HEADROOM_LOW")]
    assert any(number(reason.get("predicted")) and reason.get("horizon_s", 0) > 0 for reason in reasons)
    falls_by_one_level([said["state"] for said in melting.said])
    assert all("DEMAND_EXCEEDS_CAPACITY" in codes(said) for said in late)


def test_advice_ranks_the_cap_before_waiting() -> None:
    """Before a clean hour comes, a lower cap is advised first, waiting after it, each with numbers."""
    settings = ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, deferrable=True)))

    def shape(seen: Json) -> Json:
        return seen | {"grid_g_per_kwh": 600.0, "grid_forecast": [{"t": 3000.0, "g_per_kwh": 100.0}]}

    run = drive(Board(air_c=30.0), Story(demand=lambda _: 0.5, shape=shape), Talk(settings), 400.0, repeat(2.0))
    late = [said["advice"] for said in run.said if said["t"] > 200]
    assert {tuple(item["code"] for item in advice) for advice in late} <= {("POWER_CAP", "DEFER"), ("DEFER",)}
    assert any(len(advice) == 2 for advice in late)
    for cap, wait in (advice for advice in late if len(advice) == 2):
        assert 0 < cap["saves_fraction"] < 1
        assert any(number(value) for value in cap["evidence"].values())
        assert wait["saves_fraction"] == pytest.approx(1 - 100 / 600, abs=0.01)
        assert any(value == 100.0 for value in wait["evidence"].values())


def test_confidence_follows_the_evidence() -> None:
    """A long-known steady host is trusted more than one seen once, and more than one that is blind."""
    talk = Talk()
    first = calm_until(talk, 1)
    known = calm_until(talk, 300, 1)
    assert first["confidence"] < known["confidence"]
    for k in range(300, 340):
        said = talk(observation(float(k), steady(float(k), temperature_c=None)))  # type: ignore[arg-type]
    assert said["confidence"] < known["confidence"]

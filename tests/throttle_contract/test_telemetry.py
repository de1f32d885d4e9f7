"""Telemetry that stops, devices that go and come back: tightened, neither open nor closed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from tests.throttle_contract.plant import Board, Story, drive
from tests.throttle_contract.promises import (
    LEVELS,
    Json,
    Talk,
    about,
    device,
    falls_by_one_level,
    limits_only,
    not_looser,
    observation,
)

from joulegate.throttle.settings import ThrottleSettings

LOST_S = 60
FLOOR_W = 600 * ThrottleSettings().stale_floor
WATTS = 450.0

Blind = Callable[[Json], Json]


def no_temperature(item: Json) -> Json:
    """The thermometer is lost."""
    return item | {"temperature_c": None}


def frozen_energy(item: Json) -> Json:
    """The counter stands still; the temperature is shown as it was."""
    return item | {"energy_j": 1000.0 + WATTS * LOST_S}


def nothing_at_all(item: Json) -> Json:
    """Only the name is left."""
    return {"id": item["id"], "up": True}


BLIND: tuple[Blind, ...] = (no_temperature, frozen_energy, nothing_at_all)


def seen(t: float, temperature_c: float = 70, count: int = 3, **changes: Any) -> Json:
    """Devices under load, in use and steady."""
    devices = [
        device(f"GPU-{k}", temperature_c=temperature_c, power_w=WATTS, energy_j=1000.0 + WATTS * t)
        for k in range(count)
    ]
    return observation(t, devices, **({"images_done": 1, "arrivals": {"free": 1}} | changes))


def blinded(t: float, blind: Blind, which: range, **changes: Any) -> Json:
    """The same, with some devices blind."""
    full = seen(t, **changes)
    return full | {"devices": [blind(item) if k in which else item for k, item in enumerate(full["devices"])]}


def cap_of(said: Json, name: str) -> float:
    """Its cap; without one, its greatest power."""
    cap = said["power_cap_w"].get(name)
    return 600.0 if cap is None else cap


@pytest.mark.parametrize("blind", BLIND)
def test_all_stale(blind: Blind) -> None:
    """With every device blind the state is stale between 10 and 15 s later, named per device, and stays so."""
    talk = Talk()
    for k in range(200):
        t = float(k)
        said = talk(seen(t) if k <= LOST_S else blinded(t, blind, range(3)))
        if k <= LOST_S + 9:
            assert said["state"] != "stale"
        if k >= LOST_S + 15:
            assert said["state"] == "stale"
            assert {reason.get("device") for reason in about(said, "TELEMETRY_STALE")} == {"GPU-0", "GPU-1", "GPU-2"}
            assert all(reason["observed"] >= 10 for reason in about(said, "TELEMETRY_STALE"))
            assert said["binding"] == "telemetry"


@pytest.mark.parametrize("blind", BLIND)
def test_cap_of_a_stale_device_decays_to_the_floor(blind: Blind) -> None:
    """A stale device's cap never rises, decays by little steps to the fail-safe floor and not under it."""
    talk, caps = Talk(), []
    for k in range(400):
        t = float(k)
        said = talk(seen(t) if k <= LOST_S else blinded(t, blind, range(3)))
        caps.append(cap_of(said, "GPU-1"))
    after = caps[LOST_S + 11 :]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(after))
    assert all(later >= earlier * 0.9 for earlier, later in pairwise(after))
    assert after[-1] == pytest.approx(FLOOR_W, rel=0.01)
    assert min(after) >= FLOOR_W * 0.99
    assert said["fail_safe"]["floor"]["power_cap_w"] == pytest.approx(FLOOR_W, rel=0.01)


@pytest.mark.parametrize("blind", BLIND)
def test_rate_tightens_with_stale_telemetry(blind: Blind) -> None:
    """Without telemetry the rate is limited, less than before, and not shut."""
    for settings in (ThrottleSettings(), ThrottleSettings(actuators=("rate",))):
        talk, rates = Talk(settings), []
        many: Json = {"images_done": 3, "arrivals": {"free": 9}, "queue": {"free": 30}}
        for k in range(300):
            t = float(k)
            said = talk(seen(t, **many) if k <= LOST_S else blinded(t, blind, range(3), **many))
            rates.append(said["max_images_per_minute"])
        assert rates[-1] is not None
        assert rates[-1] > 0
        before = rates[LOST_S]
        assert before is None or rates[-1] < before


@pytest.mark.parametrize("blind", BLIND)
def test_one_stale_device_stays_one(blind: Blind) -> None:
    """Partly stale: the blind device is named and decays, the others keep what they would have had."""
    talk, calm = Talk(), Talk()
    for k in range(200):
        t = float(k)
        said = talk(seen(t) if k <= LOST_S else blinded(t, blind, range(1, 2)))
        whole = calm(seen(t))
        assert said["state"] != "stale"
        for name in ("GPU-0", "GPU-2"):
            assert cap_of(said, name) == pytest.approx(cap_of(whole, name), rel=0.01)
    assert {reason.get("device") for reason in about(said, "TELEMETRY_STALE")} == {"GPU-1"}
    assert cap_of(said, "GPU-1") == pytest.approx(FLOOR_W, rel=0.01)
    assert said["binding"] is not None


def test_a_hot_blind_device_does_not_hold_up_a_cool_one() -> None:
    """A blind device's last heat says nothing about the others."""
    talk = Talk()
    for k in range(210):
        t = float(k)
        full = seen(t, 60)
        if k <= LOST_S:
            full["devices"][0] |= {"temperature_c": 86}
        else:
            full["devices"][0] |= {"temperature_c": None}
        said = talk(full)
    assert cap_of(said, "GPU-1") == 600.0
    assert cap_of(said, "GPU-0") <= FLOOR_W * 1.02


@pytest.mark.parametrize("blind", BLIND)
@pytest.mark.parametrize(("temperature_c", "levels"), [(60, {"nominal", "watch", "constrained"}), (87, {"critical"})])
def test_left_at_the_first_fresh_reading(blind: Blind, temperature_c: int, levels: set[str]) -> None:
    """Stale is left at the first fresh reading, into the level that then holds; caps recover by slew, not by a leap."""
    talk, caps = Talk(), []
    for k in range(300):
        t = float(k)
        stale = LOST_S < k < 160
        hot = {"clock_events": ["sw_thermal"]} if temperature_c > 80 and not stale else {}
        full = seen(t, temperature_c)
        full["devices"] = [item | hot for item in full["devices"]]
        said = talk(blinded(t, blind, range(3)) if stale else full)
        caps.append(cap_of(said, "GPU-0"))
        if k == 159:
            assert said["state"] == "stale"
        if k == 160:
            assert said["state"] in levels
        if k > 160:
            assert said["state"] != "stale"
    rises = [later - earlier for earlier, later in pairwise(caps[159:])]
    assert max(rises) <= 40.0
    if temperature_c == 60:
        assert caps[-1] > caps[159]


def test_blinks_are_no_blindness() -> None:
    """A temperature that is missing every other second is not stale, and costs nothing."""
    talk = Talk()
    for k in range(200):
        t = float(k)
        said = talk(seen(t, 60) if k % 2 else blinded(t, no_temperature, range(3), temperature_c=60))
        assert said["state"] in {"nominal", "watch", "unknown"}
        assert not about(said, "TELEMETRY_STALE")
    assert said["state"] == "nominal"
    assert said["binding"] is None


def test_stale_is_about_time_not_lines() -> None:
    """Staleness counts seconds: not stale after 9 s at five lines a second, stale by 15 s at one line in 5 s."""
    for gap_s in (0.2, 1.0, 5.0):
        talk = Talk()
        for k in range(int(90 / gap_s)):
            t = round(k * gap_s, 3)
            said = talk(seen(t) if t <= LOST_S else blinded(t, no_temperature, range(3)))
            if t <= LOST_S + 9:
                assert said["state"] != "stale"
            if t >= LOST_S + 15:
                assert said["state"] == "stale"


def test_hole_in_the_lines() -> None:
    """After half an hour without a line the first one is fresh, and no cap leaps or exceeds its maximum."""
    talk = Talk()
    for k in range(60):
        before = talk(seen(float(k), 80))
    after = talk(seen(1860.0, 80))
    assert after["state"] in LEVELS
    for name in ("GPU-0", "GPU-1"):
        assert cap_of(after, name) <= max(cap_of(before, name), 600.0)


def test_never_seen() -> None:
    """Without any temperature from the first line on, the state is unknown or stale, no level, and limits exist."""
    talk = Talk()
    for k in range(100):
        said = talk(blinded(float(k), nothing_at_all, range(3)))
        assert said["state"] in {"unknown", "stale"}
    assert about(said, "TELEMETRY_STALE")
    assert said["state"] == "stale"
    assert said["max_images_per_minute"] is not None or all(cap_of(said, f"GPU-{k}") < 600 for k in range(3))
    said = talk(seen(100.0, 50))
    assert said["state"] in LEVELS


def test_gone_and_back() -> None:
    """A device that is down or not listed has no capacity; back again it starts no looser than it or others were."""
    for leave in ("down", "unlisted"):
        talk, calm = Talk(), Talk()
        many: Json = {"images_done": 2, "arrivals": {"free": 9}, "queue": {"free": 30}}
        for k in range(400):
            t = float(k)
            full = seen(t, 78, **many)
            whole = calm(full)
            if 150 <= k < 250:
                first, *others = full["devices"]
                full["devices"] = others if leave == "unlisted" else [first | {"up": False}, *others]
            said = talk(full)
            if k == 240:
                assert said["max_images_per_minute"] < whole["max_images_per_minute"]
                assert said["max_concurrency"] is None or said["max_concurrency"] <= whole["max_concurrency"]
                assert said["state"] != "stale"
            if k == 250:
                assert cap_of(said, "GPU-0") <= cap_of(whole, "GPU-0") * 1.01
                assert cap_of(said, "GPU-0") <= max(cap_of(said, "GPU-1"), cap_of(said, "GPU-2")) * 1.01


def test_down_device_is_not_stale() -> None:
    """A device that says it is down is gone, not stale: it does not make the host stale."""
    talk = Talk()
    for k in range(60):
        full = seen(float(k), 60)
        full["devices"][0] = {"id": "GPU-0", "up": False}
        said = talk(full)
    assert said["state"] == "nominal"
    assert not about(said, "TELEMETRY_STALE")


def test_all_down() -> None:
    """With every device down there is no capacity: nothing is admitted beyond floors, and nothing breaks."""
    talk = Talk()
    for k in range(60):
        talk(seen(float(k), 60))
    for k in range(60, 120):
        said = talk({"t": float(k), "devices": [{"id": f"GPU-{j}", "up": False} for j in range(3)]})
    assert said["max_images_per_minute"] == 0
    assert said["state"] not in {"nominal", "watch"}


def test_new_device_starts_no_looser() -> None:
    """A device that was never seen joins in a hot room no looser than the known ones."""
    talk = Talk()
    for k in range(200):
        full = seen(float(k), 85, images_done=2, arrivals={"free": 9})
        full["devices"] = full["devices"][: 3 if k >= 199 else 2]
        said = talk(full)
    assert cap_of(said, "GPU-2") <= max(cap_of(said, "GPU-0"), cap_of(said, "GPU-1")) * 1.01


def test_stale_without_caps() -> None:
    """Where no cap may be set, blindness lowers the rate of the host, and no cap is named."""
    talk = Talk(ThrottleSettings(actuators=("rate",)))
    many: Json = {"images_done": 3, "arrivals": {"free": 9}, "queue": {"free": 30}}
    rates = []
    for k in range(300):
        t = float(k)
        said = talk(seen(t, 60, **many) if k <= 150 else blinded(t, no_temperature, range(3), **many))
        rates.append(said["max_images_per_minute"])
    assert rates[-1] is not None
    assert rates[150] is None or rates[-1] < rates[150]
    assert said["binding"] == "telemetry"


def test_blind_in_the_flash() -> None:
    """Blind for two minutes amid a flash crowd, without the driver's soft governor, no device is halved."""
    board = Board(air_c=42.0, soft_governor=False)
    story = Story(
        demand=lambda t: 0.35 if t < 150 else 3.0,
        event_s=150.0,
        blind=lambda t: range(4) if 180 <= t < 300 else (),
    )
    run = drive(board, story, Talk(), 700.0)
    assert run.halved_s == 0.0
    assert run.hot_s <= 10.0
    falls_by_one_level([said["state"] for said in run.said])
    assert {said["state"] for said in run.said if 195 <= said["t"] < 300} == {"stale"}


def test_repeats_of_the_same_line_content() -> None:
    """Equal observations but for the time keep equal limits once they settled: nothing drifts in a calm host."""
    talk = Talk()
    answers = [talk(seen(float(k), 60)) for k in range(300)]
    assert limits_only(answers[200]) == limits_only(answers[299])
    not_looser(answers[299], answers[200])

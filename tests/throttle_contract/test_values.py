"""Fields of an observation that are absent, null, of the wrong type, not finite, negative or enormous."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.throttle_contract.promises import (
    Json,
    Talk,
    about,
    codes,
    device,
    limits_only,
    not_looser,
    number,
    observation,
    steady,
    without_id,
)

HOST_FIELDS = ("images_done", "arrivals", "queue", "grid_g_per_kwh", "grid_forecast", "budget")
DEVICE_FIELDS = (
    "up",
    "temperature_c",
    "memory_temperature_c",
    "power_w",
    "energy_j",
    "utilization",
    "power_limit_w",
    "power_limit_min_w",
    "power_limit_max_w",
    "max_operating_c",
    "slowdown_c",
    "memory_max_operating_c",
    "clock_events",
)
BUDGET_FIELDS = ("energy_j_left", "co2e_g_left", "until_t")
NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400)
WRONG_HOST: dict[str, tuple[Any, ...]] = {
    "images_done": ("3", True, [], {}, -1, -1e308),
    "arrivals": (3, "free", [], True),
    "queue": (3, "free", [], True),
    "grid_g_per_kwh": ("381", True, [], {}),
    "grid_forecast": ({}, "none", 3, True),
    "budget": ([], 3, "none", True),
}
WRONG_DEVICE: dict[str, tuple[Any, ...]] = {
    "temperature_c": ("71", True, [], {}),
    "memory_temperature_c": ("71", True, [], {}),
    "power_w": ("400", False, []),
    "energy_j": ("1000", True, [], {}),
    "utilization": ("1", True, []),
    "power_limit_w": ("600", True, []),
    "power_limit_min_w": ("150", True, []),
    "power_limit_max_w": ("600", True, []),
    "max_operating_c": ("86", True, []),
    "slowdown_c": ("90", True, []),
    "memory_max_operating_c": ("95", True, []),
    "clock_events": ("sw_thermal", 4, {}, True),
    "up": ("yes", 1, [], {}),
}
STEPS = 30
PLACE = 12


def warm(t: float, **changes: Any) -> Json:
    """A host under load, near its limit, with everything that may be told."""
    facts: Json = {
        "memory_temperature_c": 80,
        "memory_max_operating_c": 95,
        "temperature_c": 80,
        "clock_events": ["sw_power_cap"],
    }
    told: Json = {
        "grid_g_per_kwh": 300.0,
        "grid_forecast": [{"t": t + 3600.0, "g_per_kwh": 200.0}],
        "budget": {"energy_j_left": 4e6 - 800 * t, "co2e_g_left": 900.0, "until_t": 3600.0},
        "images_done": 1,
        "arrivals": {"pro": 0, "plus": 1, "free": 2},
        "queue": {"pro": 0, "plus": 0, "free": 3},
    }
    return observation(t, steady(t, power_w=500.0, **facts), **(told | changes))


def with_device(seen: Json, key: str, value: Any) -> Json:
    """The same with one field of the first device changed; ``...`` takes it away."""
    first, *others = seen["devices"]
    return seen | {"devices": [device(**(first | {"name": first["id"], key: value, "id": first["id"]})), *others]}


def replaced(seen: Json, key: str, value: Any, *, of_device: bool) -> Json:
    """The same with one field changed, of the host or of the first device."""
    if not of_device:
        return {name: item for name, item in (seen | {key: value}).items() if item is not ...}
    first, *others = seen["devices"]
    changed = {name: item for name, item in (first | {key: value}).items() if item is not ...}
    return seen | {"devices": [changed, *others]}


def told(key: str, value: Any, *, of_device: bool, text: str | None = None) -> list[Json]:
    """Answers of a run in which a field has a value from the middle on; ``text`` replaces its JSON."""
    talk = Talk()
    answers = []
    for k in range(STEPS):
        seen = warm(float(k))
        if k >= PLACE:
            seen = replaced(seen, key, "@@" if text else value, of_device=of_device)
        line = json.dumps(seen)
        answers.append(talk.line(line.replace('"@@"', text) if text else line))
    return answers


def comparable(said: Json) -> Json:
    """Limits, state and binding: what null and a value that is taken as null must agree on."""
    return limits_only(said) | {"state": said["state"], "binding": said["binding"]}


def names(said: Json, field: str) -> bool:
    """Whether some reason names the field."""
    words = (field, field.rsplit("_", 1)[0].replace("_", " "), field.replace("_", " "))
    text = json.dumps(said["reasons"])
    return any(word in text for word in words)


@pytest.mark.parametrize("field", [*HOST_FIELDS, *DEVICE_FIELDS])
def test_absent_is_null(field: str) -> None:
    """A field that is absent is taken as one that is null."""
    absent = told(field, ..., of_device=field in DEVICE_FIELDS)
    null = told(field, None, of_device=field in DEVICE_FIELDS)
    assert [without_id(said) for said in absent] == [without_id(said) for said in null]


@pytest.mark.parametrize(("field", "value"), [(key, value) for key, many in WRONG_HOST.items() for value in many])
def test_wrong_value_of_the_host(field: str, value: Any) -> None:
    """A value of the wrong type, or a negative count, is taken as null and named."""
    wrong, null = told(field, value, of_device=False), told(field, None, of_device=False)
    assert [comparable(said) for said in wrong] == [comparable(said) for said in null]
    assert all(field in json.dumps(about(said, "BAD_INPUT")) for said in wrong[PLACE:])


@pytest.mark.parametrize(("field", "value"), [(key, value) for key, many in WRONG_DEVICE.items() for value in many])
def test_wrong_value_of_a_device(field: str, value: Any) -> None:
    """A device's value of the wrong type is taken as null and named."""
    wrong, null = told(field, value, of_device=True), told(field, None, of_device=True)
    assert [comparable(said) for said in wrong] == [comparable(said) for said in null]
    assert all(field in json.dumps(about(said, "BAD_INPUT")) for said in wrong[PLACE:])


@pytest.mark.parametrize("text", NOT_FINITE)
@pytest.mark.parametrize("field", ["images_done", "grid_g_per_kwh", "temperature_c", "energy_j", "power_limit_max_w"])
def test_not_finite(field: str, text: str) -> None:
    """A number that is not finite is taken as null and named."""
    wrong = told(field, None, of_device=field in DEVICE_FIELDS, text=text)
    null = told(field, None, of_device=field in DEVICE_FIELDS)
    assert [comparable(said) for said in wrong] == [comparable(said) for said in null]
    assert all(field in json.dumps(about(said, "BAD_INPUT")) for said in wrong[PLACE:])


@pytest.mark.parametrize("value", ["5", -3, True, [], float("nan")])
@pytest.mark.parametrize("field", ["arrivals", "queue"])
def test_wrong_count_of_a_tier(field: str, value: Any) -> None:
    """One tier's count that is no count is null and named; the other tiers' counts stand."""
    good = warm(0.0)[field]
    wrong = told(field, good | {"free": value}, of_device=False)
    null = told(field, good | {"free": None}, of_device=False)
    assert [comparable(said) for said in wrong] == [comparable(said) for said in null]
    assert all(field in json.dumps(about(said, "BAD_INPUT")) for said in wrong[PLACE:])


@pytest.mark.parametrize("value", ["5", True, [], float("nan"), float("inf")])
@pytest.mark.parametrize("field", BUDGET_FIELDS)
def test_wrong_budget(field: str, value: Any) -> None:
    """A figure of the budget that is no number is null and named."""
    good = warm(0.0)["budget"]
    wrong = told("budget", good | {field: value}, of_device=False)
    null = told("budget", good | {field: None}, of_device=False)
    assert [comparable(said) for said in wrong] == [comparable(said) for said in null]
    assert all(field in json.dumps(about(said, "BAD_INPUT")) for said in wrong[PLACE:])


@pytest.mark.parametrize(
    "forecast",
    [[None], [3], [{}], [{"t": "soon", "g_per_kwh": 3}], [{"t": 50.0}], [{"t": None, "g_per_kwh": None}], [[1, 2]]],
)
def test_wrong_forecast(forecast: list[Any]) -> None:
    """A forecast whose points are no points is a forecast without them, and named."""
    wrong, none = told("grid_forecast", forecast, of_device=False), told("grid_forecast", [], of_device=False)
    assert [comparable(said) for said in wrong] == [comparable(said) for said in none]
    assert all("grid_forecast" in json.dumps(about(said, "BAD_INPUT")) for said in wrong[PLACE:])


@pytest.mark.parametrize("field", [*HOST_FIELDS, *DEVICE_FIELDS, *BUDGET_FIELDS])
def test_enormous(field: str) -> None:
    """A number of 1e308 where a smaller one belongs breaks no promise, then or later, and lifts no cap over max."""
    for value in (1e308, -1e308, 1e-308):
        talk = Talk()
        for k in range(STEPS):
            seen = warm(float(k))
            if PLACE <= k < PLACE + 3:
                if field in BUDGET_FIELDS:
                    seen["budget"][field] = value
                elif field in {"arrivals", "queue"}:
                    seen[field]["free"] = value
                else:
                    seen = replaced(seen, field, value, of_device=field in DEVICE_FIELDS)
            talk(seen)


@pytest.mark.parametrize("field", ["temperature_c", "max_operating_c", "energy_j", "queue", "arrivals", "images_done"])
def test_unseen_is_named(field: str) -> None:
    """What the recommender needs and could not see is named in the reasons."""
    talk = Talk()
    for k in range(STEPS):
        said = talk(replaced(warm(float(k)), field, None, of_device=field in DEVICE_FIELDS))
    assert names(said, field) or (field == "temperature_c" and about(said, "TELEMETRY_STALE")), said["reasons"]


@pytest.mark.parametrize(
    "field",
    [
        "temperature_c",
        "energy_j",
        "power_w",
        "utilization",
        "max_operating_c",
        "slowdown_c",
        "power_limit_w",
        "power_limit_min_w",
        "power_limit_max_w",
        "memory_temperature_c",
        "memory_max_operating_c",
        "clock_events",
        "images_done",
        "arrivals",
        "queue",
        "grid_g_per_kwh",
        "budget",
    ],
)
def test_losing_sight_is_not_looser(field: str) -> None:
    """A host near its limit that loses one field gets no looser limits in the seconds after than one that keeps it."""
    kept, lost = Talk(), Talk()
    for k in range(40):
        seen = warm(float(k), budget={"energy_j_left": 2e5 - 1000 * k, "co2e_g_left": 900.0, "until_t": 400.0})
        known = kept(seen)
        unknown = lost(replaced(seen, field, None, of_device=field in DEVICE_FIELDS) if k >= 30 else seen)
        not_looser(unknown, known, 0.05)


@pytest.mark.parametrize(
    "field", ["temperature_c", "max_operating_c", "slowdown_c", "energy_j", "power_w", "utilization", "clock_events"]
)
def test_never_seen_is_not_looser(field: str) -> None:
    """A hot device that never tells a field gets no higher cap than one that tells it."""
    told_all, without = Talk(), Talk()
    for k in range(60):
        seen = warm(float(k))
        hot = seen | {"devices": [item | {"temperature_c": 85} for item in seen["devices"]]}
        known = told_all(hot)
        unknown = without(hot | {"devices": [item | {field: None} for item in hot["devices"]]})
    not_looser(unknown, known)


def test_only_time_and_names() -> None:
    """Nothing but ``t`` and names of devices is enough for an answer, and more than one thing is named as unseen."""
    talk = Talk()
    for k in range(40):
        said = talk({"t": float(k), "devices": [{"id": "GPU-0"}, {"id": "GPU-1"}]})
    assert said["state"] in {"stale", "unknown"}
    assert said["reasons"]


def test_counter_that_falls() -> None:
    """A counter that falls is a reset: no negative power, no power of megawatts, no state or cap that jumps for it."""
    talk, plain = Talk(), Talk()
    for k in range(120):
        t = float(k)
        seen = observation(t, steady(t, 70, 450.0))
        reset = observation(t, steady(t, 70, 450.0, energy_j=1000.0 + 450.0 * t if k < 60 else 450.0 * (t - 60) + 5.0))
        said, normal = talk(reset), plain(seen)
        assert said["state"] == normal["state"]
        for name, cap in normal["power_cap_w"].items():
            assert said["power_cap_w"][name] == pytest.approx(cap, rel=0.02)
        assert all(reason["observed"] is None or reason["observed"] >= 0 for reason in said["reasons"])


def test_counter_that_leaps() -> None:
    """A counter that leaps by a gigajoule in a second does not run away with the model: caps come back."""
    talk = Talk()
    for k in range(400):
        t = float(k)
        said = talk(observation(t, steady(t, 60, 400.0, energy_j=400.0 * t + (1e9 if k >= 60 else 0.0))))
    assert said["binding"] is None
    assert all(cap is None or cap == 600 for cap in said["power_cap_w"].values())


def test_duplicate_names() -> None:
    """A device listed twice is one device: capacity is not doubled, and the repetition is named."""
    once, twice = Talk(), Talk()
    for k in range(60):
        t = float(k)
        devices = steady(t, 84, 500.0, count=1)
        known = once(observation(t, devices, arrivals={"free": 5}))
        said = twice(observation(t, devices * 2, arrivals={"free": 5}))
    not_looser(said, known)
    assert said["host_power_cap_w"] == known["host_power_cap_w"]
    assert "BAD_INPUT" in codes(said)


@pytest.mark.parametrize(
    "name",
    [
        " ",
        "GPU 0",
        "Ω≈ç√",
        "a\nb",
        'quo"te\\',
        "\u2028\u2029",
        "\x00",
        "__proto__",
        "../../etc/passwd",
        "😀",
    ],
)
def test_odd_names(name: str) -> None:
    """A device's name is any text, and comes back as it was."""
    talk = Talk()
    for k in range(40):
        t = float(k)
        hot = device(name, temperature_c=86, power_w=550.0, energy_j=550.0 * t)
        said = talk(observation(t, [hot], arrivals={"free": 9}))
    if said["reasons"] and any("device" in reason for reason in said["reasons"]):
        assert {reason["device"] for reason in said["reasons"] if "device" in reason} == {name}
    assert set(said["power_cap_w"]) == {name}


@pytest.mark.parametrize("name", ["", "x" * 5000])
def test_names_that_may_be_refused(name: str) -> None:
    """An empty or an endless name is a device like another, or is refused and said so; the others stand."""
    talk = Talk()
    for k in range(40):
        t = float(k)
        odd, good = (device(n, temperature_c=86, power_w=550.0, energy_j=550.0 * t) for n in (name, "GPU-0"))
        said = talk(observation(t, [odd, good], arrivals={"free": 9}))
    assert said["power_cap_w"]["GPU-0"] < 600
    assert name in said["power_cap_w"] or "BAD_INPUT" in codes(said)


def test_lone_surrogate_as_name() -> None:
    """A name that no encoding can write is answered in text that one can."""
    talk = Talk()
    talk.line(json.dumps(observation(0.0, [device("GPU-\ud800", temperature_c=86)])))
    talk.texts[-1].encode("utf-8")


def test_unknown_clock_events() -> None:
    """Clock events that nobody knows, or that are no text, change no limit."""
    plain, odd = Talk(), Talk()
    for k in range(30):
        t = float(k)
        known = plain(observation(t, steady(t, 75)))
        said = odd(observation(t, steady(t, 75, clock_events=["warp_drive", 7, None, "HW_SLOWDOWN?", {}])))
        assert comparable(said) == comparable(known)


def test_unknown_tier_counts_as_the_last() -> None:
    """Demand and queue of a tier that nobody configured are treated as the last tier's, and named."""
    known, strange = Talk(), Talk()
    for k in range(120):
        t = float(k)
        rest: Json = {"images_done": 1}
        last = known(observation(t, steady(t), arrivals={"free": 4}, queue={"free": 6}, **rest))
        said = strange(observation(t, steady(t), arrivals={"gold": 4}, queue={"gold": 6}, **rest))
    assert list(said["tiers"]) == ["pro", "plus", "free"]
    assert limits_only(said) == limits_only(last)
    assert "gold" in json.dumps(said["reasons"])


def test_seventy_two_devices() -> None:
    """Seventy-two devices each get their own cap; the hot one is the one that is named."""
    talk = Talk()
    for k in range(60):
        t = float(k)
        devices = steady(t, 60, 400.0, count=72)
        devices[37] |= {"temperature_c": 86, "power_w": 550.0, "energy_j": 550.0 * t}
        said = talk(observation(t, devices))
    capped = [name for name, cap in said["power_cap_w"].items() if cap is not None and cap < 600]
    assert capped == ["GPU-37"]
    assert said["binding"] == "thermal"
    assert {reason.get("device") for reason in about(said, "THERMAL_HEADROOM_LOW")} == {"GPU-37"}
    assert all(number(reason["observed"]) for reason in about(said, "THERMAL_HEADROOM_LOW"))

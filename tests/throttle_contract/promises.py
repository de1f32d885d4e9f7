"""The promises of design 5.4 that hold for every single recommendation, and small builders of observations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from joulegate.throttle.adviser import Adviser
from joulegate.throttle.settings import ThrottleSettings, Tier
from joulegate.throttle.wire import encode

Json = dict[str, Any]

LEVELS = ("nominal", "watch", "constrained", "critical", "emergency")
STATES = {*LEVELS, "stale", "unknown"}
BINDINGS = {None, "thermal", "memory", "power", "energy", "co2e", "queue", "telemetry"}
CODES = {
    "THERMAL_HEADROOM_LOW",
    "MEMORY_TEMP",
    "HW_SLOWDOWN",
    "POWER_BRAKE",
    "POWER_CAP",
    "POWER_BUDGET",
    "ENERGY_BUDGET",
    "CARBON_INTENSITY",
    "QUEUE_DELAY",
    "DEMAND_EXCEEDS_CAPACITY",
    "COOLING_DEGRADED",
    "WORK_PER_IMAGE_UP",
    "TELEMETRY_STALE",
    "MODEL_UNCERTAIN",
    "OPERATOR_OVERRIDE",
    "WARMUP",
    "BAD_INPUT",
}
MEMBERS = {
    "schema",
    "decision_id",
    "t",
    "ttl_s",
    "poll_after_s",
    "state",
    "binding",
    "confidence",
    "reasons",
    "max_images_per_minute",
    "admit_fraction",
    "max_concurrency",
    "power_cap_w",
    "host_power_cap_w",
    "tiers",
    "fail_safe",
    "inputs",
    "advice",
    "explain",
}
LIMITS = ("max_images_per_minute", "admit_fraction", "max_concurrency", "power_cap_w", "host_power_cap_w", "tiers")
TIER_MEMBERS = {
    "action",
    "max_images_per_minute",
    "admit_fraction",
    "burst",
    "retry_after_s",
    "images_per_tenant_day",
    "defer_until_t",
}
NO_CAPS = ThrottleSettings(actuators=("rate",))
TIERS = (Tier("pro"), Tier("plus"), Tier("free", floor=0.02))
ROUNDING = 1e-6


def device(name: str = "GPU-0", **changes: Any) -> Json:
    """One calm device; a change of ``...`` takes the field away."""
    fields: Json = {
        "id": name,
        "up": True,
        "temperature_c": 58,
        "memory_temperature_c": None,
        "power_w": 400.0,
        "energy_j": 1000.0,
        "utilization": 0.9,
        "power_limit_w": 600,
        "power_limit_min_w": 150,
        "power_limit_max_w": 600,
        "max_operating_c": 86,
        "slowdown_c": 90,
        "clock_events": [],
    } | changes
    return {key: value for key, value in fields.items() if value is not ...}


def observation(t: float, devices: Sequence[Json] | None = None, **changes: Any) -> Json:
    """One observation of calm devices whose counters run at their power; a change of ``...`` takes the field away."""
    fields: Json = {
        "t": t,
        "devices": [device(energy_j=1000.0 + 400.0 * t)] if devices is None else list(devices),
        "images_done": 0.3,
        "arrivals": {"pro": 0, "plus": 0, "free": 0.3},
        "queue": {"pro": 0, "plus": 0, "free": 1},
    } | changes
    return {key: value for key, value in fields.items() if value is not ...}


def steady(t: float, temperature_c: float = 58, power_w: float = 400.0, count: int = 2, **changes: Any) -> list[Json]:
    """``count`` devices that hold their temperature and power; the counter is what that power gives until ``t``."""
    energy_j = 1000.0 + power_w * t
    facts = {"temperature_c": temperature_c, "power_w": power_w, "energy_j": energy_j} | changes
    return [device(f"GPU-{k}", **facts) for k in range(count)]


class Talk:
    """An adviser in this process; every answer is read back from its wire text and held to the promises."""

    def __init__(self, settings: ThrottleSettings | None = None, adviser: Adviser | None = None) -> None:
        """A fresh adviser, or a given one."""
        self.settings = ThrottleSettings() if settings is None else settings
        self.adviser = Adviser(self.settings) if adviser is None else adviser
        self.limits: dict[str, tuple[float | None, float | None]] = {}
        self.last_t: float | None = None
        self.texts: list[str] = []

    def __call__(self, seen: Any) -> Json:
        """One observation, one recommendation."""
        return self.line(json.dumps(seen))

    def line(self, text: str) -> Json:
        """The same from text, which need not be JSON."""
        answer = encode(self.adviser.advise_line(text))
        assert "\n" not in answer, "one line each"
        self.texts.append(answer)
        said = strict_json(answer)
        self._learn(text)
        keeps_promises(said, self.settings, self.limits)
        return said

    def _learn(self, text: str) -> None:
        """Device limits of a line that can be used; another one changes nothing."""
        raw = parsed(text)
        t = finite(raw.get("t")) if isinstance(raw, dict) else None
        if t is not None and (self.last_t is None or t > self.last_t) and (found := limits_of(raw)):
            self.last_t, self.limits = t, self.limits | found

    def all(self, many: Iterable[Any]) -> list[Json]:
        """One recommendation for each observation."""
        return [self(seen) for seen in many]


def strict_json(text: str) -> Json:
    """One JSON object without NaN or Infinity."""

    def refuse(word: str) -> float:
        message = f"{word} is no JSON"
        raise AssertionError(message)

    value = json.loads(text, parse_constant=refuse)
    assert isinstance(value, dict)
    return value


def parsed(text: str) -> Any:
    """Its value, or nothing where it is not JSON (NaN and Infinity pass: they are values that are not finite)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def limits_of(raw: Json) -> dict[str, tuple[float | None, float | None]]:
    """Least and greatest cap by device, as an observation states them; no number or told twice is not stated."""
    listed = raw.get("devices")
    found: dict[str, tuple[float | None, float | None]] = {}
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            least, greatest = (_watts(item.get(key)) for key in ("power_limit_min_w", "power_limit_max_w"))
            if item["id"] in found:
                least, greatest = None, None
            found[item["id"]] = (least, greatest)
    return found


def finite(value: Any) -> float | None:
    """The number, where it is one that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _watts(value: Any) -> float | None:
    found = finite(value)
    return found if found is not None and found > 0 else None


def number(value: Any) -> bool:
    """A finite JSON number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def share(value: Any) -> bool:
    """A number in [0, 1]."""
    return number(value) and 0.0 <= value <= 1.0


def no_limit_or_not_negative(value: Any) -> bool:
    """Null, or a number that is not negative."""
    return value is None or (number(value) and value >= 0)


def keeps_promises(
    said: Json, settings: ThrottleSettings, limits: Mapping[str, tuple[float | None, float | None]]
) -> None:
    """Whatever came in, this holds of what came out."""
    assert set(said) >= MEMBERS, set(said) ^ MEMBERS
    assert said["schema"] == "joulegate.throttle/v1"
    assert isinstance(said["decision_id"], str)
    assert said["decision_id"]
    assert said["t"] is None or number(said["t"])
    assert 0 < said["poll_after_s"] <= said["ttl_s"]
    assert said["state"] in STATES
    assert said["binding"] in BINDINGS
    assert share(said["confidence"])
    assert share(said["admit_fraction"])
    assert no_limit_or_not_negative(said["max_images_per_minute"])
    assert said["max_concurrency"] is None or (type(said["max_concurrency"]) is int and said["max_concurrency"] >= 0)
    assert isinstance(said["explain"], str)
    assert said["explain"].strip()
    for value in said["inputs"].values():
        assert value is None or number(value)
    _reasons(said["reasons"])
    _caps(said, settings, limits)
    _tiers(said, settings)
    _bound(said, limits)
    _fail_safe(said["fail_safe"])
    for item in said["advice"]:
        assert isinstance(item["code"], str)
        assert share(item["saves_fraction"])
        assert isinstance(item["evidence"], dict)


def _reasons(reasons: list[Json]) -> None:
    for reason in reasons:
        assert reason["code"] in CODES, reason
        for key in ("observed", "limit", "predicted", "horizon_s"):
            assert reason.get(key) is None or number(reason[key]), reason
        assert isinstance(reason["unit"], str)
        assert isinstance(reason.get("device", ""), str)


def _caps(said: Json, settings: ThrottleSettings, limits: Mapping[str, tuple[float | None, float | None]]) -> None:
    host = said["host_power_cap_w"]
    assert no_limit_or_not_negative(host)
    if not settings.sets_power:
        assert not any(cap is not None for cap in said["power_cap_w"].values())
    for name, cap in said["power_cap_w"].items():
        least, greatest = limits.get(name, (None, None))
        assert name in limits, f"a cap for {name}, which nobody listed"
        assert cap is None or (number(cap) and cap >= 0)
        # Under a watt nothing is a board's limit: such a value is taken as null.
        if cap is not None and greatest is not None and greatest >= 1.0 and (least is None or least <= greatest):
            assert cap <= greatest * (1 + ROUNDING), (name, cap, greatest)
            assert cap >= (least or 0.0) * (1 - ROUNDING), (name, cap, least)


def _tiers(said: Json, settings: ThrottleSettings) -> None:
    assert list(said["tiers"]) == [tier.name for tier in settings.tiers]
    for tier in settings.tiers:
        limit = said["tiers"][tier.name]
        assert set(limit) >= TIER_MEMBERS
        assert limit["action"] in {"admit", "limit", "defer", "reject"}
        assert no_limit_or_not_negative(limit["max_images_per_minute"])
        assert share(limit["admit_fraction"])
        assert number(limit["burst"])
        assert limit["burst"] >= 1
        assert number(limit["retry_after_s"])
        assert limit["retry_after_s"] >= 0
        day = limit["images_per_tenant_day"]
        assert day is None or (type(day) is int and day >= 0)
        assert limit["defer_until_t"] is None or number(limit["defer_until_t"])
        if said["max_images_per_minute"] is not None and limit["max_images_per_minute"] is not None:
            floor = tier.floor * said["max_images_per_minute"]
            assert limit["max_images_per_minute"] >= floor * (1 - ROUNDING), (tier.name, limit, floor)


def reduced(said: Json, limits: Mapping[str, tuple[float | None, float | None]]) -> list[str]:
    """What the recommendation takes away: capped devices and tiers that do not get everything."""
    caps = [
        name
        for name, cap in said["power_cap_w"].items()
        if cap is not None and (greatest := limits.get(name, (None, None))[1]) and cap < greatest * (1 - ROUNDING)
    ]
    tiers = [
        name for name, limit in said["tiers"].items() if limit["action"] != "admit" or limit["admit_fraction"] < 1.0
    ]
    return caps + tiers


def _bound(said: Json, limits: Mapping[str, tuple[float | None, float | None]]) -> None:
    less = reduced(said, limits)
    if less:
        assert said["binding"] is not None, less
        assert any(number(reason["observed"]) and number(reason["limit"]) for reason in said["reasons"]), said
    if said["binding"] is not None:
        assert any(letter.isdigit() for letter in said["explain"]), said["explain"]


def _fail_safe(fail_safe: Json) -> None:
    assert fail_safe["after_s"] > 0
    assert fail_safe["policy"] == "decay"
    assert share(fail_safe["floor"]["admit_fraction"])
    assert no_limit_or_not_negative(fail_safe["floor"]["power_cap_w"])


def codes(said: Json) -> set[str]:
    """The codes of its reasons."""
    return {reason["code"] for reason in said["reasons"]}


def about(said: Json, code: str) -> list[Json]:
    """Its reasons of one code."""
    return [reason for reason in said["reasons"] if reason["code"] == code]


def without_id(said: Json) -> Json:
    """Everything but the hash of what led there."""
    return {key: value for key, value in said.items() if key != "decision_id"}


def limits_only(said: Json) -> Json:
    """What somebody enforces."""
    return {key: said[key] for key in LIMITS}


def not_looser(first: Json, second: Json, slack: float = 0.01) -> None:
    """Nothing that ``first`` allows is more than what ``second`` allows, but for ``slack`` (relative).

    How the host's rate is split over tiers moves a little with what each asked for lately: 5 %, or a tenth of an image.
    """

    def at_most(a: float | None, b: float | None, what: str, more: float = 0.0, small: float = 1e-9) -> None:
        if b is not None:
            assert a is not None, f"{what}: no limit instead of {b}"
            assert a <= b * (1 + slack + more) + small, f"{what}: {a} instead of {b}"

    at_most(first["max_images_per_minute"], second["max_images_per_minute"], "rate")
    for name, cap in second["power_cap_w"].items():
        at_most(first["power_cap_w"].get(name), cap, f"cap of {name}")
    for name, limit in second["tiers"].items():
        at_most(
            first["tiers"][name]["max_images_per_minute"], limit["max_images_per_minute"], f"rate of {name}", 0.05, 0.1
        )


def falls_by_one_level(states: Sequence[str]) -> None:
    """Levels are entered at once and left one at a time; stale and unknown are no levels."""
    for before, after in pairwise(states):
        if before in LEVELS and after in LEVELS:
            assert LEVELS.index(after) >= LEVELS.index(before) - 1, (before, after)


def reversals(values: Sequence[float], band: float = 0.05) -> int:
    """Changes of direction of a figure, of more than ``band`` of its greatest value."""
    if not values:
        return 0
    size = band * float(np.max(np.abs(values)))
    turns, direction, extreme = 0, 0, values[0]
    for value in values:
        if (direction >= 0 and value > extreme) or (direction <= 0 and value < extreme):
            if direction == 0 and abs(value - extreme) < size:
                continue
            direction = direction or (1 if value > extreme else -1)
            extreme = value
        elif abs(value - extreme) >= size:
            turns, direction, extreme = turns + 1, -direction, value
    return turns

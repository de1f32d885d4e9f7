"""The observation: what one line says of devices, demand, grid and budget, with everything unusable named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_NOTES = 20
MAX_NAME = 256
MAX_TIERS_SEEN = 256
MAX_NUMBER = 1e15
"""What is larger is no watt, joule or image of any host, and its square would not be finite."""


class UnusableObservation(Exception):
    """The line changes nothing; the text says why in one sentence."""


@dataclass(frozen=True, slots=True)
class DeviceObservation:
    """One device's part; what is ``None`` was null, absent or unusable. ``energy_j`` is cumulative.

    ``quality`` is simulated or modelled where no real sensor stands behind the figures.
    """

    id: str
    up: bool = True
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    utilization: float | None = None
    power_limit_w: float | None = None
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    max_operating_c: float | None = None
    slowdown_c: float | None = None
    memory_max_operating_c: float | None = None
    clock_events: frozenset[str] = frozenset()
    quality: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left until ``until_t`` (J, gCO2e)."""

    energy_j_left: float | None = None
    co2e_g_left: float | None = None
    until_t: float | None = None


@dataclass(frozen=True, slots=True)
class WorkClass:
    """Finished images of one kind with what they took: evidence for advice."""

    model: str
    gpus: int
    steps: int | None
    images: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class Observation:
    """One usable line. Counts are since the line before; ``notes`` name what could not be used."""

    t: float
    devices: tuple[DeviceObservation, ...]
    images_done: float | None = None
    arrivals: Mapping[str, float] | None = None
    queue: Mapping[str, float] | None = None
    grid_g_per_kwh: float | None = None
    grid_age_s: float | None = None
    grid_forecast: tuple[tuple[float, float], ...] = ()
    budget: Budget | None = None
    active_tenants: Mapping[str, float] | None = None
    work: tuple[WorkClass, ...] = ()
    notes: tuple[str, ...] = field(default=())


def read_observation(raw: object, last_t: float | None) -> Observation:
    """One decoded JSON value as an observation; raises ``UnusableObservation``.

    ``last_t`` is the time of the line before: a line that is not after it cannot be used.
    """
    if not isinstance(raw, Mapping):
        raise UnusableObservation("the line is not a JSON object")
    t = _finite(raw.get("t"))
    if t is None:
        raise UnusableObservation("t is missing or not a finite number")
    if last_t is not None and t <= last_t:
        raise UnusableObservation(f"t {t:g} is not after the last one, {last_t:g}")
    reader = _Reader()
    devices = reader.devices(raw.get("devices"))
    if not devices:
        raise UnusableObservation("no device is listed")
    return Observation(
        t=t,
        devices=devices,
        images_done=reader.number(raw, "images_done", "", low=0.0),
        arrivals=reader.counts(raw, "arrivals"),
        queue=reader.counts(raw, "queue"),
        grid_g_per_kwh=reader.number(raw, "grid_g_per_kwh", "", low=0.0),
        grid_age_s=reader.number(raw, "grid_age_s", "", low=0.0),
        grid_forecast=reader.forecast(raw.get("grid_forecast")),
        budget=reader.budget(raw.get("budget")),
        active_tenants=reader.counts(raw, "active_tenants"),
        work=reader.work(raw.get("work")),
        notes=reader.named(),
    )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= MAX_NUMBER else None


class _Reader:
    """Reads members and remembers those that could not be used."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._more = 0

    def named(self) -> tuple[str, ...]:
        """What could not be used, at most ``MAX_NOTES`` of it."""
        return (*self._notes, f"and {self._more} more") if self._more else tuple(self._notes)

    def _note(self, text: str) -> None:
        if len(self._notes) < MAX_NOTES:
            self._notes.append(text)
        else:
            self._more += 1

    def number(
        self, raw: Mapping[str, Any], name: str, where: str, *, low: float | None = None, high: float | None = None
    ) -> float | None:
        value = raw.get(name)
        if value is None:
            return None
        number = _finite(value)
        if number is None or (low is not None and number < low) or (high is not None and number > high):
            self._note(f"{where}{name} cannot be used and is taken as null")
            return None
        return number

    def counts(self, raw: Mapping[str, Any], name: str) -> dict[str, float] | None:
        value = raw.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._note(f"{name} is not an object and is taken as null")
            return None
        if len(value) > MAX_TIERS_SEEN:
            self._note(f"{name} has more than {MAX_TIERS_SEEN} members; the rest is taken as null")
        found = {tier: self.number(value, tier, f"{name}.", low=0.0) for tier in list(value)[:MAX_TIERS_SEEN]}
        # A sum of which one part is not known is not known.
        told = {str(tier): count for tier, count in found.items() if count is not None}
        return told if len(told) == len(found) else None

    def devices(self, raw: object) -> tuple[DeviceObservation, ...]:
        if not isinstance(raw, list):
            return ()
        found: dict[str, DeviceObservation] = {}
        for index, item in enumerate(raw):
            device = self._device(item, index)
            if device is None:
                continue
            if device.id in found:
                self._note(f"devices[{index}].id is listed twice; the first counts")
                continue
            found[device.id] = device
        return tuple(found.values())

    def _device(self, raw: object, index: int) -> DeviceObservation | None:
        where = f"devices[{index}]."
        if not isinstance(raw, Mapping) or not isinstance(raw.get("id"), str) or not 0 < len(raw["id"]) <= MAX_NAME:
            self._note(f"devices[{index}] has no usable id and is left out")
            return None
        up = raw.get("up")
        if up is not None and not isinstance(up, bool):
            self._note(f"{where}up cannot be used and is taken as true")
        quality = raw.get("quality")
        return DeviceObservation(
            id=raw["id"],
            up=up is not False,
            temperature_c=self.number(raw, "temperature_c", where, low=-100.0, high=300.0),
            memory_temperature_c=self.number(raw, "memory_temperature_c", where, low=-100.0, high=300.0),
            power_w=self.number(raw, "power_w", where, low=0.0, high=1e5),
            energy_j=self.number(raw, "energy_j", where, low=0.0),
            utilization=self.number(raw, "utilization", where, low=0.0, high=1.0),
            power_limit_w=self._limit(raw, "power_limit_w", where),
            power_limit_min_w=self._limit(raw, "power_limit_min_w", where),
            power_limit_max_w=self._limit(raw, "power_limit_max_w", where),
            max_operating_c=self.number(raw, "max_operating_c", where, low=1.0, high=200.0),
            slowdown_c=self.number(raw, "slowdown_c", where, low=1.0, high=200.0),
            memory_max_operating_c=self.number(raw, "memory_max_operating_c", where, low=1.0, high=200.0),
            clock_events=self._events(raw.get("clock_events"), where),
            quality=quality if isinstance(quality, str) and len(quality) <= MAX_NAME else None,
        )

    def _limit(self, raw: Mapping[str, Any], name: str, where: str) -> float | None:
        return self.number(raw, name, where, low=1e-3, high=1e5)

    def _events(self, raw: object, where: str) -> frozenset[str]:
        if raw is None:
            return frozenset()
        if not isinstance(raw, list):
            self._note(f"{where}clock_events is not a list and is taken as null")
            return frozenset()
        named = [event for event in raw if isinstance(event, str)]
        if len(named) < len(raw):
            self._note(f"{where}clock_events has members that are not text")
        return frozenset(named)

    def forecast(self, raw: object) -> tuple[tuple[float, float], ...]:
        if raw is None:
            return ()
        if not isinstance(raw, list):
            self._note("grid_forecast is not a list and is taken as null")
            return ()
        points = []
        for index, item in enumerate(raw):
            where = f"grid_forecast[{index}]."
            at = self.number(item, "t", where) if isinstance(item, Mapping) else None
            intensity = self.number(item, "g_per_kwh", where, low=0.0) if isinstance(item, Mapping) else None
            if at is None or intensity is None:
                self._note(f"grid_forecast[{index}] is left out")
                continue
            points.append((at, intensity))
        return tuple(sorted(points))

    def budget(self, raw: object) -> Budget | None:
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            self._note("budget is not an object and is taken as null")
            return None
        return Budget(
            energy_j_left=self.number(raw, "energy_j_left", "budget."),
            co2e_g_left=self.number(raw, "co2e_g_left", "budget."),
            until_t=self.number(raw, "until_t", "budget."),
        )

    def work(self, raw: object) -> tuple[WorkClass, ...]:
        if raw is None:
            return ()
        if not isinstance(raw, list):
            self._note("work is not a list and is taken as null")
            return ()
        found = []
        for index, item in enumerate(raw[:MAX_TIERS_SEEN]):
            one = self._work_class(item, f"work[{index}].") if isinstance(item, Mapping) else None
            if one is None:
                self._note(f"work[{index}] is left out")
            else:
                found.append(one)
        return tuple(found)

    def _work_class(self, raw: Mapping[str, Any], where: str) -> WorkClass | None:
        gpus = self.number(raw, "gpus", where, low=1.0)
        images = self.number(raw, "images", where, low=0.0)
        energy_j = self.number(raw, "energy_j", where, low=0.0)
        steps = self.number(raw, "steps", where, low=1.0)
        model = raw.get("model")
        if gpus is None or not images or energy_j is None or not isinstance(model, str):
            return None
        return WorkClass(model[:MAX_NAME], int(gpus), None if steps is None else int(steps), images, energy_j)

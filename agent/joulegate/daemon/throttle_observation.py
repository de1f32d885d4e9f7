"""One observation of design 5.4 from the newest snapshot and what feeds know: pure, and given the time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulegate.daemon.throttle_demand import Counts
from joulegate.metering.reading import Reading, clock_event_names
from joulegate.metering.snapshot import DeviceState, Snapshot
from joulegate.units import MJ_PER_J

OLD_S = 3.0
"""A reading that is older says nothing of the present: its figures are null, and the device grows stale."""

GONE_ERRORS = ("GPU_IS_LOST", "GPU_NOT_FOUND", "RESET_REQUIRED", "INSUFFICIENT_POWER")
"""Errors that say that the device is not there, while every other one only says that its sensors do not answer."""

MOST_FORECAST_POINTS = 72


@dataclass(frozen=True, slots=True)
class GridNow:
    """The grid's intensity now and ahead; ``forecast`` are (seconds from now, g/kWh)."""

    g_per_kwh: float | None = None
    age_s: float | None = None
    label: str = "missing"
    forecast: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class BudgetNow:
    """What is left, and for how many seconds from now."""

    energy_j_left: float | None
    co2e_g_left: float | None
    left_s: float


def observe(
    snapshot: Snapshot,
    now_s: float,
    t: float,
    *,
    counts: Counts,
    grid: GridNow,
    budget: BudgetNow | None,
    gone: Collection[str],
) -> dict[str, Any]:
    """The observation at ``t``; ``now_s`` is that moment on the snapshot's clock (CLOCK_MONOTONIC).

    ``gone`` are devices that are known not to be there. One that merely does not answer stays up with null figures: it
    may well be at work, and taking its capacity away would make an outage of a monitoring fault.
    """
    elapsed_s = max(0.0, now_s - snapshot.t_s)
    observation: dict[str, Any] = {
        "t": t,
        "devices": [
            _device(state, elapsed_s, is_gone=device in gone) for device, state in sorted(snapshot.devices.items())
        ],
        "images_done": counts.images_done,
        "arrivals": dict(counts.arrivals),
        "queue": None if counts.queue is None else dict(counts.queue),
        "grid_g_per_kwh": _finite(grid.g_per_kwh),
        "grid_age_s": None if grid.age_s is None else round(grid.age_s, 1),
        "grid_label": grid.label,
        "grid_forecast": [
            {"t": round(t + ahead_s, 3), "g_per_kwh": g_per_kwh}
            for ahead_s, g_per_kwh in grid.forecast[:MOST_FORECAST_POINTS]
        ],
        "source": snapshot.source,
    }
    if counts.work:
        observation["work"] = [dict(one) for one in counts.work]
    if budget is not None:
        observation["budget"] = {
            "energy_j_left": _finite(budget.energy_j_left),
            "co2e_g_left": _finite(budget.co2e_g_left),
            "until_t": round(t + budget.left_s, 3),
        }
    return observation


def blind(observation: Mapping[str, Any], before_s: float) -> dict[str, Any]:
    """What could be said ``before_s`` earlier, after a time in which nobody looked: the devices, and nothing of them.

    It makes the adviser treat a restart or a sleep as stale telemetry, so that limits come back slowly.
    """
    return {
        "t": round(observation["t"] - before_s, 3),
        "devices": [{name: device[name] for name in ("id", "up", "quality")} for device in observation["devices"]],
    }


def _device(state: DeviceState, elapsed_s: float, *, is_gone: bool) -> dict[str, Any]:
    device, reading = state.device, _fresh(state, elapsed_s)
    power_w = reading.power_w if reading.power_w is not None else reading.power_average_w
    events = clock_event_names(reading.clock_events)
    age_s = None if state.age_s is None else round(state.age_s + elapsed_s, 3)
    return {
        "id": device.id,
        "up": not is_gone,
        "temperature_c": _finite(reading.temperature_c),
        "memory_temperature_c": _finite(reading.memory_temperature_c),
        "power_w": _finite(power_w),
        "energy_j": None if reading.energy_mj is None else reading.energy_mj / MJ_PER_J,
        "utilization": _finite(reading.utilization),
        "power_limit_w": _finite(reading.power_limit_w),
        "power_limit_min_w": _finite(device.power_limit_min_w),
        "power_limit_max_w": _finite(device.power_limit_max_w),
        "max_operating_c": _finite(device.max_operating_c),
        "slowdown_c": _finite(device.slowdown_c),
        "memory_max_operating_c": _finite(device.memory_max_operating_c),
        "clock_events": None if events is None else list(events),
        "quality": device.quality.value,
        "age_s": _finite(age_s),
    }


def _fresh(state: DeviceState, elapsed_s: float) -> Reading:
    """The newest reading, or one without any figure where that is too old."""
    if state.reading is not None and state.age_s is not None and state.age_s + elapsed_s <= OLD_S:
        return state.reading
    return Reading(state.device.id, 0.0, 0.0, up=False)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class GoneWatch:
    """Which devices are known not to be there, told from the errors that are counted for them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._gone: set[str] = set()

    def look(self, devices: Mapping[str, DeviceState]) -> frozenset[str]:
        """Devices that do not answer and lately said that they are lost; one is back with its first answer."""
        for device, state in devices.items():
            count = sum(state.errors.get(name, 0) for name in GONE_ERRORS)
            if _answers(state):
                self._gone.discard(device)
            elif count > self._counts.get(device, 0):
                self._gone.add(device)
            self._counts[device] = count
        self._gone &= devices.keys()
        return frozenset(self._gone)


def _answers(state: DeviceState) -> bool:
    return state.up and state.age_s is not None and state.age_s <= OLD_S

"""What the sensors say of the plant: late, noisy, whole degrees, with a gain error, and sometimes nothing."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from benchmarks.throttle.plant import Array, Plant

TEMPERATURE_NOISE_K = 0.25
POWER_GAIN = 0.02
POWER_NOISE = 0.01
BUSY = 0.02


class Telemetry:
    """Device rows of observations, one call a second (design 5.4's ``devices``)."""

    def __init__(self, plant: Plant, rng: np.random.Generator) -> None:
        self._plant, self._rng = plant, rng
        self._gain = 1.0 + rng.uniform(-POWER_GAIN, POWER_GAIN, plant.devices)
        self._past: deque[tuple[Array, Array]] = deque(maxlen=plant.family.sensor_lag_s + 1)
        self._counter_from_j = np.zeros(plant.devices)
        self._before_j = np.zeros(plant.devices)
        self._last: list[dict[str, Any]] = []

    def restart_counter(self, device: int) -> None:
        """A board's driver was loaded anew: its energy counts from 0."""
        self._counter_from_j[device] = self._plant.energy_j[device]

    def read(self, busy: Array, unlisted: frozenset[int], lost: str | None) -> list[dict[str, Any]]:
        """Rows of the boards; ``lost`` is None, ``null`` (NVML gives nothing) or ``frozen`` (it repeats itself)."""
        plant = self._plant
        noise = self._rng.normal(size=(3, plant.devices))
        self._past.append((plant.die_c, plant.memory_c))
        power_w = (plant.energy_j - self._before_j) * self._gain * (1.0 + POWER_NOISE * noise[2])
        self._before_j = plant.energy_j.copy()
        if lost == "frozen" and self._last:
            return self._last
        die_c, memory_c = (
            self._whole(late + TEMPERATURE_NOISE_K * one) for late, one in zip(self._past[0], noise, strict=False)
        )
        self._last = [
            self._row(device, die_c[device], memory_c[device], power_w[device], busy[device], lost=lost is not None)
            for device in range(plant.devices)
            if device not in unlisted
        ]
        return self._last

    def _whole(self, temperature_c: Array) -> Array:
        return np.floor(temperature_c) if self._plant.family.rounding == "down" else np.rint(temperature_c)

    def _row(
        self, device: int, die_c: float, memory_c: float, power_w: float, busy: float, *, lost: bool
    ) -> dict[str, Any]:
        plant, family = self._plant, self._plant.family
        up = bool(plant.up[device])
        seen = up and not lost
        energy_j = (plant.energy_j[device] - self._counter_from_j[device]) * self._gain[device]
        memory = seen and family.memory_k_per_w is not None
        return {
            "id": f"GPU-{device}",
            "up": up,
            "temperature_c": int(die_c) if seen else None,
            "memory_temperature_c": int(memory_c) if memory else None,
            "memory_max_operating_c": family.memory_max_operating_c if family.memory_k_per_w is not None else None,
            "power_w": round(float(power_w), 1) if seen else None,
            "energy_j": round(float(energy_j), 1) if seen else None,
            "utilization": round(float(busy), 2) if seen else None,
            "power_limit_w": float(plant.cap_w[device]) if seen else None,
            "power_limit_min_w": family.min_w,
            "power_limit_max_w": family.max_w,
            "max_operating_c": family.max_operating_c,
            "slowdown_c": family.slowdown_c,
            "clock_events": self._events(device, busy) if seen else None,
        }

    def _events(self, device: int, busy: float) -> list[str]:
        plant = self._plant
        if busy < BUSY:
            return ["gpu_idle"]
        events = []
        if plant.hard[device]:
            events += ["hw_slowdown", "hw_thermal"]
        if plant.soft[device]:
            events.append("sw_thermal")
        elif plant.cap_w[device] < plant.family.max_w:
            events.append("sw_power_cap")
        return events

"""The host: boards of two thermal masses, a shared fan, the driver's slowdowns."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from benchmarks.throttle.families import LEAKAGE_AT_C, LEAKAGE_PER_K, Family

Array = npt.NDArray[np.float64]
Governor = Literal["normal", "none"]

FAN_LAG_S = 8.0
FAN_SPAN_K = (37.0, 3.0)
SOFT_STEP = (0.0076, 0.0038)
SOFT_STEP_S = 0.25
SOFT_MIN = 0.3
HARD_RELEASE_K = 3.0
HARD_RELEASE_S = 2.0
MEMORY_HARD_K = 3.0
CLOCK_MIN = 0.1


class Plant:
    """True state of ``devices`` boards; temperatures in C, powers in W, energies in J, one array element a board.

    Governor ``normal`` steps the clock down while a board is at or over its maximum operating temperature, and up, half
    as fast, while it is not (NVIDIA's law is not public); in both governors the clock is halved from the slowdown
    temperature on, until the board was over 3 K under it for 2 s.
    """

    def __init__(
        self, family: Family, devices: int, governor: Governor, inlet_c: float, rng: np.random.Generator
    ) -> None:
        self.family, self.devices, self.governor = family, devices, governor
        spread = rng.uniform(1 - family.spread, 1 + family.spread, (2, devices))
        self.die_k_per_w = family.die_k_per_w * spread[0]
        self.sink_spread = spread[1]
        masses = rng.uniform(0.95, 1.05, (2, devices))
        self.die_j_per_k, self.sink_j_per_k = family.die_j_per_k * masses[0], family.sink_j_per_k * masses[1]
        self.preheat_k = rng.permutation(np.linspace(0.0, family.preheat_k, devices))
        self.fan = 0.0
        self.sink_k_per_w = family.sink_k_per_w[1] * self.sink_spread
        self.sink_c = inlet_c + family.idle_w * self.sink_k_per_w
        self.die_c = self.sink_c + family.idle_w * self.die_k_per_w
        self.memory_c = self.sink_c + family.idle_w * (family.memory_k_per_w or 0.0)
        self.cap_w = np.full(devices, family.max_w)
        self.up = np.ones(devices, dtype=bool)
        self.power_w = np.full(devices, family.idle_w)
        self.energy_j = np.zeros(devices)
        self.soft_clock = np.ones(devices)
        self.soft = np.zeros(devices, dtype=bool)
        self.hard = np.zeros(devices, dtype=bool)
        self._cool_s = np.zeros(devices)
        self._soft_s = 0.0

    def idle_w(self) -> Array:
        """What each board draws without work, leakage included."""
        watts: Array = self.family.idle_w * (1.0 + LEAKAGE_PER_K * (self.die_c - LEAKAGE_AT_C))
        return watts

    def capped_clock(self, cap_w: Array) -> Array:
        """The clock at which a busy board draws ``cap_w``, at most 1."""
        share = (cap_w - self.idle_w()) / (self.family.max_w - self.family.idle_w)
        clock = np.maximum(share, 0.0) ** (1.0 / self.family.exponent)
        return np.minimum(np.maximum(clock, CLOCK_MIN), 1.0)

    def clock(self) -> Array:
        """The clock in force from now on, 0 for a board that is gone; notes in ``soft`` where the driver limits it."""
        capped = self.capped_clock(self.cap_w)
        self.soft = (self.soft_clock < capped) & self.up
        clock = np.minimum(capped, self.soft_clock)
        return np.where(self.hard, 0.5 * clock, clock) * self.up

    def hot(self) -> npt.NDArray[np.bool_]:
        """Where core or memory is at or over its maximum operating temperature."""
        hot: npt.NDArray[np.bool_] = self.die_c >= self.family.max_operating_c
        if self.family.memory_k_per_w is not None:
            hot |= self.memory_c >= self.family.memory_max_operating_c
        return hot

    def advance(self, dt_s: float, clock: Array, busy: Array, inlet_c: float, sink_factor: Array) -> None:
        """Integrate ``dt_s`` with the boards ``busy`` that share of the time at ``clock``."""
        family = self.family
        dynamic_w = (family.max_w - family.idle_w) * clock**family.exponent * busy
        self.power_w = (self.idle_w() + dynamic_w) * self.up
        self.energy_j += self.power_w * dt_s
        self._ventilate(dt_s, sink_factor)
        air_c = inlet_c + self.preheat_k * (float(self.power_w.sum()) / (self.devices * family.max_w))
        into_sink_w = (self.die_c - self.sink_c) / self.die_k_per_w
        out_of_sink_w = (self.sink_c - air_c) / self.sink_k_per_w
        if family.memory_k_per_w is not None:
            memory_c = self.sink_c + family.memory_k_per_w * self.power_w
            self.memory_c = self.memory_c + (memory_c - self.memory_c) * (dt_s / family.memory_lag_s)
        self.die_c = self.die_c + (self.power_w - into_sink_w) * (dt_s / self.die_j_per_k)
        self.sink_c = self.sink_c + (into_sink_w - out_of_sink_w) * (dt_s / self.sink_j_per_k)
        self._slow_down(dt_s)

    def _ventilate(self, dt_s: float, sink_factor: Array) -> None:
        low_k, high_k = FAN_SPAN_K
        under_k = self.family.max_operating_c - float(self.die_c.max())
        wanted = min(max((low_k - under_k) / (low_k - high_k), 0.0), 1.0)
        self.fan += (wanted - self.fan) * dt_s / FAN_LAG_S
        full, slow = self.family.sink_k_per_w
        self.sink_k_per_w = (slow + (full - slow) * self.fan) * self.sink_spread * sink_factor

    def _slow_down(self, dt_s: float) -> None:
        family = self.family
        over_k = self.die_c - family.max_operating_c
        hard = self.die_c >= family.slowdown_c
        cool = self.die_c < family.slowdown_c - HARD_RELEASE_K
        if family.memory_k_per_w is not None:
            memory_k = self.memory_c - family.memory_max_operating_c
            over_k = np.maximum(over_k, memory_k)
            hard |= memory_k >= MEMORY_HARD_K
            cool &= memory_k < 0
        self._cool_s = np.where(cool, self._cool_s + dt_s, 0.0)
        self.hard = (self.hard & (self._cool_s < HARD_RELEASE_S)) | hard
        self._soft_s += dt_s
        if self.governor == "normal" and self._soft_s >= SOFT_STEP_S:
            self._soft_s = 0.0
            down, up = SOFT_STEP
            step = np.where(over_k >= 0, -down, up)
            self.soft_clock = np.minimum(np.maximum(self.soft_clock + step, SOFT_MIN), 1.0)

"""A device as it is when somebody asks: what ``/v1/devices`` and ``/metrics`` both show, from one snapshot."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from joulegate.metering.reading import Device, Method, Quality, Reading
from joulegate.metering.snapshot import DeviceState, DeviceTotals


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device at ``age_s`` after its newest reading with values.

    ``live`` is that reading, or ``None`` when the device is down or the reading is too old to speak for the present;
    ``totals`` is ``None`` when no energy was ever known (law 2).
    """

    state: DeviceState
    age_s: float | None
    up: bool
    live: Reading | None
    totals: DeviceTotals | None

    @property
    def device(self) -> Device:
        """What does not change."""
        return self.state.device

    @property
    def quality(self) -> Quality:
        """Quality of the totals: that of now, or the device's own while there is no reading."""
        return self.device.quality if self.state.quality is Quality.MISSING else self.state.quality

    @property
    def power_w(self) -> float | None:
        """Instant power, else the driver's mean over a second; ``power_method`` tells which."""
        instant_w = self.value(lambda reading: reading.power_w)
        return self.value(lambda reading: reading.power_average_w) if instant_w is None else instant_w

    @property
    def power_method(self) -> Method | None:
        """Where ``power_w`` comes from."""
        if self.power_w is None:
            return None
        if self.device.method in {Method.RAPL, Method.MODEL, Method.SIMULATED}:
            return self.device.method
        return Method.AVERAGE if self.value(lambda reading: reading.power_w) is None else Method.INSTANT

    @property
    def headroom_c(self) -> float | None:
        """Kelvins left to the highest operating temperature, or where that is not known to the slowdown."""
        limit_c = finite(self.device.max_operating_c)
        if limit_c is None:
            limit_c = finite(self.device.slowdown_c)
        return difference(limit_c, self.value(lambda reading: reading.temperature_c))

    @property
    def memory_headroom_c(self) -> float | None:
        """Kelvins left to the memory's highest operating temperature."""
        return difference(
            finite(self.device.memory_max_operating_c), self.value(lambda reading: reading.memory_temperature_c)
        )

    def value(self, pick: Callable[[Reading], float | None]) -> float | None:
        """A finite figure of the live reading, or ``None``."""
        return None if self.live is None else finite(pick(self.live))


def view_device(state: DeviceState, elapsed_s: float, stale_after_s: float) -> DeviceView:
    """``state`` as it is ``elapsed_s`` after its snapshot; readings older than ``stale_after_s`` are not live."""
    age_s = finite(state.age_s)
    if age_s is not None:
        age_s = max(0.0, age_s + elapsed_s)
    up = state.up and age_s is not None and age_s <= stale_after_s
    metered = state.totals.device_mj > 0 or (state.reading is not None and state.quality is not Quality.MISSING)
    return DeviceView(
        state=state,
        age_s=age_s,
        up=up,
        live=state.reading if up else None,
        totals=state.totals if metered else None,
    )


def finite(value: float | None) -> float | None:
    """``value``, or ``None`` for what is no number: nan and infinity never leave the agent."""
    return value if value is not None and math.isfinite(value) else None


def difference(limit: float | None, value: float | None) -> float | None:
    """``limit - value`` where both are known."""
    return None if limit is None or value is None else limit - value

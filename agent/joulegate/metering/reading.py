"""A reading: one sample of one device's sensors, and what is known of the device that gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

CLOCK_EVENTS = (
    "gpu_idle",
    "clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal",
    "hw_thermal",
    "hw_power_brake",
    "display_clocks",
)
"""Names of the clock events, in the order of NVML's bits 0x1 to 0x100 (nvml.h, nvmlClocksEventReasons)."""


class Method(StrEnum):
    """How an energy figure came to be."""

    COUNTER = "counter"
    INSTANT = "instant"
    AVERAGE = "average"
    RAPL = "rapl"
    MODEL = "model"
    SIMULATED = "simulated"


class Quality(StrEnum):
    """How far a figure can be trusted; ``missing`` means that there is no figure."""

    MEASURED = "measured"
    APPORTIONED = "apportioned"
    MODELLED = "modelled"
    DEFAULT = "default"
    MISSING = "missing"
    SIMULATED = "simulated"


class SensorStatus(StrEnum):
    """What ``joulegate doctor`` says of a sensor."""

    MEASURED = "MEASURED"
    MODELLED = "MODELLED"
    MISSING = "MISSING"
    SIMULATED = "SIMULATED"


@dataclass(frozen=True, slots=True)
class Device:
    """What does not change from reading to reading. ``None`` is "this device does not say".

    ``scope`` is what the energy covers: ``gpu``, ``module`` (GH200: CPU, GPU and memory), ``board``, ``package``,
    ``host``. ``step_s`` and ``lag_s`` are the sensor's refresh period and lateness where the source knows or learned
    them. ``gain_error`` is the largest relative gain error of the sensor (notes: 5 % for NVIDIA boards).
    """

    id: str
    name: str
    method: Method
    quality: Quality
    scope: str = "gpu"
    index: int | None = None
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    max_operating_c: float | None = None
    slowdown_c: float | None = None
    shutdown_c: float | None = None
    memory_max_operating_c: float | None = None
    memory_total_bytes: int | None = None
    step_s: float | None = None
    lag_s: float | None = None
    gain_error: float = 0.05
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample. ``t_s`` is CLOCK_MONOTONIC seconds, ``wall_s`` Unix seconds; every other field may be missing.

    ``energy_mj`` is the cumulative counter as the device gives it, ``power_w`` the instant power,
    ``power_average_w`` the driver's one-second mean, ``utilization`` a share from 0 to 1, ``clock_events`` a mask over
    ``CLOCK_EVENTS``. ``up`` is False when the device did not answer; then nothing else is set and ``error`` names why.
    """

    device: str
    t_s: float
    wall_s: float
    energy_mj: int | None = None
    power_w: float | None = None
    power_average_w: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    clock_events: int | None = None
    up: bool = True
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sensor:
    """One line of ``joulegate doctor``: is this device measured, why (not), and what to do about it."""

    device: str
    status: SensorStatus
    method: Method | None
    why: str
    fix: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process seen on a device: evidence beside ``unattributed`` energy."""

    device: str
    pid: int
    name: str
    memory_bytes: int | None = None
    sm_share: float | None = None


def clock_event_names(mask: int | None) -> tuple[str, ...] | None:
    """Names of the events in a mask; ``None`` stays ``None`` and no event is an empty tuple."""
    if mask is None:
        return None
    return tuple(name for bit, name in enumerate(CLOCK_EVENTS) if mask >> bit & 1)

"""One GPU while it answers: its fast and slow readings, its step, its self-check, and what they say of the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from joulegate.metering.reading import Device, Method, Reading
from joulegate.sources.nvml.faults import Action, NvmlFault, Tally, rule_of
from joulegate.sources.nvml.library import (
    MEMORY_TEMPERATURE,
    POWER_AVERAGE,
    POWER_LIMIT_ENFORCED,
    FieldBatch,
    Handle,
    Lane,
)
from joulegate.sources.nvml.pace import Gate, Pace, ZeroGuard
from joulegate.sources.nvml.probe import Probe
from joulegate.sources.nvml.selfcheck import CounterCheck
from joulegate.sources.nvml.steps import StepLearner

_SENSOR_DIE = 0
_CLOCK_SM = 1
_ALL_CLOCK_EVENTS = 0x1FF
_LIMIT_MEMORY = 60


class SlowValues(NamedTuple):
    """What is read once a second, in the order of ``Reading``; every fast reading carries the newest."""

    power_average_w: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    clock_events: int | None = None


_CALLS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("temperature_c", "nvmlDeviceGetTemperatureV", (_SENSOR_DIE,)),
    ("utilization", "nvmlDeviceGetUtilizationRates", ()),
    ("memory_used_bytes", "nvmlDeviceGetMemoryInfo", ()),
    ("sm_clock_mhz", "nvmlDeviceGetClockInfo", (_CLOCK_SM,)),
    ("clock_events", "nvmlDeviceGetCurrentClocksEventReasons", ()),
)
_OLDER = {
    "nvmlDeviceGetTemperatureV": "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons": "nvmlDeviceGetCurrentClocksThrottleReasons",
}
"""The name of the same call in older drivers and bindings."""

_CONVERT: dict[str, Callable[[object], float | int]] = {}


@dataclass(frozen=True, slots=True)
class Rates:
    """How often to read: fast readings no faster than ``fastest_s`` apart, slow ones every ``slow_s``."""

    fastest_s: float = 0.025
    slow_s: float = 1.0

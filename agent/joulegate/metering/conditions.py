"""What a device went through while a request ran: power, heat, utilization, memory, seconds under clock events."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from joulegate.metering.entry import DeviceUse
from joulegate.metering.reading import CLOCK_EVENTS, Reading

KEEP_S = 900.0
"""Readings older than this are forgotten; a longer request is described by its last quarter of an hour."""

_PRUNE = 4096
_FIGURES = ("power_w", "temperature_c", "utilization", "memory_used_bytes")

Floats = NDArray[np.float64]


class Conditions:
    """Readings of one device in order of time; each value holds until the next reading.

    Kept as plain columns (40 bytes a reading), because a host with eight devices has a quarter of a million of them.
    """

    def __init__(self) -> None:
        self._times = array("d")
        self._columns = {name: array("d") for name in _FIGURES}
        self._events = array("H")

    def add(self, reading: Reading) -> None:
        """Remember a reading; one that is not newer than the last is left out."""
        times, columns = self._times, self._columns
        if times and reading.t_s <= times[-1]:
            return
        power_w = reading.power_w if reading.power_w is not None else reading.power_average_w
        times.append(reading.t_s)
        columns["power_w"].append(math.nan if power_w is None else power_w)
        columns["temperature_c"].append(_or_nan(reading.temperature_c))
        columns["utilization"].append(_or_nan(reading.utilization))
        columns["memory_used_bytes"].append(_or_nan(reading.memory_used_bytes))
        self._events.append((reading.clock_events or 0) & 0xFFFF)
        if len(times) % _PRUNE == 0:
            old = bisect_right(times, reading.t_s - KEEP_S)
            for column in (times, *columns.values()):
                del column[:old]
            del self._events[:old]

    def during(self, start_s: float, end_s: float, energy_mj: int) -> DeviceUse:
        """Summary of [``start_s``, ``end_s``] beside the energy; what no reading told is ``None``."""
        first = max(0, bisect_right(self._times, start_s) - 1)
        last = bisect_right(self._times, end_s)
        if last <= first:
            return DeviceUse(energy_mj)
        edges = np.append(np.maximum(np.array(self._times[first:last]), start_s), max(end_s, start_s))
        held_s = np.diff(edges)
        power_w, temperature_c, utilization, memory = (np.array(self._columns[name][first:last]) for name in _FIGURES)
        memory_max = _largest(memory)
        return DeviceUse(
            energy_mj=energy_mj,
            power_mean_w=_mean(power_w, held_s),
            power_max_w=_largest(power_w),
            temperature_max_c=_largest(temperature_c),
            utilization_mean=_mean(utilization, held_s),
            memory_max_bytes=None if memory_max is None else int(memory_max),
            clock_event_s=_event_seconds(np.array(self._events[first:last]), held_s),
        )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: Floats, held_s: Floats) -> float | None:
    known = ~np.isnan(values)
    if not known.any():
        return None
    total_s = float(held_s[known].sum())
    return float(values[known] @ held_s[known]) / total_s if total_s > 0 else float(values[known][0])


def _largest(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else None


def _event_seconds(masks: NDArray[np.uint16], held_s: Floats) -> Mapping[str, float]:
    if not masks.any():
        return {}
    seconds = {name: float(held_s[(masks >> bit & 1) == 1].sum()) for bit, name in enumerate(CLOCK_EVENTS)}
    return {name: s for name, s in seconds.items() if s > 0}

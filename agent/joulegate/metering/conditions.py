"""What a device went through while a request ran: power, heat, utilization, memory, seconds under clock events."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TypeVar

from joulegate.metering.entry import DeviceUse
from joulegate.metering.reading import CLOCK_EVENTS, Reading

KEEP_S = 900.0
"""Readings older than this are forgotten; a longer request is described by its last quarter of an hour."""

_PRUNE = 4096

_Number = TypeVar("_Number", int, float)


class Conditions:
    """Readings of one device in order of time; each value holds until the next reading."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._readings: list[Reading] = []

    def add(self, reading: Reading) -> None:
        """Remember a reading; one that is not newer than the last is left out."""
        if self._times and reading.t_s <= self._times[-1]:
            return
        self._times.append(reading.t_s)
        self._readings.append(reading)
        if len(self._times) % _PRUNE == 0:
            old = bisect_right(self._times, reading.t_s - KEEP_S)
            del self._times[:old], self._readings[:old]

    def during(self, start_s: float, end_s: float, energy_mj: int) -> DeviceUse:
        """Summary of [``start_s``, ``end_s``] beside the energy; what no reading told is ``None``."""
        first = max(0, bisect_right(self._times, start_s) - 1)
        last = bisect_right(self._times, end_s)
        readings = self._readings[first:last]
        if not readings:
            return DeviceUse(energy_mj)
        edges = [max(start_s, r.t_s) for r in readings] + [max(end_s, start_s)]
        held_s = [after - before for before, after in pairwise(edges)]
        powers = [r.power_w if r.power_w is not None else r.power_average_w for r in readings]
        return DeviceUse(
            energy_mj=energy_mj,
            power_mean_w=_mean(powers, held_s),
            power_max_w=_largest(powers),
            temperature_max_c=_largest(r.temperature_c for r in readings),
            utilization_mean=_mean([r.utilization for r in readings], held_s),
            memory_max_bytes=_largest(r.memory_used_bytes for r in readings),
            clock_event_s=_event_seconds(readings, held_s),
        )


def _mean(values: list[float | None], held_s: list[float]) -> float | None:
    known = [(value, s) for value, s in zip(values, held_s, strict=True) if value is not None]
    total_s = sum(s for _, s in known)
    if total_s > 0:
        return sum(value * s for value, s in known) / total_s
    return known[0][0] if known else None


def _largest(values: Iterable[_Number | None]) -> _Number | None:
    return max((value for value in values if value is not None), default=None)


def _event_seconds(readings: list[Reading], held_s: list[float]) -> Mapping[str, float]:
    seconds: dict[str, float] = {}
    for reading, s in zip(readings, held_s, strict=True):
        mask = reading.clock_events or 0
        for bit, name in enumerate(CLOCK_EVENTS):
            if mask >> bit & 1:
                seconds[name] = seconds.get(name, 0.0) + s
    return seconds

"""What is left of a budget: the period in the site's zone, and what the ledger says was used since it began."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from joulegate.metering.snapshot import DeviceTotals
from joulegate.units import MJ_PER_J, S_PER_HOUR

Period = Literal["hour", "day", "month"]
RETRY_S = 30.0
CO2E_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Used:
    """Energy by the Unix second at which an hour starts (whole millijoules), and the qualities of its readings."""

    hours_mj: Mapping[int, int]
    qualities: frozenset[str]


@dataclass(frozen=True, slots=True)
class Left:
    """What is left until ``until_s`` (Unix seconds); a figure is ``None`` where it is not limited or not known."""

    energy_j: float | None
    co2e_g: float | None
    until_s: float


def period_of(wall_s: float, period: Period, zone: ZoneInfo) -> tuple[float, float]:
    """[start, end) of the hour, day or month around ``wall_s``, as clocks in ``zone`` show it, in Unix seconds."""
    second = math.floor(wall_s)
    local = datetime.fromtimestamp(second, zone)
    if period == "hour":
        start_s = second - local.minute * 60 - local.second
        return float(start_s), float(start_s + S_PER_HOUR)
    start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if period == "month":
        start = start.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    else:
        end = start + timedelta(days=1)
    return start.timestamp(), end.timestamp()


class BudgetMeter:
    """Counts down one period's budget; used by one thread, which may block for the ledger once a period.

    ``read`` gives what was used in [start, end), ``co2e_of`` the grams that belong to it (``None`` where they are not
    known). A restart reads the period again, so that it never refills a budget.
    """

    def __init__(
        self,
        energy_j: float | None,
        co2e_g: float | None,
        period: Period,
        zone: ZoneInfo,
        *,
        read: Callable[[float, float], Used],
        co2e_of: Callable[[Used], float | None],
        faults: tuple[type[Exception], ...],
    ) -> None:
        """``faults`` are what ``read`` raises when the ledger cannot be read: it is tried again later."""
        self._energy_j, self._co2e_g = energy_j, co2e_g
        self._period, self._zone = period, zone
        self._read, self._co2e_of, self._faults = read, co2e_of, faults
        self._start_s: float | None = None
        self._retry_s = -math.inf
        self._hours_mj: dict[int, int] = {}
        self._qualities: frozenset[str] = frozenset()
        self._totals_mj: dict[str, int] = {}
        self._co2e_used_g: float | None = None
        self._co2e_s = -math.inf
        self.error: str | None = None

    def left(self, wall_s: float, totals: Mapping[str, DeviceTotals]) -> Left | None:
        """What is left now, ``totals`` being those of every device; ``None`` where no budget is set or known."""
        if self._energy_j is None and self._co2e_g is None:
            return None
        start_s, end_s = period_of(wall_s, self._period, self._zone)
        self._count(wall_s, totals)
        if start_s != self._start_s and not self._begin(start_s, wall_s):
            return None
        used_j = sum(self._hours_mj.values()) / MJ_PER_J
        return Left(
            energy_j=None if self._energy_j is None else self._energy_j - used_j,
            co2e_g=None if self._co2e_g is None else self._co2e_left_g(wall_s),
            until_s=end_s,
        )

    def _count(self, wall_s: float, totals: Mapping[str, DeviceTotals]) -> None:
        """Add what every known device used since the last call; a device that is new starts to count now."""
        hour_s = int(wall_s // S_PER_HOUR) * S_PER_HOUR
        for device, of_device in totals.items():
            total_mj = of_device.device_mj + of_device.estimated_mj
            used_mj = total_mj - self._totals_mj.get(device, total_mj)
            self._totals_mj[device] = total_mj
            if used_mj > 0:
                self._hours_mj[hour_s] = self._hours_mj.get(hour_s, 0) + used_mj

    def _begin(self, start_s: float, wall_s: float) -> bool:
        if wall_s < self._retry_s:
            return False
        try:
            used = self._read(start_s, wall_s)
        except self._faults as fault:
            self.error, self._retry_s = str(fault), wall_s + RETRY_S
            return False
        self._start_s, self.error, self._retry_s = start_s, None, -math.inf
        self._hours_mj, self._qualities = dict(used.hours_mj), used.qualities
        self._co2e_s = -math.inf
        return True

    def _co2e_left_g(self, wall_s: float) -> float | None:
        if not 0.0 <= wall_s - self._co2e_s < CO2E_EVERY_S:
            self._co2e_s = wall_s
            self._co2e_used_g = self._co2e_of(Used(self._hours_mj, self._qualities))
        return None if self._co2e_used_g is None or self._co2e_g is None else self._co2e_g - self._co2e_used_g

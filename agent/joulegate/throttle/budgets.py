"""Budgets: the mean power of the host that energy, CO2e and the feed leave for the time that remains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from joulegate.throttle.observation import Budget, Observation

J_PER_KWH = 3.6e6
SHORTEST_S = 20.0
"""Nearer to the end a budget would be spent in one second or not at all."""

MEAN_S = 120.0
LENIENCE = 1.5
"""How far the ceiling may exceed the mean that is left while less than that is drawn."""

FEED_KEPT_S = 900.0
"""A budget or intensity that is not told any more holds so long, then its constraint is dropped and said to be."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one budget leaves: ``mean_w`` for the rest of its time, ``ceiling_w`` now, and the figures behind it."""

    mean_w: float
    ceiling_w: float
    left: float
    unit: str
    left_s: float


@dataclass(slots=True)
class Budgets:
    """Remembers the newest figures of the feeds and what was drawn since."""

    energy_j_left: float | None = None
    co2e_g_left: float | None = None
    until_t: float | None = None
    told_t: float | None = None
    grid_g_per_kwh: float | None = None
    grid_t: float | None = None
    mean_w: float | None = None

    def take(self, observation: Observation, host_w: float | None, dt_s: float) -> None:
        """One line, with the mean power of all devices since the line before."""
        if observation.grid_g_per_kwh is not None:
            self.grid_g_per_kwh = observation.grid_g_per_kwh
            self.grid_t = observation.t - (observation.grid_age_s or 0.0)
        if host_w is not None:
            weight = 1.0 - math.exp(-dt_s / MEAN_S)
            self.mean_w = host_w if self.mean_w is None else self.mean_w + (host_w - self.mean_w) * weight
        self._spend((host_w or 0.0) * dt_s)
        told = observation.budget
        if told is not None and told != Budget():
            self.energy_j_left, self.co2e_g_left = told.energy_j_left, told.co2e_g_left
            self.until_t, self.told_t = told.until_t, observation.t

    def _spend(self, energy_j: float) -> None:
        if self.energy_j_left is not None:
            self.energy_j_left -= energy_j
        if self.co2e_g_left is not None and self.grid_g_per_kwh is not None:
            self.co2e_g_left -= energy_j / J_PER_KWH * self.grid_g_per_kwh

    def left_s(self, t: float) -> float | None:
        """Seconds to the end of the budget; ``None`` where there is none, it is over or nobody told of it lately."""
        if self.until_t is None or self.told_t is None or t - self.told_t > FEED_KEPT_S or self.until_t <= t:
            return None
        return self.until_t - t

    def grid_age_s(self, t: float) -> float | None:
        """Seconds since the intensity was told."""
        return None if self.grid_t is None else max(0.0, t - self.grid_t)

    def energy(self, t: float) -> Allowance | None:
        """What the energy budget leaves."""
        left_s = self.left_s(t)
        if left_s is None or self.energy_j_left is None:
            return None
        return self._allowance(self.energy_j_left / max(left_s, SHORTEST_S), self.energy_j_left, "J", left_s)

    def co2e(self, t: float, forecast: Sequence[tuple[float, float]]) -> Allowance | None:
        """What the CO2e budget leaves at the mean intensity that lies ahead; ``None`` without an intensity."""
        left_s = self.left_s(t)
        if left_s is None or self.co2e_g_left is None or self.grid_g_per_kwh is None:
            return None
        if (self.grid_age_s(t) or 0.0) > FEED_KEPT_S:
            return None
        ahead = mean_intensity(self.grid_g_per_kwh, forecast, t, t + left_s)
        if ahead <= 0.0:
            return None
        mean_w = self.co2e_g_left / ahead * J_PER_KWH / max(left_s, SHORTEST_S)
        # What is cleaner than the mean ahead gets more of the budget, what is dirtier less.
        mean_w *= min(2.0, max(0.5, ahead / max(self.grid_g_per_kwh, 1e-9)))
        return self._allowance(mean_w, self.co2e_g_left, "g", left_s)

    def _allowance(self, mean_w: float, left: float, unit: str, left_s: float) -> Allowance:
        mean_w = max(0.0, mean_w)
        drawn_w = mean_w if self.mean_w is None else self.mean_w
        ceiling_w = max(mean_w + LENIENCE * (mean_w - drawn_w), 0.8 * mean_w)
        return Allowance(mean_w, ceiling_w, left, unit, left_s)


def mean_intensity(now_g_per_kwh: float, forecast: Sequence[tuple[float, float]], t: float, until_t: float) -> float:
    """Mean of a step function that is ``now`` until the first later point of the forecast (g/kWh over [t, until_t])."""
    total, at, value = 0.0, t, now_g_per_kwh
    for point_t, point in forecast:
        if point_t <= t:
            value = point if point_t == t else value
            continue
        if point_t >= until_t:
            break
        total += value * (point_t - at)
        at, value = point_t, point
    return (total + value * (until_t - at)) / (until_t - t) if until_t > t else now_g_per_kwh


def divided(total_w: float, wanted_w: Sequence[float], lowest_w: Sequence[float]) -> list[float]:
    """``total_w`` over devices that want ``wanted_w`` each: in proportion, none under its lowest or over its wish.

    The kernel's power allocator does the same (gov_power_allocator.c, divvy_up_power): what one cannot use, others get.
    """
    grants = [min(wish, low) for wish, low in zip(wanted_w, lowest_w, strict=True)]
    left_w = total_w - math.fsum(grants)
    room = [wish - grant for wish, grant in zip(wanted_w, grants, strict=True)]
    open_w = math.fsum(room)
    if left_w <= 0.0 or open_w <= 0.0:
        return grants
    share = min(1.0, left_w / open_w)
    return [grant + share * more for grant, more in zip(grants, room, strict=True)]

"""Capacity-aware admission, shared by the baselines: measured work, a calm queue, paid tiers first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.throttle.controller import FREE_FLOOR, Observation
from benchmarks.throttle.gateway import TIERS

SPEED_OF_POWER = 0.45
IDLE_SHARE = 0.13
LEARN_S = 60.0
SATURATED = 2
CALM_S, CALM_SHARE = 4.0, 1.05
DEMAND_S = 20.0
PAID_BURST_S, FREE_BURST_S = 20.0, 4.0


def speed(cap_w: float, max_w: float) -> float:
    """Share of full speed at a cap, by the power law that controllers may assume."""
    share = (cap_w / max_w - IDLE_SHARE) / (1 - IDLE_SHARE)
    return float(max(share, 0.01) ** SPEED_OF_POWER)


class Capacity:
    """Images a second and full-speed board, learned only while a queue stands."""

    def __init__(self, image_s: float) -> None:
        self._per_board, self._saturated = 1.0 / image_s, False

    def learn(self, observation: Observation, boards: float) -> float:
        """Images a second that ``boards`` full-speed boards can do."""
        before, self._saturated = self._saturated, sum(observation["queue"].values()) >= SATURATED
        if boards > 0 and before and self._saturated:
            seen = observation["images_done"] / boards
            self._per_board += (seen - self._per_board) / LEARN_S
        return self._per_board * boards


class Admission:
    """Turns a capacity into tier limits, none while demand is under it.

    The queue is filled under 2 s, held, drained over 8 s, purged over 16 s.
    """

    def __init__(self) -> None:
        self._factor = 1.0
        self._demand = dict.fromkeys(TIERS, 0.0)

    def limits(self, observation: Observation, capacity_per_s: float) -> dict[str, Any]:
        """``max_images_per_minute`` and ``tiers`` of a recommendation."""
        waiting_s = sum(observation["queue"].values()) / max(capacity_per_s, 1e-9)
        self._factor = self._next_factor(waiting_s)
        for name, asked in observation["arrivals"].items():
            self._demand[name] += (asked - self._demand[name]) / DEMAND_S
        host = capacity_per_s * self._factor
        if waiting_s < CALM_S and sum(self._demand.values()) < CALM_SHARE * capacity_per_s:
            return {**open_limits(), "max_images_per_minute": 60.0 * host}
        left, tiers = host, {}
        for name in TIERS:
            paid = name != TIERS[-1]
            rate = max(left, 0.0 if paid else FREE_FLOOR * host)
            burst_s, least = (PAID_BURST_S, 4.0) if paid else (FREE_BURST_S, 1.0)
            demand = self._demand[name]
            burst = max(least, burst_s * min(rate, demand))
            tiers[name] = {"max_images_per_minute": 60.0 * rate, "burst": burst}
            left -= min(demand, left)
        return {"max_images_per_minute": 60.0 * host, "tiers": tiers}

    def _next_factor(self, waiting_s: float) -> float:
        if waiting_s > 16.0:
            return 0.85
        if waiting_s > 8.0:
            return min(self._factor, 0.96)
        if waiting_s < 2.0:
            return 1.06
        settled = 3.0 < waiting_s < 5.0
        return 1.0 if settled else self._factor


def open_limits() -> dict[str, Any]:
    """No limit at all."""
    tiers: Mapping[str, Any] = {name: {"max_images_per_minute": None, "burst": 1} for name in TIERS}
    return {"max_images_per_minute": None, "tiers": tiers}

"""The bound: a controller that sees the plant itself and acts at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from benchmarks.throttle.controller import Observation, Recommendation
from benchmarks.throttle.families import SPEED_EXPONENT, Family
from benchmarks.throttle.gateway import DEADLINES_S, TIERS
from benchmarks.throttle.plant import Array, Plant

MARGIN_K = 0.4
AHEAD_S = 1.0
BUDGET_BLOCK_S = 60.0
PLAN_S = 10
FREE_QUEUED_S = 8.0
DEMAND_S = 10.0
SAFE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Truth:
    """What nobody else can see: plant, inlet and work factor now, and the grid's course until the end."""

    plant: Plant
    inlet_c: Callable[[float], float]
    work_factor: Callable[[float], float]
    grid_g_per_kwh: Callable[[float], float]


class Oracle:
    """Keeps every board at most 0.4 K under its limit, exactly, and hands out exactly what that allows.

    The die follows the sink within seconds, so the largest power that never takes it over ``limit`` is
    ``(limit - sink) / R1`` with the sink as it will be a second on; memory alike. Admission keeps a queue that never
    runs dry and never makes an image late; in overload free images leave room for paid ones. It is the bound of
    controllers that respect the limit: others can serve more.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth, self._asked_per_s = truth, 0.0
        self._plan_w: float | None = None

    def advise(self, observation: Observation) -> Recommendation:
        """The plan for the next second."""
        plant, t_s = self._truth.plant, float(observation["t"])
        cap_w = np.minimum(self._thermal_w(t_s), self._budget_w(observation))
        cap_w = np.clip(cap_w, plant.family.min_w, plant.family.max_w)
        image_s = plant.family.image_s * self._truth.work_factor(t_s) / plant.capped_clock(cap_w) ** SPEED_EXPONENT
        per_s = float((plant.up / image_s).sum())
        waiting_s = sum(observation["queue"].values()) / max(per_s, 1e-9)
        self._asked_per_s += (sum(observation["arrivals"].values()) - self._asked_per_s) / DEMAND_S
        most_s = dict.fromkeys(TIERS, math.inf)
        most_s[TIERS[-1]] = FREE_QUEUED_S if self._asked_per_s > per_s else math.inf
        tiers = {
            name: _room(per_s, min(_in_time_s(due_s, float(image_s.max())), most_s[name]) - waiting_s)
            for name, due_s in zip(TIERS, DEADLINES_S, strict=True)
        }
        caps_w = {f"GPU-{device}": float(watts) for device, watts in enumerate(cap_w)}
        return {"max_images_per_minute": 60.0 * per_s, "tiers": tiers, "power_cap_w": caps_w}

    def close(self) -> None:
        """Nothing to do."""

    def _thermal_w(self, t_s: float) -> Array:
        plant = self._truth.plant
        air_c = self._truth.inlet_c(t_s) + plant.preheat_k
        into_w = (plant.die_c - plant.sink_c) / plant.die_k_per_w - (plant.sink_c - air_c) / plant.sink_k_per_w
        sink_c = plant.sink_c + np.maximum(into_w, 0.0) * (AHEAD_S / plant.sink_j_per_k)
        cap_w: Array = (plant.family.max_operating_c - MARGIN_K - sink_c) / plant.die_k_per_w
        if plant.family.memory_k_per_w is not None:
            memory_w = (plant.family.memory_max_operating_c - MARGIN_K - sink_c) / plant.family.memory_k_per_w
            cap_w = np.minimum(cap_w, memory_w)
        return cap_w

    def _budget_w(self, observation: Observation) -> float:
        """Power of a board that uses up the budget at its end; of CO2e, more while the grid is clean."""
        budget, family = observation["budget"], self._truth.plant.family
        if budget is None:
            return family.max_w
        t_s, boards = float(observation["t"]), max(int(self._truth.plant.up.sum()), 1)
        left_s = max(budget["until_t"] - t_s, 1.0)
        if budget["energy_j_left"] is not None:
            return float(budget["energy_j_left"] / left_s / boards)
        if self._plan_w is not None and t_s % PLAN_S:
            return self._plan_w
        course_s = np.arange(t_s, t_s + left_s, BUDGET_BLOCK_S)
        grid = np.array([self._truth.grid_g_per_kwh(at_s) for at_s in course_s])
        block_s = np.minimum(BUDGET_BLOCK_S, t_s + left_s - course_s)
        left_g = budget["co2e_g_left"] / boards
        self._plan_w = float(_equal_return(family, grid, block_s, left_g)[0])
        return self._plan_w


def _in_time_s(due_s: float, image_s: float) -> float:
    """How long a queue an image may join and still be served in time."""
    return max(SAFE_SHARE * (due_s - 2.0 * image_s), image_s)


def _room(per_s: float, room_s: float) -> dict[str, float]:
    """A bucket as deep as the queue has room, refilled as fast as the queue is served."""
    if room_s <= 0.0:
        return {"max_images_per_minute": 0.0, "burst": 1.0}
    return {"max_images_per_minute": 60.0 * per_s, "burst": max(room_s * per_s, 1.0)}


def _equal_return(family: Family, grid: Array, block_s: Array, left_g: float) -> Array:
    """Power over time whose last gram buys as many images in every block, and that spends ``left_g`` (bisection)."""
    power = SPEED_EXPONENT / family.exponent
    low, high = -60.0, 60.0
    plan_w = np.full_like(grid, family.min_w)
    for _ in range(60):
        price = np.exp((low + high) / 2)
        dynamic_w = (price * grid / power) ** (1.0 / (power - 1.0))
        plan_w = np.clip(family.idle_w + dynamic_w, family.min_w, family.max_w)
        spent_g = float((plan_w * grid * block_s).sum()) / 3.6e6
        low, high = ((low + high) / 2, high) if spent_g > left_g else (low, (low + high) / 2)
    return plan_w

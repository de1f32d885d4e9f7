"""Who asks for an image and when: the same for every controller of a case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from benchmarks.throttle.gateway import SHARES, TIERS
from benchmarks.throttle.scenarios import Scenario

Array = npt.NDArray[np.float64]
WORK_JITTER = 0.10
PARETO_SHAPE = 1.5
SESSION_MAX = 60
PAID_GROWTH = 4.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in order of time: when, which tier (index), and full-clock seconds of work; one image each."""

    t_s: Array
    tier: npt.NDArray[np.int64]
    work_s: Array


def draw(scenario: Scenario, nominal_per_s: float, image_s: float, rng: np.random.Generator) -> Arrivals:
    """Poisson arrivals of a scenario: ``load`` times ``nominal_per_s``, tiers 10/25/65 %.

    A flash is free traffic mostly: load over the base grows the paid tiers up to fourfold and no further. With
    ``sessions`` the Poisson events are sessions of Pareto(1.5) images of one tier, at most 60, at the same load.
    """
    seconds = np.arange(scenario.duration_s)
    load = np.interp(seconds, *scenario.load_points()) * rng.uniform(0.97, 1.03)
    paid = np.minimum(load, PAID_GROWTH * scenario.base_load) if scenario.base_load else load
    share = np.array(SHARES)
    per_tier = np.stack([paid * share[0], paid * share[1], load - paid * (share[0] + share[1])]) * nominal_per_s
    sizes = _session_sizes(rng, 4096) if scenario.sessions else np.ones(1, dtype=np.int64)
    times: list[Array] = []
    tiers: list[npt.NDArray[np.int64]] = []
    for tier in range(len(TIERS)):
        count = rng.poisson(per_tier[tier] / sizes.mean())
        starts_s = np.repeat(seconds, count) + rng.random(int(count.sum()))
        size = rng.choice(sizes, len(starts_s))
        times.append(np.repeat(starts_s, size))
        tiers.append(np.full(int(size.sum()), tier, dtype=np.int64))
    t_s = np.concatenate(times)
    order = np.argsort(t_s, kind="stable")
    work_s = image_s * rng.uniform(1 - WORK_JITTER, 1 + WORK_JITTER, len(t_s))
    return Arrivals(t_s[order], np.concatenate(tiers)[order], work_s)


def _session_sizes(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    return np.minimum(np.floor(1.0 + rng.pareto(PARETO_SHAPE, count)), SESSION_MAX).astype(np.int64)

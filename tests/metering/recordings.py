"""Small synthetic recordings with known truth: requests before a device, and the joules of its counter's steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.metering.calibration import Changes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """Intervals of ``step_s`` that are ``lag_s`` late, and the requests with their true dynamic power."""

    changes: Changes
    starts_s: Floats
    ends_s: Floats
    classes: list[str]
    dynamic_w: Floats


def record(
    rng: np.random.Generator,
    count: int,
    by_class: dict[str, float],
    *,
    idle_w: float = 95.0,
    lag_s: float = 0.0,
    step_s: float = 0.1,
    spread: float = 0.0,
    pause_s: float = 1.0,
    noise: float = 0.002,
) -> Recording:
    """Poisson requests of 0.2 to 3 s; a request's own power is its class's times ``1 + spread * normal``."""
    names = sorted(by_class)
    classes = [names[i] for i in rng.integers(len(names), size=count)]
    watts = np.array([by_class[name] for name in classes]) * (1 + spread * rng.normal(size=count))
    starts = 2 + np.cumsum(rng.exponential(pause_s, count))
    ends = starts + rng.uniform(0.2, 3.0, count)
    ticks = np.arange(0.0, ends.max() + 3, step_s)
    energy_j = np.diff(energy_at(ticks, starts, ends, watts, idle_w))
    energy_j = energy_j * (1 + noise * rng.normal(size=len(energy_j)))
    return Recording(Changes(ticks[:-1] + lag_s, ticks[1:] + lag_s, energy_j), starts, ends, classes, watts)


def energy_at(t_s: Floats, starts_s: Floats, ends_s: Floats, watts: Floats, idle_w: float) -> Floats:
    """Joules used since time 0: idle power, and while requests run the mean of their dynamic powers."""
    times = np.concatenate([starts_s, ends_s])
    order = np.argsort(times, kind="stable")
    active = np.cumsum(np.repeat([1, -1], len(starts_s))[order])
    running_w = np.cumsum(np.concatenate([watts, -watts])[order])
    edges = np.concatenate([[0.0], times[order], [max(t_s[-1], ends_s.max()) + 1]])
    mean_w = np.where(active > 0, running_w / np.maximum(active, 1), 0.0)
    power_w = idle_w + np.concatenate([[0.0], mean_w])
    energy_j = np.concatenate([[0.0], np.cumsum(power_w * np.diff(edges))])
    return np.asarray(np.interp(t_s, edges, energy_j))

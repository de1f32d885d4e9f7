"""How unequally overlapping requests really share a device, judged from the total power while they do.

Time slicing assumes equal shares. If request r really gets ``q_r / sum q``, with ``ln q`` of standard deviation s, then
two classes of different power show it: the total leaves the model by ``(1/n) sum ln q_r (D_r - mean D)``. So s can be
estimated wherever unlike requests overlap; a mix that is alike tells nothing, and the prior stands.
"""

from __future__ import annotations

import numpy as np

from joulegate.metering.calibration import Changes, Floats
from joulegate.metering.model import PRIOR_SHARE_ERROR

PRIOR_REQUESTS = 8.0
LOWEST, HIGHEST = 0.1, 0.7
_UNLIKE = 0.02


class _Company:
    """Who is active when: number of requests, sum and sum of squares of their dynamic power, as step functions."""

    def __init__(self, starts_s: Floats, ends_s: Floats, dynamic_w: Floats) -> None:
        times = np.concatenate([starts_s, ends_s])
        order = np.argsort(times, kind="stable")
        self.times_s = times[order]
        steps = np.concatenate([np.ones(len(starts_s)), -np.ones(len(ends_s))])[order]
        watts = np.concatenate([dynamic_w, dynamic_w])[order]
        self.count = np.concatenate([[0.0], np.cumsum(steps)])
        self.sum_w = np.concatenate([[0.0], np.cumsum(steps * watts)])
        self.squares_w2 = np.concatenate([[0.0], np.cumsum(steps * watts**2)])


def hidden_share_error(changes: Changes, starts_s: Floats, ends_s: Floats, dynamic_w: Floats, idle_w: float) -> float:
    """Relative standard error of a share; ``changes`` are on the spans' time, ``dynamic_w`` is of each span's class."""
    if len(starts_s) < 2 or not len(changes.start_s):
        return PRIOR_SHARE_ERROR
    company = _Company(starts_s, ends_s, dynamic_w)
    first = np.searchsorted(company.times_s, changes.start_s, side="right")
    last = np.searchsorted(company.times_s, changes.end_s, side="left")
    whole = first == last
    count, duration_s = company.count[first], changes.duration_s
    n = np.maximum(count, 1.0)
    mean_w = company.sum_w[first] / n
    power_w = idle_w + np.where(count > 0.5, mean_w, 0.0)
    expected_j = np.maximum(power_w * duration_s, 1e-9)
    residual = (changes.energy_j - expected_j) / expected_j
    alone = whole & (np.abs(count - 1) < 0.5)
    noise = float(np.median(residual[alone] ** 2)) / 0.455 if alone.sum() >= 5 else 0.0
    spread_w2 = np.maximum(company.squares_w2[first] / n - mean_w**2, 0.0) / n
    unit = spread_w2 / np.maximum(power_w, 1e-9) ** 2
    told = whole & (count > 1.5) & (unit > _UNLIKE**2)
    if not told.any():
        return PRIOR_SHARE_ERROR
    found = max(0.0, float(np.mean(residual[told] ** 2) - noise) / float(np.mean(unit[told])))
    groups = len(np.unique(first[told]))
    weight = groups / (groups + PRIOR_REQUESTS)
    variance = weight * found + (1 - weight) * PRIOR_SHARE_ERROR**2
    return float(np.clip(np.sqrt(variance), LOWEST, HIGHEST))

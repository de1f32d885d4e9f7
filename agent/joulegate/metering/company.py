"""How unequally overlapping requests share a device, judged live: stretches of unchanged company against the model.

The idea is that of ``sharing``: if request r really gets ``q_r / sum q`` with ``ln q`` of standard deviation s, the
total power of an unlike company leaves the model by ``(1/n) sum ln q_r (D_r - mean D)``. Live, the model itself is
off by some watts (leakage of a warm board, classes that are not uniform), and the lag is not known to the
millisecond. So intervals next to an edge are left out, whole stretches are compared instead of single intervals, and
what requests that are alone leave unexplained is taken off first.
"""

from __future__ import annotations

import numpy as np

from joulegate.metering.calibration import Changes, Floats
from joulegate.metering.model import PRIOR_SHARE_ERROR

PRIOR_STRETCHES = 25.0
LOWEST, HIGHEST = 0.1, 0.6
EDGE_MARGIN_S = 0.02
_UNLIKE = 0.03
_FEW = 5
_TRIM = 3.0


def share_error(changes: Changes, starts_s: Floats, ends_s: Floats, dynamic_w: Floats, idle_w: float) -> float:
    """Relative standard error of a request's share.

    ``changes`` are on the spans' own time, ``dynamic_w`` is that of each span's class.
    """
    if len(starts_s) < 2 or not len(changes.start_s):
        return PRIOR_SHARE_ERROR
    order = np.argsort(np.concatenate([starts_s, ends_s]), kind="stable")
    times_s = np.concatenate([starts_s, ends_s])[order]
    steps = np.concatenate([np.ones(len(starts_s)), -np.ones(len(ends_s))])[order]
    watts = np.concatenate([dynamic_w, dynamic_w])[order]
    first = np.searchsorted(times_s, changes.start_s - EDGE_MARGIN_S, side="right")
    whole = first == np.searchsorted(times_s, changes.end_s + EDGE_MARGIN_S, side="left")
    stretch, place = np.unique(first[whole], return_inverse=True)
    if not len(stretch):
        return PRIOR_SHARE_ERROR
    length_s = np.bincount(place, changes.duration_s[whole])
    power_w = np.bincount(place, changes.energy_j[whole]) / length_s

    def at(values: Floats) -> Floats:
        return np.asarray(np.concatenate([[0.0], np.cumsum(values)])[stretch])

    n = np.maximum(at(steps), 1.0)
    busy = at(steps) > 0.5
    mean_w = at(steps * watts) / n
    spread_w2 = np.maximum(at(steps * watts**2) / n - mean_w**2, 0.0) / n
    residual_w = power_w - idle_w - np.where(busy, mean_w, 0.0)
    alike = busy & (spread_w2 < 1.0)
    unlike = busy & (spread_w2 > (_UNLIKE * power_w) ** 2)
    if unlike.sum() < 2:
        return PRIOR_SHARE_ERROR
    off_w, noise_w2 = _spread(residual_w[alike]) if alike.sum() >= _FEW else (0.0, 0.0)
    found_w2 = np.minimum((residual_w[unlike] - off_w) ** 2, (_TRIM * HIGHEST) ** 2 * spread_w2[unlike])
    found = max(0.0, float(found_w2.mean()) - noise_w2) / float(spread_w2[unlike].mean())
    weight = float(unlike.sum()) / (float(unlike.sum()) + PRIOR_STRETCHES)
    variance = weight * found + (1 - weight) * PRIOR_SHARE_ERROR**2
    return float(np.clip(np.sqrt(variance), LOWEST, HIGHEST))


def _spread(residual_w: Floats) -> tuple[float, float]:
    """Median and variance of what the model leaves unexplained where shares do not matter."""
    off_w = float(np.median(residual_w))
    return off_w, float(np.mean((residual_w - off_w) ** 2))

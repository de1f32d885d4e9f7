"""What single requests draw beyond their class: random effects, for recorded data that can be read as a whole.

A class's dynamic power is a mean. Where a request ran alone, or in changing company, the intervals tell what it drew
itself: each request gets its own ``D_r ~ N(D_class, tau_class^2)``, and the ridge solution is its posterior mean. Work
is done in blocks of requests that overlap; the effort grows with the overlaps, so very crowded traces go without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.metering.calibration import Changes, Floats, running_mean

Ints = NDArray[np.int64]

MAX_OVERLAPS = 3_000_000
BLOCK = 128
SWEEPS = 4
ERROR_FLOOR = 2e-3
"""Smallest relative standard error of an interval's energy that is believed."""
TAU_FLOOR, TAU_CEILING, TAU_FEW = 0.03, 0.5, 0.15
_MAD_TO_SD = 1.4826
_OUTLIER_SD = 3.0
_TUKEY = 4.685


@dataclass(frozen=True, slots=True)
class Effects:
    """Dynamic power of each request in watts and its standard error in watts, in the order of the requests given."""

    dynamic_w: Floats
    error_w: Floats


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """Sparse share times: request ``column[i]`` had ``share_s[i]`` in interval ``row[i]``; columns ascend."""

    row: Ints
    column: Ints
    share_s: Floats
    first: Ints


def _find_overlaps(changes: Changes, starts_s: Floats, ends_s: Floats) -> _Overlaps | None:
    cuts = np.unique(np.concatenate([starts_s, ends_s, changes.start_s, changes.end_s]))
    first, last = np.searchsorted(cuts, starts_s), np.searchsorted(cuts, ends_s)
    counts = last - first
    if counts.sum() > MAX_OVERLAPS or len(cuts) < 2:
        return None
    steps = np.zeros(len(cuts) + 1)
    np.add.at(steps, first, 1.0)
    np.add.at(steps, last, -1.0)
    active = np.maximum(np.cumsum(steps)[:-1], 1.0)
    middle = (cuts[:-1] + cuts[1:]) / 2
    interval = np.searchsorted(changes.start_s, middle, side="right") - 1
    covered = (interval >= 0) & (middle < changes.end_s[np.maximum(interval, 0)])
    column = np.repeat(np.arange(len(starts_s)), counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    segment = np.arange(len(column)) - np.repeat(offsets[:-1], counts) + np.repeat(first, counts)
    keep = covered[segment]
    column, segment = column[keep], segment[keep]
    share = (np.diff(cuts) / active[:-1])[segment]
    return _Overlaps(interval[segment], column, share, np.searchsorted(column, np.arange(len(starts_s) + 1)))


def _blocks(starts_s: Floats, ends_s: Floats) -> list[tuple[int, int]]:
    """Ranges of requests (in order of start) that are solved together, cut where the device was free if possible."""
    busy_until = np.maximum.accumulate(ends_s)
    free = np.concatenate([[True], starts_s[1:] >= busy_until[:-1]])
    blocks, begin = [], 0
    for index in range(1, len(starts_s) + 1):
        size = index - begin
        if index == len(starts_s) or (size >= BLOCK // 2 and free[index]) or size >= BLOCK:
            blocks.append((begin, index))
            begin = index
    return blocks


class _Solver:
    """Block Gauss-Seidel over the requests' effects, with weights for the intervals."""

    def __init__(self, overlaps: _Overlaps, target_j: Floats, mean_w: Floats, blocks: list[tuple[int, int]]) -> None:
        self._overlaps = overlaps
        self._blocks = blocks
        self.residual_j = target_j - np.bincount(
            overlaps.row, overlaps.share_s * mean_w[overlaps.column], minlength=len(target_j)
        )
        """What the requests' powers leave unexplained in each interval."""
        self.effect_w = np.zeros(len(mean_w))
        self.error_w = np.zeros(len(mean_w))

    def sweep(self, weights: Floats, tau_w: Floats) -> None:
        """One pass over all blocks; ``weights`` are 1/variance of each interval in 1/J^2."""
        for begin, end in self._blocks:
            self._solve(begin, end, weights, tau_w[begin:end])

    def _solve(self, begin: int, end: int, weights: Floats, tau_w: Floats) -> None:
        part = slice(self._overlaps.first[begin], self._overlaps.first[end])
        rows, inverse = np.unique(self._overlaps.row[part], return_inverse=True)
        if not len(rows):
            self.error_w[begin:end] = tau_w
            return
        shares = np.zeros((len(rows), end - begin))
        np.add.at(shares, (inverse, self._overlaps.column[part] - begin), self._overlaps.share_s[part])
        before_w = self.effect_w[begin:end].copy()
        others_j = self.residual_j[rows] + shares @ before_w
        weighted = shares * weights[rows, None]
        covariance = np.linalg.inv(weighted.T @ shares + np.diag(1.0 / tau_w**2))
        self.effect_w[begin:end] = covariance @ (weighted.T @ others_j)
        self.error_w[begin:end] = np.sqrt(np.diag(covariance))
        self.residual_j[rows] -= shares @ (self.effect_w[begin:end] - before_w)


def request_effects(
    changes: Changes,
    starts_s: Floats,
    ends_s: Floats,
    classes: Ints,
    class_w: Floats,
    *,
    idle_w: float,
    scale: Floats,
) -> Effects | None:
    """Dynamic power of each request, or ``None`` where there are too few requests or too many overlaps.

    ``changes`` are on the spans' own time (the lag taken off); ``classes`` index ``class_w``; ``scale`` is the drift of
    dynamic power in each interval.
    """
    if len(starts_s) < 2 or len(changes.start_s) < 2:
        return None
    order = np.argsort(starts_s, kind="stable")
    overlaps = _find_overlaps(changes, starts_s[order], ends_s[order])
    if overlaps is None or not len(overlaps.row):
        return None
    blocks = _blocks(starts_s[order], ends_s[order])
    target_j = (changes.energy_j - idle_w * changes.duration_s) / scale
    mean_w = np.maximum(class_w[classes[order]], 1.0)
    solver = _Solver(overlaps, target_j, mean_w, blocks)
    tau_w = TAU_CEILING * mean_w
    power_w = running_mean(changes.energy_j) / running_mean(changes.duration_s)
    unit_j = np.maximum(power_w, np.median(power_w)) * float(np.median(changes.duration_s)) + 1e-6
    error = 0.02
    seen = np.unique(overlaps.row)
    sweeps = 1 if len(blocks) == 1 else SWEEPS
    for step in range(3):
        weights = 1.0 / (error * unit_j) ** 2
        if step == 2:
            ratio = np.abs(solver.residual_j) / (error * unit_j)
            weights = weights * np.maximum(0.0, 1 - (ratio / _TUKEY) ** 2) ** 2
        for _ in range(sweeps):
            solver.sweep(weights, tau_w)
        error = max(ERROR_FLOOR, _MAD_TO_SD * float(np.median(np.abs(solver.residual_j / unit_j)[seen])))
        tau_w = _spread_of_classes(solver, classes[order], mean_w)
    return _unsorted(order, solver, tau_w, mean_w)


def _spread_of_classes(solver: _Solver, classes: Ints, mean_w: Floats) -> Floats:
    """Tau of each request's class, from the spread of those requests that the intervals determine well."""
    tau_w = np.empty(len(mean_w))
    for index in np.unique(classes):
        mine = classes == index
        sharp = mine & (solver.error_w < 0.15 * mean_w)
        scale = float(mean_w[mine][0])
        spread = TAU_FEW * scale
        if sharp.sum() >= 5:
            effects = solver.effect_w[sharp]
            spread = _MAD_TO_SD * float(np.median(np.abs(effects - np.median(effects))))
        tau_w[mine] = np.clip(spread, TAU_FLOOR * scale, TAU_CEILING * scale)
    return tau_w


def _unsorted(order: Ints, solver: _Solver, tau_w: Floats, mean_w: Floats) -> Effects:
    """Back to the order given; an effect far outside its class's spread is foreign load, not the request's own."""
    effect_w = np.where(np.abs(solver.effect_w) > _OUTLIER_SD * tau_w, 0.0, solver.effect_w)
    dynamic_w, error_w = np.empty(len(order)), np.empty(len(order))
    dynamic_w[order] = np.maximum(mean_w + effect_w, 1.0)
    error_w[order] = solver.error_w
    return Effects(dynamic_w, error_w)

"""What single requests draw beyond their class: random effects, for recorded data that can be read as a whole.

A class's dynamic power is a mean. Where a request ran alone, or in changing company, the intervals tell what it drew
itself: each request gets its own ``D_r ~ N(D_class, tau_class^2)``, and the ridge solution is its posterior mean. Work
is done in windows of time, so that memory stays bounded, and within them in blocks of requests that overlap. On a
device with dozens of requests at once no interval tells one from another: there nothing is learned, whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.metering.calibration import Changes, Floats, running_mean

Ints = NDArray[np.int64]

MAX_CONCURRENT = 64
"""With more requests than this at once, in the mean, their classes must do."""

WINDOW_OVERLAPS = 1_000_000
"""A window ends when its requests touch this many intervals (25 bytes each while it is worked on)."""

BLOCK = 128
SWEEPS = 4
_SETTLED_W = 1e-4
ERROR_FLOOR = 2e-3
"""Smallest relative standard error of an interval's energy that is believed."""
TAU_FLOOR, TAU_CEILING, TAU_FEW = 0.03, 0.5, 0.15
_FIRST_ERROR = 0.02
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


class _ShareTimes:
    """Share times of all requests (in order of start) from one virtual clock, the integral of dt/n."""

    def __init__(self, changes: Changes, starts_s: Floats, ends_s: Floats) -> None:
        edges_s = np.concatenate([starts_s, ends_s])
        order = np.argsort(edges_s, kind="stable")
        active = np.cumsum(np.repeat([1.0, -1.0], len(starts_s))[order])
        edges_s = edges_s[order]
        clock_s = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) / np.maximum(active[:-1], 1.0))])
        self._row_from, self._row_to = (np.interp(t, edges_s, clock_s) for t in (changes.start_s, changes.end_s))
        self._from, self._to = (np.interp(t, edges_s, clock_s) for t in (starts_s, ends_s))
        self._first = np.searchsorted(changes.end_s, starts_s, side="right")
        last = np.searchsorted(changes.start_s, ends_s, side="left")
        self.counts = np.maximum(last - self._first, 0)
        """How many intervals each request touches."""

    def overlaps(self, requests: Ints) -> _Overlaps:
        """Share times of these requests; columns are places in ``requests``."""
        counts = self.counts[requests]
        column = np.repeat(np.arange(len(requests)), counts)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        row = np.arange(len(column)) - np.repeat(bounds[:-1] - self._first[requests], counts)
        owner = requests[column]
        share = np.minimum(self._to[owner], self._row_to[row]) - np.maximum(self._from[owner], self._row_from[row])
        return _Overlaps(row, column, np.maximum(share, 0.0), bounds)


def _windows(starts_s: Floats, ends_s: Floats, counts: Ints) -> list[tuple[int, int]]:
    """Ranges of requests (in order of start) that touch at most ``WINDOW_OVERLAPS`` intervals or are one request."""
    total = np.cumsum(counts)
    free = _free(starts_s, ends_s)
    windows, begin = [], 0
    while begin < len(starts_s):
        done = int(total[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + WINDOW_OVERLAPS, side="right")))
        quiet = np.flatnonzero(free[(begin + end) // 2 + 1 : end + 1])
        if end < len(starts_s) and len(quiet):
            end = (begin + end) // 2 + 1 + int(quiet[-1])
        windows.append((begin, end))
        begin = end
    return windows


def _free(starts_s: Floats, ends_s: Floats) -> NDArray[np.bool_]:
    """Whether the device was free when each request began."""
    return np.concatenate([[True], starts_s[1:] >= np.maximum.accumulate(ends_s)[:-1]])


def _blocks(starts_s: Floats, ends_s: Floats) -> list[tuple[int, int]]:
    """Ranges of requests (in order of start) that are solved together, cut where the device was free if possible."""
    free = _free(starts_s, ends_s)
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

    def solve(self, weights: Floats, tau_w: Floats) -> None:
        """Sweep until nothing moves; ``weights`` are 1/variance of each interval in 1/J^2."""
        covariances: dict[int, Floats] = {}
        for _ in range(1 if len(self._blocks) == 1 else SWEEPS):
            before_w = self.effect_w.copy()
            for begin, end in self._blocks:
                self._solve_block(begin, end, weights, tau_w[begin:end], covariances)
            if np.max(np.abs(self.effect_w - before_w)) < _SETTLED_W:
                break

    def _solve_block(
        self, begin: int, end: int, weights: Floats, tau_w: Floats, covariances: dict[int, Floats]
    ) -> None:
        part = slice(self._overlaps.first[begin], self._overlaps.first[end])
        rows, inverse = np.unique(self._overlaps.row[part], return_inverse=True)
        if not len(rows):
            self.error_w[begin:end] = tau_w
            return
        shares = np.zeros((len(rows), end - begin))
        shares[inverse, self._overlaps.column[part] - begin] = self._overlaps.share_s[part]
        before_w = self.effect_w[begin:end].copy()
        others_j = self.residual_j[rows] + shares @ before_w
        weighted = shares * weights[rows, None]
        if begin not in covariances:
            covariances[begin] = np.asarray(np.linalg.inv(weighted.T @ shares + np.diag(1.0 / tau_w**2)), np.float64)
            self.error_w[begin:end] = np.sqrt(np.diag(covariances[begin]))
        self.effect_w[begin:end] = covariances[begin] @ (weighted.T @ others_j)
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
    """Dynamic power of each request, or ``None`` where there are too few requests or too many at once.

    ``changes`` are on the spans' own time (the lag taken off); ``classes`` index ``class_w``; ``scale`` is the drift of
    dynamic power in each interval. A window that ends while the device is busy is solved with its neighbours' requests
    beside its own.
    """
    if len(starts_s) < 2 or len(changes.start_s) < 2 or _mean_concurrency(starts_s, ends_s) > MAX_CONCURRENT:
        return None
    order = np.argsort(starts_s, kind="stable")
    starts_s, ends_s, classes = starts_s[order], ends_s[order], classes[order]
    times = _ShareTimes(changes, starts_s, ends_s)
    if not times.counts.any():
        return None
    target_j = (changes.energy_j - idle_w * changes.duration_s) / scale
    power_w = running_mean(changes.energy_j) / running_mean(changes.duration_s)
    unit_j = np.maximum(power_w, np.median(power_w)) * float(np.median(changes.duration_s)) + 1e-6
    mean_w = np.maximum(class_w[classes], 1.0)
    dynamic_w, error_w = np.empty(len(order)), np.empty(len(order))
    for begin, end in _windows(starts_s, ends_s, times.counts):
        until_s = float(ends_s[begin:end].max())
        beside = np.flatnonzero((ends_s > starts_s[begin]) & (starts_s < until_s))
        requests = np.union1d(beside, np.arange(begin, end))
        mine = slice(int(np.searchsorted(requests, begin)), int(np.searchsorted(requests, end)))
        found = _solve_window(
            times.overlaps(requests),
            _blocks(starts_s[requests], ends_s[requests]),
            target_j=target_j,
            unit_j=unit_j,
            classes=classes[requests],
            mean_w=mean_w[requests],
        )
        dynamic_w[order[begin:end]], error_w[order[begin:end]] = found.dynamic_w[mine], found.error_w[mine]
    return Effects(dynamic_w, error_w)


def _mean_concurrency(starts_s: Floats, ends_s: Floats) -> float:
    """Requests at once, in the mean over the time in which there are any."""
    order = np.argsort(starts_s, kind="stable")
    until_s = np.maximum.accumulate(ends_s[order])
    begins_s = np.maximum(starts_s[order], np.concatenate([starts_s[order][:1], until_s[:-1]]))
    return float((ends_s - starts_s).sum() / max(float(np.maximum(until_s - begins_s, 0.0).sum()), 1e-9))


def _solve_window(
    overlaps: _Overlaps,
    blocks: list[tuple[int, int]],
    *,
    target_j: Floats,
    unit_j: Floats,
    classes: Ints,
    mean_w: Floats,
) -> Effects:
    """Effects of the requests of one window, with errors and spreads that are learned from the same."""
    if not len(overlaps.row):
        return Effects(mean_w, TAU_CEILING * mean_w)
    low, high = int(overlaps.row.min()), int(overlaps.row.max()) + 1
    overlaps = _Overlaps(overlaps.row - low, overlaps.column, overlaps.share_s, overlaps.first)
    target_j, unit_j = target_j[low:high], unit_j[low:high]
    solver = _Solver(overlaps, target_j, mean_w, blocks)
    tau_w, error = TAU_CEILING * mean_w, _FIRST_ERROR
    seen = np.unique(overlaps.row)
    for step in range(3):
        weights = 1.0 / (error * unit_j) ** 2
        if step == 2:
            ratio = np.abs(solver.residual_j) / (error * unit_j)
            weights = weights * np.maximum(0.0, 1 - (ratio / _TUKEY) ** 2) ** 2
        solver.solve(weights, tau_w)
        error = max(ERROR_FLOOR, _MAD_TO_SD * float(np.median(np.abs(solver.residual_j / unit_j)[seen])))
        tau_w = _spread_of_classes(solver, classes, mean_w)
    effect_w = np.where(np.abs(solver.effect_w) > _OUTLIER_SD * tau_w, 0.0, solver.effect_w)
    return Effects(np.maximum(mean_w + effect_w, 1.0), solver.error_w)


def _spread_of_classes(solver: _Solver, classes: Ints, mean_w: Floats) -> Floats:
    """Tau of each request's class, from the spread of those requests that the intervals determine well.

    An effect far outside it is foreign load, not the request's own.
    """
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

"""Learning a device's idle power, its classes' dynamic power and its counter's lag from intervals and spans.

The regression is ``dE_k = P0 tau_k + sum_c D_c x_kc`` with ``x_kc`` the share time of class c in interval k
(notes/measurement.md, 6.4), solved as a robust ridge: Tukey's weights, so that a foreign tenant does not teach the
model, and weak priors, so that a class that was hardly seen stays near the others. The lag is the shift of the counter
against the spans that leaves the smallest residual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.metering.model import CALIBRATED_SHARE_ERROR, UNKNOWN_MODEL, PowerModel

Floats = NDArray[np.float64]

MAX_ROWS = 20_000
MAX_CLASSES = 32
LAG_TYPICAL_S = 0.1
LAG_STEP_MS = 40
LAG_MAX_MS = 400
LAG_FAR_MAX_MS = 1000
LAG_UNKNOWN_ERROR_S = 0.05
LAG_ERROR_FLOOR_S = 0.004
MIN_ROWS = 6
SCALE_FLOOR = 1e-3
"""Smallest relative standard deviation of an interval's energy that is believed."""
_TUKEY = 4.685
_HUBER = 1.345
_MAD_TO_SD = 1.4826
_HUBER_STEPS, _TUKEY_STEPS, _LAG_STEPS = 5, 6, 3
_CONVERGED = 1e-7
_IDLE_INTERVALS = 3
_IDLE_UNKNOWN_SD_W = 40.0
"""Idle time of fewer intervals than this tells nothing of P0."""
_LAG_REFINEMENT_MS = (20, 12, 8, 4)


@dataclass(frozen=True, slots=True)
class Lag:
    """The counter shows the energy used until ``lag_s`` ago; ``known`` is False when nothing in the data tells it."""

    lag_s: float
    error_s: float
    known: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned of one device."""

    model: PowerModel
    lag: Lag
    misfit: float = float("inf")
    """Mean absolute residual relative to an interval's energy: what the model leaves unexplained."""


@dataclass(frozen=True, slots=True)
class Changes:
    """A device's measured intervals as arrays: starts and ends in seconds of the sensor's time, energies in joules."""

    start_s: Floats
    end_s: Floats
    energy_j: Floats

    @property
    def duration_s(self) -> Floats:
        """Length of each interval."""
        return self.end_s - self.start_s

    def thinned(self, rows: int) -> Changes:
        """At most ``rows`` intervals, evenly spread."""
        if len(self.start_s) <= rows:
            return self
        pick = np.linspace(0, len(self.start_s) - 1, rows).astype(np.int64)
        return Changes(self.start_s[pick], self.end_s[pick], self.energy_j[pick])


class ShareTimes:
    """For each class the integral of n_c/n over time, as a piecewise linear function of time."""

    def __init__(self, starts_s: Floats, ends_s: Floats, classes: NDArray[np.int64], class_count: int) -> None:
        times = np.concatenate([starts_s, ends_s])
        order = np.argsort(times, kind="stable")
        self._times = times[order]
        steps = np.concatenate([np.ones(len(starts_s)), -np.ones(len(ends_s))])[order]
        owners = np.concatenate([classes, classes])[order]
        spans = np.diff(self._times, append=self._times[-1:] if len(times) else np.empty(0))
        active = np.maximum(np.cumsum(steps), 1.0)
        self._integrals = []
        for index in range(class_count):
            count = np.cumsum(np.where(owners == index, steps, 0.0))
            gained = np.concatenate([[0.0], np.cumsum(count / active * spans)[:-1]]) if len(times) else np.zeros(0)
            self._integrals.append(gained)

    def between(self, start_s: Floats, end_s: Floats) -> Floats:
        """Share time of each class in each interval, shape (intervals, classes)."""
        if not len(self._times):
            return np.zeros((len(start_s), len(self._integrals)))
        columns = [
            np.interp(end_s, self._times, integral) - np.interp(start_s, self._times, integral)
            for integral in self._integrals
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(start_s), 0))


@dataclass(frozen=True, slots=True)
class _Fit:
    """``residual`` is relative to an interval's energy; ``prior`` is what the ridge pulled towards."""

    beta: Floats
    covariance: Floats
    residual: Floats
    prior: Floats
    prior_sd: Floats


def _certainty(target: Floats, duration: Floats) -> Floats:
    """Relative weight of each interval's residual, 1/J.

    Its error is one of timing, so it grows with the power around it, not with its length. The interval's own energy may
    not decide its weight, or late changes would teach too low a power.
    """
    power = running_mean(np.abs(target)) / running_mean(duration)
    nearby = np.maximum(power, np.median(power))
    return 1.0 / np.maximum(nearby * np.median(duration), 1e-4)


def running_mean(values: Floats, reach: int = 4) -> Floats:
    """Mean of each value and its ``reach`` neighbours on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


class _Ridge:
    """One weighted regression that is solved again and again: Huber's weights first, then Tukey's."""

    def __init__(self, rows: Floats, target: Floats, certainty: Floats, prior: Floats, prior_sd: Floats) -> None:
        self._rows, self._target = rows * certainty[:, None], target * certainty
        self._prior, self._prior_sd = prior, prior_sd
        busy = rows[:, 1:].any(axis=1)
        self._groups = [np.flatnonzero(group) for group in (busy, ~busy) if group.any()]
        """Busy and idle rows have scales of their own: neither drowns the other."""
        self._scale = np.full(len(target), SCALE_FLOOR)

    def fit(self) -> _Fit:
        """From scratch; the last steps stop when nothing moves any more."""
        fit = self._solve(np.ones(len(self._target)))
        for _ in range(_HUBER_STEPS):
            ratio = self._ratio(fit.residual)
            fit = self._solve(np.minimum(1.0, _HUBER / np.maximum(ratio, 1e-12)))
        return self.refine(fit.beta, _TUKEY_STEPS, _CONVERGED)

    def refine(self, beta: Floats, steps: int, tolerance: float = 0.0) -> _Fit:
        """Up to ``steps`` of Tukey's weights from a solution that is near."""
        residual = self._target - self._rows @ beta
        for _ in range(steps):
            fit = self._solve(np.maximum(0.0, 1 - (self._ratio(residual) / _TUKEY) ** 2) ** 2)
            moved = float(np.max(np.abs(fit.beta - beta) / (np.abs(beta) + 1.0)))
            beta, residual = fit.beta, fit.residual
            if moved <= tolerance:
                break
        return fit

    def _ratio(self, residual: Floats) -> Floats:
        size = np.abs(residual)
        for group in self._groups:
            mine = size[group]
            middle = len(mine) // 2
            self._scale[group] = max(SCALE_FLOOR, _MAD_TO_SD * float(np.partition(mine, middle)[middle]))
        return np.asarray(size / self._scale)

    def _solve(self, trust: Floats) -> _Fit:
        weighted = self._rows * (trust / self._scale**2)[:, None]
        covariance = np.linalg.inv(weighted.T @ self._rows + np.diag(1.0 / self._prior_sd**2))
        beta = covariance @ (weighted.T @ self._target + self._prior / self._prior_sd**2)
        return _Fit(beta, covariance, self._target - self._rows @ beta, self._prior, self._prior_sd)


def _fit_classes(share: Floats, changes: Changes) -> _Fit:
    """P0 and D by class; the classes' prior is the one D that fits them all.

    On a device that was never idle only P0 + D can be learned; P0 then stays at its prior, and is not known.
    """
    duration, energy = changes.duration_s, changes.energy_j
    certainty = _certainty(energy, duration)
    low, high = np.percentile(energy / duration, [5, 95])
    low_sd = 0.5 * low + 20.0
    if float(duration.sum() - share.sum()) < _IDLE_INTERVALS * float(np.median(duration)):
        low, low_sd = min(low, UNKNOWN_MODEL.idle_w), _IDLE_UNKNOWN_SD_W
    spread = max(float(high - low), 0.1 * float(high), 1.0)
    prior, prior_sd = np.array([low, spread]), np.array([low_sd, 2 * spread])
    if share.shape[1] == 0:
        return _Ridge(duration[:, None], energy, certainty, prior[:1], prior_sd[:1]).fit()
    pooled_rows = np.stack([duration, share.sum(axis=1)], axis=1)
    pooled = _Ridge(pooled_rows, energy, certainty, prior, prior_sd).fit()
    if share.shape[1] == 1:
        return pooled
    dynamic = max(float(pooled.beta[1]), 1.0)
    prior = np.concatenate([pooled.beta[:1], np.full(share.shape[1], dynamic)])
    prior_sd = np.concatenate([[0.5 * max(float(pooled.beta[0]), 1.0) + 20.0], np.full(share.shape[1], 0.5 * dynamic)])
    return _Ridge(_with_idle(share, duration), energy, certainty, prior, prior_sd).fit()


def _with_idle(share: Floats, duration: Floats) -> Floats:
    return np.concatenate([duration[:, None], share], axis=1)


def _model_from(fit: _Fit, names: Sequence[str], share: Floats, changes: Changes) -> PowerModel:
    idle_w = max(0.0, float(fit.beta[0]))
    deviations = np.sqrt(np.diag(fit.covariance))
    seen = share.sum(axis=0)
    dynamic, errors = {}, {}
    for index, name in enumerate(names):
        if share.shape[1] and seen[index] > 0:
            watts = max(0.0, float(fit.beta[1 + index]))
            dynamic[name] = watts
            errors[name] = float(np.hypot(CALIBRATED_SHARE_ERROR, min(0.5, deviations[1 + index] / max(watts, 1.0))))
    weights = seen if seen.sum() > 0 else np.ones(1)
    default = float(np.average([dynamic.get(n, 0.0) for n in names], weights=weights)) if dynamic else 0.0
    typical = np.concatenate([[np.mean(changes.duration_s)], share.mean(axis=0)])
    typical_j = max(float(np.mean(changes.energy_j)), 1e-9)
    sharpness = float(np.sqrt(max(0.0, typical @ fit.covariance @ typical))) / typical_j
    return PowerModel(
        idle_w=idle_w,
        default_dynamic_w=default or UNKNOWN_MODEL.default_dynamic_w,
        dynamic_w=dynamic,
        share_error=errors,
        idle_error_w=float(np.hypot(2.0, deviations[0])),
        calibrated=sharpness < 0.05 and bool(dynamic),
        idle_known=bool(deviations[0] < 0.2 * max(idle_w, 1.0)),
    )


def _rows_at(times: ShareTimes, changes: Changes, lag_s: float) -> Floats:
    return times.between(changes.start_s - lag_s, changes.end_s - lag_s)


class _LagSearch:
    """How well the spans explain the counter at one lag after the other; each fit starts from the first one."""

    def __init__(self, times: ShareTimes, changes: Changes) -> None:
        self._times, self._changes = times, changes
        self._certainty = _certainty(changes.energy_j, changes.duration_s)
        self._first = _fit_classes(_rows_at(times, changes, LAG_TYPICAL_S), changes)
        self._costs: dict[int, float] = {}

    def costs(self, lags_ms: Sequence[int]) -> list[float]:
        """Mean absolute residual, relative to an interval's energy, at each lag."""
        return [self._cost(lag_ms) for lag_ms in lags_ms]

    def _cost(self, lag_ms: int) -> float:
        if lag_ms not in self._costs:
            share = _rows_at(self._times, self._changes, lag_ms / 1000.0)
            rows = _with_idle(share, self._changes.duration_s)
            ridge = _Ridge(rows, self._changes.energy_j, self._certainty, self._first.prior, self._first.prior_sd)
            fit = ridge.refine(self._first.beta, _LAG_STEPS)
            self._costs[lag_ms] = float(np.mean(np.abs(fit.residual)))
        return self._costs[lag_ms]


def find_lag(times: ShareTimes, changes: Changes) -> Lag:
    """The lag with the smallest mean absolute residual, to 4 ms; unknown when the residual hardly cares."""
    search = _LagSearch(times, changes.thinned(MAX_ROWS // 5))
    grid = list(range(0, LAG_MAX_MS + 1, LAG_STEP_MS))
    costs = search.costs(grid)
    if int(np.argmin(costs)) == len(grid) - 1:
        grid += range(LAG_MAX_MS + LAG_STEP_MS, LAG_FAR_MAX_MS, LAG_STEP_MS)
        costs = search.costs(grid)
    best = int(np.argmin(costs))
    if max(costs) - costs[best] < 0.02 * costs[best] + 1e-4:
        return Lag(0.0, LAG_UNKNOWN_ERROR_S, known=False)
    centre_ms = grid[best]
    for step_ms in _LAG_REFINEMENT_MS:
        near = [lag_ms for lag_ms in (centre_ms - step_ms, centre_ms, centre_ms + step_ms) if lag_ms >= 0]
        centre_ms = near[int(np.argmin(search.costs(near)))]
    return Lag(centre_ms / 1000.0, LAG_ERROR_FLOOR_S + 0.002, known=True)


def calibrate(
    changes: Changes,
    starts_s: Floats,
    ends_s: Floats,
    classes: Sequence[str],
    *,
    lag_s: float | None = None,
) -> Calibration:
    """Learn one device from its intervals and the spans on it. With ``lag_s`` given, it is believed, not searched.

    ``starts_s``, ``ends_s``, ``classes`` have one item a span. Too little data gives ``UNKNOWN_MODEL``.
    """
    lag = Lag(lag_s or 0.0, LAG_ERROR_FLOOR_S if lag_s is not None else LAG_UNKNOWN_ERROR_S, known=lag_s is not None)
    if len(changes.start_s) < MIN_ROWS:
        return Calibration(_from_little(changes), lag)
    names, owners = _name_classes(classes)
    times = ShareTimes(starts_s, ends_s, owners, len(names))
    if lag_s is None and len(starts_s):
        lag = find_lag(times, changes)
    thinned = changes.thinned(MAX_ROWS)
    share = _rows_at(times, thinned, lag.lag_s)
    fit = _fit_classes(share, thinned)
    misfit = float(np.mean(np.abs(fit.residual)))
    return Calibration(_model_from(fit, names, share, thinned), lag, misfit)


def _from_little(changes: Changes) -> PowerModel:
    if not len(changes.start_s):
        return UNKNOWN_MODEL
    power = changes.energy_j / changes.duration_s
    low, high = float(np.min(power)), float(np.max(power))
    return PowerModel(idle_w=low, default_dynamic_w=max(high - low, 0.5 * high, 1.0))


def dynamic_energy(
    changes: Changes, starts_s: Floats, ends_s: Floats, classes: Sequence[str], calibration: Calibration
) -> Floats:
    """Dynamic energy in joules that the model expects in each interval."""
    names, owners = _name_classes(classes)
    times = ShareTimes(starts_s, ends_s, owners, len(names))
    share = _rows_at(times, changes, calibration.lag.lag_s)
    return np.asarray(share @ np.array([calibration.model.dynamic_of(name) for name in names]))


def _name_classes(classes: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Class names, the most frequent ``MAX_CLASSES`` of them; the rest share the last name's column."""
    counts = Counter(classes)
    names = sorted(counts)
    place = {name: index for index, name in enumerate(names)}
    if len(names) > MAX_CLASSES:
        names = sorted(names, key=counts.__getitem__, reverse=True)[:MAX_CLASSES]
        place = dict.fromkeys(counts, MAX_CLASSES - 1) | {name: index for index, name in enumerate(names)}
    return names, np.fromiter(map(place.__getitem__, classes), dtype=np.int64, count=len(classes))


@dataclass(frozen=True, slots=True)
class ModelEnergy:
    """Cumulative energy by the model, in joules, as a piecewise linear function of time through ``times_s``."""

    times_s: Floats
    energy_j: Floats
    idle_w: float

    def time_after(self, start_s: float, energy_j: float) -> float:
        """When the model has used ``energy_j`` since ``start_s``."""
        if not len(self.times_s):
            return start_s + energy_j / self.idle_w
        reached_j = self._at(start_s) + energy_j
        if reached_j >= self.energy_j[-1]:
            return float(self.times_s[-1] + (reached_j - self.energy_j[-1]) / self.idle_w)
        if reached_j <= self.energy_j[0]:
            return float(self.times_s[0] - (self.energy_j[0] - reached_j) / self.idle_w)
        return float(np.interp(reached_j, self.energy_j, self.times_s))

    def _at(self, t_s: float) -> float:
        if t_s <= self.times_s[0]:
            return float(self.energy_j[0] - (self.times_s[0] - t_s) * self.idle_w)
        if t_s >= self.times_s[-1]:
            return float(self.energy_j[-1] + (t_s - self.times_s[-1]) * self.idle_w)
        return float(np.interp(t_s, self.times_s, self.energy_j))


def model_energy(model: PowerModel, starts_s: Floats, ends_s: Floats, classes: Sequence[str]) -> ModelEnergy:
    """The model's cumulative energy under these spans."""
    names, owners = _name_classes(classes)
    watts = np.array([model.dynamic_of(name) for name in names] or [0.0])[owners]
    times = np.concatenate([starts_s, ends_s])
    order = np.argsort(times, kind="stable")
    active = np.cumsum(np.concatenate([np.ones(len(starts_s)), -np.ones(len(ends_s))])[order])
    dynamic_w = np.cumsum(np.concatenate([watts, -watts])[order]) / np.maximum(active, 1.0)
    idle_w = max(model.idle_w, 1e-3)
    power_w = idle_w + np.where(active > 0.5, np.maximum(dynamic_w, 0.0), 0.0)
    times = times[order]
    energy_j = np.concatenate([[0.0], np.cumsum(power_w[:-1] * np.diff(times))]) if len(times) else np.empty(0)
    return ModelEnergy(times, energy_j, idle_w)

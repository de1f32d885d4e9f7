"""A device's temperature as power through two lags above a drifting offset, learned online by a Kalman filter.

T = d + R1 x1 + R2 x2, where x1 and x2 are the power behind a fast and a slow first-order lag (die and heat sink), and d
drifts with a rate v of its own. The lags are fixed and the resistances learned: halving or doubling both lags changed
little in trials, while a filter that learns the poles failed on a broken fan (notes/throttle.md, 4.4 and 4.5). The rate
is what sees a fan fail or a room warm before a resistance does. Plain floats: some ten microseconds a step, and the
same bits on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

FAST_S = 4.0
SLOW_S = 40.0
SENSOR_DELAY_S = 1.2
"""Sensors answer one to two seconds late."""

MEASUREMENT_VARIANCE_K2 = 0.4
"""An integer step (1/12) and a quarter of a kelvin of noise, doubled for what the two lags do not model."""

OFFSET_K2_PER_S = 0.005
DRIFT_KEPT_S = 45.0
DRIFT_K2_PER_S3 = 3e-5
FAST_DRIFT_PER_S = 2e-9
SLOW_DRIFT_PER_S = 2e-8
RESISTANCE_MIN_K_PER_W = 0.005
RESISTANCE_MAX_K_PER_W = 0.12
REFERENCE_W = 700.0
"""Resistances and their spreads are those of a board of this power; others scale with its inverse."""

HALF_STEP_K, INSIDE_WEIGHT = 0.5, 0.25
SURPRISE_K = 2.0
HORIZONS_S = (6.0, 10.0, 15.0, 25.0)
RISE_HORIZON_S = 60.0
DUTY_HORIZON_S = 30.0
DUTY_HALVINGS = 8
SINK_MIN_K_PER_W = 0.02
"""Sinks of air- and liquid-cooled boards: 0.027 to 0.045 K/W of 700 W (notes/throttle.md, 1.2), with room below."""

MISFIT_TIME_S = 20.0
HISTORY_S = 6.0
WORST_MISFIT_K = 5.0
LEANING_K = 0.35
LEANING_K2_PER_S3 = 4e-4
BIAS_K = 0.5
LASTING_S = 15.0
"""Temperatures that stay so far above what was foreseen are no noise: the cooling has changed."""

LEARNED_UPDATES = 120
DRIFT_SD = 1.5
"""A drift counts as far as it exceeds so many of its own standard uncertainties: noise moves no cap."""

Matrix = list[list[float]]


@lru_cache(maxsize=256)
def _kept(time_s: float) -> tuple[float, float, float]:
    """What is left after ``time_s`` of the fast lag, the slow lag and the drift."""
    return math.exp(-time_s / FAST_S), math.exp(-time_s / SLOW_S), math.exp(-time_s / DRIFT_KEPT_S)


@lru_cache(maxsize=64)
def _ahead(act_after_s: float, horizons_s: tuple[float, ...]) -> tuple[tuple[float, float, float, float], ...]:
    """For each horizon: itself, what is left of both lags, and how long a drift has then moved the offset."""
    rows = []
    for horizon_s in horizons_s:
        left_fast, left_slow, _ = _kept(horizon_s)
        rows.append((horizon_s, left_fast, left_slow, DRIFT_KEPT_S * (1.0 - _kept(act_after_s + horizon_s)[2])))
    return tuple(rows)


def _beyond_a_step(innovation_k: float) -> float:
    """Less of what a sensor of whole degrees cannot tell: else every plateau is read as a drift, and caps swing."""
    inside_k = min(max(innovation_k, -HALF_STEP_K), HALF_STEP_K)
    return innovation_k - inside_k + INSIDE_WEIGHT * inside_k


@dataclass(slots=True)
class ThermalModel:
    """Estimate of [d, v, R1, R2] (C, K/s, K/W, K/W) with its covariance, and the lagged powers (W).

    ``scale_w`` is the device's highest power. ``misfit_k`` is the recent mean size of what was not foreseen, ``bias_k``
    the same with its sign, ``hotter_t`` when that was last too large, and ``hotter_k`` how large.
    """

    scale_w: float
    fast_w: float = 0.0
    slow_w: float = 0.0
    estimate: list[float] = field(default_factory=list)
    covariance: list[list[float]] = field(default_factory=list)
    history: list[list[float]] = field(default_factory=list)
    misfit_k: float = 0.5
    updates: int = 0
    bias_k: float = 0.0
    leaning_s: float = 0.0
    hotter_t: float | None = None
    hotter_k: float = 0.0

    @property
    def per_w(self) -> float:
        """What resistances of the reference board are multiplied with."""
        return REFERENCE_W / self.scale_w

    def begin(self, power_w: float, temperature_c: float) -> None:
        """Start from one sample, as if the device had drawn this power for a while."""
        fast, slow = 0.03 * self.per_w, 0.035 * self.per_w
        self.fast_w = self.slow_w = power_w
        self.estimate = [temperature_c - (fast + slow) * power_w, 0.0, fast, slow]
        # Offset and resistances are opposite guesses of one temperature: what one gains the other loses.
        fast_var, slow_var = (0.012 * self.per_w) ** 2, (0.015 * self.per_w) ** 2
        offset_var = 1.0 + power_w * power_w * (fast_var + slow_var)
        self.covariance = [
            [offset_var, 0.0, -power_w * fast_var, -power_w * slow_var],
            [0.0, 1e-4, 0.0, 0.0],
            [-power_w * fast_var, 0.0, fast_var, 0.0],
            [-power_w * slow_var, 0.0, 0.0, slow_var],
        ]

    def fits(self) -> bool:
        """Whether the parts have the shapes that the filter needs."""
        square = len(self.covariance) == 4 and all(len(row) == 4 for row in self.covariance)
        return self.scale_w > 0.0 and len(self.estimate) == 4 and square and all(len(row) == 3 for row in self.history)

    def advance(self, t: float, power_w: float, dt_s: float) -> None:
        """Let ``dt_s`` pass at a mean power."""
        kept_fast, kept_slow, kept = _kept(dt_s)
        self.fast_w = power_w + (self.fast_w - power_w) * kept_fast
        self.slow_w = power_w + (self.slow_w - power_w) * kept_slow
        self.history.append([t, self.fast_w, self.slow_w])
        while len(self.history) > 2 and self.history[1][0] < t - HISTORY_S:
            del self.history[0]
        # The offset moves by the integral of a rate that dies away.
        moved_s = DRIFT_KEPT_S * (1.0 - kept)
        estimate, p = self.estimate, self.covariance
        estimate[0] += moved_s * estimate[1]
        estimate[1] *= kept
        first = [p[0][j] + moved_s * p[1][j] for j in range(4)]
        second = [kept * p[1][j] for j in range(4)]
        p[0], p[1] = first, second
        for row in p:
            row[0], row[1] = row[0] + moved_s * row[1], kept * row[1]
        squared = self.per_w * self.per_w
        p[0][0] += OFFSET_K2_PER_S * dt_s
        p[1][1] += DRIFT_K2_PER_S3 * dt_s
        p[2][2] += FAST_DRIFT_PER_S * squared * dt_s
        p[3][3] += SLOW_DRIFT_PER_S * squared * dt_s

    def learn(self, t: float, temperature_c: float, dt_s: float) -> None:
        """Take one sensor value, ``dt_s`` after the last."""
        fast_w, slow_w = self._delayed(t - SENSOR_DELAY_S)
        p = self.covariance
        e = self.estimate
        innovation_k = temperature_c - (e[0] - SENSOR_DELAY_S * e[1] + fast_w * e[2] + slow_w * e[3])
        # While the die warms or cools fast, a second of unknown delay is worth several kelvins.
        moving_k = abs(self.estimate[2] * (self.fast_w - fast_w) / SENSOR_DELAY_S)
        self._open(t, innovation_k, moving_k, dt_s)
        if abs(self.bias_k) < LEANING_K:
            innovation_k = _beyond_a_step(innovation_k)
        ph = [a - SENSOR_DELAY_S * b + fast_w * c + slow_w * d for a, b, c, d in p]
        variance = ph[0] - SENSOR_DELAY_S * ph[1] + fast_w * ph[2] + slow_w * ph[3]
        variance += MEASUREMENT_VARIANCE_K2 + moving_k * moving_k
        gain = [value / variance for value in ph]
        self.estimate = [value + g * innovation_k for value, g in zip(e, gain, strict=True)]
        h0, h1, h2, h3 = ph
        self.covariance = [
            [a - g * h0, b - g * h1, c - g * h2, d - g * h3] for (a, b, c, d), g in zip(p, gain, strict=True)
        ]
        low, high = RESISTANCE_MIN_K_PER_W * self.per_w, RESISTANCE_MAX_K_PER_W * self.per_w
        for index in (2, 3):
            self.estimate[index] = min(max(self.estimate[index], low), high)
        self.updates += 1

    def _open(self, t: float, innovation_k: float, moving_k: float, dt_s: float) -> None:
        """Remember what was not foreseen, and trust less what was learned when it is much."""
        weight = 1.0 - math.exp(-dt_s / MISFIT_TIME_S)
        missed_k = min(max(0.0, abs(innovation_k) - moving_k), WORST_MISFIT_K)
        self.misfit_k += weight * (missed_k - self.misfit_k)
        self.bias_k += weight * (math.copysign(missed_k, innovation_k) - self.bias_k)
        self.leaning_s = self.leaning_s + dt_s if self.bias_k > BIAS_K else 0.0
        if self.leaning_s >= LASTING_S and self.updates >= LEARNED_UPDATES:
            self.hotter_t, self.hotter_k = t, self.bias_k
        if abs(self.bias_k) > LEANING_K:
            # What leans to one side for long is a drift that the filter follows too slowly.
            self.covariance[1][1] += LEANING_K2_PER_S3 * dt_s
        if abs(innovation_k) <= SURPRISE_K + 2.0 * moving_k:
            return
        self.covariance[0][0] += 1.0
        self.covariance[1][1] += 0.003
        self.covariance[3][3] += 2e-6 * self.per_w * self.per_w

    def _delayed(self, t: float) -> tuple[float, float]:
        """The lagged powers as they were at ``t``."""
        rows = self.history
        for index in range(len(rows) - 1, 0, -1):
            before, after = rows[index - 1], rows[index]
            if before[0] <= t:
                share = min(1.0, (t - before[0]) / (after[0] - before[0]))
                return before[1] + share * (after[1] - before[1]), before[2] + share * (after[2] - before[2])
        return (rows[0][1], rows[0][2]) if rows else (self.fast_w, self.slow_w)

    def now_c(self) -> float:
        """The temperature at this moment, which the sensor has yet to show."""
        d, _, fast, slow = self.estimate
        return d + fast * self.fast_w + slow * self.slow_w

    def sd_k(self, power_w: float) -> float:
        """Standard uncertainty of the temperature that this power would lead to."""
        h = (1.0, 0.0, power_w, power_w)
        p = self.covariance
        return math.sqrt(max(0.0, sum(h[i] * p[i][j] * h[j] for i in range(4) for j in range(4))))

    def drift_k_per_s(self) -> float:
        """The part of the upward drift that noise does not explain."""
        return max(0.0, self.estimate[1] - DRIFT_SD * math.sqrt(max(0.0, self.covariance[1][1])))

    def _drifted_k(self, horizon_s: float) -> float:
        return self.drift_k_per_s() * DRIFT_KEPT_S * (1.0 - math.exp(-horizon_s / DRIFT_KEPT_S))

    def sustainable_w(
        self,
        limit_c: float,
        power_w: float,
        act_after_s: float,
        horizons_s: tuple[float, ...] = (*HORIZONS_S, RISE_HORIZON_S),
    ) -> tuple[float, float, float]:
        """The largest power (W) under ``limit_c``: over the horizons, the one (s) that decides, and over a longer one.

        Until a new cap acts, ``act_after_s`` from now, the device goes on at ``power_w``. The last figure tells how far
        a cap may rise: a device that rests for some seconds is not cooler for long.
        """
        kept_fast, kept_slow, _ = _kept(act_after_s)
        fast_w = power_w + (self.fast_w - power_w) * kept_fast
        slow_w = power_w + (self.slow_w - power_w) * kept_slow
        d, _, fast, slow = self.estimate
        drift = self.drift_k_per_s()
        best_w, best_s, allowed_w = math.inf, HORIZONS_S[0], math.inf
        for horizon_s, left_fast, left_slow, moved_s in _ahead(act_after_s, horizons_s):
            room_k = limit_c - d - drift * moved_s - fast * fast_w * left_fast - slow * slow_w * left_slow
            allowed_w = room_k / (fast * (1.0 - left_fast) + slow * (1.0 - left_slow))
            if allowed_w < best_w and horizon_s != RISE_HORIZON_S:
                best_w, best_s = allowed_w, horizon_s
        return best_w, best_s, min(best_w, allowed_w)

    def sustainable_duty(
        self, limit_c: float, powers_w: tuple[float, float, float], image_s: float | None, act_after_s: float
    ) -> tuple[float, float]:
        """The largest share of time in which the device may work at full clock under ``limit_c``, and the horizon (s).

        ``powers_w`` are those of now, of a resting and of a working device. Only the sink sees the mean power: the die
        follows the full one through every run of images, and runs grow long as the share nears one. What the offset has
        taken of the sink's heat is given back to the sink, for at least ``SINK_MIN`` of it comes from there.
        """
        now_w, idle_w, full_w = powers_w
        _, _, fast, slow = self.estimate
        slow = max(slow, SINK_MIN_K_PER_W * self.per_w)
        base_c = self.now_c() - fast * self.fast_w - slow * self.slow_w
        slow_w = now_w + (self.slow_w - now_w) * math.exp(-act_after_s / SLOW_S)
        left = math.exp(-DUTY_HORIZON_S / SLOW_S)
        base_c += self._drifted_k(act_after_s + DUTY_HORIZON_S) + slow * slow_w * left

        def over_k(duty: float) -> float:
            run_s = (image_s or math.inf) / max(1.0 - duty, 1e-6)
            peak_w = idle_w + (full_w - idle_w) * (1.0 - math.exp(-run_s / FAST_S))
            mean_w = idle_w + duty * (full_w - idle_w)
            return base_c + fast * peak_w + slow * mean_w * (1.0 - left) - limit_c

        if over_k(1.0) <= 0.0:
            return 1.0, DUTY_HORIZON_S
        low, high = 0.0, 1.0
        for _ in range(DUTY_HALVINGS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if over_k(middle) <= 0.0 else (low, middle)
        return low, DUTY_HORIZON_S

    def predicted_c(self, power_w: float, horizon_s: float) -> float:
        """The temperature after ``horizon_s`` at this power."""
        d, _, fast, slow = self.estimate
        fast_w = power_w + (self.fast_w - power_w) * math.exp(-horizon_s / FAST_S)
        slow_w = power_w + (self.slow_w - power_w) * math.exp(-horizon_s / SLOW_S)
        return d + self._drifted_k(horizon_s) + fast * fast_w + slow * slow_w

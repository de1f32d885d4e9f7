"""Calibration while the meter runs: the last twenty minutes of one device, fitted now and then."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from joulegate.metering.calibration import LAG_UNKNOWN_ERROR_S, Calibration, Changes, Floats, Lag, calibrate
from joulegate.metering.company import share_error
from joulegate.metering.interval import TYPICAL_STEP_S, Interval, Kind
from joulegate.metering.model import CALIBRATED_SHARE_ERROR, UNKNOWN_MODEL, PowerModel
from joulegate.metering.reading import CLOCK_EVENTS, Device, Method, Reading

WINDOW_S = 1200.0
FIT_EVERY_S = 30.0
LAG_EVERY_S = 300.0
FIRST_FIT_S = 5.0
MAX_ROWS = 6_000
"""More intervals than this teach nothing new and cost time on the loop's thread."""

THROTTLED_SHARE = 0.05
"""Beyond this share of readings under a power cap or heat the model is frozen (notes/measurement.md, 6.4)."""

_PRUNE = 1024
_MIN_ROWS = 10
_THROTTLED = sum(1 << CLOCK_EVENTS.index(name) for name in ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal"))

Held = tuple[float, float, str]
"""One span's use of the device: start, end, power class."""


class _Window:
    """The newest ``WINDOW_S`` of measured intervals as columns."""

    def __init__(self) -> None:
        self._columns = (array("d"), array("d"), array("d"))

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, start_s: float, end_s: float, energy_j: float) -> None:
        for column, value in zip(self._columns, (start_s, end_s, energy_j), strict=True):
            column.append(value)
        if len(self) % _PRUNE == 0:
            old = bisect_left(self._columns[1], end_s - WINDOW_S)
            for column in self._columns:
                del column[:old]

    def clear(self) -> None:
        for column in self._columns:
            del column[:]

    def until(self, t_s: float) -> Changes:
        """Intervals that end by ``t_s``, thinned to ``MAX_ROWS``."""
        last = bisect_left(self._columns[1], math.nextafter(t_s, math.inf))
        starts, ends, energies = (np.array(column[:last]) for column in self._columns)
        return Changes(starts, ends, energies).thinned(MAX_ROWS)


class Learner:
    """Collects what a fit needs and says when a new model is ready. ``lag_s`` given is believed, not learned."""

    def __init__(self, device: Device, lag_s: float | None = None) -> None:
        self.model: PowerModel = UNKNOWN_MODEL
        known_s = lag_s if lag_s is not None else device.lag_s
        late = device.method is Method.COUNTER or device.method is Method.SIMULATED
        prior = Lag(TYPICAL_STEP_S if late else 0.0, LAG_UNKNOWN_ERROR_S, known=False)
        self.lag = prior if known_s is None else Lag(known_s, LAG_UNKNOWN_ERROR_S / 5, known=True)
        self._given = known_s is not None
        self._window = _Window()
        self._spans: deque[Held] = deque()
        self._first_s: float | None = None
        self._fitted_s: float | None = None
        self._lag_fitted_s: float | None = None
        self._spans_at_fit = 0
        self._spans_seen = 0
        self._power_limit_w: float | None = None
        self._readings = self._throttled = 0

    def see_reading(self, reading: Reading) -> None:
        """Watch for what makes an old model wrong: another power limit, throttled clocks."""
        if reading.clock_events is not None:
            self._readings += 1
            self._throttled += bool(reading.clock_events & _THROTTLED)
        limit_w = reading.power_limit_w
        if limit_w is not None and self._power_limit_w is not None and limit_w != self._power_limit_w:
            self._window.clear()
            self._spans.clear()
        self._power_limit_w = self._power_limit_w if limit_w is None else limit_w

    def see_interval(self, interval: Interval) -> None:
        """An interval that the counter told whole."""
        if interval.kind is not Kind.MEASURED or interval.energy_mj is None or interval.end_s - interval.start_s < 1e-4:
            return
        self._first_s = interval.start_s if self._first_s is None else self._first_s
        self._window.add(interval.start_s, interval.end_s, interval.energy_mj / 1000.0)
        while self._spans and self._spans[0][1] < interval.end_s - WINDOW_S:
            self._spans.popleft()

    def see_span(self, start_s: float, end_s: float, power_class: str) -> None:
        """A span that was settled."""
        if end_s > start_s:
            self._spans.append((start_s, end_s, power_class))
            self._spans_seen += 1

    @property
    def frozen(self) -> bool:
        """True while clocks are held back too often for the fit to mean anything."""
        return self._readings > 0 and self._throttled > THROTTLED_SHARE * self._readings

    def fit(self, frontier_s: float, running: Iterable[Held] = ()) -> bool:
        """Fit again when it is time and something new was seen; True when ``model`` or ``lag`` changed.

        ``running`` are spans without a final figure: without them, their power would be learned as idle power.
        """
        if self._first_s is None or frontier_s - self._first_s < FIRST_FIT_S or len(self._window) < _MIN_ROWS:
            return False
        fresh = self._spans_seen > self._spans_at_fit or not self.model.idle_known
        if self._fitted_s is not None and (not fresh or frontier_s - self._fitted_s < self._pause_s()):
            return False
        frozen, self._readings, self._throttled = self.frozen, 0, 0
        self._fitted_s, self._spans_at_fit = frontier_s, self._spans_seen
        if frozen and self.model.calibrated:
            return False
        return self._fit_now(frontier_s, [*self._spans, *_cut(running, frontier_s)])

    def _pause_s(self) -> float:
        return FIT_EVERY_S if self.model.calibrated else FIRST_FIT_S

    def _fit_now(self, frontier_s: float, spans: list[Held]) -> bool:
        changes = self._window.until(frontier_s + self.lag.lag_s)
        if len(changes.start_s) < _MIN_ROWS:
            return False
        starts, ends = np.array([s[0] for s in spans]), np.array([s[1] for s in spans])
        classes = [s[2] for s in spans]
        search = not self._given and len(self._spans) >= 3
        search = search and (self._lag_fitted_s is None or frontier_s - self._lag_fitted_s >= LAG_EVERY_S)
        learned = calibrate(changes, starts, ends, classes, lag_s=None if search else self.lag.lag_s)
        if search and learned.lag.known:
            self.lag, self._lag_fitted_s = learned.lag, frontier_s
        elif search:
            self._lag_fitted_s = frontier_s - LAG_EVERY_S + FIT_EVERY_S
            learned = calibrate(changes, starts, ends, classes, lag_s=self.lag.lag_s)
        self.model = _with_shares(learned, changes, starts, ends, classes, lag_s=self.lag.lag_s)
        return True


def _cut(running: Iterable[Held], frontier_s: float) -> list[Held]:
    return [(start, min(end, frontier_s), name) for start, end, name in running if start < frontier_s]


def _with_shares(
    learned: Calibration, changes: Changes, starts_s: Floats, ends_s: Floats, classes: list[str], *, lag_s: float
) -> PowerModel:
    """The model with the share error that the window itself tells, in place of the one that is assumed."""
    model = learned.model
    shifted = Changes(changes.start_s - lag_s, changes.end_s - lag_s, changes.energy_j)
    dynamic_w = np.array([model.dynamic_of(name) for name in classes])
    hidden = share_error(shifted, starts_s, ends_s, dynamic_w, model.idle_w)
    errors = {
        name: math.hypot(hidden, math.sqrt(max(0.0, error**2 - CALIBRATED_SHARE_ERROR**2)))
        for name, error in model.share_error.items()
    }
    return replace(model, share_error=errors)

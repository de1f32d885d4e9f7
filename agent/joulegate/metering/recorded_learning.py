"""What a recording as a whole tells of one device: its model and lag, how clocks drifted, what single spans draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from joulegate.metering.calibration import Calibration, Changes, Floats, calibrate, dynamic_energy, model_energy
from joulegate.metering.drift import Drift, find_drift
from joulegate.metering.effects import request_effects
from joulegate.metering.open_span import OwnPower
from joulegate.metering.reading import Method
from joulegate.metering.recorded_lines import Line, changes_of, retimed_by_energy
from joulegate.metering.recorded_spans import Group
from joulegate.metering.sharing import hidden_share_error

COARSE_MISFIT = 0.1
"""Beyond this relative misfit, changes that coarse polls bracket are placed by the energy between them."""

OWN_POWER_STEPS = 4
"""Of a request shorter than this many power readings they do not tell what it drew itself: its class decides."""

_OWN_ERROR_PRIOR = 0.1
_OWN_ERROR_MAX = 0.5


@dataclass(frozen=True, slots=True)
class Learned:
    """Figures of one device. ``own_w`` and ``own_error``, one item a group, are NaN where nothing was learned.

    ``own_w`` is the dynamic power of each span in watts, ``own_error`` the relative standard error of its share.
    """

    calibration: Calibration
    drift: Drift
    own_w: Floats
    own_error: Floats

    @property
    def lag_s(self) -> float:
        """How late the counter is."""
        return self.calibration.lag.lag_s

    def own_powers(self) -> list[OwnPower | None]:
        """What is known of each group's own draw."""
        pairs = zip(self.own_w.tolist(), self.own_error.tolist(), strict=True)
        return [None if watts != watts else OwnPower(watts, error) for watts, error in pairs]  # noqa: PLR0124


@dataclass(frozen=True, slots=True)
class _Spans:
    """Spans as columns."""

    starts_s: Floats
    ends_s: Floats
    classes: list[str]


def learn(line: Line, groups: Sequence[Group], lag_s: float | None) -> Learned:
    """Learn one device from its line and the spans on it; may move the line's changes to where they really were.

    With ``lag_s`` given, it is believed, not searched.
    """
    starts = np.array([group.start_s for group in groups], dtype=np.float64)
    ends = np.array([group.end_s for group in groups], dtype=np.float64)
    real = ends > starts
    spans = _Spans(starts[real], ends[real], [group.power_class for group in groups if group.end_s > group.start_s])
    changes, learned = _calibrated(line, spans, lag_s)
    own_w, own_error = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    if not real.any() or not len(changes.start_s):
        return Learned(learned, Drift(np.empty(0), np.empty(0)), own_w, own_error)
    if line.method is Method.COUNTER and not line.resolved and learned.misfit > COARSE_MISFIT:
        energy_at = model_energy(learned.model, spans.starts_s, spans.ends_s, spans.classes)
        line.intervals = retimed_by_energy(line.intervals, energy_at, learned.lag.lag_s)
        changes = changes_of(line.intervals)
    dynamic_j = dynamic_energy(changes, spans.starts_s, spans.ends_s, spans.classes, learned)
    drift = find_drift(changes, dynamic_j, learned.model.idle_w)
    own_w[real], own_error[real] = _own_powers(changes, spans, learned, drift)
    if line.method is not Method.COUNTER:
        own_w[ends - starts < OWN_POWER_STEPS * line.resolution_s] = np.nan
    return Learned(learned, drift, own_w, own_error)


def _calibrated(line: Line, spans: _Spans, lag_s: float | None) -> tuple[Changes, Calibration]:
    """Calibrate on the line, or on its other reading where that fits clearly better."""
    changes = changes_of(line.intervals)
    learned = calibrate(changes, spans.starts_s, spans.ends_s, spans.classes, lag_s=lag_s)
    if line.otherwise is not None:
        other_changes = changes_of(line.otherwise)
        other = calibrate(other_changes, spans.starts_s, spans.ends_s, spans.classes, lag_s=lag_s)
        if other.misfit < 0.9 * learned.misfit:
            line.intervals = line.otherwise
            return other_changes, other
    return changes, learned


def _own_powers(changes: Changes, spans: _Spans, learned: Calibration, drift: Drift) -> tuple[Floats, Floats]:
    """What each span draws itself in watts, and the relative standard error of its share."""
    names = sorted(set(spans.classes))
    places = {name: place for place, name in enumerate(names)}
    lag_s, idle_w = learned.lag.lag_s, learned.model.idle_w
    shifted = Changes(changes.start_s - lag_s, changes.end_s - lag_s, changes.energy_j)
    owners = np.array([places[name] for name in spans.classes], dtype=np.int64)
    watts = np.array([learned.model.dynamic_of(name) for name in names])
    effects = request_effects(
        shifted, spans.starts_s, spans.ends_s, owners, watts, idle_w=idle_w, scale=drift.at(changes.start_s)
    )
    share_error = hidden_share_error(shifted, spans.starts_s, spans.ends_s, watts[owners], idle_w)
    dynamic_w = watts[owners] if effects is None else effects.dynamic_w
    error_w = _OWN_ERROR_PRIOR * dynamic_w if effects is None else effects.error_w
    error = np.minimum(_OWN_ERROR_MAX, error_w / np.maximum(dynamic_w, 1.0))
    return dynamic_w, np.hypot(share_error, error)

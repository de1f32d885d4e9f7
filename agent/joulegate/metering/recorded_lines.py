"""The log of readings as one device's intervals: where its counter changed, and whether its counter is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from joulegate.metering.calibration import Changes, Floats, ModelEnergy
from joulegate.metering.interval import GAP_S, EnergyLine, Interval, Kind
from joulegate.metering.reading import Method, Reading
from joulegate.metering.stepping import smoothed

DISAGREEMENT = 0.15
"""A counter this far from the integral of the power beside it is doubted."""

AVERAGE_WINDOW_S = 1.0
"""What NVIDIA's average power is a mean over (notes/measurement.md, 1.1)."""

_GAP_POLLS = 5.0
_RESOLVED_SHARE = 0.4


class ReadingColumns(Protocol):
    """One device's readings as columns of equal length, ``t_s`` strictly rising; ``None`` is a missing reading."""

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def t_s(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def energy_mj(self) -> Sequence[int | None] | None: ...  # noqa: D102

    @property
    def power_w(self) -> Sequence[float | None] | None: ...  # noqa: D102


@dataclass(slots=True)
class Line:
    """One device's readings turned into intervals."""

    device: str
    intervals: list[Interval]
    poll_s: float
    step_s: float | None
    resolved: bool
    method: Method
    otherwise: list[Interval] | None = None
    """The same intervals under the other reading of when the counter changed, where the polls do not tell."""
    disagreement: float = 0.0
    """How far the integrated power is from the counter, relative to the counter, where that is doubtful."""
    warnings: list[str] = field(default_factory=list)

    @property
    def resolution_s(self) -> float:
        """What is shorter than this, the line does not tell apart: its step, or the window of a mean."""
        step_s = self.step_s or self.poll_s
        return max(step_s, AVERAGE_WINDOW_S) if self.method is Method.AVERAGE else step_s


def read_line(columns: ReadingColumns, power_method: Method) -> Line:
    """Intervals of one device: from its counter, or from integrated power where it has none."""
    times = np.asarray(columns.t_s, dtype=np.float64)
    poll_s = float(np.median(np.diff(times))) if len(times) > 1 else GAP_S
    gap_s = max(GAP_S, _GAP_POLLS * poll_s)
    energies = columns.energy_mj or [None] * len(times)
    powers = columns.power_w or [None] * len(times)
    resolved = _is_resolved(energies)
    line = EnergyLine(power_method, hole_s=gap_s, gap_s=gap_s, resolved=resolved, patience_s=math.inf)
    intervals: list[Interval] = []
    for t_s, energy_mj, power_w in zip(columns.t_s, energies, powers, strict=True):
        if energy_mj is None and power_w is None:
            continue
        intervals.extend(line.feed(Reading(columns.device, t_s, t_s, energy_mj=energy_mj, power_w=power_w)))
    rhythmic = _retimed(intervals)
    measured = [i.end_s - i.start_s for i in intervals if i.kind is Kind.MEASURED]
    step_s = float(np.median(measured)) if measured else None
    counts = any(value is not None for value in energies)
    method = Method.COUNTER if counts else power_method
    found = Line(columns.device, rhythmic if resolved else intervals, poll_s, step_s, resolved, method)
    found.otherwise = None if resolved or method is not Method.COUNTER else rhythmic
    if counts and columns.power_w is not None:
        _cross_check(found, columns.t_s, columns.power_w, intervals)
    return found


def changes_of(intervals: Sequence[Interval]) -> Changes:
    """Measured intervals as arrays. A change time that fell on its neighbour keeps a nanosecond of length."""
    measured = [i for i in intervals if i.kind is Kind.MEASURED and i.energy_mj is not None]
    starts = np.array([i.start_s for i in measured])
    ends = np.array([i.end_s for i in measured])
    energies = np.array([(i.energy_mj or 0) / 1000.0 for i in measured])
    long = ends - starts > 1e-4
    return Changes(starts[long], ends[long], energies[long])


def retimed_by_energy(intervals: Sequence[Interval], energy_at: ModelEnergy, lag_s: float) -> list[Interval]:
    """Counter changes where the model says that this much energy was used, within what the polls allow."""
    retimed: list[Interval] = []
    before_s: float | None = None
    for old in intervals:
        if old.after_s is None or old.until_s is None or old.energy_mj is None:
            retimed.append(old)
            before_s = None
            continue
        start_s = old.start_s if before_s is None else before_s
        told_s = energy_at.time_after(start_s - lag_s, old.energy_mj / 1000.0) + lag_s
        before_s = max(start_s, min(max(told_s, old.after_s), old.until_s))
        retimed.append(replace(old, start_s=start_s, end_s=before_s))
    return retimed


def _retimed(intervals: Sequence[Interval]) -> list[Interval]:
    """Counter changes at the times that the counter's own rhythm tells, epoch by epoch."""
    retimed: list[Interval] = []
    run: list[Interval] = []
    for interval in [*intervals, None]:
        if interval is not None and interval.after_s is not None:
            run.append(interval)
            continue
        times = smoothed([(i.after_s or i.end_s, i.until_s or i.end_s) for i in run])
        for place, (old, end_s) in enumerate(zip(run, times, strict=True)):
            start_s = min(times[place - 1] if place else old.start_s, end_s)
            retimed.append(replace(old, start_s=start_s, end_s=end_s))
        run = []
        if interval is not None:
            retimed.append(interval)
    return retimed


def _is_resolved(energies: Sequence[int | None]) -> bool:
    """Whether polls are well denser than the counter's steps: then nearly every second poll shows the old value."""
    known = [energy for energy in energies if energy is not None]
    equal = sum(map(int.__eq__, known, known[1:]))
    return len(known) > 2 and equal >= _RESOLVED_SHARE * (len(known) - 1)


def _cross_check(
    line: Line, times_s: Sequence[float], powers_w: Sequence[float | None], intervals: Sequence[Interval]
) -> None:
    """Doubt a counter that stood still, or that is far from the integral of the power beside it."""
    if any(i.method is not Method.COUNTER for i in intervals):
        line.warnings.append("the counter stood still while power flowed; the power was integrated instead")
        return
    pairs = [(t, p) for t, p in zip(times_s, powers_w, strict=True) if p is not None]
    covered = [i for i in intervals if i.energy_mj is not None]
    if len(pairs) < 2 or not covered:
        return
    counter_j, power_j = _both_energies(np.array(pairs), covered)
    if power_j > 0 and counter_j > 0 and abs(counter_j / power_j - 1) > DISAGREEMENT:
        line.disagreement = abs(power_j / counter_j - 1)
        line.warnings.append(
            f"counter and integrated power disagree: {counter_j:.1f} J against {power_j:.1f} J; U holds both"
        )


def _both_energies(pairs: Floats, intervals: Sequence[Interval]) -> tuple[float, float]:
    """Joules by the counter and by the power's integral, over the intervals that lie within the power readings."""
    times, powers = pairs.T
    rows = np.array([(i.start_s, i.end_s, (i.energy_mj or 0) / 1000.0) for i in intervals])
    rows = rows[(times[0] <= rows[:, 0]) & (rows[:, 1] <= times[-1])]
    integral = np.concatenate([[0.0], np.cumsum((powers[1:] + powers[:-1]) / 2 * np.diff(times))])
    bounds = np.interp(rows[:, :2], times, integral)
    return float(rows[:, 2].sum()), float((bounds[:, 1] - bounds[:, 0]).sum())

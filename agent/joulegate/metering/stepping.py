"""The rhythm of a counter that changes in steps: when exactly did the change happen that two polls bracket?

A change lies between the last poll that showed the old value and the first that shows the new one. Steps come at an
almost constant period, so a line through many brackets tells each change far better than its own bracket does: 20 ms
polls give about a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression

FORGET = 0.99
"""Weight of each step against the next: the line follows drift over about a hundred steps."""

NARROW = 0.6
"""A bracket this narrow against the step holds one change for sure."""

_LEARN = 12
_TOLERANCE_S = 2e-3
_LOCKED_HITS = 0.8
_LOST_HITS = 0.7
_SLACK = 1.1


class StepClock:
    """Exponentially weighted regression of change times on step numbers; brackets come in order of time.

    With ``mirrored`` True time runs backwards: brackets are given negated, and the change that counts is the first in
    one. A rhythm that most changes leave is forgotten, and learned anew.
    """

    def __init__(self, *, mirrored: bool = False) -> None:
        self._mirrored = mirrored
        self._first: list[tuple[float, float]] = []
        self._forget()

    def _forget(self) -> None:
        self._period_s = 0.0
        self._weight = self._mean_n = self._mean_t = self._var_n = self._cov = 0.0
        self._hits = 1.0

    @property
    def period_s(self) -> float | None:
        """The counter's step, once it is known."""
        return self._period_s if self._weight else None

    @property
    def locked(self) -> bool:
        """True while nearly all changes fall where the line says."""
        return bool(self._weight) and self._hits >= _LOCKED_HITS

    def place(self, after_s: float, until_s: float) -> float:
        """Best time of the last change in (``after_s``, ``until_s``]; brackets that may hold two teach nothing."""
        middle_s, half_s = (after_s + until_s) / 2, (until_s - after_s) / 2
        if not self._weight:
            self._learn(middle_s, half_s)
            return middle_s
        if 2 * half_s < NARROW * self._period_s:
            number = self._number_at(middle_s)
            self._add(number, middle_s, half_s)
            line_s = self._line_s(number)
        else:
            line_s = self._line_s(self._shown(after_s, until_s))
        hit = abs(line_s - middle_s) <= _SLACK * half_s + _TOLERANCE_S
        self._hits = FORGET * self._hits + (1 - FORGET) * hit
        if self._hits < _LOST_HITS:
            self._forget()
            return middle_s
        if not self.locked or not after_s - _TOLERANCE_S <= line_s <= until_s + _TOLERANCE_S:
            return middle_s
        return min(max(line_s, after_s), until_s)

    def _learn(self, middle_s: float, half_s: float) -> None:
        """Once one step explains nearly all of the first changes, begin with it."""
        self._first.append((middle_s, half_s))
        if len(self._first) < _LEARN:
            return
        gaps = {later[0] - earlier[0] for earlier, later in pairwise(self._first)}
        rhythm = max((_rhythm(self._first, gap_s) for gap_s in gaps if gap_s > 0), key=lambda r: r.rank, default=None)
        if rhythm is None or rhythm.hits < _LOST_HITS:
            del self._first[: _LEARN // 3]
            return
        self._period_s = rhythm.period_s
        for number, (middle, half) in zip(rhythm.numbers, self._first, strict=True):
            self._add(number, middle, half)
        self._first.clear()

    def _shown(self, after_s: float, until_s: float) -> float:
        """Number of the step whose value was seen at the bracket's later poll."""
        if self._mirrored:
            return math.ceil(self._steps_until(after_s - _TOLERANCE_S))
        return math.floor(self._steps_until(until_s + _TOLERANCE_S))

    def _steps_until(self, t_s: float) -> float:
        return self._mean_n + (t_s - self._mean_t) / self._period_s

    def _number_at(self, t_s: float) -> float:
        return float(round(self._steps_until(t_s)))

    def _line_s(self, number: float) -> float:
        return self._mean_t + self._period_s * (number - self._mean_n)

    def _add(self, number: float, middle_s: float, half_s: float) -> None:
        weight = 1.0 / max(half_s, 1e-3) ** 2
        self._weight = FORGET * self._weight + weight
        gain = weight / self._weight
        dn, dt = number - self._mean_n, middle_s - self._mean_t
        if self._weight == weight:
            self._mean_n, self._mean_t = number, middle_s
            return
        self._mean_n += gain * dn
        self._mean_t += gain * dt
        self._var_n = (1 - gain) * (self._var_n + gain * dn * dn)
        self._cov = (1 - gain) * (self._cov + gain * dn * dt)
        if self._var_n > 4.0:
            self._period_s = self._cov / self._var_n


@dataclass(frozen=True, slots=True)
class _Rhythm:
    """Changes numbered by one step. ``hits`` is what part of them falls where a line through all says.

    ``luck`` is what part would do so by chance: brackets that are wide against the step are easily hit.
    """

    period_s: float
    numbers: list[float]
    hits: float
    luck: float

    @property
    def rank(self) -> float:
        return self.hits - self.luck


def _rhythm(changes: Sequence[tuple[float, float]], gap_s: float) -> _Rhythm:
    """Number changes (middle and half of their brackets, in seconds) by a step of about ``gap_s``."""
    numbers = [0.0]
    for (before_s, _), (middle_s, _) in pairwise(changes):
        numbers.append(numbers[-1] + max(1, round((middle_s - before_s) / gap_s)))
    middles = [middle_s for middle_s, _ in changes]
    period_s, first_s = linear_regression(numbers, middles)
    hits = luck = 0.0
    for number, (middle_s, half_s) in zip(numbers, changes, strict=True):
        if 2 * half_s < NARROW * period_s:
            hits += abs(first_s + period_s * number - middle_s) <= _SLACK * half_s + _TOLERANCE_S
            luck += 2 * half_s / period_s
    return _Rhythm(period_s, numbers, hits / len(changes), luck / len(changes))


def smoothed(brackets: Sequence[tuple[float, float]]) -> list[float]:
    """Change times of a whole recording: the clock run forwards and backwards, each weighted by what it had seen."""
    ahead, back = StepClock(), StepClock(mirrored=True)
    forward = [ahead.place(after_s, until_s) for after_s, until_s in brackets]
    backward = [-back.place(-until_s, -after_s) for after_s, until_s in reversed(brackets)][::-1]
    count = len(brackets)
    times = []
    for index, (early_s, late_s) in enumerate(zip(forward, backward, strict=True)):
        seen_before, seen_after = min(index, 100) ** 2, min(count - 1 - index, 100) ** 2
        total = seen_before + seen_after
        times.append((seen_before * early_s + seen_after * late_s) / total if total else early_s)
    return times

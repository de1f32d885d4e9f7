"""Means over a series of intensities, and the best time for work that can wait. Pure: the time is given.

The answer is shaped like carbon-aware-sdk's ``optimalDataPoint``: the rolling mean over the work's duration.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from joulegate.sources.grid.intensity import Intensity

_NEGLIGIBLE_S = 1e-6


@dataclass(frozen=True, slots=True)
class Window:
    """Run from ``start_s`` to ``end_s`` (Unix seconds) at a mean of ``g_per_kwh``.

    ``now_g_per_kwh`` is the mean if the work started at once and ``saving_fraction`` what waiting saves of it; both are
    ``None`` where the forecast does not cover the present.
    """

    start_s: float
    end_s: float
    g_per_kwh: float
    now_g_per_kwh: float | None
    saving_fraction: float | None


class Timeline:
    """Piecewise constant intensity with gaps; means over any stretch in O(log n).

    ``points`` are in order and do not overlap (as sources give them); those without a figure or a period are gaps.
    """

    def __init__(self, points: Sequence[Intensity]) -> None:
        pieces = [
            (p.start_s, p.end_s, p.g_per_kwh)
            for p in points
            if p.start_s is not None and p.end_s is not None and p.g_per_kwh is not None and p.end_s > p.start_s
        ]
        self.starts_s = [start_s for start_s, _, _ in pieces]
        self.ends_s = [end_s for _, end_s, _ in pieces]
        self._values = [g_per_kwh for _, _, g_per_kwh in pieces]
        lengths_s = [end_s - start_s for start_s, end_s, _ in pieces]
        self._covered_s = [0.0, *accumulate(lengths_s)]
        weighed = (length_s * value for length_s, value in zip(lengths_s, self._values, strict=True))
        self._weighed = [0.0, *accumulate(weighed)]

    def mean(self, start_s: float, end_s: float) -> tuple[float | None, float]:
        """Mean g/kWh over the covered part of [``start_s``, ``end_s``) and how many seconds of it are covered."""
        (weighed_to, covered_to), (weighed_from, covered_from) = self._until(end_s), self._until(start_s)
        covered_s = covered_to - covered_from
        if covered_s <= _NEGLIGIBLE_S:
            return None, 0.0
        return (weighed_to - weighed_from) / covered_s, covered_s

    def whole_mean(self, start_s: float, end_s: float) -> float | None:
        """As ``mean``, ``None`` unless every second is covered."""
        mean, covered_s = self.mean(start_s, end_s)
        return mean if covered_s >= end_s - start_s - _NEGLIGIBLE_S else None

    def _until(self, at_s: float) -> tuple[float, float]:
        """Integral and covered seconds from the beginning to ``at_s``."""
        index = bisect_right(self.starts_s, at_s)
        if index == 0:
            return 0.0, 0.0
        # Of the last piece that has begun, only what lies before at_s counts.
        ahead_s = max(0.0, self.ends_s[index - 1] - at_s)
        return self._weighed[index] - ahead_s * self._values[index - 1], self._covered_s[index] - ahead_s


def best_window(forecast: Sequence[Intensity], duration_s: float, deadline_s: float, *, now_s: float) -> Window | None:
    """Where in [``now_s``, ``deadline_s``] work of ``duration_s`` meets the lowest mean; the earliest of equals.

    A window never contains a gap of the forecast. ``None`` where none fits. The mean is piecewise linear in the start,
    so its least value lies where the window's start or end meets the edge of a forecast point.
    """
    if not duration_s > 0.0 or now_s + duration_s > deadline_s + _NEGLIGIBLE_S:
        return None
    line = Timeline(forecast)
    latest_s = max(now_s, deadline_s - duration_s)
    edges_s = [*line.starts_s, *line.ends_s]
    candidates = {now_s, *edges_s, *(edge_s - duration_s for edge_s in edges_s), latest_s}
    best: tuple[float, float] | None = None
    for start_s in sorted(at_s for at_s in candidates if now_s <= at_s <= latest_s):
        mean = line.whole_mean(start_s, start_s + duration_s)
        if mean is not None and (best is None or mean < best[1] * (1.0 - 1e-9)):
            best = start_s, mean
    if best is None:
        return None
    now_mean = line.whole_mean(now_s, now_s + duration_s)
    saving = None if now_mean is None or now_mean <= 0.0 else max(0.0, 1.0 - best[1] / now_mean)
    return Window(best[0], best[0] + duration_s, best[1], now_mean, saving)

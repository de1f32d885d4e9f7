"""Putting points in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from joulegate.sources.grid.intensity import Intensity, believable


def merged(older: Iterable[Intensity], newer: Iterable[Intensity] = ()) -> tuple[Intensity, ...]:
    """Points of both by time, the later given where two have one start; none reaches into the next, gaps stay."""
    by_start = {point.start_s: point for point in (*older, *newer) if point.start_s is not None}
    ordered = [by_start[start_s] for start_s in sorted(by_start)]
    return (*(_cut(point, following) for point, following in pairwise(ordered)), *ordered[-1:])


def _cut(point: Intensity, following: Intensity) -> Intensity:
    if point.end_s is None or following.start_s is None or point.end_s <= following.start_s:
        return point
    return replace(point, end_s=following.start_s)


def within(points: Iterable[Intensity], from_s: float, to_s: float) -> list[Intensity]:
    """The points that touch [``from_s``, ``to_s``), whole."""
    return [
        p for p in points if p.start_s is not None and p.end_s is not None and p.end_s > from_s and p.start_s < to_s
    ]


def usable(points: Iterable[Intensity]) -> list[Intensity]:
    """The points that a grid can have; the others leave gaps."""
    return [point for point in points if point.g_per_kwh is not None and believable(point.g_per_kwh)]

"""Rows of runs, and their means over seeds beside oracle and queue_only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
RUN = ("scenario", "family", "governor", "actuators", "seed")
GROUP = ("scenario", "family", "governor", "actuators", "controller")


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None without any."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with ``good_pct`` (of the oracle's images in time) and what queue_only reached in the same hour."""
    peers = {(row["controller"], *(row[key] for key in RUN)): row for row in rows}
    found = []
    for row in rows:
        run = tuple(row[key] for key in RUN)
        oracle, queue_only = peers["oracle", *run], peers["queue_only", *run]
        whole = max(oracle["good"], 1)
        found.append(
            {
                **row,
                "good_pct": 100.0 * row["good"] / whole,
                "queue_only_pct": 100.0 * queue_only["good"] / whole,
                "queue_only_hot_s": queue_only["hot_s"],
            }
        )
    return found


def summaries(rows: Sequence[Row]) -> list[Row]:
    """Means over seeds of every figure, in the order of the rows; ``hot_after_worst_s``, ``die_max_c`` are greatest."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in GROUP), []).append(row)
    made = []
    for key, members in groups.items():
        figures = [name for name in members[0] if name not in (*GROUP, "seed")]
        one: Row = dict(zip(GROUP, key, strict=True)) | {name: mean(row[name] for row in members) for name in figures}
        one["hot_after_worst_s"] = max(row["hot_after_s"] for row in members)
        one["die_max_c"] = max(row["die_max_c"] for row in members)
        made.append(one)
    return made

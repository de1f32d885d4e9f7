"""What the adviser has to reach, measured on the rows of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.throttle.families import TUNED
from benchmarks.throttle.scenarios import SCENARIOS
from benchmarks.throttle.summary import Row, mean, summaries

JUDGED = "joulegate"
BOTH = "rate+power_cap"
TUNED_NAMES = {family.name for family in TUNED}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: met when ``measured`` is on the right side of ``bound``; ``where`` names the run that decided it."""

    name: str
    measured: float
    bound: float
    at_most: bool
    where: str

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def record(self) -> dict[str, Any]:
        """For JSON."""
        kind = "at most" if self.at_most else "at least"
        return {
            "bar": self.name, "measured": self.measured, "kind": kind, "bound": self.bound, "met": self.met,
            "where": self.where,
        }  # fmt: skip


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Every bar that the rows can decide."""
    judged = [row for row in rows if row["controller"] == JUDGED]
    both = [row for row in judged if row["actuators"] == BOTH]
    tuned = [row for row in both if _is_tuned(row)]
    others = [row for row in both if not _is_tuned(row)]
    rate_only = [row for row in judged if row["actuators"] != BOTH]
    heat = _heat("", tuned) + _heat("not tuned on: ", others)
    heat += _worst("rate only: HW slowdown s, worst run", rate_only, "hard_s", 0.0)
    means = summaries(tuned)
    return heat + _service(means) + _calm(means) + _worst("budget overshoot, share", both, "overshoot", 0.01)


def _is_tuned(row: Row) -> bool:
    return row["family"] in TUNED_NAMES and SCENARIOS[row["scenario"]].kind != "extra"


def _heat(prefix: str, rows: Sequence[Row]) -> list[Bar]:
    """The first two lines of the issue, for plants that were tuned on and for those that were not."""
    on, off = ([row for row in rows if row["governor"] == governor] for governor in ("normal", "none"))
    made = _worst(f"{prefix}HW slowdown s, worst run", rows, "hard_s", 0.0)
    if on:
        hot_s = mean(row["hot_after_s"] for row in on) or 0.0
        made.append(Bar(f"{prefix}hot s from 60 s, driver on, mean", hot_s, 1.0, at_most=True, where=f"{len(on)} runs"))
    made += _worst(f"{prefix}hot s from 60 s, driver on, worst run", on, "hot_after_s", 5.0)
    return made + _worst(f"{prefix}hot s from 60 s, driver off, worst run", off, "hot_after_s", 10.0)


def _service(groups: Sequence[Row]) -> list[Bar]:
    """Goodput, waits and calm of the published numbers: means of a scenario's seeds, of which the worst counts."""
    thermal = _of(groups, lambda name: SCENARIOS[name].kind == "thermal")
    shifted = _of(groups, lambda name: name == "workshift")
    waits = _of(groups, lambda name: SCENARIOS[name].kind in {"calm", "thermal"})
    liquid = _of(groups, lambda name: SCENARIOS[name].cooling == "liquid")
    diurnal = _of(groups, lambda name: SCENARIOS[name].sessions)
    air = [one for one in groups if one not in liquid and one not in diurnal and one["scenario"] != "steady"]
    made = _worst("goodput % of oracle, thermal", thermal, "good_pct", 97.0, at_most=False)
    made += _worst("goodput % of oracle, workshift", shifted, "good_pct", 95.0, at_most=False)
    made += _worst("paid p99 wait s, steady and thermal", waits, "paid_p99_s", 10.0)
    for what, few, cap_bound, rate_bound in (
        ("air", air, 2.0, 3.0),
        ("liquid", liquid, 4.0, 4.0),
        ("diurnal", diurnal, 4.0, 4.0),
    ):
        made += _worst(f"cap reversals/h, {what}", few, "cap_reversals_h", cap_bound)
        made += _worst(f"rate reversals/h, {what}", few, "rate_reversals_h", rate_bound)
    return made


def _calm(groups: Sequence[Row]) -> list[Bar]:
    steady = _of(groups, lambda name: name == "steady")
    made = _worst("steady: rate reversals/h", steady, "rate_reversals_h", 0.0)
    made += _worst("steady: cap reversals/h", steady, "cap_reversals_h", 0.0)
    made += _worst("steady: images refused", steady, "refused", 0.0)
    made += _worst("steady: GPU-seconds capped", steady, "capped_s", 0.0)
    return made + _worst("steady: goodput % of oracle", steady, "good_pct", 99.95, at_most=False)


def _of(groups: Iterable[Row], chosen: Callable[[str], bool]) -> list[Row]:
    return [one for one in groups if chosen(one["scenario"])]


def _worst(name: str, rows: Iterable[Row], figure: str, bound: float, *, at_most: bool = True) -> list[Bar]:
    """The bar on the worst of the rows that have the figure; none when there is no such row."""
    having = [row for row in rows if row[figure] is not None]
    if not having:
        return []
    row = (max if at_most else min)(having, key=lambda one: one[figure])
    where = " ".join(str(row[key]) for key in ("scenario", "family", "governor", "seed") if row.get(key) is not None)
    if figure == "good_pct":
        where += (
            f" ({row['hot_s']:.1f} hot s; queue_only {row['queue_only_pct']:.1f} % with {row['queue_only_hot_s']:.0f})"
        )
    return [Bar(name, row[figure], bound, at_most, where)]

"""The output for people: a table a scenario, then the bars."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.throttle.bars import Bar
from benchmarks.throttle.summary import Row

COLUMNS = (
    ("good %", "good_pct", 1), ("q-only %", "queue_only_pct", 1), ("hot s", "hot_s", 1), ("hot>60", "hot_after_s", 1),
    ("worst", "hot_after_worst_s", 1), ("HW s", "hard_s", 1), ("SW s", "soft_s", 0), ("T max", "die_max_c", 1),
    ("p99 s", "paid_p99_s", 1), ("paid", "paid_success", 3), ("free", "free_success", 3),
    ("rate/h", "rate_reversals_h", 1), ("cap/h", "cap_reversals_h", 1), ("capTV/h", "cap_variation_h", 2),
    ("detect", "detect_s", 0), ("Jain", "free_jain", 2), ("kWh", "kwh", 2), ("J/good", "j_per_good", 0),
    ("over", "overshoot", 4),
)  # fmt: skip
LEGEND = """\
good % and q-only %: images in time, of the oracle's; q-only is queue_only's in the same hours. hot s: GPU-seconds at or
over the operating limit, hot>60 and its worst seed without the minute after each event. HW s, SW s: GPU-seconds of the
driver's slowdowns. p99 s: paid waits. paid, free: share in time. rate/h, cap/h: reversals by 5 % an hour of what was
published. detect: s to the first cap. over: share of the budget. Means over seeds; T max and worst are the greatest."""


def table(groups: Sequence[Row]) -> str:
    """The groups of one scenario and family."""
    first = groups[0]
    lines = [f"\n== {first['scenario']} on {first['family']}, {first['actuators']}"]
    lines.append(f"{'driver':8}{'controller':16}" + "".join(f"{head:>9}" for head, _, _ in COLUMNS))
    for one in groups:
        cells = ("-" if one[name] is None else f"{one[name]:.{digits}f}" for _, name, digits in COLUMNS)
        lines.append(f"{one['governor']:8}{one['controller']:16}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def verdict(bars: Sequence[Bar]) -> str:
    """Each bar with what was measured, and where."""
    lines = ["\n== bars"]
    for bar in bars:
        sign = "<=" if bar.at_most else ">="
        met = "met" if bar.met else "MISSED"
        lines.append(f"{bar.name:46}{bar.measured:10.3f} {sign} {bar.bound:<7g}{met:8}{bar.where}")
    missed = sum(not bar.met for bar in bars)
    lines.append(f"{len(bars) - missed} of {len(bars)} bars met" if bars else "no bar: joulegate was not run")
    return "\n".join(lines)

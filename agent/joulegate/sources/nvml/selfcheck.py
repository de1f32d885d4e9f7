"""Self-check: does the energy counter agree with instant power integrated over time, and does it move at all?"""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 0.15
"""Relative disagreement above which a counter is not believed without a warning."""

_WINDOWS_S = (1.5, 5.0, 30.0)
_LATE_S = 0.3
_EDGE_SHARE = 0.05
_LEAST_J = 5.0
_HOLE_S = 1.0
_STUCK_S = 5.0
_STUCK_W = 5.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One finished comparison over ``window_s``."""

    window_s: float
    counter_j: float
    integrated_j: float

    @property
    def disagreement(self) -> float:
        """Counter over integrated power, minus one."""
        return self.counter_j / self.integrated_j - 1.0

    @property
    def agrees(self) -> bool:
        """True within ``TOLERANCE``."""
        return abs(self.disagreement) <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"over {self.window_s:.1f} s the counter gave {self.counter_j:.1f} J and integrated instant power "
            f"{self.integrated_j:.1f} J ({self.disagreement:+.0%})"
        )


class CounterCheck:
    """Runs along with the polls. A window ends when the counter's lateness cannot explain a disagreement any more.

    A counter may show the energy of up to 0.3 s ago (notes/measurement.md, 1.3), so a window is conclusive when its
    swing of power times 0.3 s is under 5 % of its energy: at once under steady power, later under a changing one. A
    change lies somewhere between two polls, so after a long pause its moment is not known well enough to end a window.
    """

    __slots__ = (
        "_change_s",
        "_counter_mj",
        "_high_w",
        "_integral_change_j",
        "_integral_j",
        "_low_w",
        "_power_w",
        "_start_doubt_s",
        "_start_mj",
        "_start_s",
        "_t_s",
        "_windows",
        "stuck",
        "verdict",
    )

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.stuck = False
        self._windows = 0
        self._counter_mj: int | None = None
        self._start_s, self._start_mj = -1.0, 0
        self._start_doubt_s = 0.0
        self._t_s = self._change_s = self._power_w = self._low_w = self._high_w = 0.0
        self._integral_j = self._integral_change_j = 0.0

    def observe(self, t_s: float, energy_mj: int | None, power_w: float | None) -> Verdict | None:
        """One poll; returns a verdict when one was reached. A missing value or a hole of a second starts over."""
        if energy_mj is None or power_w is None:
            return None
        if self._counter_mj is None or t_s - self._t_s > _HOLE_S or energy_mj < self._counter_mj:
            self._t_s = 0.0
            self._begin(t_s, energy_mj, power_w)
            self._start_s = -1.0
            return None
        self._integral_j += (power_w + self._power_w) / 2 * (t_s - self._t_s)
        before_s, self._t_s, self._power_w = self._t_s, t_s, power_w
        self._low_w, self._high_w = min(self._low_w, power_w), max(self._high_w, power_w)
        if energy_mj == self._counter_mj:
            self._watch(t_s)
            return None
        return self._changed((before_s + t_s) / 2, (t_s - before_s) / 2, energy_mj, power_w)

    def _changed(self, t_s: float, doubt_s: float, energy_mj: int, power_w: float) -> Verdict | None:
        self._counter_mj, self._change_s, self._integral_change_j = energy_mj, t_s, self._integral_j
        if self._start_s < 0:
            self._begin(t_s, energy_mj, power_w)
            self._start_doubt_s = doubt_s
            return None
        window_s = t_s - self._start_s
        swing_j = (self._high_w - self._low_w) * _LATE_S
        wanted_s = _WINDOWS_S[min(self._windows, len(_WINDOWS_S) - 1)]
        if window_s < wanted_s or self._integral_j < max(_LEAST_J, swing_j / _EDGE_SHARE):
            return None
        if doubt_s + self._start_doubt_s > _EDGE_SHARE * window_s:
            return None
        # The integral runs to this poll, the window to the middle between it and the one before.
        integrated_j = self._integral_j - power_w * (self._t_s - t_s)
        self.verdict = Verdict(window_s, (energy_mj - self._start_mj) / 1e3, integrated_j)
        self._windows += 1
        self.stuck = self.stuck and not self.verdict.agrees
        self._begin(t_s, energy_mj, power_w)
        self._start_doubt_s = doubt_s
        return self.verdict

    def _watch(self, t_s: float) -> None:
        still_s = t_s - self._change_s
        if still_s >= _STUCK_S and self._integral_j - self._integral_change_j >= _STUCK_W * still_s:
            self.stuck = True
            self._windows = 1

    def _begin(self, t_s: float, energy_mj: int, power_w: float) -> None:
        ahead_s = max(0.0, self._t_s - t_s)
        self._start_s, self._start_mj, self._counter_mj = t_s, energy_mj, energy_mj
        self._change_s, self._t_s, self._power_w = t_s, max(self._t_s, t_s), power_w
        self._low_w = self._high_w = power_w
        self._integral_j = self._integral_change_j = power_w * ahead_s

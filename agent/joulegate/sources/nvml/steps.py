"""The counter's step: how often an energy counter is refreshed, learned from the moments at which it moves."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

_KEEP = 48
_ENOUGH = 8
_LONGEST_S = 2.0
_DRIFT = 0.2


class StepLearner:
    """Learns the refresh period of one counter. A counter that moves at every poll is finer than the poll gap."""

    __slots__ = ("_changed_s", "_energy_mj", "_gaps_s", "_polled_s", "step_s")

    def __init__(self) -> None:
        self.step_s: float | None = None
        self._gaps_s: deque[float] = deque(maxlen=_KEEP)
        self._energy_mj: int | None = None
        self._polled_s = 0.0
        self._changed_s: float | None = None

    def observe(self, t_s: float, energy_mj: int) -> bool:
        """One poll; True when the estimate is new or moved by more than a fifth."""
        before_mj, before_s = self._energy_mj, self._polled_s
        self._energy_mj, self._polled_s = energy_mj, t_s
        if before_mj is None or energy_mj == before_mj:
            return False
        if energy_mj < before_mj:
            self._changed_s = None
            return False
        changed_s = (before_s + t_s) / 2
        last_s, self._changed_s = self._changed_s, changed_s
        if last_s is None or changed_s - last_s > _LONGEST_S:
            return False
        self._gaps_s.append(changed_s - last_s)
        return len(self._gaps_s) >= _ENOUGH and self._estimate()

    def restart(self) -> None:
        """The polls were interrupted: what lies between is no step."""
        self._energy_mj = self._changed_s = None

    def _estimate(self) -> bool:
        middle_s = median(self._gaps_s)
        # A missed step is a gap twice as long; the mean of the others is finer than the poll grid, the median is not.
        estimate_s = fmean(gap for gap in self._gaps_s if 0.4 * middle_s <= gap <= 1.6 * middle_s)
        if self.step_s is not None and abs(estimate_s - self.step_s) <= _DRIFT * self.step_s:
            return False
        first = self.step_s is None
        self.step_s = estimate_s
        if not first:
            self._gaps_s.clear()
        return True

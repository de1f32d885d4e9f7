"""Pace: how often a device's fast readings are taken, and when a call that failed is worth another try."""

from __future__ import annotations

FASTEST_S = 0.025
SLOWEST_S = 0.2
_POLLS_PER_STEP = 2
_SCALE_S = 0.005
_FORGIVE_S = 30.0

_ABSENT_S = 600.0
_LONGEST_PAUSE_S = 60.0
_ZEROS, _ZEROS_S = 3, 1.0


class Pace:
    """The gap between two fast polls: 25 ms until the counter's step is known, then two polls a step.

    Some drivers answer 0 mW or NOT_SUPPORTED when they are asked too fast (zeus saw it under 50 ms), so each such
    answer doubles the gap, up to 200 ms, and half a minute without one halves it again.
    """

    __slots__ = ("_base_s", "_since_s", "_slowdown", "period_s")

    def __init__(self, fastest_s: float = FASTEST_S) -> None:
        self._base_s = self.period_s = fastest_s
        self._slowdown = 1
        self._since_s = 0.0

    @property
    def slowed(self) -> bool:
        """True while spurious answers hold the pace down."""
        return self._slowdown > 1

    def learned(self, step_s: float, fastest_s: float = FASTEST_S) -> None:
        """The counter's step is known."""
        # On a coarse scale, so that devices of about one step share a grid and wake the thread together.
        wanted_s = round(step_s / _POLLS_PER_STEP / _SCALE_S) * _SCALE_S
        self._base_s = round(min(max(wanted_s, fastest_s), SLOWEST_S), 3)
        self._apply()

    def spurious(self, now_s: float) -> None:
        """An answer came that only a driver asked too fast gives."""
        if self._base_s * self._slowdown < SLOWEST_S:
            self._slowdown *= 2
        self._since_s = now_s
        self._apply()

    def sound(self, now_s: float) -> None:
        """All answers were good."""
        if self.slowed and now_s - self._since_s >= _FORGIVE_S:
            self._slowdown //= 2
            self._since_s = now_s
            self._apply()

    def _apply(self) -> None:
        self.period_s = min(self._base_s * self._slowdown, SLOWEST_S)


class Gate:
    """Whether a call is worth making now.

    One that never worked is asked every ten minutes; one that worked before comes back with growing pauses, because its
    failure may pass.
    """

    __slots__ = ("_closed_until_s", "_failures", "answer", "worked")

    def __init__(self) -> None:
        self.worked = False
        self.answer = "not asked"
        self._failures = 0
        self._closed_until_s = 0.0

    def open(self, now_s: float) -> bool:
        """True when the call may be made."""
        return now_s >= self._closed_until_s

    def passed(self) -> None:
        """The call worked."""
        if self._failures or not self.worked:
            self.worked, self.answer = True, "ok"
            self._failures = 0

    def failed(self, name: str, now_s: float) -> bool:
        """The call failed for ``name``; True when it had worked before, so that the failure should be counted."""
        self.answer = name
        self._failures += 1
        pause_s = min(2.0**self._failures, _LONGEST_PAUSE_S) if self.worked else _ABSENT_S
        self._closed_until_s = now_s + pause_s
        return self.worked


class ZeroGuard:
    """0 mW is what a driver asked too fast says: power is zero only when it says nothing else for a second."""

    __slots__ = ("_first_s", "_zeros")

    def __init__(self) -> None:
        self._zeros = 0
        self._first_s = 0.0

    def moved(self) -> None:
        """Power was told."""
        self._zeros = 0

    def believes(self, now_s: float) -> bool:
        """One more zero: True when it is a reading, False when it is to be taken as missing for now."""
        if self._zeros == 0:
            self._first_s = now_s
        self._zeros += 1
        return self._zeros >= _ZEROS and now_s - self._first_s >= _ZEROS_S

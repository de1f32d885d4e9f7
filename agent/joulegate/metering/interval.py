"""Intervals: what lies between two changes of a device's energy line, and how readings become that line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from joulegate.metering.reading import Method, Reading
from joulegate.metering.stepping import StepClock

TYPICAL_STEP_S = 0.1
"""Refresh period of NVIDIA's counter where it was measured (notes/measurement.md, 1.1): a prior until it is learned."""

GAP_S = 1.0
"""An interval longer than this (live) is a gap: its energy is known, its shape is not."""

STUCK_S = 5.0
STUCK_MARGIN_W = 50.0
"""A counter that stands still this long while the instant power is this far over zero is not believed (6.8)."""


class Kind(Enum):
    """What is known of the energy between two changes of the line."""

    MEASURED = "measured"
    GAP = "gap"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Interval:
    """Energy of one device between two points of its line, in the sensor's own time (the lag is not yet taken off).

    ``MEASURED`` and a ``GAP`` with ``energy_mj`` are inside the law. A ``RESET`` (the counter fell, or the source of
    the line changed) and a ``GAP`` with no energy were seen by no counter: a new epoch begins after them. The change at
    ``end_s`` is known to lie in (``after_s``, ``until_s``]. ``estimate_mj`` is a guess from the power at both ends of a
    hole; without one, the model guesses. ``counter_mj`` is what the counter showed at ``end_s``.
    """

    kind: Kind
    start_s: float
    end_s: float
    energy_mj: int | None
    method: Method
    after_s: float | None = None
    until_s: float | None = None
    estimate_mj: int | None = None
    counter_mj: int | None = None

    @property
    def inside_law(self) -> bool:
        """True when a counter or an integral vouches for the energy."""
        return self.energy_mj is not None


class CounterLine:
    """Turns polls of a cumulative counter into intervals between its changes.

    A change happened between the last poll that showed the old value and the first that shows the new one. Where polls
    are denser than the counter's steps the midpoint is taken; where every poll shows a new value the counter is finer
    than the polls and the time of the poll itself is the best there is.
    """

    def __init__(self, *, gap_s: float = GAP_S, resolved: bool | None = None) -> None:
        self._gap_s = gap_s
        self._resolved = resolved
        self._clock = StepClock()
        self._polls = 0
        self._equal_polls = 0
        self._value_mj: int | None = None
        self._poll_s = 0.0
        self._changed_s = 0.0

    @property
    def value_mj(self) -> int | None:
        """The counter's newest value."""
        return self._value_mj

    @property
    def step_s(self) -> float | None:
        """The counter's refresh period, once it was learned."""
        return self._clock.period_s

    @property
    def resolved(self) -> bool:
        """True when polls are well denser than the counter's steps: nearly every second one shows the old value."""
        if self._resolved is not None:
            return self._resolved
        return self._equal_polls * 5 >= self._polls * 2

    def start_from(self, value_mj: int, t_s: float) -> None:
        """Go on from a known point, such as the one that a ledger kept over a restart."""
        self._value_mj, self._poll_s, self._changed_s = value_mj, t_s, t_s

    def feed(self, value_mj: int, t_s: float) -> Interval | None:
        """One poll; the interval that it closed, if any."""
        previous = self._value_mj
        if previous is None:
            self.start_from(value_mj, t_s)
            return None
        self._polls += 1
        if value_mj == previous:
            self._equal_polls += 1
            self._poll_s = t_s
            return None
        if value_mj < previous:
            interval = Interval(Kind.RESET, self._changed_s, t_s, None, Method.COUNTER, counter_mj=value_mj)
            self.start_from(value_mj, t_s)
            return interval
        after_s = self._poll_s
        changed_s = max(self._clock.place(after_s, t_s), self._changed_s) if self.resolved else t_s
        kind = Kind.GAP if changed_s - self._changed_s > self._gap_s else Kind.MEASURED
        interval = Interval(
            kind, self._changed_s, changed_s, value_mj - previous, Method.COUNTER, after_s, t_s, None, value_mj
        )
        self._value_mj, self._poll_s, self._changed_s = value_mj, t_s, changed_s
        return interval


class PowerLine:
    """Integrates power readings by the trapezoid rule into whole millijoules; the rounding residue is carried on."""

    def __init__(self, method: Method, *, hole_s: float) -> None:
        self._method = method
        self._hole_s = hole_s
        self._last: tuple[float, float] | None = None
        self._residue_mj = 0.0

    def feed(self, power_w: float, t_s: float) -> Interval | None:
        """One reading; the interval since the reading before, if there was one."""
        last, self._last = self._last, (t_s, power_w)
        if last is None:
            return None
        trapezoid_mj = 500.0 * (power_w + last[1]) * (t_s - last[0])
        if t_s - last[0] > self._hole_s:
            self._residue_mj = 0.0
            return Interval(Kind.GAP, last[0], t_s, None, self._method, estimate_mj=round(trapezoid_mj))
        exact_mj = trapezoid_mj + self._residue_mj
        energy_mj = max(0, round(exact_mj))
        self._residue_mj = exact_mj - energy_mj
        return Interval(Kind.MEASURED, last[0], t_s, energy_mj, self._method)


class EnergyLine:
    """A device's one monotone energy line: its counter, or its integrated power when there is no counter to believe.

    ``power_method`` says what the power readings are. A counter that is stuck while power flows is left for the
    integral with a new epoch, and taken back when it moves again. So is one that is not delivered any more, after
    ``patience_s``.
    """

    def __init__(
        self,
        power_method: Method = Method.INSTANT,
        *,
        hole_s: float = GAP_S,
        gap_s: float = GAP_S,
        resolved: bool | None = None,
        patience_s: float = STUCK_S,
    ) -> None:
        self._counter = CounterLine(gap_s=gap_s, resolved=resolved)
        self._power_method = power_method
        self._hole_s = hole_s
        self._patience_s = patience_s
        self._power = PowerLine(power_method, hole_s=hole_s)
        self._on_power = False
        self._seen_counter = False
        self._moved_s: float | None = None
        self._line_s: float | None = None
        self._waiting: list[tuple[float, float]] = []

    @property
    def counter_mj(self) -> int | None:
        """Newest counter value, for the ledger's position."""
        return self._counter.value_mj

    @property
    def step_s(self) -> float | None:
        """The counter's refresh period, once it was learned."""
        return self._counter.step_s

    @property
    def stuck(self) -> bool:
        """True while the counter is not believed."""
        return self._on_power and self._seen_counter

    def start_from(self, counter_mj: int, t_s: float) -> None:
        """Go on from a ledger's position."""
        self._seen_counter = True
        self._moved_s = self._line_s = t_s
        self._counter.start_from(counter_mj, t_s)

    def feed(self, reading: Reading) -> list[Interval]:
        """Intervals that this reading closed, oldest first."""
        power_w = reading.power_w if reading.power_w is not None else reading.power_average_w
        if reading.energy_mj is None:
            return [] if power_w is None else self._feed_power(power_w, reading.t_s)
        return self._feed_counter(reading.energy_mj, power_w, reading.t_s)

    def _feed_power(self, power_w: float, t_s: float) -> list[Interval]:
        if self._seen_counter and not self._on_power:
            return self._wait_for_counter(power_w, t_s)
        self._on_power = True
        interval = self._power.feed(power_w, t_s)
        self._line_s = t_s
        return [] if interval is None else [interval]

    def _wait_for_counter(self, power_w: float, t_s: float) -> list[Interval]:
        if math.isinf(self._patience_s):
            return []
        self._waiting.append((power_w, t_s))
        moved_s = self._waiting[0][1] if self._moved_s is None else self._moved_s
        return self._fall_back() if t_s - moved_s >= self._patience_s else []

    def _feed_counter(self, value_mj: int, power_w: float | None, t_s: float) -> list[Interval]:
        closed: list[Interval] = []
        if self._on_power and not self._seen_counter:
            closed.append(self._break(t_s, Method.COUNTER))
            self._on_power = False
        self._seen_counter = True
        moved = self._counter.value_mj is None or value_mj != self._counter.value_mj
        if moved or self._moved_s is None:
            closed.extend(self._moved(value_mj, t_s))
            return closed
        self._counter.feed(value_mj, t_s)
        closed.extend(self._stood_still(power_w, t_s))
        return closed

    def _moved(self, value_mj: int, t_s: float) -> list[Interval]:
        self._waiting.clear()
        self._moved_s = t_s
        if self._on_power:
            back = self._break(t_s, Method.COUNTER)
            self._on_power = False
            self._counter.start_from(value_mj, t_s)
            self._line_s = t_s
            return [back]
        interval = self._counter.feed(value_mj, t_s)
        self._line_s = t_s if interval is None else interval.end_s
        return [] if interval is None else [interval]

    def _break(self, t_s: float, method: Method) -> Interval:
        """The source of the line changes: nothing vouches for what lies between the two."""
        return Interval(Kind.RESET, t_s if self._line_s is None else self._line_s, t_s, None, method)

    def _stood_still(self, power_w: float | None, t_s: float) -> list[Interval]:
        if power_w is None:
            return []
        if self._on_power:
            interval = self._power.feed(power_w, t_s)
            self._line_s = t_s
            return [] if interval is None else [interval]
        if power_w <= STUCK_MARGIN_W:
            self._waiting.clear()
            return []
        self._waiting.append((power_w, t_s))
        if self._moved_s is None or t_s - self._moved_s < STUCK_S:
            return []
        return self._fall_back()

    def _fall_back(self) -> list[Interval]:
        closed = [self._break(self._waiting[0][1], self._power_method)]
        self._power = PowerLine(self._power_method, hole_s=self._hole_s)
        self._on_power = True
        for power_w, t_s in self._waiting:
            interval = self._power.feed(power_w, t_s)
            self._line_s = t_s
            if interval is not None:
                closed.append(interval)
        self._waiting.clear()
        return closed

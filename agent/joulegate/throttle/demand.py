"""Demand: what each tier asks for, and what the work that waits makes of the rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

QUICK_S = 5.0
STEADY_S = 30.0
SURPRISE_SD = 4.0

FED_S = 2.5
"""Work that should wait, in seconds: enough to keep every device busy, little enough to wait for."""

FED_UNITS = 1.0
FED_SHARE = 0.6
GAIN = 0.05
STEEP, STEEP_FROM = 0.2, 2.0
UNTOLD_FACTOR = 1.0 - GAIN
HUNGER, HUNGRY_BELOW = 0.4, 0.25
FACTOR_MIN, FACTOR_MAX = 0.3, 1.15
LONG_S = 12.0
LONG_TIMES_FED = 3.0
ENTER, LEAVE = 1.03, 0.92
STARVED_S = 6.0
PRESSED_S = 3.0
FLOODED_TIMES_FED = 2.0
STANDING_S = 4.0
"""A peak is no standing delay (CoDel, RFC 8289)."""

STARVED_SHARE = 0.1
DOUBTFUL = 1.15
PROOF_S = 20.0
"""Demand over capacity counts without a queue once it was watched for so long."""


@dataclass(slots=True)
class Rate:
    """Units a second over five and thirty seconds; each mean is over what was seen while less than that was."""

    quick: float = 0.0
    steady: float = 0.0
    seen_s: float = 0.0

    def follow(self, rate: float, dt_s: float) -> None:
        """Take a mean rate over ``dt_s``."""
        noise = math.sqrt((self.steady + 1.0 / STEADY_S) / (2.0 * QUICK_S))
        self.seen_s = min(self.seen_s + dt_s, 10.0 * STEADY_S)
        self.quick += (rate - self.quick) * _weight(dt_s, min(QUICK_S, self.seen_s))
        self.steady += (rate - self.steady) * _weight(dt_s, min(STEADY_S, self.seen_s))
        if self.seen_s > QUICK_S and abs(self.quick - self.steady) > SURPRISE_SD * noise:
            self.steady = self.quick


def _weight(dt_s: float, time_s: float) -> float:
    return 1.0 if dt_s >= time_s else 1.0 - math.exp(-dt_s / time_s)


@dataclass(slots=True)
class Demand:
    """Demand by tier, whether it is over what can be served, and the work that waits."""

    tiers: dict[str, Rate] = field(default_factory=dict)
    over: bool = False
    late: bool = False
    queued: float | None = None
    wait_s: float | None = None
    fed_s: float = FED_S
    watched_s: float = 0.0
    starved_s: float = 0.0
    tight: bool = False
    pressed_s: float = 0.0
    long_for_s: float = 0.0

    def arrive(self, arrivals: Mapping[str, float] | None, dt_s: float) -> None:
        """Units asked for in ``dt_s``, by tier; ``None`` keeps what was known."""
        if arrivals is None or dt_s <= 0.0:
            return
        self.watched_s = min(self.watched_s + dt_s, 10.0 * STEADY_S)
        for name in sorted({*self.tiers, *arrivals}):
            self.tiers.setdefault(name, Rate()).follow(arrivals.get(name, 0.0) / dt_s, dt_s)

    def wait(self, queue: Mapping[str, float] | None, rate_per_s: float | None, devices: int, dt_s: float) -> None:
        """Units that wait, against the rate at which ``devices`` serve them.

        An image a device is no backlog. What is not told is taken to drain as it was going to.
        """
        self.fed_s = FED_S if not rate_per_s else max(FED_S, FED_UNITS / rate_per_s, FED_SHARE * devices / rate_per_s)
        if queue is None:
            self.queued = None
            left_s = (self.wait_s or 0.0) - (1.0 - self.factor) * dt_s
            self.wait_s = left_s if left_s > self.fed_s else None
        else:
            self.queued = math.fsum(queue.values())
            self.wait_s = None if not rate_per_s else self.queued / rate_per_s
        long = self.wait_s is not None and self.wait_s > (0.5 * self.long_s if self.late else self.long_s)
        self.long_for_s = self.long_for_s + dt_s if long else 0.0
        self.late = long and (self.late or self.long_for_s >= STANDING_S)

    def compare(self, rate_per_s: float | None, dt_s: float, *, tight: bool) -> None:
        """Whether more is asked for than ``rate_per_s``: entered with evidence, left with room.

        A queue is the evidence, unless the rate is held under what the devices could do (``tight``): then none forms.
        """
        starved = self.wait_s is not None and self.wait_s < STARVED_SHARE * self.fed_s and not tight
        self.starved_s = self.starved_s + dt_s if starved else 0.0
        self.tight = tight
        if rate_per_s is None:
            self.over = False
        elif self.over:
            doubtful = self.starved_s >= STARVED_S and self.total < DOUBTFUL * rate_per_s
            self.over = self.total > LEAVE * rate_per_s and not doubtful
        else:
            self.over = self._pressed(rate_per_s, dt_s)

    def _pressed(self, rate_per_s: float, dt_s: float) -> bool:
        """Whether the pressure lasts: a clump that a bucket can take is no pressure."""
        if self.tight or self.wait_s is None:
            pressed = self.watched_s >= PROOF_S and self.total > ENTER * rate_per_s
        else:
            pressed = self.wait_s >= self.fed_s and self.total > ENTER * rate_per_s
        self.pressed_s = self.pressed_s + dt_s if pressed else 0.0
        flooded = pressed and self.wait_s is not None and self.wait_s >= FLOODED_TIMES_FED * self.fed_s
        return flooded or self.pressed_s >= PRESSED_S

    @property
    def long_s(self) -> float:
        """The wait from which the queue itself is held back."""
        return max(LONG_S, LONG_TIMES_FED * self.fed_s)

    @property
    def known(self) -> bool:
        """Whether anything was ever told of arrivals."""
        return self.watched_s > 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Units a second by tier."""
        return {name: rate.steady for name, rate in self.tiers.items()}

    @property
    def total(self) -> float:
        """Units a second over all tiers."""
        return math.fsum(rate.steady for rate in self.tiers.values())

    @property
    def factor(self) -> float:
        """What the work that waits makes of the rate that tiers share: a little more while too little waits.

        It is proportional, since thresholds made most of the turns in trials (notes/throttle.md, 4.4).
        """
        if self.wait_s is None:
            # Over what can be served, something waits also where nobody tells how much.
            return UNTOLD_FACTOR if self.over else 1.0
        fed = self.wait_s / self.fed_s
        highest = 1.0 if self.tight else FACTOR_MAX
        hungry = HUNGER * max(0.0, HUNGRY_BELOW - fed)
        factor = 1.0 + GAIN * (1.0 - fed) + hungry - STEEP * max(0.0, fed - STEEP_FROM)
        return min(max(factor, FACTOR_MIN), highest)

"""Pacing: token buckets that spread what a tier may start, in cost-weighted units; pure, the time is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulegate.throttle.recommendation import Action, Recommendation, TierLimit
from joulegate.throttle.settings import ThrottleSettings

HOST = ""
"""Name of the bucket that tiers without a limit of their own share; no tier has an empty name."""

_EPSILON = 1e-6
"""Units that rounding may cost: who comes back exactly after ``wait_s`` is not sent away again."""

_DECAY = 0.97
_DECAY_STEP_S = 5.0
"""Without a fresh recommendation 3 % less every 5 s: in trials that kept slowdowns away, holding the last did not."""

_HOST_BURST_S = 20.0
_HOST_BURST_MIN = 4.0
"""The host publishes no burst; in trials 20 s and at least 4 units lost 0.5 % of Poisson traffic, 4 s lost 9 %."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one tier may start now: its limit in the newest recommendation, tightened by that one's age.

    ``rate_per_minute`` is ``None`` where nothing limits the rate; ``fraction`` of what is asked for is then admitted (1
    but for fail-safe). ``shared`` says that rate and burst are the host's. ``retry_after_s`` is the least wait after a
    refusal. ``age_s`` is that of the recommendation, or of the process where there is none yet (``decision_id`` None).
    """

    tier: str
    action: Action
    rate_per_minute: float | None
    burst: float
    fraction: float
    shared: bool
    retry_after_s: float
    stale: bool
    age_s: float
    decision_id: str | None
    images_per_tenant_day: int | None


def allowance(settings: ThrottleSettings, recommendation: Recommendation | None, tier: str, age_s: float) -> Allowance:
    """What ``tier`` may start when the newest recommendation was made ``age_s`` seconds ago.

    From its time to live on, the rate decays to the floor of its fail-safe: neither open nor closed. Before the first
    recommendation ``age_s`` counts from the start: the last tier gets the floor at once, the others decay to it.
    """
    if recommendation is None:
        return _without_recommendation(settings, tier, age_s)
    limit = recommendation.tiers.get(tier)
    fresh_s = min(recommendation.ttl_s, recommendation.fail_safe.after_s)
    fraction = _decayed(age_s, fresh_s, recommendation.fail_safe.admit_fraction)
    rate_per_minute, burst, shared = _rate(recommendation, limit)
    action, retry_after_s = _action(recommendation, limit, age_s)
    return Allowance(
        tier=tier,
        action=action,
        rate_per_minute=None if rate_per_minute is None else rate_per_minute * fraction,
        burst=burst,
        fraction=fraction if rate_per_minute is None else 1.0,
        shared=shared,
        retry_after_s=retry_after_s,
        stale=age_s > fresh_s,
        age_s=age_s,
        decision_id=recommendation.decision_id,
        images_per_tenant_day=None if limit is None else limit.images_per_tenant_day,
    )


def _without_recommendation(settings: ThrottleSettings, tier: str, age_s: float) -> Allowance:
    floor = settings.stale_admit_fraction
    fraction = floor if tier == settings.tiers[-1].name else _decayed(age_s, settings.stale_after_s, floor)
    return Allowance(
        tier=tier,
        action=Action.ADMIT,
        rate_per_minute=None,
        burst=1.0,
        fraction=fraction,
        shared=False,
        retry_after_s=settings.poll_after_s,
        stale=fraction < 1.0,
        age_s=age_s,
        decision_id=None,
        images_per_tenant_day=None,
    )


def _rate(recommendation: Recommendation, limit: TierLimit | None) -> tuple[float | None, float, bool]:
    """Units a minute, depth of the bucket, and whether they are the host's because the tier has no limit."""
    if limit is not None and limit.max_images_per_minute is not None:
        return limit.max_images_per_minute, limit.burst, False
    host = recommendation.max_images_per_minute
    if host is None:
        return None, 1.0, False
    return host, max(_HOST_BURST_MIN, host * _HOST_BURST_S / 60.0), True


def _action(recommendation: Recommendation, limit: TierLimit | None, age_s: float) -> tuple[Action, float]:
    """What the tier gets now, and the least wait (s) after a refusal; a deferral ends by itself."""
    if limit is None:
        return Action.LIMIT, recommendation.poll_after_s
    retry_after_s = max(0.0, limit.retry_after_s)
    if limit.action is not Action.DEFER or limit.defer_until_t is None or recommendation.t is None:
        return limit.action, retry_after_s
    wait_s = limit.defer_until_t - (recommendation.t + age_s)
    return (Action.DEFER, wait_s) if wait_s > 0.0 else (Action.LIMIT, retry_after_s)


def _decayed(age_s: float, fresh_s: float, floor: float) -> float:
    """The share of a limit that is left at that age: 1 while fresh, then less and less, never under ``floor``."""
    return max(floor, math.pow(_DECAY, max(0.0, age_s - fresh_s) / _DECAY_STEP_S))


@dataclass(frozen=True, slots=True)
class Paced:
    """Whether a cost was taken; if not, the seconds until it could be (``inf``: not at this rate).

    ``level`` is what the bucket holds afterwards (units, negative in debt), ``None`` without a bucket.
    """

    admitted: bool
    wait_s: float
    level: float | None


class Bucket:
    """One token bucket; units flow in at a rate up to the depth ``burst`` (at least 1), and a new one is full.

    A cost above the burst is admitted when the bucket is full, and leaves a debt that must flow in again before the
    next. So one big image is never refused for ever, and over any time T no more is admitted than
    ``rate * T + max(burst, largest cost)``. A changed rate or burst keeps the level, clipped to the new depth. A time
    that goes back is taken as no time.
    """

    __slots__ = ("_burst", "_level", "_rate_per_s", "_t_s")

    def __init__(self, rate_per_minute: float, burst: float, t_s: float) -> None:
        self._rate_per_s = max(0.0, rate_per_minute) / 60.0
        self._burst = max(1.0, burst)
        self._level = self._burst
        self._t_s = t_s

    def adjust(self, rate_per_minute: float, burst: float, t_s: float) -> None:
        """From ``t_s`` on, units flow in at this rate up to this depth."""
        self._settle(t_s)
        self._rate_per_s = max(0.0, rate_per_minute) / 60.0
        self._burst = max(1.0, burst)
        self._level = min(self._level, self._burst)

    def level(self, t_s: float) -> float:
        """Units held at ``t_s``; negative in debt."""
        self._settle(t_s)
        return self._level

    def wait_s(self, cost: float, t_s: float) -> float:
        """Seconds from ``t_s`` until ``cost`` units are admissible: 0 now, ``inf`` while the rate is 0."""
        self._settle(t_s)
        if self._rate_per_s == 0.0:
            return math.inf
        lacking = min(cost, self._burst) - self._level
        return 0.0 if lacking <= _EPSILON else lacking / self._rate_per_s

    def take(self, cost: float, t_s: float) -> bool:
        """Take ``cost`` units if they are admissible now."""
        if self.wait_s(cost, t_s) > 0.0:
            return False
        self._level -= cost
        return True

    def give_back(self, cost: float, t_s: float) -> None:
        """Undo a take of ``cost`` units that came to nothing."""
        self._settle(t_s)
        self._level = min(self._burst, self._level + cost)

    def _settle(self, t_s: float) -> None:
        if t_s > self._t_s:
            self._level = min(self._burst, self._level + self._rate_per_s * (t_s - self._t_s))
            self._t_s = t_s


class Sampler:
    """Admits a fraction of the units asked for, evenly: no more than ``fraction * asked + largest cost``."""

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit = 0.0

    def take(self, cost: float, fraction: float) -> bool:
        """Whether this ask belongs to the fraction."""
        self._credit += cost * fraction
        if self._credit + _EPSILON < cost:
            return False
        self._credit -= cost
        return True

    def give_back(self, cost: float) -> None:
        """Undo a take of ``cost`` units that came to nothing."""
        self._credit += cost


class Pace:
    """The buckets of all tiers, and that of the host for tiers without a limit of their own: O(1), a few per tier.

    Tier limits may add up to more than the host's: where a tier has a limit, that alone is enforced. A bucket outlives
    a time without limit, so that limits which come and go do not hand out a full bucket each time.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._samplers: dict[str, Sampler] = {}

    def take(self, allowance: Allowance, cost: float, t_s: float) -> Paced:
        """Take ``cost`` units for the tier at ``t_s`` (seconds, monotonic) if its allowance has room for them."""
        if allowance.rate_per_minute is None:
            if allowance.fraction >= 1.0 or self._sampler(allowance).take(cost, allowance.fraction):
                return Paced(admitted=True, wait_s=0.0, level=None)
            return Paced(admitted=False, wait_s=0.0, level=None)
        bucket = self._bucket(allowance, allowance.rate_per_minute, t_s)
        admitted = bucket.take(cost, t_s)
        wait_s = 0.0 if admitted else bucket.wait_s(cost, t_s)
        return Paced(admitted, wait_s, bucket.level(t_s))

    def give_back(self, allowance: Allowance, cost: float, t_s: float) -> Paced:
        """Undo a take that was admitted under ``allowance``."""
        if allowance.rate_per_minute is None:
            if allowance.fraction < 1.0:
                self._sampler(allowance).give_back(cost)
            return Paced(admitted=True, wait_s=0.0, level=None)
        bucket = self._bucket(allowance, allowance.rate_per_minute, t_s)
        bucket.give_back(cost, t_s)
        return Paced(admitted=True, wait_s=0.0, level=bucket.level(t_s))

    def _bucket(self, allowance: Allowance, rate_per_minute: float, t_s: float) -> Bucket:
        name = HOST if allowance.shared else allowance.tier
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(rate_per_minute, allowance.burst, t_s)
        else:
            bucket.adjust(rate_per_minute, allowance.burst, t_s)
        return bucket

    def _sampler(self, allowance: Allowance) -> Sampler:
        return self._samplers.setdefault(allowance.tier, Sampler())

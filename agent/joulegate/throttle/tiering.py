"""Tiers: the host's rate divided by priority, with a floor for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from joulegate.throttle.demand import Demand
from joulegate.throttle.recommendation import Action, TierLimit
from joulegate.throttle.settings import Tier

ROOM_S, LAST_ROOM_S = 12.0, 6.0
ROOM_MIN_S = 4.0
"""Depth of a free bucket in seconds of the host's work, less what waits: one of 4 s of its tier dropped 9 % of paid
traffic by Poisson clumps, one of 20 s half a percent (notes/throttle.md, 4.4)."""

PAID_FACTOR_MIN = 0.7
PAID_BURST_S = 20.0
PAID_BURST_MIN = 2.0
HELD_BURST_S = 5.0
SMALLEST_BURST = 4.0
RETRY_MAX_S = 60.0
DEAD_BAND, TURN_BAND = 0.05, 0.2
ENTER, LEAVE = 1.0, 0.9
DAY_S = 86_400.0
DAY_CHANGES_S = 3600.0


@dataclass(slots=True)
class TierTrack:
    """What was last published for one tier, so that it does not flicker (units a second)."""

    rate: float | None = None
    heading: float = 0.0
    limited: bool = False
    per_day: int | None = None
    per_day_t: float | None = None


@dataclass(slots=True)
class Shares:
    """The tiers' own memory."""

    tracks: dict[str, TierTrack] = field(default_factory=dict)

    def track(self, name: str) -> TierTrack:
        """What is remembered of a tier."""
        return self.tracks.setdefault(name, TierTrack())


def by_tier(tiers: Sequence[Tier], counts: Mapping[str, float]) -> dict[str, float]:
    """Counts of the configured tiers; a name that is not a tier counts as the last one."""
    found = {tier.name: counts.get(tier.name, 0.0) for tier in tiers}
    found[tiers[-1].name] += math.fsum(count for name, count in counts.items() if name not in found)
    return found


def divide(rate: float, tiers: Sequence[Tier], asked: Sequence[float]) -> list[float]:
    """What each tier may start (units a second): higher tiers first, nobody under its floor.

    A tier may take all that those above it do not use and those below it do not ask for up to their floors, so that
    limits add up to more than the host's.
    """
    left, granted = rate, []
    for index, (tier, demand) in enumerate(zip(tiers, asked, strict=True)):
        below = zip(tiers[index + 1 :], asked[index + 1 :], strict=True)
        kept_below = math.fsum(min(lower.floor * rate, wish) for lower, wish in below)
        grant = max(left - kept_below, tier.floor * rate, 0.0)
        granted.append(min(grant, rate))
        left -= min(demand, grant)
    return granted


def limits(rate: float | None, tiers: Sequence[Tier], demand: Demand, memory: Shares) -> dict[str, TierLimit]:
    """The limits of all tiers from the host's rate (units a second; ``None`` is no limit)."""
    if rate is None:
        return {tier.name: TierLimit(Action.ADMIT, None, 1.0, SMALLEST_BURST, 0.0) for tier in tiers}
    short = demand.over or demand.late
    asked = [demand.rates.get(tier.name, 0.0) for tier in tiers]
    granted = _granted(rate, tiers, asked, demand)
    found = {}
    for tier, wanted, grant in zip(tiers, asked, granted, strict=True):
        track = memory.track(tier.name)
        held = _held(track, grant, floor=tier.floor * rate, ceiling=rate)
        track.limited = short and wanted > (LEAVE if track.limited else ENTER) * held
        last = tier is tiers[-1]
        if held <= 0.0:
            found[tier.name] = TierLimit(Action.REJECT, 0.0, 0.0, 1.0, RETRY_MAX_S)
        elif track.limited or demand.tight:
            # Where heat is held by the rate alone, a burst is heat: nobody gets a deep bucket then.
            deep_s = HELD_BURST_S if last or demand.tight else PAID_BURST_S
            burst = max(1.0 if last else PAID_BURST_MIN, deep_s * held)
            found[tier.name] = _limited(held, wanted, burst, limited=track.limited)
        else:
            room_s = (LAST_ROOM_S if last else ROOM_S) - (demand.wait_s or 0.0)
            burst = max(SMALLEST_BURST, rate * max(ROOM_MIN_S, room_s))
            found[tier.name] = TierLimit(Action.ADMIT, held * 60.0, 1.0, burst, 0.0)
    return found


def _granted(rate: float, tiers: Sequence[Tier], asked: Sequence[float], demand: Demand) -> list[float]:
    """Each tier's share; what waits is first taken out of the last tier, and out of the others when it waits long."""
    trimmed = divide(rate * demand.factor, tiers, asked)
    if demand.factor >= 1.0:
        return trimmed
    kept = max(demand.factor, PAID_FACTOR_MIN) if demand.late else 1.0
    return [*divide(rate * kept, tiers, asked)[:-1], trimmed[-1]]


def _held(track: TierTrack, grant: float, *, floor: float, ceiling: float) -> float:
    """What is published for a tier: it follows past a dead band, and turns only for more than that."""
    before = track.rate
    if before is None or before <= 0.0:
        track.rate = grant
    else:
        change = grant / before - 1.0
        against = change * track.heading < 0.0
        if abs(change) > (TURN_BAND if against else DEAD_BAND):
            track.rate, track.heading = grant, math.copysign(1.0, change)
    track.rate = min(max(track.rate or 0.0, floor), ceiling)
    return track.rate


def _limited(rate: float, wanted: float, burst: float, *, limited: bool) -> TierLimit:
    if not limited:
        return TierLimit(Action.ADMIT, rate * 60.0, 1.0, burst, 0.0)
    fraction = min(1.0, rate / wanted) if wanted > 0.0 else 1.0
    retry_s = min(RETRY_MAX_S, max(1.0 / rate, 2.0 / max(fraction, 1e-3), 1.0))
    return TierLimit(Action.LIMIT, rate * 60.0, fraction, burst, float(math.ceil(retry_s)))


def per_tenant_day(tier: Tier, limit: TierLimit, active: float | None, fixed: int | None) -> int | None:
    """Images a tenant may have in a day: what the tier's rate gives each active tenant, within the tier's bounds.

    Without bounds it is the quota's own number (``fixed``). Without a count of tenants the bounds are crossed in
    proportion to what is admitted.
    """
    low, high = tier.tenant_day_min, tier.tenant_day_max
    if low is None and high is None:
        return fixed
    bottom = min(low or 0, high if high is not None else low or 0)
    top = high if high is not None else max(bottom, fixed or bottom)
    if active and limit.max_images_per_minute is not None:
        wanted = limit.max_images_per_minute / 60.0 * DAY_S / active
    else:
        wanted = bottom + (top - bottom) * limit.admit_fraction
    return int(min(max(wanted, bottom), top))


def held_day(track: TierTrack, wanted: int | None, t: float) -> int | None:
    """``wanted`` images a day, changed at most hourly: people plan with it."""
    if track.per_day_t is None or t - track.per_day_t >= DAY_CHANGES_S or (wanted is None) != (track.per_day is None):
        track.per_day, track.per_day_t = wanted, t
    return track.per_day

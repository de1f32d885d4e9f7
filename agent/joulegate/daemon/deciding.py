"""Deciding: joins the newest recommendation, the buckets of the tiers and the tenants' quotas into decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

from joulegate.http.throttle_ports import Ask, Prepared
from joulegate.stores.quota import Quotas, rules_of
from joulegate.throttle.decision import Asked, Decision, QuotaState, Verdict, asked, decide, refusal, request_fault
from joulegate.throttle.pacing import Allowance, Pace, allowance
from joulegate.throttle.recommendation import Action
from joulegate.throttle.settings import ThrottleSettings

_OPEN = (Action.ADMIT, Action.LIMIT)
_SHADOW = "\0shadow "
"""Stands before a tier's name in the books of shadow asks, apart from that tier's own."""


class Newest(Protocol):
    """Knows the newest recommendation."""

    def newest(self) -> Prepared | None:
        """The newest one; ``None`` before the first."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """What is configured for a tenant: the zone (IANA name) in which its day begins, the tier where none is named."""

    name: str
    zone: str = "UTC"
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """Decisions of one tier with one reason since the start; ``shadow`` ones were only for the record."""

    tier: str
    reason: str
    shadow: bool
    decisions: int
    units: float


class Deciding:
    """Answers whether a request may run now (the port ``Decider`` of http); all asks come in one event loop.

    A shadow ask takes nothing from bucket or quota. It has books of its own, a second set of buckets and quotas, so
    that what it says is what an enforced one would have heard.
    """

    def __init__(
        self,
        settings: ThrottleSettings,
        reader: Newest,
        quotas: Quotas,
        *,
        zone: str = "UTC",
        tenants: Sequence[Tenant] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._quotas = quotas
        self._clock = clock
        self._began_s = clock()
        self._zone: tzinfo = ZoneInfo(zone)
        self._zones = {tenant.name: ZoneInfo(tenant.zone) for tenant in tenants}
        self._tiers = {tenant.name: tenant.tier for tenant in tenants}
        self._pace, self._shadow_pace = Pace(), Pace()
        names = [tier.name for tier in settings.tiers]
        # Fixed keys and growing numbers: other threads read them without a lock, and nothing is lost.
        self._asked_units = dict.fromkeys(names, 0.0)
        self._told_units = dict.fromkeys(names, 0.0)
        keys = [(name, verdict.value, shadow) for name in names for verdict in Verdict for shadow in (False, True)]
        self._decisions = dict.fromkeys(keys, 0)
        self._units = dict.fromkeys(keys, 0.0)

    async def decide(self, ask: Ask) -> Decision:
        """The decision on ``ask`` now; unless ``ask.count`` is off, what it admits is taken."""
        prepared = self._reader.newest()
        fault = request_fault(ask.tenant, ask.cost)
        if fault is not None:
            request = asked(self._settings, ask.tier, 0.0)
            decision = refusal(request, fault, None if prepared is None else prepared.decision_id)
        else:
            named = self._tiers.get(ask.tenant) if ask.tier is None and ask.tenant is not None else ask.tier
            request = asked(self._settings, named, ask.cost)
            self._asked_units[request.tier] += request.cost
            decision = await self._judged(ask, request, prepared)
        key = (decision.tier, decision.reason, not ask.count)
        self._decisions[key] += 1
        self._units[key] += request.cost
        return decision

    def take_arrivals(self) -> Mapping[str, float]:
        """Units asked for by tier since the last call, before any limit, admitted or not; for one caller."""
        total = dict(self._asked_units)
        arrivals = {tier: units - self._told_units[tier] for tier, units in total.items()}
        self._told_units = total
        return arrivals

    def tallies(self) -> Sequence[Tally]:
        """Every pair of tier and reason that has occurred; a refusal among the shadow ones would have been one."""
        return [
            Tally(tier, reason, shadow, decisions, self._units[tier, reason, shadow])
            for (tier, reason, shadow), decisions in self._decisions.items()
            if decisions
        ]

    async def _judged(self, ask: Ask, request: Asked, prepared: Prepared | None) -> Decision:
        now_s = self._clock()
        age_s = now_s - (self._began_s if prepared is None else prepared.made_s)
        recommendation = None if prepared is None else prepared.recommendation
        allowed = allowance(self._settings, recommendation, request.tier, age_s)
        pace = self._shadow_pace if not ask.count else self._pace
        # The bucket first: it never waits, and giving back to it cannot fail. Redis may do both.
        paced = pace.take(allowed, request.cost, now_s) if allowed.action in _OPEN else None
        held = paced is not None and paced.admitted
        try:
            quota = await self._quota(ask, request, allowed, held=held)
        except BaseException:
            if held:
                pace.give_back(allowed, request.cost, now_s)
            raise
        if held and quota is not None and not quota.admitted:
            paced = pace.give_back(allowed, request.cost, self._clock())
        return decide(request, allowed, paced, quota)

    async def _quota(self, ask: Ask, request: Asked, allowed: Allowance, *, held: bool) -> QuotaState | None:
        rules = rules_of(self._settings.tier(request.tier), allowed.images_per_tenant_day)
        zone = self._zone if ask.tenant is None else self._zones.get(ask.tenant, self._zone)
        book = request.tier if ask.count else _SHADOW + request.tier
        check = self._quotas.take if held else self._quotas.peek
        return await check(rules, book, ask.tenant, request.cost, zone)

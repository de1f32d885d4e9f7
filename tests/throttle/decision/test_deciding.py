"""Deciding: recommendation, bucket and quota together, and nothing taken that was not given."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.throttle.decision.examples import FREE, OPEN, SETTINGS, Board, Clock, limited, recommendation

from joulegate.daemon.deciding import Deciding, Tenant
from joulegate.http.throttle_ports import Ask
from joulegate.stores.quota import QuotaRule, Quotas
from joulegate.throttle.decision import Decision, QuotaState
from joulegate.throttle.recommendation import Action, Recommendation
from joulegate.throttle.settings import ThrottleSettings, Tier

NOON_S = 1_764_072_000.0
"""2025-11-25 12:00 UTC."""

WIDE = {"free": limited(6000.0, 1000.0)}


class Service:
    """Deciding with clocks that stand still until they are moved."""

    def __init__(
        self,
        newest: Recommendation | None = None,
        *,
        settings: ThrottleSettings = SETTINGS,
        tenants: Sequence[Tenant] = (),
        zone: str = "UTC",
    ) -> None:
        self.clock, self.wall = Clock(), Clock(NOON_S)
        self.board = Board(self.clock, newest)
        self.quotas = Quotas(wall_clock=self.wall, clock=self.clock)
        self.deciding = Deciding(settings, self.board, self.quotas, zone=zone, tenants=tenants, clock=self.clock)

    def later(self, seconds: float) -> None:
        """Move both clocks on; the recommendation stays fresh."""
        self.clock.now_s += seconds
        self.wall.now_s += seconds
        prepared = self.board.newest()
        if prepared is not None:
            self.board.post(prepared.recommendation)

    async def ask(
        self, tier: str | None = "free", tenant: str | None = "acme", cost: float = 1.0, *, count: bool = True
    ) -> Decision:
        """One decision."""
        return await self.deciding.decide(Ask(tier, tenant, cost, count))

    async def allowed(self, times: int, tier: str = "free", tenant: str | None = "acme") -> int:
        """How many of so many asks are admitted."""
        return sum([(await self.ask(tier, tenant)).allow for _ in range(times)])


async def test_three_images_a_day_for_free():
    """A free tenant gets three images, hears when the next day begins, and gets three more then, as others do."""
    service = Service(recommendation(WIDE))
    answers = [await service.ask() for _ in range(4)]
    assert [answer.allow for answer in answers] == [True, True, True, False]
    assert [answer.remaining for answer in answers] == [2.0, 1.0, 0.0, 0.0]
    assert (answers[3].reason, answers[3].retry_after_s) == ("quota", 12 * 3600)
    assert await service.allowed(5, tenant="initech") == 3
    assert await service.allowed(9, "pro") == 9
    service.later(12 * 3600 - 1)
    assert not (await service.ask()).allow
    service.later(1)
    assert await service.allowed(5) == 3


async def test_the_quota_does_not_take_from_the_bucket():
    """Asks that the quota refuses leave the bucket as it was, however many they are."""
    service = Service(recommendation({"free": limited(0.06, 4.0)}))
    assert await service.allowed(50) == 3
    assert await service.allowed(50, tenant="initech") == 1
    assert (await service.ask(tenant="umbrella")).reason == "rate"


async def test_the_bucket_does_not_take_from_the_quota():
    """Asks that the bucket refuses leave the tenant's quota as it was, however many they are."""
    service = Service(recommendation({"free": limited(60.0, 1.0)}))
    assert await service.allowed(50) == 1
    assert (await service.ask()).quota.remaining == 2
    service.later(1)
    assert await service.allowed(50) == 1
    service.later(1)
    assert await service.allowed(50) == 1
    service.later(1)
    assert (await service.ask()).reason == "quota"


async def test_costs_are_weighed_in_both():
    """A request of two units takes two from bucket and quota; what does not fit takes nothing."""
    service = Service(recommendation({"free": limited(60.0, 10.0)}))
    two = await service.ask(cost=2.0)
    assert (two.allow, two.remaining, two.window.remaining, two.quota.remaining) == (True, 1.0, 8, 1)
    assert (await service.ask(cost=1.001)).reason == "quota"
    assert (await service.ask(cost=0.5)).remaining == 0.5


class Slow(Quotas):
    """Quotas that do not answer before they are let to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.answering = asyncio.Event()

    async def take(
        self, rules: Sequence[QuotaRule], tier: str, tenant: str | None, cost: float, zone: tzinfo
    ) -> QuotaState | None:
        """Wait, then take."""
        await self.answering.wait()
        return await super().take(rules, tier, tenant, cost, zone)


async def test_a_caller_that_hangs_up_leaves_the_bucket_full():
    """A request that is cancelled while its quota is counted gives its units back to the bucket."""
    clock = Clock()
    quotas = Slow(clock)
    deciding = Deciding(SETTINGS, Board(clock, recommendation({"free": limited(60.0, 1.0)})), quotas, clock=clock)
    for _ in range(3):
        waiting = asyncio.create_task(deciding.decide(Ask("free", "acme")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    quotas.answering.set()
    assert (await deciding.decide(Ask("free", "acme"))).allow


bad_costs = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, -0.0, 1e9, 10**400, True, None, "1", [1]])
bad_tenants = st.sampled_from(["", "x" * 257, "x" * 1_000_000, 7, b"acme"])


@given(st.one_of(st.tuples(bad_costs, st.just("acme")), st.tuples(st.just(1.0), bad_tenants)))
def test_bad_input_is_refused_and_counts_nothing(bad: tuple[object, object]):
    """A bad cost or tenant is a no without a traceback; nothing is taken, and no arrival is counted."""
    service = Service(recommendation(WIDE))

    async def scene() -> None:
        no = await service.ask("free", bad[1], bad[0])
        assert (no.allow, no.reason, no.window, no.quota, no.cost) == (False, "bad_request", None, None, 0.0)
        assert service.deciding.take_arrivals() == {"pro": 0.0, "plus": 0.0, "free": 0.0}
        assert await service.allowed(9) == 3

    asyncio.run(scene())


async def test_an_unknown_tier_is_the_last():
    """An unknown tier counts on the quota of the last, so no invented name gets around it."""
    service = Service(recommendation(WIDE))
    answers = [await service.ask(f"invented-{n}") for n in range(4)]
    assert [answer.allow for answer in answers] == [True, True, True, False]
    assert all(answer.unknown_tier and answer.tier == "free" for answer in answers)
    assert (await service.ask()).reason == "quota"


async def test_a_tenants_own_tier_and_zone():
    """Where no tier is named, the configured one of the tenant applies; its day begins at its own midnight."""
    tenants = [Tenant("kiri", "Pacific/Kiritimati", "free"), Tenant("big", tier="pro")]
    service = Service(recommendation(WIDE), tenants=tenants, zone="America/New_York")
    assert (await service.ask(None, "big")).tier == "pro"
    assert (await service.ask("free", "big")).tier == "free"
    kiri = await service.ask(None, "kiri")
    assert (kiri.tier, kiri.unknown_tier, kiri.quota.t_s) == ("free", False, 22 * 3600)
    assert (await service.ask("free", "acme")).quota.t_s == 17 * 3600


async def test_callers_without_a_tenant_share_one_quota():
    """Anonymous callers are one tenant: leaving the name away is no way around a quota."""
    service = Service(recommendation(WIDE))
    assert await service.allowed(9, tenant=None) == 3
    assert await service.allowed(9) == 3


async def test_the_days_number_follows_capacity_and_keeps_the_count():
    """Where bounds are configured the recommendation's number rules, within them; what was had stays had."""
    tier = Tier("free", quota="3/day", tenant_day_min=2, tenant_day_max=6)
    service = Service(settings=replace(SETTINGS, tiers=(Tier("pro"), tier)))

    async def at(number: int | None) -> int:
        limit = replace(limited(6000.0, 1000.0), images_per_tenant_day=number)
        service.board.post(recommendation({"free": limit}))
        return await service.allowed(20)

    assert await at(None) == 3
    assert await at(5) == 2
    assert await at(1) == 0
    assert await at(100) == 1
    assert (await service.ask(tenant="initech")).quota.q == 6
    assert await at(0) == 0
    assert (await service.ask(tenant="umbrella")).quota.q == 2


async def test_static_quotas_ignore_the_recommendations_number():
    """Without configured bounds the quota is the configured one, whatever the recommendation says."""
    service = Service(recommendation({"free": replace(limited(6000.0, 1000.0), images_per_tenant_day=50)}))
    assert await service.allowed(9) == 3


async def test_arrivals_count_everything_asked_for_once():
    """Arrivals are units asked for before any limit, admitted, refused or only shadowed, since the last call."""
    service = Service(recommendation({"plus": replace(FREE, action=Action.REJECT)}))
    for _ in range(10):
        await service.ask(cost=0.5)
    await service.ask("plus", cost=4.0)
    await service.ask("pro", count=False)
    await service.ask("invented")
    assert service.deciding.take_arrivals() == {"pro": 1.0, "plus": 4.0, "free": 6.0}
    assert service.deciding.take_arrivals() == {"pro": 0.0, "plus": 0.0, "free": 0.0}
    await service.ask("plus", cost=0.25)
    assert service.deciding.take_arrivals() == {"pro": 0.0, "plus": 0.25, "free": 0.0}


async def test_tallies_by_tier_and_reason():
    """Decisions and their units are counted by tier, reason and whether they were enforced."""
    service = Service(recommendation(WIDE))
    for _ in range(5):
        await service.ask()
    await service.ask("pro", cost=2.5)
    await service.ask("pro", cost=-1.0)
    counted = {(t.tier, t.reason, t.shadow): (t.decisions, t.units) for t in service.deciding.tallies()}
    assert counted == {
        ("free", "admitted", False): (3, 3.0),
        ("free", "quota", False): (2, 2.0),
        ("pro", "admitted", False): (1, 2.5),
        ("pro", "bad_request", False): (1, 0.0),
    }


async def test_a_shadow_takes_nothing_and_tells_what_would_have_been():
    """Shadow asks leave bucket and quota untouched; their own books say how many would have been refused."""
    service = Service(recommendation({"free": limited(0.06, 5.0)}))
    shadows = [await service.ask(count=False) for _ in range(10)]
    assert [shadow.reason for shadow in shadows] == ["admitted"] * 3 + ["quota"] * 7
    others = [await service.ask(tenant=f"t{n}", count=False) for n in range(4)]
    assert [other.reason for other in others] == ["admitted", "admitted", "rate", "rate"]
    assert await service.allowed(9) == 3
    assert await service.allowed(9, tenant="initech") == 2
    shadow = {t.reason: t.decisions for t in service.deciding.tallies() if t.shadow}
    assert shadow == {"admitted": 5, "quota": 7, "rate": 2}


async def test_without_a_fresh_recommendation_it_tightens():
    """With the recommender dead for an hour, the free tier is held to a quarter of its rate, named stale, not shut."""
    settings = replace(SETTINGS, tiers=(Tier("pro"), Tier("free")))
    service = Service(recommendation({"free": limited(60.0, 1.0)}), settings=settings)
    service.clock.now_s += 3600.0
    answers = []
    for _ in range(400):
        service.clock.now_s += 0.1
        answers.append(await service.ask())
    assert sum(answer.allow for answer in answers) in {10, 11}
    assert {answer.reason for answer in answers} == {"admitted", "stale"}


async def test_before_the_first_recommendation_there_are_answers():
    """At the start decisions are made without a decision id: all of the paid tiers, a quarter of the last."""
    service = Service(settings=replace(SETTINGS, tiers=(Tier("pro"), Tier("free"))))
    assert await service.allowed(40, "pro") == 40
    assert await service.allowed(40, "free") == 10
    no = await service.ask()
    assert (no.reason, no.decision_id, no.retry_after_s) == ("stale", None, 5.0)
    service.clock.now_s += 3600.0
    assert await service.allowed(40, "pro") == 10


async def test_a_hundred_at_once_share_one_bucket():
    """Asks that run at the same time take no more from a bucket than it holds."""
    service = Service(recommendation({"free": limited(60.0, 20.0)}))
    answers = await asyncio.gather(*(service.ask(tenant=f"t{n}") for n in range(100)))
    assert sum(answer.allow for answer in answers) == 20


async def test_a_tier_opened_wide_is_still_under_quota():
    """A tier without a rate has no window to show, and its quota is counted all the same."""
    service = Service(recommendation({"free": OPEN}))
    answers = [await service.ask() for _ in range(4)]
    assert [answer.allow for answer in answers] == [True, True, True, False]
    assert {answer.window for answer in answers} == {None}

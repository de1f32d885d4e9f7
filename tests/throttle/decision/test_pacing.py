"""Pacing: what a bucket lets through in any stretch of time, and how an old recommendation tightens it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.throttle.decision.examples import FREE, OPEN, SETTINGS, limited, recommendation

from joulegate.throttle.pacing import Allowance, Bucket, Pace, Sampler, allowance
from joulegate.throttle.recommendation import Action

ROUNDING = 1e-3
rates = st.floats(0.5, 600.0)
bursts = st.floats(1.0, 40.0)
gaps = st.floats(0.0, 30.0)
small_costs = st.floats(0.01, 1.0)
any_costs = st.floats(0.01, 60.0)


def admitted(bucket: Bucket, asks: list[tuple[float, float]], t_s: float = 0.0) -> list[tuple[float, float]]:
    """Time and cost of the asks (gap, cost) that got through."""
    through = []
    for gap_s, cost in asks:
        t_s += gap_s
        if bucket.take(cost, t_s):
            through.append((t_s, cost))
    return through


def worst_excess(through: list[tuple[float, float]], rate_per_minute: float) -> float:
    """The most, over all stretches from one admission to a later one, of what came through beyond the rate (units)."""
    return max(
        (
            sum(cost for _, cost in through[i:j]) - rate_per_minute / 60 * (through[j - 1][0] - through[i][0])
            for i in range(len(through))
            for j in range(i + 1, len(through) + 1)
        ),
        default=0.0,
    )


@given(rates, bursts, st.lists(st.tuples(gaps, small_costs), max_size=40))
def test_no_stretch_of_time_sees_more_than_burst_and_rate(rate: float, burst: float, asks: list[tuple[float, float]]):
    """Whatever comes when, no stretch of time T admits more than burst + rate x T."""
    assert worst_excess(admitted(Bucket(rate, burst, 0.0), asks), rate) <= burst + ROUNDING


@given(rates, bursts, st.lists(st.tuples(gaps, any_costs), max_size=40))
def test_debt_is_bounded_by_the_largest_cost(rate: float, burst: float, asks: list[tuple[float, float]]):
    """With costs above the burst, a stretch admits at most the largest of them instead of the burst."""
    largest = max((cost for _, cost in asks), default=0.0)
    assert worst_excess(admitted(Bucket(rate, burst, 0.0), asks), rate) <= max(burst, largest) + ROUNDING


@given(rates, bursts, st.lists(st.tuples(gaps, any_costs), max_size=20), any_costs, any_costs)
def test_a_smaller_cost_is_never_worse_off(
    rate: float, burst: float, asks: list[tuple[float, float]], one: float, other: float
):
    """In any state of a bucket, a smaller cost waits no longer than a larger one."""
    bucket = Bucket(rate, burst, 0.0)
    admitted(bucket, asks)
    t_s = sum(gap_s for gap_s, _ in asks)
    assert bucket.wait_s(min(one, other), t_s) <= bucket.wait_s(max(one, other), t_s)


@given(rates, bursts, st.lists(st.tuples(gaps, any_costs), max_size=20), any_costs)
def test_who_waits_as_told_gets_in(rate: float, burst: float, asks: list[tuple[float, float]], cost: float):
    """After exactly the wait that a bucket names, the cost is admitted; well before, it is not."""
    bucket = Bucket(rate, burst, 1e6)
    admitted(bucket, asks, 1e6)
    t_s = 1e6 + sum(gap_s for gap_s, _ in asks)
    wait_s = bucket.wait_s(cost, t_s)
    if wait_s > 0.1:
        assert not bucket.take(cost, t_s + 0.9 * wait_s)
    assert bucket.take(cost, t_s + wait_s)


@given(rates, bursts, rates, bursts, st.lists(st.tuples(gaps, any_costs), max_size=20))
def test_a_changed_limit_keeps_the_level(
    rate: float, burst: float, new_rate: float, new_burst: float, asks: list[tuple[float, float]]
):
    """A change of rate and burst keeps the level, clipped to the new depth: it hands out nothing and takes no more."""
    bucket = Bucket(rate, burst, 0.0)
    admitted(bucket, asks)
    t_s = sum(gap_s for gap_s, _ in asks)
    before = bucket.level(t_s)
    bucket.adjust(new_rate, new_burst, t_s)
    assert bucket.level(t_s) == min(before, new_burst)


def test_what_flowed_in_before_a_change_flowed_at_the_old_rate():
    """Units of the time before a change come at the old rate, those after at the new one."""
    bucket = Bucket(60.0, 10.0, 0.0)
    assert bucket.take(10.0, 0.0)
    bucket.adjust(6.0, 10.0, 4.0)
    assert bucket.level(4.0) == pytest.approx(4.0)
    assert bucket.level(14.0) == pytest.approx(5.0)


def test_an_image_bigger_than_the_burst_goes_through_when_the_bucket_is_full():
    """Four units on a burst of 3 are admitted from a full bucket, leave a debt of 1, and come again when it is full."""
    bucket = Bucket(60.0, 3.0, 0.0)
    assert bucket.take(4.0, 0.0)
    assert bucket.level(0.0) == pytest.approx(-1.0)
    assert not bucket.take(0.5, 1.0)
    assert not bucket.take(4.0, 3.9)
    assert bucket.take(4.0, 4.0)


def test_a_rate_of_nothing_admits_nothing():
    """At a rate of 0 even a full bucket gives nothing, and no wait is long enough."""
    bucket = Bucket(0.0, 5.0, 0.0)
    assert not bucket.take(0.01, 1e9)
    assert bucket.wait_s(0.01, 1e9) == math.inf


@pytest.mark.parametrize("rate", [math.nan, -5.0])
def test_a_rate_that_is_none_admits_nothing(rate: float):
    """A rate that is not a number or negative is a rate of nothing, never a looser one."""
    assert not Bucket(rate, 5.0, 0.0).take(1.0, 100.0)


def test_time_that_goes_back_brings_nothing():
    """A time that goes back lets nothing flow in, nor does the way forward to where it was."""
    bucket = Bucket(60.0, 2.0, 100.0)
    assert bucket.take(2.0, 100.0)
    assert bucket.level(50.0) == 0.0
    assert bucket.level(100.0) == 0.0
    assert bucket.level(101.0) == pytest.approx(1.0)


@given(st.floats(0.05, 0.95), st.lists(any_costs, min_size=1, max_size=200))
def test_a_sample_is_an_even_share(fraction: float, costs: list[float]):
    """A sampler admits its fraction of the units asked for, to within the largest cost."""
    sampler = Sampler()
    through = sum(cost for cost in costs if sampler.take(cost, fraction))
    assert through <= fraction * sum(costs) + ROUNDING
    assert through >= fraction * sum(costs) - max(costs) - ROUNDING


def paced(pace: Pace, allowed: Allowance, count: int, t_s: float = 0.0) -> int:
    """How many of ``count`` asks at one moment get through."""
    return sum(pace.take(allowed, 1.0, t_s).admitted for _ in range(count))


def test_each_tier_has_a_bucket_of_its_own():
    """What one tier takes is not missing in another, and tier limits may add up to more than the host's."""
    newest = recommendation({"pro": limited(60.0, 5.0), "plus": limited(60.0, 4.0)}, host=60.0)
    pace = Pace()
    assert [paced(pace, allowance(SETTINGS, newest, tier, 0.0), 20) for tier in ("pro", "plus", "free")] == [5, 4, 3]


def test_tiers_without_a_limit_share_the_hosts():
    """Tiers without a limit of their own draw on one bucket of the host's rate; a tier with one is not held by it."""
    newest = recommendation({"free": limited(600.0, 50.0)}, host=30.0)
    pace = Pace()
    pro, plus, free = (allowance(SETTINGS, newest, tier, 0.0) for tier in ("pro", "plus", "free"))
    assert paced(pace, pro, 100) == 10
    assert paced(pace, plus, 100) == 0
    assert paced(pace, free, 100) == 50
    assert paced(pace, plus, 100, t_s=4.0) == 2


def test_no_limit_anywhere_admits_all():
    """Without a limit of tier or host, nothing is held back."""
    assert paced(Pace(), allowance(SETTINGS, recommendation(), "pro", 9.9), 1000) == 1000


def test_a_limit_that_comes_and_goes_does_not_refill_the_bucket():
    """A tier that is limited, freed and limited again within a second finds its bucket as it left it."""
    pace = Pace()
    held = allowance(SETTINGS, recommendation(), "free", 0.0)
    free = allowance(SETTINGS, recommendation({"free": OPEN}), "free", 0.0)
    through = 0
    for tenth in range(10):
        through += paced(pace, held, 10, tenth / 10)
        assert paced(pace, free, 10, tenth / 10) == 10
    assert through == 3


def test_a_gift_back_makes_room_again_and_no_more():
    """A take that came to nothing can be given back, once for once, never beyond the depth."""
    pace = Pace()
    held = allowance(SETTINGS, recommendation(), "free", 0.0)
    assert paced(pace, held, 3) == 3
    pace.give_back(held, 1.0, 0.0)
    assert paced(pace, held, 3) == 1
    for _ in range(9):
        pace.give_back(held, 1.0, 0.0)
    assert paced(pace, held, 9) == 3
    bucket = Bucket(60.0, 3.0, 0.0)
    bucket.give_back(1.0, 0.0)
    assert bucket.level(0.0) == 3.0


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_an_older_recommendation_is_never_looser(one: float, other: float):
    """The rate falls with age, holds while the recommendation is fresh, and stops at the floor of its fail-safe."""
    younger, older = (allowance(SETTINGS, recommendation(), "free", age_s) for age_s in sorted((one, other)))
    assert younger.rate_per_minute is not None
    assert older.rate_per_minute is not None
    assert 34.0 >= younger.rate_per_minute >= older.rate_per_minute >= 34.0 * 0.25
    assert younger.rate_per_minute == 34.0 or younger.stale


def test_the_decay_is_three_percent_in_five_seconds():
    """The law of the fail-safe: full until its time is over, 97 % five seconds later, at last a quarter."""
    ages = (10.0, 15.0, 20.0, 1000.0)
    rates_then = [allowance(SETTINGS, recommendation(), "free", age_s).rate_per_minute for age_s in ages]
    assert rates_then == pytest.approx([34.0, 34.0 * 0.97, 34.0 * 0.97**2, 8.5])


def test_without_a_rate_a_stale_recommendation_admits_a_share():
    """Where no rate is published, the decay applies to the share of what is asked for, down to a quarter."""
    newest = recommendation()
    assert allowance(SETTINGS, newest, "pro", 10.0).fraction == 1.0
    old = allowance(SETTINGS, newest, "pro", 1e4)
    assert old.stale
    assert paced(Pace(), old, 1000) == 250


def test_before_the_first_recommendation_the_last_tier_waits_at_the_floor():
    """At the start the last tier gets a quarter, the paid ones all, until they too come down to it."""
    pace = Pace()
    assert paced(pace, allowance(SETTINGS, None, "free", 0.0), 100) == 25
    assert paced(pace, allowance(SETTINGS, None, "pro", 0.0), 100) == 100
    assert paced(pace, allowance(SETTINGS, None, "pro", 1e4), 100) == 25


def test_a_deferral_ends_by_itself():
    """A deferred tier waits until the moment named on the recommendation's axis, and is then held to its rate."""
    newest = recommendation({"free": replace(FREE, action=Action.DEFER, defer_until_t=130.0)}, t=100.0)
    before = allowance(SETTINGS, newest, "free", 8.0)
    assert (before.action, before.retry_after_s) == (Action.DEFER, 22.0)
    after = allowance(SETTINGS, newest, "free", 30.0)
    assert after.action is Action.LIMIT
    assert after.rate_per_minute is not None


def test_a_tier_that_the_recommendation_does_not_know_is_held_to_the_host():
    """A tier missing in the recommendation gets the host's rate, not freedom."""
    newest = replace(recommendation(host=30.0), tiers={})
    allowed = allowance(SETTINGS, newest, "free", 0.0)
    assert (allowed.shared, allowed.rate_per_minute) == (True, 30.0)

"""The decision: which ground is named, for how long, and what is left."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.throttle.decision.examples import FREE, SETTINGS, limited, recommendation

from joulegate.throttle.decision import Decision, QuotaState, RateWindow, asked, decide, refusal, request_fault
from joulegate.throttle.pacing import Pace, allowance
from joulegate.throttle.recommendation import Action, Recommendation

DAY = QuotaState("day", 3, 86_400, 2.0, 3600.5, admitted=True)
USED_UP = replace(DAY, remaining=0.0, admitted=False)


def decided(
    newest: Recommendation | None = None,
    tier: str | None = "free",
    *,
    cost: float = 1.0,
    before: int = 0,
    quota: QuotaState | None = None,
    age_s: float = 0.0,
) -> Decision:
    """The decision on one ask after ``before`` others of one unit at the same moment."""
    request = asked(SETTINGS, tier, cost)
    allowed = allowance(SETTINGS, newest or recommendation(), request.tier, age_s)
    if allowed.action not in {Action.ADMIT, Action.LIMIT}:
        return decide(request, allowed, None, quota)
    pace = Pace()
    for _ in range(before):
        pace.take(allowed, 1.0, 0.0)
    return decide(request, allowed, pace.take(allowed, cost, 0.0), quota)


def test_a_yes_says_what_is_left():
    """An admitted request hears the decision behind it and the smaller of bucket and quota."""
    yes = decided(quota=replace(DAY, remaining=1.0))
    assert (yes.allow, yes.reason, yes.retry_after_s, yes.decision_id) == (True, "admitted", 0.0, "d1")
    assert yes.remaining == 1.0
    assert decided(before=1, quota=DAY).remaining == pytest.approx(1.0)
    assert yes.window == RateWindow("free", q=34, window_s=60, remaining=2, t_s=4)
    assert yes.quota == RateWindow("free-day", q=3, window_s=86_400, remaining=1, t_s=3601)


def test_no_limit_is_none():
    """Without bucket and quota nothing bounds what is left, and there is no window to show."""
    yes = decided(tier="pro")
    assert (yes.allow, yes.remaining, yes.window, yes.quota) == (True, None, None, None)


def test_an_empty_bucket_names_the_rate_and_the_wait():
    """A fourth unit on a burst of 3 at 34 a minute waits for the next to flow in."""
    no = decided(before=3)
    assert (no.allow, no.reason) == (False, "rate")
    assert no.retry_after_s == pytest.approx(60 / 34)
    assert "34 units a minute" in no.detail
    assert no.window == RateWindow("free", q=34, window_s=60, remaining=0, t_s=2)


def test_the_published_wait_is_the_least():
    """Where the recommendation asks for a longer wait than the bucket needs, that rules: many wait for one unit."""
    assert decided(recommendation({"free": limited(34.0, 3.0, 20.0)}), before=3).retry_after_s == 20.0


def test_a_rate_of_nothing_still_names_a_finite_wait():
    """A tier that may start nothing is told when to ask again, in numbers that JSON and headers can carry."""
    no = decided(recommendation({"free": limited(0.0, 3.0, 20.0)}))
    assert (no.allow, no.reason, no.retry_after_s) == (False, "rate", 20.0)
    assert no.window == RateWindow("free", q=0, window_s=60, remaining=0, t_s=20)


def test_a_used_up_quota_names_the_quota():
    """A tenant without quota hears of that, until the window ends, though the bucket has room."""
    no = decided(quota=USED_UP)
    assert (no.allow, no.reason, no.retry_after_s, no.remaining) == (False, "quota", 3600.5, 0.0)
    assert "0 of 3 units per day" in no.detail
    assert "3600 s" in no.detail or "3601 s" in no.detail


def test_a_cost_beyond_the_whole_quota_is_not_sent_to_wait():
    """Four units on a quota of three fit on no day: the detail asks for less instead of naming a time."""
    no = decided(cost=4.0, quota=replace(DAY, admitted=False))
    assert (no.reason, "ask for less" in no.detail) == ("quota", True)


def test_the_longer_of_two_grounds_is_named():
    """With bucket and quota both empty, the one that holds longer is the reason."""
    assert decided(before=3, quota=USED_UP).reason == "quota"
    short = replace(USED_UP, policy="second", resets_in_s=0.4)
    assert decided(recommendation({"free": limited(1.0, 1.0)}), before=1, quota=short).reason == "rate"


@pytest.mark.parametrize(
    ("action", "defer_until_t", "reason", "wait_s"),
    [
        (Action.REJECT, None, "capacity", 20.0),
        (Action.DEFER, 400.0, "deferred", 300.0),
        (Action.DEFER, None, "deferred", 20.0),
    ],
)
def test_actions_refuse_without_a_bucket(action: Action, defer_until_t: float | None, reason: str, wait_s: float):
    """A tier that is rejected or put off is told so, for as long as the recommendation says."""
    limit = replace(FREE, action=action, defer_until_t=defer_until_t, retry_after_s=20.0)
    no = decided(recommendation({"free": limit}), quota=DAY)
    assert (no.allow, no.reason, no.retry_after_s, no.remaining) == (False, reason, wait_s, 0.0)
    assert no.window == RateWindow("free", q=0, window_s=60, remaining=0, t_s=int(wait_s))


def test_an_unknown_tier_is_the_last_and_told_so():
    """An unknown tier, one of a million characters, or none, is treated as the last; the answer says so, briefly."""
    for name in ("gold", "g" * 1_000_000, None):
        decision = decided(tier=name)
        assert (decision.tier, decision.unknown_tier, decision.allow) == ("free", True, True)
        assert "treated as 'free'" in decision.detail
        assert len(decision.detail) < 300
    assert "unknown" in decided(tier="gold").detail
    assert not decided(tier="pro").unknown_tier


def test_an_old_recommendation_refuses_as_stale():
    """Past its time to live the reason is stale, with the age, both where a rate decays and where a share does."""
    no = decided(before=3, age_s=70.0)
    assert (no.reason, no.retry_after_s > 60 / 34) == ("stale", True)
    assert "70 s old" in no.detail
    assert decided(tier="pro", age_s=1e4).reason == "stale"
    assert decided(before=3, age_s=10.0).reason == "rate"


def test_the_hosts_numbers_stay_inside():
    """A tier that shares the host's bucket is not shown its numbers in a window."""
    yes = decided(recommendation(host=60.0), tier="pro")
    assert (yes.allow, yes.window) == (True, None)


@given(st.floats(0.01, 6000.0), st.floats(1.0, 300.0), st.integers(0, 40), st.floats(0.01, 60.0))
def test_using_up_what_is_left_within_the_window_is_a_safe_rate(rate: float, burst: float, before: int, cost: float):
    """What a window says is left, over its effective length, is never faster than the tier's rate; nor is q over w."""
    decision = decided(recommendation({"free": limited(rate, burst)}), before=before, cost=cost)
    window = decision.window
    assert window is not None
    assert window.remaining / window.t_s <= rate / 60 * (1 + 1e-4)
    assert window.q / window.window_s <= rate / 60 * (1 + 1e-4)
    assert window.remaining <= max(0.0, decision.remaining or 0.0) + 1e-4
    assert window.q >= 1


@given(
    st.one_of(
        st.floats(allow_nan=True, allow_infinity=True), st.integers(), st.booleans(), st.none(), st.text(max_size=5)
    ),
    st.one_of(st.none(), st.text(max_size=300), st.integers(), st.binary(max_size=4)),
)
def test_only_sound_requests_are_judged(cost: object, tenant: object):
    """A cost is a number above 0 and at most 1000, a tenant none or 1 to 256 characters; all else is named."""
    number = isinstance(cost, int | float) and not isinstance(cost, bool)
    sound_cost = number and math.isfinite(cost) and 0 < cost <= 1000
    sound_tenant = tenant is None or (isinstance(tenant, str) and 1 <= len(tenant) <= 256)
    assert (request_fault(tenant, cost) is None) == (sound_cost and sound_tenant)


@pytest.mark.parametrize("tenant", ["", "x" * 257, "x" * 1_000_000])
def test_a_fault_is_one_short_line(tenant: str):
    """The answer to a megabyte of tenant is a line, a no, and nothing to wait for."""
    fault = request_fault(tenant, 1.0)
    assert fault is not None
    assert len(fault) < 120
    no = refusal(asked(SETTINGS, "pro", 0.0), fault, "d1")
    assert (no.allow, no.reason, no.detail, no.retry_after_s, no.remaining) == (False, "bad_request", fault, 0.0, None)

"""What a gate decides by itself: by the last recommendation while that holds, then by the fail-safe."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.support.agent import NOMINAL

from joulegate.pipelines.gate_decision import GateDecision, Source
from joulegate.pipelines.gate_fallback import Fallback
from joulegate.pipelines.gate_wire import AnswerFault, Heard, read_decision, read_recommendation


def heard(received_s: float = 0.0, **tiers: dict[str, Any]) -> Heard:
    """NOMINAL as received, with members of tiers changed."""
    body = deepcopy(NOMINAL)
    for name, members in tiers.items():
        body["tiers"][name] |= members
    return read_recommendation(json.dumps(body).encode(), received_s)


def asked(fallback: Fallback, tier: str | None, *times_s: float, cost: float = 1.0) -> list[GateDecision]:
    """One decision at each time."""
    return [fallback.decide(tier, cost, now_s) for now_s in times_s]


def admitted(decisions: list[GateDecision]) -> int:
    """How many may run."""
    return sum(decision.allow for decision in decisions)


def test_the_last_recommendation_holds_until_its_time_to_live():
    """Within ttl_s of receipt a tier gets its burst and rate, and the answer names the decision it rests on."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard())
    first = asked(fallback, "free", *[1.0] * 5)
    assert admitted(first) == 2
    assert first[-1].source is Source.RECOMMENDATION
    assert first[-1].decision_id == "d1"
    assert first[-1].reason == "rate"
    assert first[-1].retry_after_s == pytest.approx(2.0)
    assert admitted(asked(fallback, "free", 3.0, 3.0)) == 1
    assert asked(fallback, "free", 9.9)[0].source is Source.RECOMMENDATION
    assert asked(fallback, "free", 10.1)[0].source is Source.FAIL_SAFE


def test_a_tier_without_limit_is_open_and_others_wait():
    """A rate of null admits everything; reject and defer admit nothing and say why."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard(plus={"action": "reject", "max_images_per_minute": 0.0}, free={"action": "defer"}))
    assert admitted(asked(fallback, "pro", *[0.0] * 100)) == 100
    assert [asked(fallback, name, 0.0)[0].reason for name in ("plus", "free")] == ["capacity", "deferred"]
    assert asked(fallback, "free", 0.0)[0].retry_after_s == 20.0


def test_paid_stays_open_and_the_last_tier_is_held_to_the_floor():
    """After the time to live, 0.25 of 30 units a minute in the last tier, one at a time; the others are open."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard())
    seconds = [100.0 + second for second in range(240)]
    assert admitted(asked(fallback, "free", *seconds)) == 1 + 239 // 8
    assert admitted(asked(fallback, "pro", *seconds)) == admitted(asked(fallback, "plus", *seconds)) == 240
    denied = asked(fallback, "free", 339.5)[0]
    assert (denied.reason, denied.source, denied.decision_id) == ("stale", Source.FAIL_SAFE, None)
    assert 1.0 <= denied.retry_after_s <= 60.0


def test_a_last_tier_without_limit_is_sampled():
    """Where the last recommendation had no rate, the floor's share of what is asked for is admitted, evenly."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard(free={"action": "admit", "max_images_per_minute": None}))
    decisions = asked(fallback, "free", *[50.0] * 100)
    assert admitted(decisions) == 25
    assert admitted(decisions[:50]) in {12, 13}


def test_a_tier_that_got_nothing_gets_no_floor():
    """Losing the agent never opens what its last recommendation had closed."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard(free={"action": "reject", "max_images_per_minute": None}))
    assert admitted(asked(fallback, "free", *[float(second) for second in range(20, 400)])) == 0


def test_without_any_recommendation():
    """Before the first one, pro and plus are open and everything else shares floor_per_minute."""
    fallback = Fallback(None, 6.0, 1.0)
    seconds = [float(second) for second in range(60)]
    assert admitted(asked(fallback, "pro", *seconds)) == 60
    both = asked(fallback, "free", *seconds) + asked(fallback, "unheard-of", 59.5) + asked(fallback, None, 59.6)
    assert admitted(both) == 6


def test_paid_open_names_the_open_tiers():
    """With paid_open given, no other tier is open, whatever its place."""
    fallback = Fallback(["free"], 0.0, 1.0)
    assert admitted(asked(fallback, "free", *[0.0] * 10)) == 10
    assert admitted(asked(fallback, "pro", *[0.0] * 10)) == 0
    fallback.hear(heard())
    assert admitted(asked(fallback, "free", *[20.0] * 10)) == 10
    assert admitted(asked(fallback, "plus", *[20.0] * 10)) == 1


def test_an_unknown_tier_is_the_last():
    """What the recommendation does not name counts as its last tier, in the same bucket."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard())
    decisions = asked(fallback, "gold", 0.0) + asked(fallback, None, 0.0) + asked(fallback, "free", 0.0)
    assert [decision.tier for decision in decisions] == ["free"] * 3
    assert admitted(decisions) == 2


def test_a_share_of_the_host():
    """A process with a fourth of the host gets a fourth of the rate and of the burst, but at least one unit."""
    whole, fourth = Fallback(None, 6.0, 1.0), Fallback(None, 6.0, 0.25)
    for fallback in (whole, fourth):
        fallback.hear(heard(free={"burst": 8.0}))
    times_s = [0.0] * 10 + [second / 2 for second in range(1, 17)]
    assert admitted(asked(whole, "free", *times_s)) == 8 + 4
    assert admitted(asked(fourth, "free", *times_s)) == 2 + 1


def test_the_same_decision_again_is_no_newer():
    """An agent whose adviser stands still repeats itself: the time to live runs from the first receipt."""
    fallback = Fallback(None, 6.0, 1.0)
    fallback.hear(heard(0.0))
    fallback.hear(heard(8.0))
    assert asked(fallback, "pro", 10.5)[0].source is Source.FAIL_SAFE


def test_buckets_outlive_recommendations():
    """A newer recommendation hands out no new burst."""
    fallback = Fallback(None, 6.0, 1.0)
    for _ in range(5):
        fallback.hear(heard())
        asked(fallback, "free", *[0.0] * 3)
    assert admitted(asked(fallback, "free", 0.0)) == 0


@given(
    st.lists(st.tuples(st.floats(0.0, 30.0), st.sampled_from(["free", "x"]), st.floats(0.1, 5.0)), max_size=60),
    st.booleans(),
)
def test_the_floor_is_never_exceeded(asks: list[tuple[float, str, float]], known: bool):
    """Over any time T, whatever is asked in whatever order, no more than rate x T + the largest cost is admitted."""
    fallback = Fallback(None, 7.5, 1.0)
    if known:
        fallback.hear(heard())
    now_s, units, first_s = 100.0, 0.0, None
    for pause_s, tier, cost in asks:
        now_s += pause_s
        if fallback.decide(tier, cost, now_s).allow:
            first_s = now_s if first_s is None else first_s
            units += cost
    if first_s is not None:
        assert units <= 7.5 / 60.0 * (now_s - first_s) + max(1.0, *(cost for _, _, cost in asks)) + 1e-6


BROKEN = {
    "no object": b"[]",
    "no tiers": b"{}",
    "deep": b"[" * 100_000,
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_body_that_is_no_recommendation(body: bytes):
    """What cannot be read is one line, whatever it is."""
    with pytest.raises(AnswerFault) as caught:
        read_recommendation(body, 0.0)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(AnswerFault):
        read_decision(body, 1.0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("ttl_s",), None),
        (("ttl_s",), -1),
        (("ttl_s",), "10"),
        (("ttl_s",), True),
        (("poll_after_s",), float("inf")),
        (("tiers",), {}),
        (("tiers",), {f"t{number}": NOMINAL["tiers"]["free"] for number in range(65)}),
        (("tiers", "free"), None),
        (("tiers", "free", "action"), "maybe"),
        (("tiers", "free", "max_images_per_minute"), float("nan")),
        (("tiers", "free", "max_images_per_minute"), -5),
        (("tiers", "free", "burst"), None),
        (("tiers", "free", "retry_after_s"), []),
        (("fail_safe",), None),
        (("fail_safe", "floor"), 3),
        (("fail_safe", "floor", "admit_fraction"), None),
    ],
)
def test_a_recommendation_with_a_wrong_member_is_refused_whole(path: tuple[str, ...], value: object):
    """A member that is missing, of the wrong kind, not finite or negative: the whole is refused, never half used."""
    body = deepcopy(NOMINAL)
    place = body
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(AnswerFault):
        read_recommendation(json.dumps(body).encode(), 0.0)


DECISION = {
    "allow": False,
    "tier": "free",
    "reason": "quota",
    "retry_after_s": 60.0,
    "remaining": 0,
    "decision_id": "d",
}


def test_words_and_ids_of_a_newer_agent():
    """An unknown reason becomes capacity, contradiction goes by allow, an id that fits no header is dropped."""
    read = read_decision(json.dumps(DECISION | {"reason": "moon_phase", "decision_id": "a\r\nb"}).encode(), 1.0)
    assert (read.allow, read.reason, read.decision_id) == (False, "capacity", None)
    assert read_decision(json.dumps(DECISION | {"allow": True}).encode(), 1.0).reason == "admitted"
    assert read_decision(json.dumps(DECISION | {"retry_after_s": 1e12}).encode(), 1.0).retry_after_s == 86_400.0
    with pytest.raises(AnswerFault):
        read_decision(json.dumps(DECISION | {"retry_after_s": float("nan")}).encode(), 1.0)

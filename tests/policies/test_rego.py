"""The Rego samples over everything that an agent may answer or fail to answer."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from tests.policies.support.agent import NOMINAL
from tests.policies.support.rego import DECIDE, NO_ANSWER, Policies, decide, sent

PAID_OPEN = {"allow": True, "reason": "admitted", "source": "fail_safe", "fraction": 1}
FLOOR = {"reason": "stale", "source": "fail_safe", "fraction": 0.25}


def body(**tiers: dict[str, Any]) -> dict[str, Any]:
    """NOMINAL with members of tiers changed."""
    changed = deepcopy(NOMINAL)
    for name, members in tiers.items():
        changed["tiers"][name] |= members
    return changed


def part(decision: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The members of ``decision`` that ``like`` has."""
    return {name: decision[name] for name in like}


@pytest.mark.parametrize(
    ("bucket", "allow"), [(0, True), (0.3999, True), (0.4, False), (0.4001, False), (0.9999, False)]
)
def test_a_limited_tier_gets_its_fraction(bucket: float, allow: bool):
    """A request whose place is below the tier's admit_fraction runs, one at it or above is told when to come back."""
    decision = decide({"tier": "free", "bucket": bucket}, answer=sent(NOMINAL))
    assert decision == {
        "allow": allow,
        "reason": "admitted" if allow else "rate",
        "retry_after_s": 0 if allow else 20,
        "tier": "free",
        "fraction": 0.4,
        "source": "recommendation",
        "decision_id": "d1",
    }


@pytest.mark.parametrize("bucket", [0, 0.5, 0.9999, 1, None, -1, "0", float(10**9)])
def test_an_open_tier_admits_everything(bucket: object):
    """With an admit_fraction of 1, also a request without a usable place runs."""
    assert decide({"tier": "pro", "bucket": bucket}, answer=sent(NOMINAL))["allow"] is True


@pytest.mark.parametrize("bucket", [1, -0.1, None, "0", True, [0]])
def test_a_place_that_is_none_comes_last(bucket: object):
    """A place outside [0, 1) or of the wrong kind never makes a request luckier."""
    assert decide({"tier": "free", "bucket": bucket}, answer=sent(NOMINAL))["allow"] is False


def test_the_hash_of_a_request_spreads_evenly():
    """Without a place the hash of the request's id gives one: the same for the same id, and 40 in 100 run."""
    policies = Policies({"answer": sent(NOMINAL)})
    asked = [policies.decide({"tier": "free", "request_id": f"r{n}"})["allow"] for n in range(100)]
    assert 25 <= sum(asked) <= 55
    assert [policies.decide({"tier": "free", "request_id": f"r{n}"})["allow"] for n in range(20)] == asked[:20]


@pytest.mark.parametrize(
    ("action", "reason"), [("reject", "capacity"), ("defer", "deferred"), ("limit", "admitted"), ("admit", "admitted")]
)
def test_actions(action: str, reason: str):
    """Reject and defer let nothing run, whatever the fraction says."""
    decision = decide({"tier": "free", "bucket": 0}, answer=sent(body(free={"action": action})))
    assert (decision["allow"], decision["reason"]) == (reason == "admitted", reason)


@pytest.mark.parametrize("tier", ["gold", "", None, 7])
def test_an_unknown_tier_is_the_last(tier: object):
    """A tier that the recommendation does not name is treated as the last one, and the answer says so."""
    for bucket, allow in ((0.39, True), (0.41, False)):
        decision = decide({"tier": tier, "bucket": bucket}, answer=sent(NOMINAL))
        assert (decision["allow"], decision["tier"], decision["fraction"]) == (allow, "free", 0.4)


@pytest.mark.parametrize("age_s", [0, 9, 10])
def test_an_answer_within_its_time_to_live(age_s: int):
    """Up to ttl_s after it was sent, a recommendation holds."""
    assert decide({"tier": "free", "bucket": 0.3}, answer=sent(NOMINAL, age_s=age_s))["source"] == "recommendation"


@pytest.mark.parametrize("age_s", [11, 3600, 86_400 * 40, -11, -86_400])
def test_a_stale_answer_is_no_answer(age_s: int):
    """After ttl_s, or with a clock that is off by more, paid is open and free is held to the floor."""
    answer = sent(NOMINAL, age_s=age_s)
    assert part(decide({"tier": "plus", "bucket": 0.99}, answer=answer), PAID_OPEN) == PAID_OPEN
    assert part(decide({"tier": "free", "bucket": 0.26}, answer=answer), FLOOR) == FLOOR
    assert decide({"tier": "free", "bucket": 0.24}, answer=answer)["allow"] is True


def test_stale_never_opens_what_was_closed():
    """The floor is a bound on what the last answer gave, not a gift."""
    tight = sent(body(free={"admit_fraction": 0.05}), age_s=60)
    assert decide({"tier": "free", "bucket": 0.06}, answer=tight)["allow"] is False
    assert decide({"tier": "free", "bucket": 0.04}, answer=tight)["allow"] is True


BROKEN = {
    "no network": NO_ANSWER,
    "500": sent(NOMINAL, status=500),
    "503 before the first sample": sent({"status": 503}, status=503),
    "no body": {"status_code": 200, "headers": {}},
    "text": sent("certainly"),
    "null": sent(None),
    "list": sent([NOMINAL]),
    "no tiers": sent({}),
    "tiers of the wrong kind": sent(NOMINAL | {"tiers": ["pro"]}),
    "no time to live": sent({name: value for name, value in NOMINAL.items() if name != "ttl_s"}),
    "text as time to live": sent(NOMINAL | {"ttl_s": "10"}),
    "no date": {"status_code": 200, "headers": {}, "body": NOMINAL},
    "nonsense as date": {"status_code": 200, "headers": {"date": ["soon"]}, "body": NOMINAL},
    "a fraction above 1": sent(body(free={"admit_fraction": 7}, pro={"admit_fraction": 7})),
    "a negative fraction": sent(body(free={"admit_fraction": -1}, pro={"admit_fraction": -1})),
    "text as fraction": sent(body(free={"admit_fraction": "1"}, pro={"admit_fraction": "1"})),
    "an unknown action": sent(body(free={"action": "open"}, pro={"action": "open"})),
    "no tier of ours": sent(NOMINAL | {"tiers": {"gold": NOMINAL["tiers"]["pro"]}}),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_answer_is_no_answer(answer: dict[str, Any]):
    """Missing, malformed or nonsensical: free is held to the floor, and there is always a decision."""
    denied = decide({"tier": "free", "bucket": 0.26}, answer=answer)
    assert part(denied, FLOOR) == FLOOR
    assert (denied["allow"], denied["retry_after_s"]) == (False, 20)
    assert decide({"tier": "free", "bucket": 0.24}, answer=answer)["allow"] is True


@pytest.mark.parametrize("name", ["no network", "500", "no body", "text", "no date", "no time to live"])
def test_paid_is_open_without_an_answer(name: str):
    """A monitoring fault does not turn paying callers away."""
    for tier in ("pro", "plus"):
        assert part(decide({"tier": tier, "bucket": 0.99}, answer=BROKEN[name]), PAID_OPEN) == PAID_OPEN


@pytest.mark.parametrize("question", [{}, None, [], "free"])
def test_a_question_without_sense(question: object):
    """Input without a tier or a place is the last tier's, and comes last."""
    decision = decide(question, answer=sent(NOMINAL))
    assert (decision["allow"], decision["tier"], decision["reason"]) == (False, "free", "rate")
    assert decide(question, answer=NO_ANSWER)["allow"] is False


def test_settings():
    """Tiers with other names and another floor are set as data, not in the policy."""
    settings = {"paid": ["gold"], "last": "basic", "floor_fraction": 0.5}
    tiers = {"gold": NOMINAL["tiers"]["pro"], "basic": NOMINAL["tiers"]["free"]}
    answer = sent(NOMINAL | {"tiers": tiers})
    assert decide({"tier": "pro", "bucket": 0.41}, answer=answer, settings=settings)["tier"] == "basic"
    assert decide({"tier": "gold", "bucket": 0.9}, answer=NO_ANSWER, settings=settings)["allow"] is True
    assert decide({"tier": "pro", "bucket": 0.51}, answer=NO_ANSWER, settings=settings)["allow"] is False
    assert decide({"tier": "basic", "bucket": 0.49}, answer=NO_ANSWER, settings=settings)["allow"] is True


DECIDED = {
    "allow": False,
    "tier": "free",
    "reason": "quota",
    "detail": "",
    "retry_after_s": 3600.0,
    "decision_id": "d1",
}


def test_the_agents_decision_is_passed_on():
    """decide.rego answers what the agent decided, whatever a recommendation would say."""
    decision = decide({"tier": "pro"}, query=DECIDE, decided=sent(DECIDED), answer=sent(NOMINAL))
    assert decision == {
        "allow": False,
        "reason": "quota",
        "retry_after_s": 3600,
        "tier": "free",
        "source": "agent",
        "decision_id": "d1",
    }
    yes = sent(DECIDED | {"allow": True, "reason": "admitted", "retry_after_s": 0})
    assert decide({"tier": "free"}, query=DECIDE, decided=yes, answer=NO_ANSWER)["allow"] is True


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question_is_a_no(status: int):
    """What the agent cannot use does not fall back: it would open a paid tier to nonsense."""
    refused = sent({"status": status}, status=status)
    decision = decide({"tier": "pro", "cost": -1}, query=DECIDE, decided=refused, answer=sent(NOMINAL))
    assert (decision["allow"], decision["reason"]) == (False, "bad_request")


@pytest.mark.parametrize(
    "decided", [NO_ANSWER, sent({}, status=503), sent("yes"), sent({"allow": "yes"}), sent(None), {"status_code": 200}]
)
def test_without_a_decision_the_recommendation_rules(decided: dict[str, Any]):
    """No usable decision: the recommendation's fraction, and without that the fail-safe."""
    assert decide({"tier": "free", "bucket": 0.3}, query=DECIDE, decided=decided, answer=sent(NOMINAL))["allow"] is True
    assert (
        decide({"tier": "free", "bucket": 0.5}, query=DECIDE, decided=decided, answer=sent(NOMINAL))["reason"] == "rate"
    )
    assert decide({"tier": "pro"}, query=DECIDE, decided=decided, answer=NO_ANSWER)["allow"] is True
    assert decide({"tier": "free", "bucket": 0.3}, query=DECIDE, decided=decided, answer=NO_ANSWER)["reason"] == "stale"

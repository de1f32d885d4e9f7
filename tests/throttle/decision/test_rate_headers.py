"""The RateLimit fields, Retry-After and the problem of a decision."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.throttle.decision.structured_fields import parse_list

from joulegate.throttle.decision import Decision, RateWindow
from joulegate.throttle.rate_headers import problem_members, rate_headers

FREE = RateWindow("free", q=34, window_s=60, remaining=5, t_s=9)
DAY = RateWindow("free-day", q=3, window_s=86_400, remaining=0, t_s=40_000)
windows = st.builds(RateWindow, st.text(max_size=20), st.integers(0), st.integers(0), st.integers(-5), st.integers(-5))


def decision(
    *,
    allow: bool = False,
    reason: str = "rate",
    retry_after_s: float = 2.0,
    window: RateWindow | None = FREE,
    quota: RateWindow | None = None,
    decision_id: str | None = "d1",
) -> Decision:
    """A decision with these figures."""
    detail = "tier free may start 34 units a minute"
    return Decision(allow, "free", reason, detail, retry_after_s, 1.0, decision_id, window, quota, False, 1.0)


def test_the_fields_of_a_yes():
    """A yes shows both policies and both windows, the tier's first, and no Retry-After."""
    fields = rate_headers(decision(allow=True, reason="admitted", quota=DAY), "acme")
    assert fields == [
        ("RateLimit-Policy", '"free";q=34;w=60, "free-day";q=3;w=86400'),
        ("RateLimit", '"free";r=5;t=9, "free-day";r=0;t=40000'),
    ]


def test_no_policy_no_fields():
    """A tier without limit and quota has no fields: an empty list is not a field."""
    assert rate_headers(decision(allow=True, reason="admitted", window=None), None) == []


def test_a_bad_request_is_not_told_to_come_back():
    """No wait makes a bad request good: no Retry-After, and a problem that blames no policy."""
    no = decision(reason="bad_request", window=None, retry_after_s=0.0)
    assert rate_headers(no, "acme") == []
    problem = problem_members(no, 400)
    assert (problem["type"], problem["status"]) == ("about:blank", 400)
    assert "violated-policies" not in problem


def retry_after_s(no: Decision, tenant: str | None) -> int:
    """The Retry-After of a no."""
    return int(dict(rate_headers(no, tenant))["Retry-After"])


@given(st.floats(0.0, 1e6), st.integers(0, 100_000), st.one_of(st.none(), st.text(max_size=20)), st.text(max_size=8))
def test_retry_after_lies_at_most_a_fifth_after_the_window(
    wait_s: float, t_s: int, tenant: str | None, decision_id: str
):
    """Retry-After is whole, at least 1, not before the wait or the violated window is over, and at most 20 % later."""
    window = RateWindow("free", 34, 60, 0, t_s)
    no = decision(retry_after_s=wait_s, window=window, quota=DAY, decision_id=decision_id)
    least_s = max(1, wait_s, t_s)
    assert least_s <= retry_after_s(no, tenant) <= (least_s + 1) * 1.2
    assert retry_after_s(no, tenant) == retry_after_s(no, tenant)


def test_the_violated_policy_sets_the_wait():
    """A used-up quota sends the tenant to the end of its window, an empty bucket only to the end of the bucket's."""
    assert retry_after_s(decision(reason="quota", quota=DAY), "acme") >= 40_000
    assert retry_after_s(decision(reason="rate", quota=DAY), "acme") < 20


def test_tenants_come_back_at_different_times():
    """The jitter spreads tenants over the fifth, evenly enough, and a new decision deals anew."""
    waits = [retry_after_s(decision(retry_after_s=100.0), f"tenant-{n}") for n in range(2100)]
    assert set(waits) == set(range(100, 121))
    assert max(waits.count(wait_s) for wait_s in range(100, 121)) < 2 * min(waits.count(w) for w in range(100, 121))
    assert waits[:99] != [
        retry_after_s(decision(retry_after_s=100.0, decision_id="d2"), f"tenant-{n}") for n in range(99)
    ]


def test_the_jitter_is_the_same_in_every_process():
    """Known values: the jitter is a hash of tenant and decision, not of the process."""
    known = [retry_after_s(decision(retry_after_s=1000.0), tenant) for tenant in ("acme", "bücher", None)]
    assert known == [1013, 1141, 1186]


@given(st.lists(windows, min_size=1, max_size=2))
def test_every_field_is_a_list_of_strings_with_integers(pair: list[RateWindow]):
    """Whatever tiers are called and numbers grow to, fields parse as RFC 9651, and names come back unchanged."""
    yes = decision(allow=True, reason="admitted", window=pair[0], quota=pair[-1] if len(pair) > 1 else None)
    fields = dict(rate_headers(yes, None))
    policies, limits = parse_list(fields["RateLimit-Policy"]), parse_list(fields["RateLimit"])
    assert [unquote(name) for name, _ in policies] == [window.policy for window in pair]
    assert [name for name, _ in limits] == [name for name, _ in policies]
    assert all(set(parameters) == {"q", "w"} and parameters["w"] > 0 <= parameters["q"] for _, parameters in policies)
    assert all(set(parameters) == {"r", "t"} and min(parameters.values()) >= 0 for _, parameters in limits)
    assert all(field.isascii() for field in fields.values())


@pytest.mark.parametrize(
    ("tier", "shown"),
    [
        ("frei", '"frei"'),
        ("für alle", '"f%C3%BCr alle"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("50%", '"50%25"'),
        ("\r\nX: y", '"%0D%0AX: y"'),
    ],
)
def test_names_are_escaped(tier: str, shown: str):
    """Quotes and backslashes get a backslash; what is not printable ASCII is percent-encoded: no line can be split."""
    fields = dict(rate_headers(decision(window=RateWindow(tier, 1, 60, 1, 60)), None))
    assert fields["RateLimit"] == f"{shown};r=1;t=60"


@pytest.mark.parametrize(
    ("reason", "kind", "violated"),
    [
        ("quota", "quota-exceeded", ["free-day"]),
        ("rate", "temporary-reduced-capacity", ["free"]),
        ("capacity", "temporary-reduced-capacity", ["free"]),
        ("deferred", "temporary-reduced-capacity", ["free"]),
        ("stale", "temporary-reduced-capacity", ["free"]),
    ],
)
def test_the_problem_names_type_and_policies(reason: str, kind: str, violated: list[str]):
    """A no is a problem of the draft's types, which names the policies violated and the decision behind it."""
    problem = problem_members(decision(reason=reason, quota=DAY))
    assert problem["type"] == f"https://iana.org/assignments/http-problem-types#{kind}"
    assert (problem["violated-policies"], problem["status"], problem["decision_id"]) == (violated, 429, "d1")
    assert problem["title"]
    assert problem["detail"]
    assert json.loads(json.dumps(problem, allow_nan=False)) == problem


def test_a_no_of_the_hosts_bucket_blames_the_tier():
    """Where the host's bucket refused there is no window to show, and the tier's name stands for the policy."""
    assert problem_members(decision(window=None), 503)["violated-policies"] == ["free"]

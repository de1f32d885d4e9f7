"""Tests of the decision as JSON, of queue reports, and of the audit trail."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.http_throttle.stand_ins import PROBLEM, REFUSED, Queues, ThrottleWorld, decision, raw

from joulegate.http.throttle_ports import Ask, TrailUnreadable

DECIDE = "/v1/throttle/decide"
DECISIONS = "/v1/throttle/decisions"
QUEUE = "/v1/throttle/queue"
AS_JSON = {"content-type": "application/json"}


async def test_decide_is_200_for_yes_and_no(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """A decision is 200 with its members, allowed or not, and may not be stored."""
    yes = await client.post(DECIDE, json={"tier": "free", "tenant": "acme", "cost": 2})
    world.table.free = REFUSED
    no = await client.post(DECIDE, json={"tier": "free"})
    assert (yes.status_code, no.status_code) == (200, 200)
    assert yes.json() == {
        "allow": True, "tier": "free", "reason": "admitted", "detail": decision().detail, "retry_after_s": 0.0,
        "remaining": 2.0, "decision_id": "d1", "unknown_tier": False,
    }  # fmt: skip
    assert no.json()["allow"] is False
    assert no.json()["reason"] == "rate"
    assert no.headers["cache-control"] == "no-store"
    assert world.table.asks == [Ask("free", "acme", 2.0), Ask("free", None, 1.0)]


async def test_decide_takes_what_may_be_left_out(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """Tier and tenant may be null or absent, and an unknown tier is told as such."""
    answers = [await client.post(DECIDE, json=body) for body in ({}, {"tier": None, "tenant": None}, {"tier": "gold"})]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["unknown_tier"] for answer in answers] == [True] * 3
    assert [ask.tier for ask in world.table.asks] == [None, None, "gold"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"\xff", 400), (b'{"cost": NaN', 400), (b"[]", 422), (b"null", 422), (b'"x"', 422),
        (b'{"cost": NaN}', 422), (b'{"cost": 1e999}', 422), (b'{"cost": "1"}', 422), (b'{"cost": true}', 422),
        (b'{"cost": 0}', 422), (b'{"cost": -1}', 422), (b'{"cost": 1001}', 422), (b'{"cost": null}', 422),
        (b'{"costs": 4}', 422), (b'{"tier": 1}', 422), (b'{"tenant": ["a"]}', 422), (b"[" * 60_000, 400),
        (b'{"tenant": "' + b"t" * 300 + b'"}', 422), (b'{"tenant": "' + b"t" * 70_000 + b'"}', 413),
        (b'{"' + b"k" * 3000 + b'": 1}', 422),
    ],
)  # fmt: skip
async def test_a_body_without_sense_is_a_problem(
    world: ThrottleWorld, client: httpx.AsyncClient, body: bytes, status: int
) -> None:
    """A body that is malformed, mistyped or out of bounds is a short problem, and nobody is asked."""
    answer = await client.post(DECIDE, content=body, headers=AS_JSON)
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    assert len(answer.content) < 1000
    assert world.table.asks == []


@pytest.mark.parametrize("path", [DECIDE, QUEUE])
async def test_bodies_are_json_by_their_type(client: httpx.AsyncClient, path: str) -> None:
    """A body of another type, charset or encoding is 415, so that no web page can post it unasked."""
    method = "PUT" if path == QUEUE else "POST"
    for headers in (
        {"content-type": "text/plain"},
        {},
        {"content-type": "application/json; charset=latin-1"},
        {**AS_JSON, "content-encoding": "gzip"},
    ):
        answer = await client.request(method, path, content=b"{}", headers=headers)
        assert answer.status_code == 415
        assert answer.headers["content-type"] == PROBLEM
    assert (await client.request(method, path, content=b"{}", headers=AS_JSON)).is_success


@pytest.mark.parametrize("path", [DECIDE, QUEUE])
async def test_other_methods_and_queries_are_problems(client: httpx.AsyncClient, path: str) -> None:
    """Another method is 405 with the one there is, and an unknown parameter 422."""
    method = "PUT" if path == QUEUE else "POST"
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, method)
    answer = await client.request(method, f"{path}?cost=0", content=b"{}", headers=AS_JSON)
    assert answer.status_code == 422


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 4096


@pytest.mark.parametrize("path", [DECIDE, QUEUE])
async def test_endless_body_is_cut_off(client: httpx.AsyncClient, path: str) -> None:
    """A body without an end is refused where it grows too large."""
    method = "PUT" if path == QUEUE else "POST"
    assert (await client.request(method, path, content=_endless(), headers=AS_JSON)).status_code == 413


@pytest.mark.server
async def test_too_large_body_is_refused_before_it_is_sent(world: ThrottleWorld) -> None:
    """A post that announces too much is answered at once, and the connection is closed."""
    head = b"POST /v1/throttle/decide HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with world.running() as base:
        status, headers, _ = await raw(base, head + b"Content-Length: 99999999\r\n\r\n{")
    assert status.startswith("HTTP/1.1 413")
    assert headers["connection"] == "close"


_SCALARS = st.none() | st.booleans() | st.floats() | st.text()


@settings(max_examples=60)
@given(st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
async def test_any_json_is_a_decision_or_a_problem(value: object) -> None:
    """Whatever JSON is posted, the answer is a decision or a problem, never an error."""
    body = json.dumps(value).encode("utf-8", "surrogatepass")
    for method, path in (("POST", DECIDE), ("PUT", QUEUE)):
        answer = await _SERVICE.request(method, path, content=body, headers=AS_JSON)
        assert answer.status_code in {200, 204, 400, 422}


async def test_queue_reports_reach_the_adviser(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """A report is 204 without a body, and arrives as it was sent."""
    answer = await client.put(QUEUE, json={"free": 10, "pro": 0, "größe": 2.5})
    assert answer.status_code == 204
    assert answer.content == b""
    assert world.queues.reports == [{"free": 10.0, "pro": 0.0, "größe": 2.5}]
    await client.put(QUEUE, json={f"tier-{number}": number for number in range(64)})
    assert len(world.queues.reports[1]) == 64


@pytest.mark.parametrize(
    "body",
    [b'{"free": -1}', b'{"free": NaN}', b'{"free": Infinity}', b'{"free": 1000000001}', b'{"free": "1"}',
     b'{"free": null}',
     b'{"free": true}', b"[]", b"1", b'{"": 1}', json.dumps({f"t{n}": 1 for n in range(65)}).encode(),
     json.dumps({"t" * 257: 1}).encode()],
)  # fmt: skip
async def test_bad_queue_report_changes_nothing(world: ThrottleWorld, client: httpx.AsyncClient, body: bytes) -> None:
    """A report with one bad number, too many names or a name too long is refused whole."""
    answer = await client.put(QUEUE, content=body, headers=AS_JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    assert world.queues.reports == []


async def test_control_token_guards_reports(world: ThrottleWorld) -> None:
    """Where a token is configured, a report without it is a 401 problem that does not show it; reading needs none."""
    async with world.client(control_token="s3cret") as client:
        for given_token in ("Bearer s3cre", "Basic s3cret", "s3cret", "Bearer", "Bearer \u00e9", ""):
            headers = {"authorization": given_token.encode("latin-1")}
            answer = await client.put(QUEUE, json={"free": 1}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
        assert world.queues.reports == []
        assert (
            await client.put(QUEUE, json={"free": 1}, headers={"authorization": "bearer s3cret"})
        ).status_code == 204
        assert (await client.get("/v1/throttle")).status_code == 200


async def test_trail_is_paged(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """Pages of the trail join to the whole, oldest first, and the last has no next."""
    world.trail.items += [{"decision_id": f"d{number}", "inputs": {"t": number}} for number in range(7)]
    items, since = [], ""
    for _ in range(3):
        body = (await client.get(f"{DECISIONS}?limit=3{since}")).json()
        items += body["items"]
        since = f"&since={body['next']}"
    assert items == world.trail.items
    assert body["next"] is None


async def test_one_record_by_its_id(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """A record is found by its decision's id; one that is not there is a 404 problem that shows little of the id."""
    world.trail.items.append({"decision_id": "d1", "value": float("nan")})
    answer = await client.get(f"{DECISIONS}/d1")
    assert (answer.status_code, answer.json()) == (200, {"decision_id": "d1", "value": None})
    missing = await client.get(f"{DECISIONS}/{'x' * 250}")
    assert missing.status_code == 404
    assert missing.headers["content-type"] == PROBLEM
    assert "x" * 101 not in missing.text


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "since=nowhere", "from=1", "since=" + "x" * 600])
async def test_bad_trail_query_is_422(client: httpx.AsyncClient, query: str) -> None:
    """A limit out of bounds, a place that the trail does not know or an unknown parameter is a 422 problem."""
    answer = await client.get(f"{DECISIONS}?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM


async def test_unreadable_trail_is_503(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """A trail that cannot be read is a 503 problem with its reason; the recommendation is served all the same."""
    world.trail.fault = TrailUnreadable("the trail cannot be read: disk error; look at the disk")
    for path in (DECISIONS, f"{DECISIONS}/d1"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert "disk error" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
    assert (await client.get("/v1/throttle")).status_code == 200


def _service() -> httpx.AsyncClient:
    from typing import Any, cast

    world = ThrottleWorld(cast("Any", None), cast("Any", None), queues=Queues())
    world.board.publish("d1")
    return world.client()


_SERVICE = _service()

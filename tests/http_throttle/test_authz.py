"""Tests of the answers to gateways: what is let through, what is refused, and what nobody may talk their way past."""

import json
import string

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.http_throttle.stand_ins import PROBLEM, REFUSED, ThrottleWorld, client_of, decision, raw

from joulegate.http.throttle_authz import AskFault, Manner, ask_of, manner_of
from joulegate.http.throttle_ports import Ask
from joulegate.throttle.decision import RateWindow

AUTHZ = "/v1/throttle/authz"
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"]
CHUNKED = (
    b"POST /v1/throttle/authz/a?b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n"
)
NO_COSTS = ["nan", "-1", "0", "0.0", "text", "1e309", "1e3", "inf", "1,5", "0x1", "1 2", "1001", "9" * 400, "+1", ".5"]


@pytest.mark.parametrize("path", [AUTHZ, f"{AUTHZ}/", f"{AUTHZ}/images/generations", f"{AUTHZ}/v1/throttle"])
async def test_every_method_and_path_below_is_judged(world: ThrottleWorld, path: str) -> None:
    """Gateways send the client's own method and path; each is judged alike, with a yes and with a no."""
    async with world.client() as client:
        for told, status in ((decision(), 200), (REFUSED, 429)):
            world.table.free = told
            for method in METHODS:
                answer = await client.request(method, path, headers={"x-tier": "free"})
                assert answer.status_code == status, method
                assert (answer.content == b"") == (status == 200 or method == "HEAD")
    assert [ask.tier for ask in world.table.asks] == ["free"] * 2 * len(METHODS)


@pytest.mark.server
async def test_a_yes_has_the_tiers_numbers_in_its_head(served: httpx.AsyncClient) -> None:
    """200 has no body, the draft's fields, the decision behind it, and may not be stored."""
    answer = await served.get(AUTHZ, headers={"X-Tier": "free", "X-Tenant": "acme", "X-Cost": "2.5"})
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["content-length"] == "0"
    assert answer.headers["ratelimit-policy"] == '"free";q=34;w=60, "free-day";q=3;w=86400'
    assert answer.headers["ratelimit"] == '"free";r=2;t=4, "free-day";r=2;t=3600'
    assert answer.headers["x-throttle-decision"] == "d1"
    assert answer.headers["x-throttle-reason"] == "admitted"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "retry-after" not in answer.headers
    assert "x-throttle-would" not in answer.headers


@pytest.mark.server
async def test_a_no_says_when_and_why(world: ThrottleWorld, served: httpx.AsyncClient) -> None:
    """429 is a problem of the draft's type with the policy, the reason and a wait not shorter than the decision's."""
    world.table.free = REFUSED
    answer = await served.post(AUTHZ, headers={"X-Tier": "free"}, content=b"prompt")
    assert answer.status_code == 429
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-throttle-reason"] == "rate"
    assert int(answer.headers["retry-after"]) >= REFUSED.retry_after_s
    assert answer.headers["ratelimit"].startswith('"free";r=0;t=2')
    body = answer.json()
    assert body["status"] == 429
    assert body["type"].endswith("#temporary-reduced-capacity")
    assert body["violated-policies"] == ["free"]
    assert body["detail"] == REFUSED.detail


@pytest.mark.parametrize(("query", "status"), [("deny_status=403", 403), ("deny_status=503", 503), ("", 429)])
async def test_the_operator_chooses_the_status(world: ThrottleWorld, query: str, status: int) -> None:
    """``deny_status`` changes the status of a no, in its body too, and nothing of a yes."""
    async with world.client() as client:
        assert (await client.get(f"{AUTHZ}?{query}")).status_code == 200
        world.table.free = REFUSED
        answer = await client.get(f"{AUTHZ}?{query}")
    assert answer.status_code == answer.json()["status"] == status
    assert "retry-after" in answer.headers


async def test_the_configured_status_is_the_default(world: ThrottleWorld) -> None:
    """Where the query does not say, the configured status holds, for bad questions as well."""
    world.table.free = REFUSED
    async with world.client(deny_status=403) as client:
        assert (await client.get(AUTHZ)).status_code == 403
        assert (await client.get(f"{AUTHZ}/x?deny_status=429")).status_code == 403
        assert (await client.get(f"{AUTHZ}?deny_status=429")).status_code == 429
        assert (await client.get(AUTHZ, headers={"x-cost": "-1"})).status_code == 403


async def test_shadow_lets_through_and_counts_nothing(world: ThrottleWorld) -> None:
    """``mode=shadow`` is always 200, says what it would have done, and asks without taking; enforcing takes."""
    async with world.client() as client:
        yes = await client.get(f"{AUTHZ}?mode=shadow")
        world.table.free = REFUSED
        no = await client.get(f"{AUTHZ}?mode=shadow&deny_status=403")
        bad = await client.get(f"{AUTHZ}?mode=shadow", headers={"x-cost": "-1"})
        await client.get(f"{AUTHZ}?mode=enforce")
    assert [answer.status_code for answer in (yes, no, bad)] == [200, 200, 200]
    assert [answer.headers["x-throttle-would"] for answer in (yes, no, bad)] == ["allow", "deny", "deny"]
    assert bad.headers["x-throttle-reason"] == "bad_request"
    assert [ask.count for ask in world.table.asks] == [False, False, True]


@pytest.mark.parametrize("path", [f"{AUTHZ}/", f"{AUTHZ}/images", f"{AUTHZ}/%3f"])
async def test_a_client_cannot_turn_the_gate_off(world: ThrottleWorld, path: str) -> None:
    """Below the gate's own path the query is the client's: it changes nothing."""
    world.table.free = REFUSED
    async with world.client() as client:
        for query in ("mode=shadow", "deny_status=403", "a=1&mode=shadow", "mode=shadow&mode=shadow", "x"):
            assert (await client.get(f"{path}?{query}")).status_code == 429
    assert [ask.count for ask in world.table.asks] == [True] * 5


@pytest.mark.parametrize(
    "path", [f"{AUTHZ}%3Fmode=shadow", "/v1/throttle/authzz", "/v1/throttle/Authz", "//v1/throttle/authz"]
)
async def test_what_only_looks_like_the_gate_lets_nobody_through(world: ThrottleWorld, path: str) -> None:
    """A path that is not the gate's is a 404, which every gateway takes for a no."""
    async with world.client() as client:
        answer = await client.get(path)
    assert answer.status_code == 404
    assert world.table.asks == []


@pytest.mark.parametrize(
    "query",
    ["deny_status=200", "deny_status=", "deny_status=404", "mode=off", "mode=", "x=1", "mode=shadow&x=1",
     "deny_status=429&deny_status=503", "mode=shadow&mode=enforce", "mode=shadow&" + "x" * 300],
)  # fmt: skip
async def test_a_query_that_is_not_understood_refuses(world: ThrottleWorld, query: str) -> None:
    """A typing error in the gateway's configuration refuses and says so; it never turns the gate off."""
    async with world.client() as client:
        answer = await client.get(f"{AUTHZ}?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM
    assert world.table.asks == []


@pytest.mark.parametrize(("query", "status"), [("", 400), ("?deny_status=403", 403), ("?deny_status=503", 400)])
async def test_a_cost_that_is_none_refuses(world: ThrottleWorld, query: str, status: int) -> None:
    """A cost that is no number over 0 is refused before anybody is asked, with what nginx takes for a no if need be."""
    async with world.client() as client:
        for cost in NO_COSTS:
            answer = await client.get(AUTHZ + query, headers={"x-tier": "pro", "x-cost": cost})
            assert answer.status_code == answer.json()["status"] == status, cost
            assert answer.headers["content-type"] == PROBLEM
            assert answer.headers["x-throttle-reason"] == "bad_request"
            assert "X-Cost" in answer.json()["detail"]
            assert len(answer.content) < 500
    assert world.table.asks == []


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ([(b"x-tier", b"pro"), (b"x-tier", b"free")], "X-Tier"), ([(b"x-cost", b"4"), (b"x-cost", b"1")], "X-Cost"),
        ([(b"x-tenant", b"a"), (b"X-Tenant", b"b")], "X-Tenant"), ([(b"x-tier", b"\xff\xfe")], "UTF-8"),
        ([(b"x-tenant", b"\xc3")], "UTF-8"), ([(b"x-tenant", b"t" * 257)], "257"), ([(b"x-tier", b"t" * 1000)], "1000"),
    ],
)  # fmt: skip
async def test_headers_that_contradict_or_cannot_be_read_refuse(
    world: ThrottleWorld, headers: list[tuple[bytes, bytes]], word: str
) -> None:
    """Two different values of one header, bytes that are no text, or a name too long are refused, never guessed."""
    async with world.client() as client:
        for query, status in (("", 400), ("?deny_status=403", 403)):
            answer = await client.get(AUTHZ + query, headers=headers)
            assert answer.status_code == status
            assert word in answer.json()["detail"]
    assert world.table.asks == []


async def test_what_is_asked_is_what_was_sent(world: ThrottleWorld) -> None:
    """Tier, tenant and cost reach the decider as they were sent; an empty or absent header is none."""
    async with world.client() as client:
        await client.get(AUTHZ, headers=[(b"X-Tier", "größe".encode()), (b"X-Tenant", b" acme "), (b"X-Cost", b"0.25")])
        await client.get(AUTHZ, headers={"x-tier": "", "x-tenant": "", "x-cost": ""})
        await client.get(AUTHZ, headers={"x-forwarded-tier": "pro", "x-envoy-cost": "0", "x-forwarded-uri": "/?x"})
        await client.get(AUTHZ, headers=[(b"x-cost", b"2"), (b"x-cost", b"2"), (b"x-tier", b"pro, free")])
    assert world.table.asks == [
        Ask("größe", "acme", 0.25), Ask(None, None, 1.0), Ask(None, None, 1.0), Ask("pro, free", None, 2.0),
    ]  # fmt: skip


async def test_a_question_that_the_decider_refuses_is_a_bad_one(world: ThrottleWorld) -> None:
    """Where the decider finds the question unfit, the answer is that of a bad question."""
    world.table.free = decision(
        allow=False, reason="bad_request", detail="the cost is too high", window=None, quota=None
    )
    async with world.client() as client:
        assert (await client.get(AUTHZ)).status_code == 400
        answer = await client.get(f"{AUTHZ}?deny_status=403")
    assert answer.status_code == 403
    assert answer.json()["detail"] == "the cost is too high"


@pytest.mark.parametrize("allowed", [True, False])
async def test_an_answer_tells_the_tiers_own_numbers_only(world: ThrottleWorld, *, allowed: bool) -> None:
    """Nothing of the host, of another tier or of the hardware is in an answer to a gateway."""
    if not allowed:
        world.table.free = REFUSED
    async with world.client() as client:
        answer = await client.get(AUTHZ, headers={"x-tier": "free"})
    told = answer.text + str(answer.headers)
    for secret in ("174", "140", 'pro"', "GPU", "4520", "565", "thermal", "0.28", "constrained"):
        assert secret not in told


async def test_before_the_first_recommendation_the_decider_still_decides(empty: ThrottleWorld) -> None:
    """Without a recommendation the gate is neither open nor broken: the decider says, and no decision is named."""
    empty.table.free = decision(
        allow=False, reason="stale", decision_id=None, window=None, quota=None, retry_after_s=5.0
    )
    async with empty.client() as client:
        answer = await client.get(AUTHZ)
    assert answer.status_code == 429
    assert "x-throttle-decision" not in answer.headers
    assert int(answer.headers["retry-after"]) >= 5


async def test_a_policy_with_a_strange_name_is_escaped(world: ThrottleWorld) -> None:
    """A tier whose name no header can carry still gets its headers."""
    world.table.free = decision(tier="größe\n", window=RateWindow('größe\n"', 34, 60, 2, 4), quota=None)
    async with world.client() as client:
        answer = await client.get(AUTHZ)
    assert answer.status_code == 200
    assert answer.headers["ratelimit"].isascii()


async def test_fault_of_the_decider_is_no_permit(world: ThrottleWorld, caplog: pytest.LogCaptureFixture) -> None:
    """A decider that fails is a 500 problem without its text, for authz and decide, and each is counted once."""
    world.table.fault = RuntimeError("secret\nof the bucket")
    parts = world.parts()
    from joulegate.http.app import create_app

    transport = httpx.ASGITransport(create_app(parts), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        answers = [await client.get(AUTHZ), await client.post("/v1/throttle/decide", json={"tier": "free"})]
    assert [answer.status_code for answer in answers] == [500, 500]
    assert not any("secret" in answer.text for answer in answers)
    assert parts.faults.total == 2
    assert caplog.text.count("secret of the bucket") == 2
    assert "Traceback" not in caplog.text


@pytest.mark.server
async def test_a_tenant_of_a_megabyte_is_refused(world: ThrottleWorld) -> None:
    """A header of a megabyte is a 400 that shows nothing of it, and the server lives on."""
    async with world.running() as base:
        request = b"GET /v1/throttle/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Tenant: " + b"t" * (1 << 20)
        status, _, body = await raw(base, request + b"\r\n\r\n")
        assert status.startswith("HTTP/1.1 400")
        assert len(body) < 500
        async with client_of(base) as client:
            assert (await client.get(AUTHZ)).status_code == 200


@pytest.mark.server
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v1/throttle/authz HTTP/1.0\r\n\r\n", 200), (b"GET /v1/throttle HTTP/1.0\r\nhost: x\r\n\r\n", 200),
        (b"GET /v1/throttle HTTP/1.0\r\n\r\n", 200),
        (b"GET /v1/throttle/authz HTTP/1.1\r\nhost: x\r\nx-tier: pro\r\nX-TIER: b\r\nconnection: close\r\n\r\n", 400),
        (b"GET /v1/throttle/authz HTTP/1.1\r\nHOST: x\r\nX-COST: 1\r\nx-cost: 2\r\nCONNECTION: close\r\n\r\n", 400),
        (b"GET /v1/throttle/authz HTTP/1.1\r\nhost:x\r\nx-cost:\t2 \r\nx-cost:2\r\nconnection:close\r\n\r\n", 200),
        (CHUNKED, 200),
        (b"GET /v1/throttle/authz HTTP/1.1\r\nHost: x\r\nX-Tier: \xff\xfe\r\nConnection: close\r\n\r\n", 400),
        (b"GET /v1/throttle/authz?mode=\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    ],
)  # fmt: skip
async def test_odd_requests_byte_by_byte(world: ThrottleWorld, request_bytes: bytes, status: int) -> None:
    """HTTP/1.0, any case of names, doubled headers, chunks and bytes that are no text get their answer and an end."""
    async with world.running() as base:
        for _ in range(2):
            line, _, body = await raw(base, request_bytes)
            assert line.split(" ")[1] == str(status)
            assert b"Traceback" not in body


@pytest.mark.server
async def test_an_unread_body_does_not_spoil_the_connection(world: ThrottleWorld) -> None:
    """After a question with a body, on the same connection, the next question is understood."""
    ask = (
        b"POST /v1/throttle/authz HTTP/1.1\r\nHost: x\r\nX-Tier: pro\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000
    )
    last = b"GET /v1/throttle/authz HTTP/1.1\r\nHost: x\r\nX-Tier: free\r\nConnection: close\r\n\r\n"
    async with world.running() as base:
        status, _, rest = await raw(base, ask + last)
    assert status == "HTTP/1.1 200 OK"
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert [ask.tier for ask in world.table.asks] == ["pro", "free"]


@pytest.mark.server
@pytest.mark.parametrize("header", [b"Expect: 100-continue\r\nContent-Length: 5", b"Content-Length: 99999999"])
async def test_a_body_that_is_not_wanted_ends_the_connection(world: ThrottleWorld, header: bytes) -> None:
    """A huge body, or one that waits to be asked for, is not waited for: the answer comes, the connection ends."""
    async with world.running() as base:
        status, headers, _ = await raw(base, b"POST /v1/throttle/authz HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert headers["connection"] == "close"


_NAMES = st.sampled_from([b"x-tier", b"x-tenant", b"x-cost", b"host", b"expect", b"content-length"])


@given(st.lists(st.tuples(_NAMES, st.binary(max_size=300)), max_size=6))
def test_any_headers_are_a_question_or_a_refusal(headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever bytes are in the headers, they are a question with a usable cost, or refused in one short line."""
    question, refusal = None, ""
    try:
        question = ask_of(headers, Manner(429))
    except AskFault as fault:
        refusal = str(fault)
    if question is None:
        assert 0 < len(refusal) < 300
        assert "\n" not in refusal
    else:
        assert 0.0 < question.cost <= 1000.0
        assert all(name is None or 0 < len(name) <= 256 for name in (question.tier, question.tenant))


@given(st.binary(max_size=300))
def test_any_query_is_a_manner(query: bytes) -> None:
    """Whatever the query, a manner comes out, and only the word itself makes a shadow of it."""
    manner = manner_of(query, 429)
    assert manner.deny_status in {403, 429, 503}
    assert manner.bad_status in {400, 403}
    assert not manner.shadow or query.replace(b"%", b"").startswith((b"mode", b"m", b"deny", b"6", b"&", b"d"))
    assert not (manner.shadow and manner.fault)


_TEXT = st.text(string.printable, max_size=40)


@settings(max_examples=60)
@given(
    method=st.sampled_from(METHODS),
    path=st.text(string.ascii_letters + "/%.~", max_size=12),
    query=st.text(string.ascii_letters + "=&%_0123456789", max_size=20),
    headers=st.lists(st.tuples(st.sampled_from(["x-tier", "x-cost", "x-tenant"]), _TEXT), max_size=4),
    body=st.binary(max_size=50),
)
async def test_no_request_to_the_gate_is_an_error(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    """No request, however it is made, gets a 5xx, a trace, or an answer that is neither a permit nor a problem."""
    answer = await _GATE.request(method, f"{AUTHZ}/{path}?{query}", headers=headers, content=body)
    assert answer.status_code in {200, 400}
    if answer.status_code == 400 and method != "HEAD":
        assert json.loads(answer.content)["status"] == 400
    exact = await _GATE.request(method, f"{AUTHZ}?{query}", headers=headers, content=body)
    assert exact.status_code in {200, 400, 403}


def _gate() -> httpx.AsyncClient:
    from typing import Any, cast

    world = ThrottleWorld(cast("Any", None), cast("Any", None))
    return world.client()


_GATE = _gate()

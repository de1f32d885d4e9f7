"""The gate in front of an ASGI app."""

from __future__ import annotations

import httpx
import pytest
from tests.policies.support.agent import ScriptedAgent

import joulegate
from joulegate.pipelines.gate import Gate

KEYS = {"key-pro": ("pro", "acme"), "key-free": ("free", "someone")}


async def images(scope, receive, send):
    """An image server; its lifespan and everything else it is asked is seen by the test."""
    if scope["type"] == "lifespan":
        scope["seen"].append("lifespan")
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"image/png")]})
    await send({"type": "http.response.body", "body": b"PNG"})


def caller(scope) -> tuple[str, str]:
    """Who the API key says that the caller is."""
    key = dict(scope["headers"]).get(b"x-api-key", b"").decode()
    return KEYS.get(key, ("free", "nobody"))


def client(gate: Gate, **options: object) -> httpx.AsyncClient:
    """A client of the app behind the gate."""
    app = gate.asgi(images, tier_of=lambda s: caller(s)[0], tenant_of=lambda s: caller(s)[1], **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://images")


async def test_a_denied_request_gets_a_problem(agent: ScriptedAgent):
    """429 with Retry-After and a problem document; the app never hears of it."""
    agent.denied.add("free")
    async with joulegate.gate(agent.url, timeout_s=5.0) as gate, client(gate) as http:
        served = await http.post("/v1/images", headers={"X-API-Key": "key-pro"})
        denied = await http.post("/v1/images", headers={"X-API-Key": "key-free", "X-Tier": "pro"})
    assert (served.status_code, served.content) == (200, b"PNG")
    assert denied.status_code == 429
    assert denied.headers["content-type"] == "application/problem+json"
    assert denied.headers["retry-after"] == "8"
    assert denied.headers["x-throttle-decision"] == "d1"
    assert denied.headers["cache-control"] == "no-store"
    problem = denied.json()
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
    assert (problem["status"], problem["reason"], problem["tier"]) == (429, "rate", "free")


async def test_only_the_given_paths_are_gated(agent: ScriptedAgent):
    """Health checks and other paths pass without a question, and so does what is not HTTP."""
    agent.denied.add("free")
    seen: list[str] = []
    async with joulegate.gate(agent.url, timeout_s=5.0) as gate, client(gate, paths=["/v1/images"]) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/v1/images/generations")).status_code == 429
        await gate.asgi(images)({"type": "lifespan", "seen": seen}, None, None)
    assert seen == ["lifespan"]
    assert agent.paths().count("/v1/throttle/decide") == 1


@pytest.mark.parametrize("cost", [float("nan"), -1.0])
async def test_a_cost_without_sense_is_the_callers_fault(agent: ScriptedAgent, cost: float):
    """A cost that is none is a 400 problem without Retry-After: waiting would not help."""
    async with joulegate.gate(agent.url) as gate, client(gate, cost_of=lambda scope: cost) as http:
        answer = await http.post("/v1/images")
    assert answer.status_code == 400
    assert "retry-after" not in answer.headers
    assert answer.json()["reason"] == "bad_request"

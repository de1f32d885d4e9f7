"""The nginx sample, run by a real nginx in front of an image server and a scripted agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.policies.support.agent import ScriptedAgent
from tests.policies.support.images import PNG, ImageServer
from tests.policies.support.nginx import Nginx

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("policies")]

PRO, PLUS, MIRA = ({"X-API-Key": f"example-key-of-{name}"} for name in ("acme", "zeta", "mira"))
BOUND_S = 3.0
"""Far above the 150 ms that the sample waits for the agent, far below nginx's own 60 s."""


@dataclass
class Stack:
    """A gateway, what is behind it, and who decides."""

    nginx: Nginx
    images: ImageServer
    agent: ScriptedAgent
    http: httpx.Client

    def post(self, headers: dict[str, str] | None = None, path: str = "/v1/images/generations") -> httpx.Response:
        """Ask for an image."""
        return self.http.post(path, headers=headers, json={"prompt": "a fox", "n": 1})


@pytest.fixture
def stack(tmp_path: Path, require_program: Callable[[str, str], str], free_port: Callable[[], int]) -> Iterator[Stack]:
    """nginx, image server and agent, each on a free port."""
    program = require_program("nginx", "nginx")
    with ImageServer() as images, ScriptedAgent() as agent:
        addresses = {"127.0.0.1:9288": f"127.0.0.1:{agent.port}", "127.0.0.1:8000": f"127.0.0.1:{images.port}"}
        with (
            Nginx(program, tmp_path / "nginx", free_port(), addresses) as nginx,
            httpx.Client(base_url=nginx.url, timeout=20.0, trust_env=False) as http,
        ):
            yield Stack(nginx, images, agent, http)


def test_an_admitted_request_reaches_the_image_server(stack: Stack):
    """The image comes back with the tier's RateLimit fields, and the request arrived whole, with tier and tenant."""
    answer = stack.post(PRO)
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["ratelimit"] == '"pro";r=5;t=10'
    assert answer.headers["ratelimit-policy"] == '"pro";q=30;w=60'
    assert answer.headers["x-throttle-decision"] == "d1"
    assert "retry-after" not in answer.headers
    ((method, path, headers, body),) = stack.images.served
    assert (method, path) == ("POST", "/v1/images/generations")
    assert b"a fox" in body
    assert (headers["x-tier"], headers["x-tenant"]) == ("pro", "acme")


def test_a_denied_request_gets_429(stack: Stack):
    """429 with Retry-After, RateLimit and a problem document, and the image server never hears of it."""
    stack.agent.denied.add("free")
    answer = stack.post(MIRA)
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "8"
    assert answer.headers["ratelimit"] == '"free";r=5;t=10'
    assert answer.headers["cache-control"] == "no-store"
    problem = answer.json()
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
    assert (problem["status"], problem["tier"], problem["reason"]) == (429, "free", "rate")
    assert "8 s" in problem["detail"]
    assert stack.images.served == []
    assert stack.post(PRO).status_code == 200


def test_a_used_up_quota_says_so(stack: Stack):
    """The problem's type follows the reason: a quota that is used up is not a lack of capacity."""
    stack.agent.denied.add("free")
    stack.agent.reason = "quota"
    assert stack.post(MIRA).json()["type"].endswith("#quota-exceeded")


def test_what_the_agent_is_asked(stack: Stack):
    """The agent sees the tier and tenant of the key and nothing of the client: no header, no query, no body."""
    spoofed = {**MIRA, "X-Tier": "pro", "X-Tenant": "acme", "X-Cost": "0.001", "Cookie": "secret=1"}
    stack.post(spoofed, "/v1/images/generations?mode=shadow&deny_status=200")
    (asked,) = stack.agent.asked
    assert (asked.path, asked.query, asked.body) == ("/v1/throttle/authz", {"deny_status": "403"}, b"")
    assert {name: asked.headers.get(name) for name in ("x-tier", "x-tenant", "x-cost", "cookie")} == {
        "x-tier": "free",
        "x-tenant": "mira",
        "x-cost": "1",
        "cookie": None,
    }
    assert stack.images.served[0][2]["x-tier"] == "free"


def test_a_caller_without_a_key(stack: Stack):
    """No key or an unknown one: the free tier, and the address is the tenant."""
    for headers in (None, {"X-API-Key": "no such key"}, {"X-Tier": "pro"}):
        stack.post(headers)
    assert {(asked.headers["x-tier"], asked.headers["x-tenant"]) for asked in stack.agent.asked} == {
        ("free", "127.0.0.1")
    }


@pytest.mark.parametrize("trouble", ["dead", "hang", "fault", "gone", "refuse"])
def test_without_an_answer_paid_is_open_and_free_is_held_to_the_floor(stack: Stack, trouble: str):
    """Agent dead, silent or failing: paid is served within a bound, free gets its floor and then a 429 problem."""
    if trouble == "dead":
        stack.agent.__exit__()
    else:
        stack.agent.trouble = trouble
    began_s = time.monotonic()
    paid = [stack.post(headers) for headers in (PRO, PLUS, PRO)]
    assert time.monotonic() - began_s < 3 * BOUND_S
    assert [(answer.status_code, answer.content) for answer in paid] == [(200, PNG)] * 3
    free = [stack.post(headers) for headers in (MIRA, None, MIRA, None, MIRA)]
    assert [answer.status_code for answer in free] == [200, 200, 429, 429, 429]
    assert free[-1].headers["retry-after"] == "20"
    assert free[-1].headers["content-type"] == "application/problem+json"
    assert (free[-1].json()["reason"], free[-1].json()["tier"]) == ("stale", "free")
    assert b"a fox" in stack.images.served[-1][3], "the body of a POST survives the way round"


def test_the_agent_returns(stack: Stack):
    """With the agent back, the next request is its decision again."""
    stack.agent.trouble = "fault"
    stack.post(MIRA)
    stack.agent.trouble = None
    stack.agent.denied.add("free")
    assert stack.post(MIRA).headers["retry-after"] == "8"


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_errors_of_the_image_server_are_its_own(stack: Stack, status: int):
    """A 403 or 500 of the image server is not taken for the agent's, and asks nobody to come back."""
    answer = stack.post(PRO, f"/v1/images/{status}")
    assert (answer.status_code, answer.content) == (status, PNG)
    assert "retry-after" not in answer.headers
    assert len(stack.images.served) == 1

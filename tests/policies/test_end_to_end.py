"""The samples against the real daemon: three images a day for free, whoever asks, and what holds when it is killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from tests.e2e.service import Service
from tests.policies.conftest import started
from tests.policies.support.images import PNG, ImageServer
from tests.policies.support.nginx import Nginx
from tests.policies.support.rego import DECIDE, NOW_S, Policies, sent

import joulegate
from joulegate.pipelines.gate_decision import Source

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("policies")]

PATIENT_S = 10.0
MIRA, ACME, ZETA = ({"X-API-Key": f"example-key-of-{name}"} for name in ("mira", "acme", "zeta"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    """A daemon that the test may kill."""
    with started(tmp_path) as service:
        service.until("/v1/throttle", lambda body: "tiers" in body)
        yield service


@pytest.fixture
def gateway(
    tmp_path: Path, own: Service, require_program: Callable[[str, str], str], free_port: Callable[[], int]
) -> Iterator[httpx.Client]:
    """A client of nginx, in front of an image server and that daemon."""
    program = require_program("nginx", "nginx")
    with ImageServer() as images:
        agent = httpx.URL(own.url)
        addresses = {"127.0.0.1:9288": f"{agent.host}:{agent.port}", "127.0.0.1:8000": f"127.0.0.1:{images.port}"}
        with (
            Nginx(program, tmp_path / "nginx", free_port(), addresses) as nginx,
            httpx.Client(base_url=nginx.url, timeout=20.0, trust_env=False) as http,
        ):
            yield http


def test_three_images_a_day_through_nginx(gateway: httpx.Client, own: Service):
    """The fourth image of a day is a 429 that says when; paid goes on; with the daemon killed, free gets its floor."""
    answers = [gateway.post("/v1/images/generations", headers=MIRA) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].content == PNG
    denied = answers[3]
    assert denied.headers["content-type"] == "application/problem+json"
    assert 0 < int(denied.headers["retry-after"]) <= 86_400 * 1.2
    assert "q=3;w=86400" in denied.headers["ratelimit-policy"]
    assert "r=0" in denied.headers["ratelimit"]
    assert denied.json()["type"].endswith("#quota-exceeded")
    assert own.get(f"/v1/throttle/decisions/{denied.headers['x-throttle-decision']}")
    assert gateway.post("/v1/images/generations", headers=ACME).status_code == 200
    assert gateway.post("/v1/images/generations?mode=shadow", headers=MIRA | {"X-Tier": "pro"}).status_code == 429
    own.kill()
    began_s = time.monotonic()
    paid = [gateway.post("/v1/images/generations", headers=headers).status_code for headers in (ACME, ZETA)]
    free = [gateway.post("/v1/images/generations", headers=MIRA).status_code for _ in range(4)]
    assert time.monotonic() - began_s < PATIENT_S
    assert paid == [200, 200]
    assert free == [200, 200, 429, 429]


def test_three_images_a_day_through_the_gate(daemon: Service):
    """Each tenant has three units, however many threads ask, and a request costs what it says."""
    with joulegate.gate(daemon.url, tier="free", timeout_s=PATIENT_S) as gate, ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(lambda _: gate.decide(tenant="gate-a"), range(12)))
        assert sum(decision.allow for decision in decisions) == 3
        denied = next(decision for decision in decisions if not decision.allow)
        assert (denied.reason, denied.source, denied.tier) == ("quota", Source.AGENT, "free")
        assert 0 < denied.retry_after_s <= 86_400
        assert daemon.get(f"/v1/throttle/decisions/{denied.decision_id}")
        assert gate.decide(tenant="gate-b", cost=2.0).allow
        assert not gate.decide(tenant="gate-b", cost=2.0).allow
        assert gate.decide(tenant="gate-b", cost=1.0).allow
        unknown = gate.decide("gold", tenant="gate-c")
        assert (unknown.allow, unknown.tier) == (True, "free")
        assert all(gate.decide("pro", tenant="gate-a").allow for _ in range(20))


def test_the_gate_outlives_the_daemon(own: Service, tmp_path: Path):
    """After kill -9 the last recommendation holds, and a daemon at the same address decides again."""
    port = httpx.URL(own.url).port
    with joulegate.gate(own.url, timeout_s=1.0) as gate:
        assert gate.decide("pro").source is Source.AGENT
        until(lambda: gate._fallback.heard is not None)
        own.kill()
        lost = gate.decide("pro")
        assert (lost.allow, lost.source) == (True, Source.RECOMMENDATION)
        with started(tmp_path, port) as again:
            again.until("/v1/throttle", lambda body: "tiers" in body)
            until(lambda: gate.decide("pro").source is Source.AGENT)


def until(holds: Callable[[], object]) -> None:
    """Wait for what happens in another thread or process."""
    give_up_s = time.monotonic() + PATIENT_S
    while not holds():
        assert time.monotonic() < give_up_s, "it never happened"
        time.sleep(0.02)


def test_the_policy_reads_what_the_daemon_says(daemon: Service):
    """Rego over the daemon's own answers: its recommendation, its Date, and its decision."""
    answer = httpx.get(daemon.url + "/v1/throttle", timeout=PATIENT_S)
    age_s = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    body = answer.json()
    decided = httpx.post(
        daemon.url + "/v1/throttle/decide", json={"tier": "free", "tenant": "rego", "cost": 4}, timeout=PATIENT_S
    )
    policies = Policies({"answer": sent(body, age_s=age_s), "decided": sent(decided.json())})
    decision = policies.decide({"tier": "pro", "bucket": 0.5})
    assert (decision["allow"], decision["source"]) == (True, "recommendation")
    assert decision["decision_id"] == body["decision_id"]
    assert decision["fraction"] == body["tiers"]["pro"]["admit_fraction"]
    no = policies.decide({"tier": "free", "tenant": "rego", "cost": 4}, DECIDE)
    assert (no["allow"], no["reason"], no["source"]) == (False, decided.json()["reason"], "agent")
    stale = Policies({"answer": sent(body, age_s=NOW_S - 1e9)})
    assert stale.decide({"tier": "pro"})["source"] == "fail_safe"


@pytest.mark.parametrize("cost", [-1, 0, 1e300, "many", None])
def test_what_the_daemon_refuses_is_a_no_everywhere(daemon: Service, cost: object):
    """A cost without sense: never admitted by authz, by decide or by the policy over its answer."""
    answer = httpx.post(
        daemon.url + "/v1/throttle/decide", json={"tier": "pro", "tenant": "odd", "cost": cost}, timeout=PATIENT_S
    )
    assert answer.status_code == 422 or answer.json()["allow"] is False
    decided = Policies({"decided": sent(answer.json(), status=answer.status_code)})
    assert decided.decide({"tier": "pro", "tenant": "odd"}, DECIDE)["allow"] is False
    authz = httpx.get(
        daemon.url + "/v1/throttle/authz", headers={"X-Tier": "pro", "X-Cost": str(cost)}, timeout=PATIENT_S
    )
    assert authz.status_code == 400

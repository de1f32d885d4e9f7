"""The gate over real sockets: an agent that is well, gone, silent, slow, broken or restarting."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.gate.conftest import Clock
from tests.policies.support.agent import ScriptedAgent

import joulegate
from joulegate.pipelines.gate import Gate
from joulegate.pipelines.gate_decision import Source

Until = Callable[[Callable[[], object]], None]
TROUBLES = ("hang", "drip", "fault", "gone", "text", "wrong", "huge", "cut")
GENEROUS_S = 5.0
"""Far above any time limit of a gate in these tests, for machines that stand still now and then."""


@pytest.fixture
def headers_drip() -> Iterator[str]:
    """A server that sends a header line every 20 ms and never ends them."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not stop.wait(0.02):
                    connection.sendall(b"X-More: yes\r\n")
            except OSError:
                return

    def accept(server: socket.socket) -> None:
        while True:
            try:
                drip(server.accept()[0])
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
    thread.join(GENEROUS_S)


@pytest.fixture
def hasty() -> Iterator[tuple[str, list[int]]]:
    """A server that answers the first request of each connection and ends the connection at the second, unanswered."""
    answered: list[int] = []
    body = json.dumps({"allow": True, "tier": "pro", "reason": "admitted", "decision_id": "d1"}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            received = b""
            while not received.endswith(b"}"):
                received += self.request.recv(65536)
            answered.append(len(answered))
            self.request.sendall(head + body)
            self.request.recv(65536)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answered
        server.shutdown()
        thread.join(GENEROUS_S)


def test_the_agents_answer(agent: ScriptedAgent, until: Until, no_leaks: None):
    """The agent is asked with tier, tenant and cost, its answer comes back whole, and its recommendation is kept."""
    agent.denied.add("free")
    with joulegate.gate(agent.url, tenant="acme", timeout_s=GENEROUS_S) as gate:
        yes = gate.decide("pro", cost=2.5)
        assert (yes.allow, yes.tier, yes.reason, yes.source, yes.remaining) == (True, "pro", "admitted", "agent", 3.0)
        assert yes.headers == {"X-Throttle-Decision": "d1"}
        no = gate.decide("free", "other")
        assert (no.allow, no.would_allow, no.reason, no.retry_after_s) == (False, False, "rate", 7.2)
        assert no.headers == {"Retry-After": "8", "X-Throttle-Decision": "d1"}
        asked = [json.loads(asked.body) for asked in agent.asked if asked.method == "POST"]
        assert asked == [
            {"tier": "pro", "tenant": "acme", "cost": 2.5},
            {"tier": "free", "tenant": "other", "cost": 1.0},
        ]
        until(lambda: gate._fallback.heard is not None)
        assert (gate.counts.asked, gate.counts.denied, gate.counts.by_agent) == (2, 1, 2)


def test_check_raises(agent: ScriptedAgent):
    """A denial raises Throttled with what an HTTP answer needs; it survives pickling, as in a process pool."""
    agent.denied.add("free")
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:
        assert gate.check("pro").allow
        with pytest.raises(joulegate.Throttled, match="30 units a minute") as caught:
            gate.check("free")
    assert caught.value.retry_after_s == 7.2
    assert caught.value.headers["Retry-After"] == "8"
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.decision == caught.value.decision


def test_connections_are_kept(agent: ScriptedAgent):
    """Questions in a row use one connection."""
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:
        for _ in range(20):
            gate.decide("pro")
    assert len({asked.client for asked in agent.asked}) <= 2, "one for questions, one for the recommendation"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_broken_agent(agent: ScriptedAgent, trouble: str, clock: Clock):
    """Silent, dripping, failing, lost, talking nonsense, endless or cut off: never an exception, never a long wait."""
    agent.trouble = trouble
    with joulegate.gate(agent.url, clock=clock) as gate:
        began_s = time.monotonic()
        free = [gate.decide("free") for _ in range(3)]
        paid = [gate.decide("pro") for _ in range(3)]
        assert time.monotonic() - began_s < GENEROUS_S
        assert [decision.allow for decision in free] == [True, False, False]
        assert all(decision.allow for decision in paid)
        assert {decision.source for decision in free + paid} == {Source.FAIL_SAFE}
        assert gate.counts.failures == 1
    calls = [path for path in agent.paths() if path == "/v1/throttle/decide"]
    assert len(calls) <= 2, "a connection that breaks is replaced once; then the agent is left alone"


def test_headers_that_never_end(headers_drip: str, clock: Clock):
    """The time limit is for the whole answer, not for each byte of it."""
    with joulegate.gate(headers_drip, clock=clock) as gate:
        began_s = time.monotonic()
        assert gate.decide("pro").source is Source.FAIL_SAFE
        assert time.monotonic() - began_s < GENEROUS_S


def test_no_agent_at_all(free_port: Callable[[], int], no_leaks: None):
    """Nobody listens: paid is open, free is held to the floor, and ten thousand questions make one call."""
    with joulegate.gate(f"http://127.0.0.1:{free_port()}", clock=Clock()) as gate:
        decisions = [gate.decide("free") for _ in range(10_000)]
        assert sum(decision.allow for decision in decisions) == 1
        assert gate.decide("pro").allow
        assert gate.counts.failures == 1


def test_a_refused_question_is_no_failure(agent: ScriptedAgent):
    """The agent that says 422 is well: the question is denied, and the next one is asked."""
    agent.trouble = "refuse"
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:
        refused = gate.decide("pro")
        assert (refused.allow, refused.reason, refused.status) == (False, "bad_request", 400)
        agent.trouble = None
        assert gate.decide("pro").source is Source.AGENT


@pytest.mark.parametrize(
    ("tier", "tenant", "cost"),
    [
        ("pro", "acme", -1.0),
        ("pro", "acme", 0.0),
        ("pro", "acme", float("nan")),
        ("pro", "acme", float("inf")),
        ("pro", "acme", True),
        ("pro", "acme", "1"),
        ("pro", "acme", 10**400),
        ("pro", "x" * 1_000_000, 1.0),
        ("pro", 17, 1.0),
        ("x" * 1_000_000, "acme", 1.0),
        (b"pro", "acme", 1.0),
    ],
)
def test_a_question_without_sense(agent: ScriptedAgent, tier, tenant, cost):
    """A cost that is none, a tenant of a megabyte: denied in one short line, and nobody is asked."""
    with joulegate.gate(agent.url) as gate:
        decision = gate.decide(tier, tenant, cost)
    assert (decision.allow, decision.reason, decision.source) == (False, "bad_request", Source.GATE)
    assert len(decision.detail) < 200
    assert agent.asked == []


def test_the_recommendation_bridges_an_outage(agent: ScriptedAgent, until: Until, clock: Clock):
    """The agent dies: its last recommendation holds for its time to live by the receiver's clock, then the floor."""
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S, clock=clock) as gate:
        gate.decide("free")
        until(lambda: gate._fallback.heard is not None)
        agent.trouble = "fault"
        assert [gate.decide("free").allow for _ in range(4)] == [True, True, False, False]
        assert gate.counts.by_recommendation == 4
        clock.now_s += 10.5
        assert gate.decide("free").source is Source.FAIL_SAFE
        assert gate.decide("plus").allow


def test_the_agent_returns(agent: ScriptedAgent, until: Until, clock: Clock, caplog: pytest.LogCaptureFixture):
    """A second after a failure one call is tried behind the scenes; when it is answered, the agent decides again."""
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S, clock=clock) as gate, caplog.at_level(logging.INFO):
        agent.trouble = "fault"
        gate.decide("free")
        agent.trouble = None
        asked = len(agent.asked)
        for _ in range(50):
            assert gate.decide("pro").source is Source.FAIL_SAFE
        assert len(agent.asked) == asked
        clock.now_s += 1.01
        assert gate.decide("pro").source is not Source.AGENT
        until(lambda: gate.decide("pro").source is Source.AGENT)
        said = [record.message for record in caplog.records if record.name == "joulegate.gate"]
    assert len(said) == 2, "one line when it is lost, one when it is back"
    assert "it answered 500" in said[0]


def test_a_restarted_agent(clock: Clock):
    """A kept connection that the old agent closed is replaced within the same question."""
    with ScriptedAgent() as first, joulegate.gate(first.url, timeout_s=GENEROUS_S, clock=clock) as gate:
        assert gate.decide("pro").source is Source.AGENT
        first.__exit__()
        with ScriptedAgent(port=first.port):
            assert gate.decide("pro").source is Source.AGENT
        assert gate.counts.failures == 0


def test_a_connection_that_ends_while_it_is_used(hasty: tuple[str, list[int]], clock: Clock):
    """An agent that closes an idle connection just then is not a failing agent: the question is asked once more."""
    url, answered = hasty
    with joulegate.gate(url, timeout_s=GENEROUS_S, clock=clock) as gate:
        gate._link._refreshed_s = clock()
        assert [gate.decide("pro").source for _ in range(4)] == [Source.AGENT] * 4
        assert gate.counts.failures == 0
    assert len(answered) == 4


def test_a_background_thread_that_stands_still(agent: ScriptedAgent, until: Until):
    """Even if nothing runs behind the scenes, a caller waits no longer, and nothing is asked for it afterwards."""
    stuck_s = 1.0
    with joulegate.gate(agent.url, timeout_s=0.05) as gate:
        gate._link._caller._begin()
        gate._link._caller._loop.call_soon_threadsafe(time.sleep, stuck_s)
        began_s = time.monotonic()
        assert gate.decide("pro").source is Source.FAIL_SAFE
        assert time.monotonic() - began_s < stuck_s * 0.9
        done: list[bool] = []
        gate._link._caller._loop.call_soon_threadsafe(done.append, True)
        until(lambda: done)
        time.sleep(0.1)
        assert agent.asked == []


def test_the_recommendation_is_fetched_as_often_as_it_asks(agent: ScriptedAgent, until: Until, clock: Clock):
    """However many questions, the recommendation is fetched once every poll_after_s."""
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S, clock=clock) as gate:
        for fetched in (1, 2, 3):
            for _ in range(10):
                gate.decide("pro")
            until(lambda: agent.paths().count("/v1/throttle") == fetched)  # noqa: B023
            clock.now_s += 4.9
            gate.decide("pro")
            time.sleep(0.05)
            assert agent.paths().count("/v1/throttle") == fetched
            clock.now_s += 0.2


def test_shadow_mode(agent: ScriptedAgent, free_port: Callable[[], int]):
    """In shadow mode everything passes and what would have been denied is told and counted."""
    agent.denied.add("free")
    with joulegate.gate(agent.url, mode="shadow", timeout_s=GENEROUS_S) as gate:
        decision = gate.check("free")
        assert (decision.allow, decision.would_allow, decision.reason) == (True, False, "rate")
        assert gate.check("free", cost=-1.0).allow
        assert (gate.counts.denied, gate.counts.shadow_denied) == (0, 2)


async def test_asyncio(agent: ScriptedAgent):
    """For asyncio, adecide answers as decide does, many at once, and a hung agent does not stop the loop."""
    async with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:
        decisions = await asyncio.gather(*(gate.adecide("pro") for _ in range(100)))
        assert {decision.source for decision in decisions} == {Source.AGENT}
        agent.denied.add("free")
        with pytest.raises(joulegate.Throttled):
            await gate.acheck("free")
    agent.trouble = "hang"
    async with joulegate.gate(agent.url, timeout_s=0.3) as gate:
        turns = 0
        waiting = asyncio.ensure_future(gate.adecide("pro"))
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0.01)
        assert (await waiting).source is Source.FAIL_SAFE
        assert turns > 3


async def test_a_cancelled_question(agent: ScriptedAgent):
    """A caller that is cancelled stays cancelled: the gate does not swallow it."""
    agent.trouble = "hang"
    async with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:
        waiting = asyncio.ensure_future(gate.adecide("pro"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


def test_threads_share_a_gate(agent: ScriptedAgent):
    """Twenty threads ask at once and each gets its own answer; the counts add up."""
    agent.denied.add("free")
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate, ThreadPoolExecutor(20) as pool:
        tiers = ["free" if number % 3 else "pro" for number in range(300)]
        decisions = list(pool.map(gate.decide, tiers))
    assert [decision.allow for decision in decisions] == [tier == "pro" for tier in tiers]
    assert (gate.counts.asked, gate.counts.denied) == (300, 200)


FORKING = """
import os, sys, joulegate
gate = joulegate.gate(sys.argv[1], timeout_s=5.0)
before = gate.decide("pro").source.value
child = os.fork()
if child == 0:
    said = gate.decide("pro").source.value
    gate.close()
    print("child", said, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", before, gate.decide("pro").source.value, flush=True)
"""


def test_a_fork(agent: ScriptedAgent):
    """A forked child asks over connections of its own, and its end does not disturb the parent's."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING, agent.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.splitlines() == ["child agent", "parent agent agent"], done.stderr
    assert done.stderr == ""


def test_a_process_that_forgets_to_close(agent: ScriptedAgent):
    """A program ends at once and without a word, though its gate was never closed."""
    code = "import sys, joulegate; print(joulegate.gate(sys.argv[1], timeout_s=5.0).decide('pro').source.value)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, agent.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("agent\n", "")


def test_a_closed_gate(agent: ScriptedAgent, no_leaks: None):
    """After close, also twice or before any question, a gate decides by itself and starts no thread."""
    gate = joulegate.gate(agent.url)
    gate.close()
    gate.close()
    assert gate.decide("pro").source is Source.FAIL_SAFE
    assert agent.asked == []


def test_proxies_of_the_environment_are_not_used(agent: ScriptedAgent):
    """HTTP_PROXY and a .netrc are for the internet, not for the agent on this host."""
    code = "import sys, joulegate; print(joulegate.gate(sys.argv[1], timeout_s=5.0).decide('pro').source.value)"
    done = subprocess.run(
        [sys.executable, "-c", code, agent.url],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HTTP_PROXY": "http://127.0.0.1:9",
            "ALL_PROXY": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "agent\n", done.stderr


def test_where_the_agent_is():
    """The url argument wins over $JOULEGATE_URL, which wins over this host's port 9288; a path before it is kept."""
    assert Gate(environ={}).url == "http://127.0.0.1:9288"
    assert Gate(environ={"JOULEGATE_URL": "http://gpu-7:9288/"}).url == "http://gpu-7:9288"
    assert Gate("https://other/prefix/", environ={"JOULEGATE_URL": "http://gpu-7"}).url == "https://other/prefix"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "gpu-7:9288"}, "url"),
        ({"url": "ftp://gpu-7"}, "url"),
        ({"url": "http://["}, "url"),
        ({"url": "http://gpu-7:99999"}, "url"),
        ({"url": "http://gpu-7/?mode=shadow"}, "url"),
        ({"environ": {"JOULEGATE_URL": "nonsense"}}, "JOULEGATE_URL"),
        ({"mode": "off"}, "mode"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"floor_images_per_minute": -1}, "floor_images_per_minute"),
        ({"share": 2}, "share"),
    ],
)
def test_options_that_cannot_be_used(options: dict, named: str):
    """A wrong option is told at the start, in one line that names it."""
    with pytest.raises(ValueError, match=named) as caught:
        Gate(**options)
    assert len(str(caught.value).splitlines()) == 1


def test_decorated_functions(agent: ScriptedAgent):
    """A denied call does not run its function; tier, tenant and cost may come from the call's arguments."""
    agent.denied.add("free")
    ran = []
    with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:

        @gate.limit(tier=lambda user, n=1: user["tier"], tenant=lambda user, n=1: user["id"], cost=lambda user, n=1: n)
        def generate(user, n=1):
            """Draw."""
            ran.append(user["id"])
            return n

        assert generate({"tier": "pro", "id": "a"}, n=4) == 4
        with pytest.raises(joulegate.Throttled):
            generate({"tier": "free", "id": "b"})
        assert (generate.__name__, generate.__doc__) == ("generate", "Draw.")
    assert ran == ["a"]
    bodies = [json.loads(asked.body) for asked in agent.asked if asked.method == "POST"]
    assert bodies[0] == {"tier": "pro", "tenant": "a", "cost": 4}


async def test_decorated_async_functions(agent: ScriptedAgent):
    """Coroutines and generators of both kinds stay what they are, and a denied one does not begin."""
    agent.denied.add("free")
    began = []
    async with joulegate.gate(agent.url, timeout_s=GENEROUS_S) as gate:

        async def one(tier):
            began.append(tier)
            return tier

        async def stream(tier):
            began.append(tier)
            yield 1
            yield 2

        def plain(tier):
            began.append(tier)
            yield 3

        limited = [gate.limit(tier=lambda tier: tier)(function) for function in (one, stream, plain)]
        assert await limited[0]("pro") == "pro"
        assert [item async for item in limited[1]("pro")] == [1, 2]
        assert list(limited[2]("pro")) == [3]
        assert asyncio.iscoroutinefunction(limited[0])
        with pytest.raises(joulegate.Throttled):
            await limited[0]("free")
        with pytest.raises(joulegate.Throttled):
            await anext(limited[1]("free"))
        with pytest.raises(joulegate.Throttled):
            limited[2]("free")
    assert began == ["pro"] * 3

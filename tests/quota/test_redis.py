"""Counting in a real Redis: exact across hosts, and neither open nor closed while it is away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC

import pytest
from tests.quota.redis_server import RedisServer
from tests.throttle.decision.examples import Clock

from joulegate.stores.quota import PATIENCE_S, RETRY_S, Quotas, parsed
from joulegate.throttle.decision import QuotaState

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("redis")]

DAY = parsed("3/day")
FIFTY = parsed("50/day")
NOON_S = 1_764_072_000.0
LONG_S = 20.0
"""A machine that is busy with other tests is no outage."""


class Host:
    """One of the hosts that count in the same Redis."""

    def __init__(self, url: str, patience_s: float = LONG_S) -> None:
        self.wall, self.clock = Clock(NOON_S), Clock()
        self.quotas = Quotas(url, wall_clock=self.wall, clock=self.clock, patience_s=patience_s)

    async def took(self, times: int, tenant: str = "acme", cost: float = 1.0) -> int:
        """How many of so many takes are admitted, at three a day."""
        states = [await self.quotas.take(DAY, "free", tenant, cost, UTC) for _ in range(times)]
        return sum(state.admitted for state in states if state is not None)

    async def left(self, tenant: str = "acme") -> float:
        """Units left today."""
        state = await self.quotas.peek(DAY, "free", tenant, 1.0, UTC)
        assert state is not None
        return state.remaining


@pytest.fixture
async def hosts(redis: RedisServer) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts on one Redis."""
    pair = (Host(redis.url), Host(redis.url))
    yield pair
    for host in pair:
        await host.quotas.close()


async def test_hosts_share_the_count(hosts: tuple[Host, Host], redis: RedisServer):
    """Three a day are three over all hosts; a peek takes nothing, a refund counts everywhere, names are not kept."""
    one, other = hosts
    assert await one.took(2) == 2
    assert [await other.left() for _ in range(5)] == [1.0] * 5
    assert await other.took(5) == 1
    assert await one.took(5) == 0
    await one.quotas.refund(DAY, "free", "acme", 1.0, UTC)
    assert await other.left() == 1.0
    assert await other.took(5) == 1
    assert (one.quotas.status().shared_up, one.quotas.status().faults) == (True, 0)
    assert redis.keys()
    assert "acme" not in "".join(redis.keys())


async def test_two_hundred_at_once_on_fifty(hosts: tuple[Host, Host]):
    """Of 200 asks at once from two hosts on a quota of 50, exactly 50 get through."""
    asks = [hosts[n % 2].quotas.take(FIFTY, "free", "acme", 1.0, UTC) for n in range(200)]
    states = await asyncio.gather(*asks)
    assert sum(state.admitted for state in states if state is not None) == 50
    assert [host.quotas.status().faults for host in hosts] == [0, 0]


async def test_mixed_costs_at_once_fill_the_quota(hosts: tuple[Host, Host]):
    """At once with costs of 1, 2 and 5: never over 50, and nobody is refused who would still fit at the end."""
    costs = [float((1, 2, 5)[n % 3]) for n in range(90)]
    asks = [hosts[n % 2].quotas.take(FIFTY, "free", "acme", cost, UTC) for n, cost in enumerate(costs)]
    states = await asyncio.gather(*asks)
    pairs = [(cost, state) for cost, state in zip(costs, states, strict=True) if state is not None]
    used = sum(cost for cost, state in pairs if state.admitted)
    assert used <= 50
    assert all(used + cost > 50 for cost, state in pairs if not state.admitted)


async def test_days_and_amounts(hosts: tuple[Host, Host], redis: RedisServer):
    """A new day counts from nothing, a raised amount from where the count was, and every key goes by itself."""
    one, _ = hosts
    assert await one.took(9) == 3
    more = await one.quotas.take(parsed("4/day"), "free", "acme", 1.0, UTC)
    assert isinstance(more, QuotaState)
    assert (more.admitted, more.remaining) == (True, 0.0)
    one.wall.now_s += 12 * 3600
    assert await one.took(9) == 3
    assert 86_400 < redis.longest_ttl_s() <= 3 * 86_400


async def test_redis_dies_and_comes_back(hosts: tuple[Host, Host], redis: RedisServer):
    """While Redis is gone this process counts on from what it knows; afterwards what it admitted is added there."""
    one, other = hosts
    assert await one.took(1) == 1
    redis.kill()
    assert await one.took(5) == 2
    assert await one.took(5, "initech") == 3
    assert await one.left() == 0.0
    status = one.quotas.status()
    assert (status.shared_up, status.faults) == (False, 1)
    assert status.last_fault is not None
    assert "this process counts alone" in status.last_fault
    assert "\n" not in status.last_fault
    redis.start()
    assert await one.took(1, "umbrella") == 1
    assert not one.quotas.status().shared_up
    one.clock.now_s += RETRY_S
    assert await one.took(2, "hooli") == 2
    assert one.quotas.status().shared_up
    assert await one.took(1, "initech") == 0
    assert await other.took(1, "initech") == 0
    assert await other.left("umbrella") == 3.0
    assert await one.left("umbrella") == 2.0


async def test_what_is_owed_is_paid_once(hosts: tuple[Host, Host], redis: RedisServer):
    """What was admitted without Redis is added there once, however many asks of that tenant come at once."""
    one, other = hosts
    redis.kill()
    assert await one.took(1) == 1
    redis.start()
    one.clock.now_s += RETRY_S
    for _ in range(2):
        states = await asyncio.gather(*(one.quotas.take(FIFTY, "free", "acme", 1.0, UTC) for _ in range(10)))
        assert all(state is not None and state.admitted for state in states)
    state = await other.quotas.peek(FIFTY, "free", "acme", 1.0, UTC)
    assert state is not None
    assert state.remaining == 29.0


async def test_an_outage_is_noticed_once_and_probed_once(hosts: tuple[Host, Host], redis: RedisServer):
    """A thousand asks in an outage are one fault; after a while one ask probes, whatever comes with it."""
    one, _ = hosts
    redis.kill()
    await asyncio.gather(*(one.took(1, f"t{n}") for n in range(200)))
    first = one.quotas.status().faults
    assert 1 <= first <= 8
    for n in range(200):
        await one.took(1, f"u{n}")
    assert one.quotas.status().faults == first
    one.clock.now_s += RETRY_S
    await asyncio.gather(*(one.took(1, f"v{n}") for n in range(200)))
    assert one.quotas.status().faults == first + 1


async def test_a_redis_that_says_no_is_a_fault(hosts: tuple[Host, Host], redis: RedisServer):
    """A Redis that refuses to write (full) is a fault like one that is gone: the count goes on here."""
    one, _ = hosts
    assert redis.say("CONFIG SET maxmemory 1") == b"+OK\r\n"
    assert await one.took(5) == 3
    assert "maxmemory" in (one.quotas.status().last_fault or "")


async def test_a_redis_that_never_answers_costs_a_tenth_of_a_second():
    """A peer that takes connections and is silent is waited for once, no longer than the patience, then left alone."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = Host(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", PATIENCE_S)
        try:
            assert await host.took(5) == 3
            assert host.quotas.status().faults == 1
            assert "0.1 s" in (host.quotas.status().last_fault or "")
        finally:
            await host.quotas.close()


async def test_nobody_listens():
    """A port that nobody listens on is a fault in one line with the address, and the count goes on here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = Host(f"redis://user:hunter2@127.0.0.1:{port}/0")
    assert await host.took(5) == 3
    fault = host.quotas.status().last_fault or ""
    assert f"127.0.0.1:{port}" in fault
    assert "hunter2" not in fault
    await host.quotas.close()

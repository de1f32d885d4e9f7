"""Counting in this process: exact, bounded, and gone when the window is over."""

from __future__ import annotations

import asyncio
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.throttle.decision.examples import Clock

from joulegate.stores.quota import MemoryCounts, Quotas, parsed

DAY = parsed("3/day")
HOUR_AND_DAY = parsed("2/hour;3/day")
NOON_S = 1_764_072_000.0


def key(number: int, window: str = "2026-11-24") -> str:
    """A key as quotas make them."""
    return f"{window}/{number:032x}"


def quotas(wall: Clock, **options: int) -> Quotas:
    """Quotas in memory with clocks that stand."""
    return Quotas(wall_clock=wall, clock=Clock(), **options)


async def took(
    counts: Quotas, times: int, tenant: str | None = "acme", *, tier: str = "free", cost: float = 1.0
) -> int:
    """How many of so many takes are admitted, at three a day."""
    states = [await counts.take(DAY, tier, tenant, cost, UTC) for _ in range(times)]
    return sum(state.admitted for state in states if state is not None)


async def test_tenants_and_tiers_are_counted_apart():
    """Each tenant has a count of its own in each tier; the names run into each other nowhere."""
    counts = quotas(Clock(NOON_S))
    assert await took(counts, 9) == 3
    assert await took(counts, 9, "initech") == 3
    assert await took(counts, 9, tier="plus") == 3
    assert await took(counts, 9, "dayb", tier="a") == 3
    assert await took(counts, 9, "b", tier="aday") == 3


async def test_a_peek_takes_nothing():
    """Looking ten times leaves three to take, and says what a take would."""
    counts = quotas(Clock(NOON_S))
    for _ in range(10):
        state = await counts.peek(DAY, "free", "acme", 1.0, UTC)
        assert (state.admitted, state.remaining) == (True, 3.0)
    assert await took(counts, 4) == 3
    state = await counts.peek(DAY, "free", "acme", 0.001, UTC)
    assert (state.admitted, state.remaining) == (False, 0.0)


async def test_costs_are_counted_in_thousandths_rounded_up():
    """Thirty takes of a tenth fit in three units, exactly; a cost smaller than a thousandth is not free."""
    counts = quotas(Clock(NOON_S))
    assert await took(counts, 40, cost=0.1) == 30
    assert await took(counts, 4000, "tiny", cost=1e-9) == 3000


async def test_a_cost_that_does_not_fit_takes_nothing():
    """Two units do not fit in the last one, which a single one can still have."""
    counts = quotas(Clock(NOON_S))
    assert await took(counts, 2) == 2
    assert await took(counts, 5, cost=2.0) == 0
    assert await took(counts, 5) == 1


async def test_a_refund_makes_room_again():
    """A refunded take can be taken again, once."""
    counts = quotas(Clock(NOON_S))
    assert await took(counts, 3) == 3
    await counts.refund(DAY, "free", "acme", 1.0, UTC)
    assert await took(counts, 3) == 1


async def test_two_windows_take_together_or_not_at_all():
    """Of two quotas the one that is used up refuses, and the other is not charged for it."""
    wall = Clock(NOON_S)
    counts = quotas(wall)

    async def take() -> tuple[bool, str, float]:
        state = await counts.take(HOUR_AND_DAY, "free", "acme", 1.0, UTC)
        return state.admitted, state.policy, state.remaining

    assert [await take() for _ in range(5)] == [
        (True, "hour", 1.0),
        (True, "hour", 0.0),
        (False, "hour", 0.0),
        (False, "hour", 0.0),
        (False, "hour", 0.0),
    ]
    wall.now_s += 3600
    assert [await take() for _ in range(3)] == [(True, "day", 0.0), (False, "day", 0.0), (False, "day", 0.0)]
    state = await counts.peek(parsed("2/hour"), "free", "acme", 1.0, UTC)
    assert state.remaining == 1.0


async def test_a_changed_amount_keeps_the_count():
    """With two taken, a quota raised to five has three left, and one lowered to one has none."""
    counts = quotas(Clock(NOON_S))
    assert await took(counts, 2) == 2
    more = await counts.peek(parsed("5/day"), "free", "acme", 1.0, UTC)
    less = await counts.peek(parsed("1/day"), "free", "acme", 1.0, UTC)
    assert (more.remaining, less.remaining, less.admitted) == (3.0, 0.0, False)


async def test_no_rules_no_state():
    """A tier without a quota has no state to speak of."""
    assert await quotas(Clock(NOON_S)).take((), "pro", "acme", 1.0, UTC) is None
    assert await quotas(Clock(NOON_S)).peek((), "pro", "acme", 1.0, UTC) is None


async def test_two_hundred_at_once_on_fifty():
    """Of 200 asks at once on a quota of 50, exactly 50 get through."""
    counts = quotas(Clock(NOON_S))
    states = await asyncio.gather(*(counts.take(parsed("50/day"), "free", "acme", 1.0, UTC) for _ in range(200)))
    assert sum(state.admitted for state in states) == 50


async def test_no_tenant_is_kept_by_name():
    """Nothing that is kept holds the name of a tenant."""
    counts = quotas(Clock(NOON_S))
    await took(counts, 1, "acme-secret-name")
    assert "acme-secret-name" not in repr([list(window.own) for window in counts._own._windows.values()])
    assert counts.status().tenants == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=200), st.integers(1, 8))
def test_a_full_memory_never_lets_in_too_much(asks: list[tuple[int, int]], room: int):
    """With room for few, no key gets beyond its limit, none counts less than it took, and the memory stays bounded."""
    counts = MemoryCounts(Clock(), room)
    taken: dict[int, int] = {}
    for number, amount in asks:
        if counts.take(key(number), 10, 100, amount):
            taken[number] = taken.get(number, 0) + amount
        assert counts.keys <= room
    assert all(amount <= 10 for amount in taken.values())
    assert all(counts.count(key(number)) >= amount for number, amount in taken.items())


def test_a_shared_count_is_kept_when_room_appears():
    """A key that shared a counter goes on from that count when there is room again, and does not start from nothing."""
    clock = Clock()
    counts = MemoryCounts(clock, 2)
    assert counts.take(key(1, "short"), 3, 10, 1)
    assert counts.take(key(2, "short"), 3, 10, 1)
    assert counts.take(key(3, "long"), 3, 1000, 2)
    assert counts.crowded
    clock.now_s += 11
    assert counts.take(key(4, "new"), 3, 1000, 1)
    assert counts.keys == 1
    assert counts.take(key(3, "long"), 3, 1000, 1)
    assert counts.keys == 2
    assert not counts.take(key(3, "long"), 3, 1000, 1)


def test_counts_go_with_their_window():
    """A window that is over is forgotten when the next begins, and counts for nothing before that."""
    clock = Clock()
    counts = MemoryCounts(clock)
    for number in range(1000):
        assert counts.take(key(number), 3, 60, 3)
    clock.now_s += 60
    assert counts.count(key(1)) == 0
    assert counts.take(key(1, "2026-11-25"), 3, 60, 1)
    assert counts.keys == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://", "redis://HOST:6379/0"),
        ("redis://localhost", "redis://HOST:6379/0"),
        ("redis://me:hunter2@localhost", "redis://HOST:6379/0"),
        ("redis://h:99999/0", "redis://HOST:6379/0"),
        ("mongodb://localhost:1/0", "redis://HOST:6379/0"),
        ("", "redis://HOST:6379/0"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(url: str, said: str):
    """A wrong address is a ValueError of one line with what to do, without the password."""
    with pytest.raises(ValueError, match=said) as error:
        Quotas(url)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)

"""The plant itself: it is hot where its physics says so, and its images are conserved."""

from __future__ import annotations

import pytest
from tests.throttle_contract.plant import Board, Story, drive


def test_settles_where_its_resistances_say() -> None:
    """Undriven at full load it settles at the temperature of its two resistances, and finishes its full rate."""
    board = Board(count=1, air_c=20.0, leak_per_k=0.0)
    run = drive(board, Story(demand=lambda _: 4.0), None, 900.0)
    expected_c = 20.0 + (62.0 + 420.0) * (0.045 + 0.055)
    assert run.top_c == pytest.approx(expected_c, abs=0.3)
    assert run.finished_between(300.0, 900.0) == pytest.approx(board.full_images_per_s, rel=0.02)
    assert board.sustainable_images_per_s() == pytest.approx(board.full_images_per_s)


def test_melts_without_advice() -> None:
    """In a hot aisle without advice it is hot with the driver's governor, and halved without it."""
    governed = drive(Board(air_c=44.0), Story(demand=lambda _: 3.0), None, 500.0)
    bare = drive(Board(air_c=44.0, soft_governor=False), Story(demand=lambda _: 3.0), None, 500.0)
    assert governed.hot_s > 200
    assert bare.halved_s > 50
    board = Board(air_c=44.0)
    assert board.sustainable_images_per_s() < 0.95 * board.full_images_per_s


def test_knows_its_images() -> None:
    """What was admitted was finished or is waiting, and a limit of the gateway is a limit."""

    def advise(seen: dict) -> dict:  # type: ignore[type-arg]
        rule = {"action": "limit", "max_images_per_minute": 6.0, "burst": 2.0}
        return {"t": seen["t"], "tiers": dict.fromkeys(("pro", "plus", "free"), rule), "power_cap_w": {"GPU-0": 120.0}}

    run = drive(Board(), Story(demand=lambda _: 3.0), advise, 610.0)
    assert run.admitted["free"] == pytest.approx(60, abs=30)
    assert len(run.done) <= sum(run.admitted.values()) <= len(run.done) + 20
    assert sum(seen["arrivals"]["free"] for seen in run.seen) <= run.asked["free"]

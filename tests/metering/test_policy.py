"""Idle policies move idle energy exactly, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.accounts import BucketKey, UseShare
from joulegate.metering.policy import IdlePolicy, spread_idle

KEY = BucketKey(0, 0)
SHARES = st.lists(st.builds(UseShare, st.just(KEY), st.integers(0, 10**9), st.floats(0.0, 3600.0)), max_size=20)


@given(st.sampled_from(IdlePolicy), st.integers(0, 10**12), SHARES)
def test_idle_is_spread_whole_or_not_at_all(policy: IdlePolicy, idle_mj: int, shares: list[UseShare]) -> None:
    """``reserved`` and ``usage`` spread all of it over those who held the device; the others leave it where it is."""
    parts = spread_idle(policy, idle_mj, shares)
    assert len(parts) == len(shares)
    moves = policy in (IdlePolicy.RESERVED, IdlePolicy.USAGE) and bool(shares)
    assert sum(parts) == (idle_mj if moves else 0)
    assert all(part >= 0 for part in parts)


@pytest.mark.parametrize(
    ("policy", "parts"),
    [(IdlePolicy.RESERVED, [100, 300]), (IdlePolicy.USAGE, [320, 80]), (IdlePolicy.SEPARATE, [0, 0])],
)
def test_who_pays(policy: IdlePolicy, parts: list[int]) -> None:
    """By the time that each held the device, or by its energy."""
    assert spread_idle(policy, 400, [UseShare(KEY, 4000, 10.0), UseShare(KEY, 1000, 30.0)]) == parts

"""Exact apportionment by largest remainder."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.apportion import apportion, apportion_whole

TOTALS = st.one_of(st.integers(0, 100), st.integers(0, 2**70))


@given(TOTALS, st.lists(st.integers(0, 10**12), min_size=1, max_size=40))
def test_whole_weights_are_exact(total: int, weights: list[int]) -> None:
    """Parts add up, and each is its exact quota rounded down or up, down for the smaller remainders."""
    parts = apportion_whole(total, weights)
    assert sum(parts) == total
    real = weights if sum(weights) else [1] * len(weights)
    quotas = [Fraction(total * weight, sum(real)) for weight in real]
    assert all(0 <= part - quota // 1 <= 1 for part, quota in zip(parts, quotas, strict=True))
    up = [quota % 1 for part, quota in zip(parts, quotas, strict=True) if part > quota // 1]
    down = [quota % 1 for part, quota in zip(parts, quotas, strict=True) if part == quota // 1]
    assert not up or not down or min(up) >= max(down)


@given(TOTALS, st.lists(st.floats(0.0, 1e9), min_size=1, max_size=40))
def test_real_weights_add_up_and_keep_their_order(total: int, weights: list[float]) -> None:
    """Parts add up to the total, nobody's is negative, and who weighs clearly more gets no less."""
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 0
    largest = max(weights)
    for heavy, light in pairwise(weights):
        if largest > 0 and heavy > light + 1e-8 * largest:
            assert parts[weights.index(heavy)] >= parts[weights.index(light)]


@given(st.integers(0, 2**62), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1e-6, 1e6))
def test_unit_of_the_weights_means_nothing(total: int, weights: list[float], factor: float) -> None:
    """Weights in other units give the same parts, up to the nine digits that count."""
    parts, scaled = apportion(total, weights), apportion(total, [weight * factor for weight in weights])
    for one, two in zip(parts, scaled, strict=True):
        assert abs(one - two) <= 1 + 3e-9 * total


def test_ties_fall_by_place() -> None:
    """Equal remainders go to those named first; weights that are all zero are equal."""
    assert apportion(5, [1.0, 1.0, 1.0]) == [2, 2, 1]
    assert apportion(5, [0.0, 0.0]) == [3, 2]
    assert apportion_whole(4, [0, 0, 0]) == [2, 1, 1]


def test_nobody_to_give_to() -> None:
    """Nothing over nobody is nothing; something over nobody is a fault of the caller."""
    assert apportion(0, []) == []
    with pytest.raises(ValueError, match="nothing to apportion to"):
        apportion(1, [])

"""Clocks that move scale dynamic power; strangers add watts. The two are told apart by idle moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from joulegate.metering.calibration import Changes
from joulegate.metering.drift import BLOCK_S, Drift, find_drift

IDLE_W = 95.0


def blocks(scales: list[float], foreign_w: list[float] | None = None, busy: float = 0.5) -> tuple[Changes, NDArray]:
    """One block of 20 s for each scale, busy at 400 W for a part of each second, and what the model expects."""
    ticks = np.arange(0.0, len(scales) * BLOCK_S + 0.05, 0.1)
    starts, ends = ticks[:-1], ticks[1:]
    block = np.minimum((starts / BLOCK_S + 1e-9).astype(int), len(scales) - 1)
    dynamic_j = np.where(starts % 1.0 < busy - 0.05, 40.0, 0.0)
    foreign = np.array(foreign_w or [0.0] * len(scales))[block]
    energy_j = (IDLE_W + foreign) * 0.1 + dynamic_j * np.array(scales)[block]
    return Changes(starts, ends, energy_j), dynamic_j


@given(st.lists(st.floats(0.3, 1.6), min_size=1, max_size=8))
def test_scale_of_each_block_is_found(scales: list[float]) -> None:
    """Where it is more than five percent off, exactly; where it is less, the model stands."""
    changes, dynamic_j = blocks(scales)
    drift = find_drift(changes, dynamic_j, IDLE_W)
    expected = [scale if abs(scale - 1) > 0.0501 else 1.0 for scale in scales]
    middles = BLOCK_S * (np.arange(len(scales)) + 0.5)
    for found, truth, scale in zip(drift.at(middles), expected, scales, strict=True):
        if not 0.0499 < abs(scale - 1) < 0.0501:
            assert found == pytest.approx(truth, rel=1e-6)
    assert drift.steady == bool(np.all(drift.scale == 1.0))


def test_stranger_is_no_drift() -> None:
    """Power that is there while the device should be idle rescales nothing."""
    changes, dynamic_j = blocks([1.0, 1.0, 0.7], [0.0, 150.0, 0.0])
    assert find_drift(changes, dynamic_j, IDLE_W).scale.tolist() == [1.0, 1.0, pytest.approx(0.7)]


def test_block_that_is_never_idle_is_not_trusted() -> None:
    """Without an idle moment nobody can say which of the two it is."""
    changes, dynamic_j = blocks([0.6, 0.6], busy=1.1)
    assert find_drift(changes, dynamic_j, IDLE_W).steady


def test_no_interval_no_drift() -> None:
    """An empty recording scales nothing at any time."""
    empty = find_drift(Changes(np.empty(0), np.empty(0), np.empty(0)), np.empty(0), IDLE_W)
    assert empty.steady
    assert empty.at(np.array([0.0, 9.0])).tolist() == [1.0, 1.0]
    assert Drift(np.array([10.0]), np.array([0.5])).at(np.array([0.0, 11.0])).tolist() == [0.5, 0.5]

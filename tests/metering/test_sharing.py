"""The hidden inequality of shares is estimated where unlike requests overlap, and assumed where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from joulegate.metering.calibration import Changes
from joulegate.metering.model import PRIOR_SHARE_ERROR
from joulegate.metering.sharing import HIGHEST, LOWEST, hidden_share_error

IDLE_W = 95.0


def pairs(
    rng: np.random.Generator, count: int, sd: float, watts: tuple[float, float]
) -> tuple[Changes, np.ndarray, np.ndarray, np.ndarray]:
    """``count`` pairs of requests that run together for 2 s of 4 s, with lognormal hidden shares."""
    starts = np.repeat(4.0 * np.arange(count) + 1, 2)
    own = np.tile(watts, count)
    shares = np.exp(sd * rng.normal(size=(count, 2)))
    power_w = (shares * np.array(watts)).sum(axis=1) / shares.sum(axis=1)
    ticks = np.arange(0.0, 4.0 * count + 0.05, 0.1)
    phase = ticks[:-1] % 4.0
    busy = (phase > 0.95) & (phase < 2.95)
    pair = np.minimum((ticks[:-1] / 4 + 1e-9).astype(int), count - 1)
    energy_j = 0.1 * (IDLE_W + np.where(busy, power_w[pair], 0.0)) * (1 + 0.002 * rng.normal(size=len(pair)))
    return Changes(ticks[:-1], ticks[1:], energy_j), starts, starts + 2, own


@pytest.mark.parametrize("sd", [0.0, 0.2, 0.4, 0.6])
def test_spread_of_shares_is_found(sd: float) -> None:
    """From two hundred unlike pairs the estimate is the spread that they were drawn with, within a quarter."""
    found = hidden_share_error(*pairs(np.random.default_rng(int(10 * sd)), 200, sd, (200.0, 500.0)), IDLE_W)
    assert found == pytest.approx(np.clip(np.hypot(sd, 0.08), LOWEST, HIGHEST), rel=0.25)


def test_alike_requests_tell_nothing() -> None:
    """Equal powers look the same however they are shared: the prior stands."""
    rng = np.random.default_rng(1)
    assert hidden_share_error(*pairs(rng, 100, 0.5, (400.0, 400.0)), IDLE_W) == PRIOR_SHARE_ERROR


def test_few_pairs_hardly_move_the_prior() -> None:
    """Two pairs are no evidence yet."""
    found = hidden_share_error(*pairs(np.random.default_rng(2), 2, 0.0, (200.0, 500.0)), IDLE_W)
    assert 0.8 * PRIOR_SHARE_ERROR < found < PRIOR_SHARE_ERROR


def test_nothing_to_judge() -> None:
    """One request, or no reading, leaves the prior."""
    changes, starts, ends, watts = pairs(np.random.default_rng(3), 1, 0.0, (200.0, 500.0))
    assert hidden_share_error(changes, starts[:1], ends[:1], watts[:1], IDLE_W) == PRIOR_SHARE_ERROR
    empty = Changes(np.empty(0), np.empty(0), np.empty(0))
    assert hidden_share_error(empty, starts, ends, watts, IDLE_W) == PRIOR_SHARE_ERROR

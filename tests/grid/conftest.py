"""A time, a clock and quick limits for the grid's tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from joulegate.sources.grid.http_client import Limits

NOW_S = 1_790_000_000.0 // 3600 * 3600 + 1200.0
"""Twenty past an hour in September 2026."""


@dataclass
class SetClock:
    """A clock that shows what it is told."""

    now_s: float

    def __call__(self) -> float:
        """The time it shows."""
        return self.now_s


@pytest.fixture
def clock() -> SetClock:
    """A clock that stands at ``NOW_S``."""
    return SetClock(NOW_S)


@pytest.fixture
def quick() -> Limits:
    """Limits under which a server that never answers costs a test little."""
    return Limits(connect_s=0.5, read_s=0.15, total_s=0.3, attempts=2, wait_first_s=0.01, wait_most_s=0.05)

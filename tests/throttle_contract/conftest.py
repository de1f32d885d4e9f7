"""Runs that many tests look at: each is driven once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.throttle_contract.plant import Board, Run, Story, drive
from tests.throttle_contract.program import write_config
from tests.throttle_contract.promises import Talk

FLASH_S = 200.0


def flash(t: float) -> float:
    """Demand over full capacity: calm, then three times what there is."""
    return 0.35 if t < FLASH_S else 3.0


@pytest.fixture(scope="session")
def melting_board() -> Board:
    """Four devices that cannot all run at full clock in a hot aisle."""
    return Board(air_c=49.0)


@pytest.fixture(scope="session")
def melting(melting_board: Board) -> Run:
    """A flash crowd in the hot aisle, with caps."""
    return drive(melting_board, Story(demand=flash, event_s=FLASH_S), Talk(), 1000.0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of the design's example, with a tier between."""
    return write_config(tmp_path)

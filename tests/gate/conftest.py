"""A scripted agent, and a clock that only a test moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tests.policies.support.agent import ScriptedAgent

PATIENCE_S = 5.0


@dataclass
class Clock:
    """Monotonic seconds; ``now_s`` is set by hand."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        """What time it is."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """A clock at a standstill."""
    return Clock()


@pytest.fixture
def agent() -> Iterator[ScriptedAgent]:
    """A well agent on a free port."""
    with ScriptedAgent() as scripted:
        yield scripted


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """``until(holds)``: wait for what happens in another thread."""

    def wait(holds: Callable[[], object]) -> None:
        give_up_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < give_up_s, "it never happened"
            time.sleep(0.005)

    return wait

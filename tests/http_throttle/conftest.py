"""The application with throttle parts over a real ledger."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from tests.http.stand_ins import JournalIngest
from tests.http_throttle.stand_ins import ThrottleWorld, client_of

from joulegate.stores import Ledger, LedgerReader


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[ThrottleWorld]:
    """Before the first recommendation."""
    ledger, reader = Ledger(tmp_path), LedgerReader(tmp_path)
    yield ThrottleWorld(reader, JournalIngest(ledger))
    reader.close()
    ledger.close()


@pytest.fixture
def world(empty: ThrottleWorld) -> ThrottleWorld:
    """One recommendation is there."""
    empty.board.publish("d1")
    return empty


@pytest.fixture
async def client(world: ThrottleWorld) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    async with world.client() as client:
        yield client


@pytest.fixture
async def served(world: ThrottleWorld) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the real server."""
    async with world.running() as base, client_of(base) as client:
        yield client

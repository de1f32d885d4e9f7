"""The application over a real ledger, without a network."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from tests.http.stand_ins import JournalIngest, SetClock, Shelf, World

from joulegate.http.parts import Parts
from joulegate.stores import Ledger, LedgerFault, LedgerReader


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Real ledger, settable clock, empty shelf."""
    clock, shelf = SetClock(), Shelf()
    ledger, reader = Ledger(tmp_path), LedgerReader(tmp_path)
    ingest = JournalIngest(ledger)
    parts = Parts(shelf, reader, ingest, clock=clock, ledger_fault=LedgerFault, version="1.2.3")
    yield World(parts, clock, shelf, ledger, ingest)
    reader.close()
    ledger.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    async with world.client() as client:
        yield client

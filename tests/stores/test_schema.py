"""Migrations, and files that are not, or no longer, a ledger that this program can open."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from tests.stores.examples import entry

from joulegate.metering.batch import Batch
from joulegate.stores import Ledger, LedgerFault, LedgerReader
from joulegate.stores.connection import LEDGER_NAME, open_writer
from joulegate.stores.schema import STEPS, migrate


def tables(connection: sqlite3.Connection) -> set[str]:
    """Names of the tables."""
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def version(connection: sqlite3.Connection) -> int:
    """The schema's version."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.fixture
def connection(tmp_path: Path):
    """A writer's connection to an empty file."""
    one = open_writer(tmp_path / LEDGER_NAME)
    yield one
    one.close()


def test_an_older_ledger_is_migrated_with_its_entries(tmp_path: Path) -> None:
    """A later step is applied to a ledger of an earlier version, once, and what it held is still there."""
    with Ledger(tmp_path) as writer:
        writer.commit(Batch(entries=(entry("r-1"),)))
    steps = (*STEPS, "ALTER TABLE entries ADD COLUMN water_ml INTEGER")
    connection = open_writer(tmp_path / LEDGER_NAME)
    migrate(connection, tmp_path / LEDGER_NAME, steps)
    migrate(connection, tmp_path / LEDGER_NAME, steps)
    assert version(connection) == len(steps)
    assert connection.execute("SELECT request_id, water_ml FROM entries").fetchall() == [("r-1", None)]
    connection.close()


def test_a_step_that_fails_leaves_the_version_before_it(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """A migration that breaks half-way takes back all of its own step and nothing of those before."""
    with pytest.raises(sqlite3.Error):
        migrate(connection, tmp_path, ("CREATE TABLE a (x)", "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1)"))
    assert (version(connection), tables(connection)) == (1, {"a"})
    migrate(connection, tmp_path, ("CREATE TABLE a (x)", "CREATE TABLE b (x)"))
    assert (version(connection), tables(connection)) == (2, {"a", "b"})


def test_a_newer_ledger_is_left_alone(tmp_path: Path) -> None:
    """Neither writer nor reader touches a ledger of a later version; the line says what to install."""
    Ledger(tmp_path).close()
    connection = sqlite3.connect(tmp_path / LEDGER_NAME, isolation_level=None)
    connection.execute(f"PRAGMA user_version = {len(STEPS) + 3}")
    connection.close()
    before = (tmp_path / LEDGER_NAME).read_bytes()
    reader = LedgerReader(tmp_path)
    for attempt in (lambda: Ledger(tmp_path), reader.requests):
        with pytest.raises(LedgerFault, match=rf"schema {len(STEPS) + 3} .* up to {len(STEPS)}; install the newer"):
            attempt()
    assert (tmp_path / LEDGER_NAME).read_bytes() == before
    reader.close()


def test_a_reader_does_not_migrate(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """A ledger that still needs a step is not read as if it had it."""
    reader = LedgerReader(tmp_path)
    with pytest.raises(LedgerFault, match=r"schema 0 and 1 is needed.*it migrates"):
        reader.requests()
    reader.close()


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """Some other file under the ledger's name is named in one line and not written to."""
    (tmp_path / LEDGER_NAME).write_text("not a database, but long enough to be looked at\n" * 40)
    before = (tmp_path / LEDGER_NAME).read_bytes()
    with pytest.raises(LedgerFault, match=r"ledger\.db: it is not an SQLite database.*move the file away") as caught:
        Ledger(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / LEDGER_NAME).read_bytes() == before


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    """An SQLite file with tables of its own is not made into a ledger."""
    connection = sqlite3.connect(tmp_path / LEDGER_NAME)
    connection.execute("CREATE TABLE photos (name)")
    connection.close()
    with pytest.raises(LedgerFault, match="database of another program"):
        Ledger(tmp_path)
    connection = sqlite3.connect(tmp_path / LEDGER_NAME)
    assert tables(connection) == {"photos"}
    connection.close()

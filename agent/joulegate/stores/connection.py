"""Connections to the ledger's file, set up the one way that its promises need."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from joulegate.stores.fault import LedgerFault

LEDGER_NAME = "ledger.db"
LOCK_NAME = "ledger.lock"
BUSY_S = 1.0
CACHE_KIB = 8 * 1024


def open_writer(path: Path) -> sqlite3.Connection:
    """A read-write connection that commits durably; raises ``sqlite3.Error`` or ``LedgerFault``.

    WAL lets readers go on while the writer commits. ``synchronous=FULL`` syncs the WAL at every commit: NORMAL would
    survive kill -9, but a power cut could take back what was acknowledged (law 9), and group commit makes the sync
    (0.2 ms on a local disk) a cost per batch, not per request.
    """
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except sqlite3.Error:
        connection.close()
        raise
    if mode != "wal":
        connection.close()
        raise LedgerFault(
            f"cannot open the ledger {path}: its file system gives SQLite no shared memory for WAL; "
            "choose a --state-dir on a local disk"
        )
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection; a ledger on a read-only medium is read as it is when no writer left a WAL behind."""
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        return _checked(uri)
    except sqlite3.OperationalError:
        if not path.exists() or path.with_name(path.name + "-wal").exists():
            raise
        return _checked(f"{uri}&immutable=1")


def _checked(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection

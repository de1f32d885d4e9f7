"""The ledger's schema: numbered steps, each applied in one transaction when a ledger is opened for writing.

``PRAGMA user_version`` holds the number of the last step, so that the version changes in the step's own transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from joulegate.stores.fault import LedgerFault

APPLICATION_ID = 0x4A4C4744
"""``JLGD`` in the file's header: tells a ledger from any other SQLite file."""

_FIRST = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE devices (device INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE) STRICT;

-- The journal: spans that are open, or closed without a final figure. Times twice: on the monotonic axis of boot_id,
-- and as Unix seconds, which still mean something after a reboot.
CREATE TABLE spans (
  span INTEGER PRIMARY KEY,
  request_id TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  arrived_t_s REAL, arrived_wall_s REAL,
  started_t_s REAL NOT NULL, started_wall_s REAL NOT NULL,
  ended_t_s REAL, ended_wall_s REAL,
  start_source TEXT NOT NULL,
  power_class TEXT NOT NULL,
  batch_id TEXT, model TEXT, tier TEXT, tenant TEXT,
  outcome TEXT NOT NULL,
  edge_error_s REAL NOT NULL,
  devices TEXT NOT NULL
) STRICT;

CREATE TABLE span_members (
  span INTEGER NOT NULL REFERENCES spans (span) ON DELETE CASCADE,
  place INTEGER NOT NULL,
  request_id TEXT NOT NULL,
  images INTEGER, steps INTEGER, width INTEGER, height INTEGER,
  PRIMARY KEY (span, place)
) STRICT, WITHOUT ROWID;

-- Entries in the order in which they became final. first_bucket_s and last_bucket_s lead from an entry to its shares.
CREATE TABLE entries (
  seq INTEGER PRIMARY KEY,
  request_id TEXT NOT NULL UNIQUE,
  outcome TEXT NOT NULL,
  images INTEGER, steps INTEGER, width INTEGER, height INTEGER,
  arrived_s REAL, started_s REAL NOT NULL, ended_s REAL NOT NULL,
  start_source TEXT NOT NULL,
  energy_mj INTEGER, u_measurement_mj INTEGER, u_allocation_mj INTEGER,
  method TEXT, quality TEXT NOT NULL,
  model TEXT, tier TEXT, tenant TEXT, batch_id TEXT,
  flags TEXT NOT NULL,
  first_bucket_s INTEGER, last_bucket_s INTEGER,
  prev_hash BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;

CREATE TABLE entry_devices (
  seq INTEGER NOT NULL REFERENCES entries (seq),
  device INTEGER NOT NULL REFERENCES devices (device),
  energy_mj INTEGER NOT NULL,
  power_mean_w REAL, power_max_w REAL, temperature_max_c REAL, utilization_mean REAL,
  memory_max_bytes INTEGER,
  clock_event_s TEXT,
  PRIMARY KEY (seq, device)
) STRICT, WITHOUT ROWID;

-- Clustered by time: a range of buckets is one scan, and no second index is paid for on every insert.
CREATE TABLE shares (
  bucket_s INTEGER NOT NULL CHECK (bucket_s % 10 = 0),
  seq INTEGER NOT NULL REFERENCES entries (seq),
  device INTEGER NOT NULL REFERENCES devices (device),
  energy_mj INTEGER NOT NULL,
  PRIMARY KEY (bucket_s, seq, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE accounts (
  bucket_s INTEGER NOT NULL CHECK (bucket_s % 10 = 0),
  device INTEGER NOT NULL REFERENCES devices (device),
  epoch INTEGER NOT NULL,
  device_mj INTEGER NOT NULL, requests_mj INTEGER NOT NULL, idle_mj INTEGER NOT NULL,
  unattributed_mj INTEGER NOT NULL, estimated_mj INTEGER NOT NULL,
  method TEXT NOT NULL, quality TEXT NOT NULL,
  PRIMARY KEY (bucket_s, device, epoch),
  CONSTRAINT law_1 CHECK (device_mj = requests_mj + idle_mj + unattributed_mj)
) STRICT, WITHOUT ROWID;

CREATE TABLE positions (
  device INTEGER PRIMARY KEY REFERENCES devices (device),
  epoch INTEGER NOT NULL,
  counter_mj INTEGER,
  total_mj INTEGER NOT NULL,
  t_s REAL NOT NULL, wall_s REAL NOT NULL, boot_id TEXT NOT NULL
) STRICT;

-- Running totals, written in the transaction of what they count, so that a restart reads them instead of everything.
CREATE TABLE device_totals (
  device INTEGER PRIMARY KEY REFERENCES devices (device),
  device_mj INTEGER NOT NULL, requests_mj INTEGER NOT NULL, idle_mj INTEGER NOT NULL,
  unattributed_mj INTEGER NOT NULL, estimated_mj INTEGER NOT NULL
) STRICT;

CREATE TABLE request_totals (
  model TEXT NOT NULL, tier TEXT NOT NULL, quality TEXT NOT NULL,
  requests INTEGER NOT NULL, images INTEGER NOT NULL, energy_mj INTEGER NOT NULL,
  energy_j_buckets TEXT NOT NULL,
  PRIMARY KEY (model, tier, quality)
) STRICT, WITHOUT ROWID;

CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
INSERT INTO head VALUES (1, 0, zeroblob(32));
"""

STEPS: tuple[str, ...] = (_FIRST,)
"""Step n leads from version n to version n + 1. A released step is never edited; a change is a new one."""


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 for an empty file; raises ``LedgerFault`` for somebody else's database."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if application_id == APPLICATION_ID:
        return version
    if application_id == version == 0 and not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return 0
    raise LedgerFault(
        f"cannot open the ledger {path}: it is an SQLite database of another program; "
        "move the file away or choose another --state-dir"
    )


def refuse_newer(version: int, known: int, path: Path) -> None:
    """Raise ``LedgerFault`` when the ledger was written by a newer joulegate than this one."""
    if version > known:
        raise LedgerFault(
            f"cannot open the ledger {path}: it has schema {version} and this joulegate knows up to {known}; "
            "install the newer joulegate again or choose another --state-dir"
        )


def migrate(connection: sqlite3.Connection, path: Path, steps: Sequence[str] = STEPS) -> None:
    """Bring the ledger to version ``len(steps)``; a step that fails leaves the version before it, whole.

    ``connection`` is in autocommit mode (``isolation_level=None``).
    """
    version = version_of(connection, path)
    refuse_newer(version, len(steps), path)
    for number in range(version, len(steps)):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE; {steps[number]}; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {number + 1}; COMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.rollback()
            raise

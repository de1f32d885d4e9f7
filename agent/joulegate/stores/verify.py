"""Reading a ledger for verification: page by page, in short transactions, past what cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from joulegate.stores.chain import ChainFault, Link, faults_of
from joulegate.stores.rows import ENTRY_COLUMNS, USE_COLUMNS, EntryRow
from joulegate.stores.sql import select

PAGE_ENTRIES = 1000
LONGEST_S = 10_000_000
"""Bounds the walk from an entry's first bucket to its last, which someone may have changed."""

_ENTRIES = select(("seq", "prev_hash", "hash", *ENTRY_COLUMNS), "FROM entries WHERE seq BETWEEN ? AND ? ORDER BY seq")
_USES = select(
    ("seq", "d.id", *USE_COLUMNS),
    "FROM entry_devices LEFT JOIN devices d USING (device) WHERE seq BETWEEN ? AND ? ORDER BY seq, d.id",
)
_SHARES = """
WITH RECURSIVE b (seq, s, last_s) AS (
  SELECT seq, first_bucket_s, last_bucket_s FROM entries
  WHERE seq BETWEEN ? AND ? AND last_bucket_s - first_bucket_s < ?
  UNION ALL SELECT seq, s + 10, last_s FROM b WHERE s < last_s)
SELECT b.seq, bucket_s, d.id, energy_mj FROM b CROSS JOIN shares ON bucket_s = b.s AND shares.seq = b.seq
LEFT JOIN devices d USING (device) ORDER BY b.seq, bucket_s, d.id"""
_COUNTS = {table: select(("count(*)",), f"FROM {table} WHERE seq <= ?") for table in ("entry_devices", "shares")}
_BEYOND = "SELECT seq FROM entries WHERE seq > (SELECT seq FROM head) ORDER BY seq LIMIT 1"


def verify(connection: sqlite3.Connection) -> Iterator[ChainFault]:
    """Faults of every entry up to the present head, then of rows that belong to no entry."""
    head_seq, head_hash = connection.execute("SELECT seq, hash FROM head").fetchone()
    seen = dict.fromkeys(_COUNTS, 0)

    def links() -> Iterator[Link | ChainFault]:
        for first in range(1, head_seq + 1, PAGE_ENTRIES):
            for link in _links(connection, first, min(first + PAGE_ENTRIES - 1, head_seq)):
                if isinstance(link, Link):
                    seen["entry_devices"] += len(link.row.uses)
                    seen["shares"] += len(link.row.shares)
                yield link

    yield from faults_of(links(), head_seq, head_hash)
    yield from _strays(connection, head_seq, seen)


def _links(connection: sqlite3.Connection, first: int, last: int) -> Iterator[Link | ChainFault]:
    """Entries ``first`` to ``last``; a damaged range is halved until the unreadable ones stand alone."""
    try:
        found = _read(connection, first, last)
    except sqlite3.DatabaseError as error:
        if first == last:
            yield ChainFault(first, None, f"it cannot be read ({error})")
            return
        middle = (first + last) // 2
        yield from _links(connection, first, middle)
        yield from _links(connection, middle + 1, last)
    else:
        yield from found


def _read(connection: sqlite3.Connection, first: int, last: int) -> list[Link]:
    uses: dict[int, list[tuple[str, tuple[Any, ...]]]] = {}
    for seq, device, *values in connection.execute(_USES, (first, last)):
        uses.setdefault(seq, []).append((str(device), tuple(values)))
    shares: dict[int, list[tuple[int, str, int]]] = {}
    for seq, bucket_s, device, energy_mj in connection.execute(_SHARES, (first, last, LONGEST_S)):
        shares.setdefault(seq, []).append((bucket_s, str(device), energy_mj))
    return [
        Link(seq, prev_hash, of_entry, EntryRow(tuple(values), tuple(uses.get(seq, ())), tuple(shares.get(seq, ()))))
        for seq, prev_hash, of_entry, *values in connection.execute(_ENTRIES, (first, last))
    ]


def _strays(connection: sqlite3.Connection, head_seq: int, seen: dict[str, int]) -> Iterator[ChainFault]:
    try:
        for table, known in seen.items():
            stored = connection.execute(_COUNTS[table], (head_seq,)).fetchone()[0]
            if stored != known:
                yield ChainFault(head_seq, None, f"{table} has {stored} rows, its entries account for {known}")
        beyond = connection.execute(_BEYOND).fetchone()
        if beyond:
            yield ChainFault(beyond[0], None, "it stands beyond the head of the chain")
    except sqlite3.DatabaseError as error:
        yield ChainFault(head_seq, None, f"the rest of the ledger cannot be read ({error})")

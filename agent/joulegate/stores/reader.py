"""The ledger's reading side: read-only connections of its own, for any number of threads, never in the writer's way."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from joulegate.metering.entry import RequestEntry, Status
from joulegate.stores.chain import ChainFault
from joulegate.stores.connection import LEDGER_NAME, open_reader
from joulegate.stores.energy import EnergyTable, HourAccount, energy_between, hours_between
from joulegate.stores.fault import LedgerFault, faults
from joulegate.stores.rows import (
    ENTRY_COLUMNS,
    MEMBER_COLUMNS,
    SPAN_COLUMNS,
    USE_COLUMNS,
    EntryRow,
    entry_of,
    pending_entry,
    text,
)
from joulegate.stores.schema import STEPS, refuse_newer, version_of
from joulegate.stores.sql import select
from joulegate.stores.verify import verify

PAGE_MOST = 1000
SCANNED_ROWS = 100_000
"""A filtered page looks at no more entries than this: a rare filter costs many short queries, not a long one."""

QUERY_LIMIT_S = 20.0
_STEPS_BETWEEN_LOOKS = 20_000
_END = 2**62

_ONE_ENTRY = select(
    ("seq", "first_bucket_s", "last_bucket_s", *ENTRY_COLUMNS), "FROM entries e WHERE e.request_id = ?", of="e."
)
_USES = select(
    ("u.seq", "d.id", *USE_COLUMNS),
    "FROM entry_devices u JOIN devices d USING (device)"
    " WHERE u.seq IN (SELECT value FROM json_each(?)) ORDER BY u.seq, d.id",
)
_SHARES = """
WITH RECURSIVE b (s) AS (SELECT ? UNION ALL SELECT s + 10 FROM b WHERE s < ?)
SELECT bucket_s, d.id, energy_mj FROM b CROSS JOIN shares ON bucket_s = b.s AND seq = ? JOIN devices d USING (device)
ORDER BY bucket_s, d.id"""
_PENDING = select(
    (*(f"s.{name}" for name in SPAN_COLUMNS), *(f"m.{name}" for name in MEMBER_COLUMNS)),
    "FROM spans s JOIN span_members m USING (span) WHERE s.ended_t_s IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.request_id = m.request_id)",
)


class BadCursor(ValueError):
    """A cursor that no page of this ledger gave out."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some requests, newest first, and the cursor of the rest; ``next`` is ``None`` on the last page.

    A page of a filtered list may hold fewer than asked for, or none, and still have a ``next``.
    """

    items: tuple[RequestEntry, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a page begins: below a member of the journal (``pending``), or below an entry (``final``)."""

    part: Literal["pending", "final"]
    number: int = _END
    member: int = _END

    def cursor(self) -> str:
        return base64.urlsafe_b64encode(f"{self.part[0]}.{self.number}.{self.member}".encode()).decode().rstrip("=")

    @staticmethod
    def of(cursor: str) -> _Place:
        try:
            plain = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
            part, number, member = plain.split(".")
            names: dict[str, Literal["pending", "final"]] = {"p": "pending", "f": "final"}
            return _Place(names[part], min(int(number), _END), min(int(member), _END))
        except (ValueError, KeyError) as error:
            raise BadCursor(f"not a cursor of this ledger: {cursor!r}; start again without one") from error


class LedgerReader:
    """Reads ``folder/ledger.db``; safe to share between threads. All faults are ``LedgerFault`` with one line.

    Every answer is one consistent state of the ledger. A query that takes longer than ``query_limit_s`` is given up.
    """

    def __init__(self, folder: Path, *, query_limit_s: float = QUERY_LIMIT_S, scanned_rows: int = SCANNED_ROWS) -> None:
        """Open nothing yet: the first query does, so that a reader may be made before its ledger."""
        self.path = folder / LEDGER_NAME
        self._query_limit_s = query_limit_s
        self._scanned_rows = scanned_rows
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False

    def request(self, request_id: str) -> RequestEntry | None:
        """The final entry; else, once its span has ended, a ``pending`` one without figures; else ``None``."""
        with self._query() as connection:
            row = connection.execute(_ONE_ENTRY, (text(request_id),)).fetchone()
            if row is not None:
                seq, first_s, last_s, *values = row
                uses = _uses_of(connection, [seq]).get(seq, ())
                shares = connection.execute(_SHARES, (first_s, last_s, seq)) if first_s is not None else ()
                return entry_of(EntryRow(tuple(values), uses, tuple(shares)))
            waiting = connection.execute(f"{_PENDING} AND m.request_id = ? LIMIT 1", (text(request_id),)).fetchone()
            return None if waiting is None else _pending_of(waiting)

    def requests(
        self,
        limit: int = 100,
        cursor: str | None = None,
        *,
        model: str | None = None,
        tier: str | None = None,
        tenant: str | None = None,
        status: str | None = None,
    ) -> Page:
        """Requests that have ended, newest first: those still pending, then entries in the order they became final.

        ``limit`` is held to 1 .. ``PAGE_MOST``. The order is the ledger's own, whatever the wall clock did. A request
        that becomes final between two pages may be on both, none is left out. Entries come without ``shares``. Raises
        ``BadCursor``.
        """
        wish = None if status is None else Status(status)
        place = _Place.of(cursor) if cursor else _Place("final" if wish is Status.FINAL else "pending")
        limit = max(1, min(limit, PAGE_MOST))
        filters = {"model": model, "tier": tier, "tenant": tenant}
        wanted = {name: text(value) for name, value in filters.items() if value is not None}
        items: list[RequestEntry] = []
        with self._query() as connection:
            if place.part == "pending" and wish is not Status.FINAL:
                items, rest = _pending_page(connection, place, limit, wanted)
                if rest or wish is Status.PENDING:
                    return Page(tuple(items), rest.cursor() if rest else None)
                place = _Place("final")
            if len(items) == limit:
                return Page(tuple(items), place.cursor())
            if wish is not Status.PENDING:
                more, rest = _final_page(connection, place, limit - len(items), wanted, self._scanned_rows)
                return Page((*items, *more), rest.cursor() if rest else None)
        return Page(tuple(items), None)

    def energy(self, from_s: float, to_s: float, by: Sequence[str] = ()) -> EnergyTable:
        """Where the energy of [``from_s``, ``to_s``) Unix seconds went, widened to whole buckets; see ``EnergyTable``.

        Raises ``ValueError`` for a range that is not finite or ends before it starts, or an unknown dimension.
        """
        with self._query() as connection:
            return energy_between(connection, from_s, to_s, by)

    def accounts_by_hour(self, from_s: float, to_s: float) -> tuple[HourAccount, ...]:
        """Each device's accounts for each hour that the range touches, whole hours, oldest first."""
        with self._query() as connection:
            return hours_between(connection, from_s, to_s)

    def head(self) -> tuple[int, str]:
        """Number of entries and, in hex, the newest hash of the chain."""
        with self._query() as connection:
            seq, head_hash = connection.execute("SELECT seq, hash FROM head").fetchone()
            return int(seq), head_hash.hex()

    def verify_chain(self) -> Iterator[ChainFault]:
        """Recompute every hash up to the head at the start; yields what is wrong, in order.

        Works beside a running writer. Reads the whole ledger (about 20,000 entries a CPU second).
        """
        with faults(self.path, "verify"):
            connection = self._open()
            connection.text_factory = _lenient_text
            try:
                yield from verify(connection)
            finally:
                connection.close()

    def close(self) -> None:
        """Close idle connections; a query still running closes its own. Safe to call twice."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _query(self) -> Iterator[sqlite3.Connection]:
        with faults(self.path, "read"):
            connection = self._borrow()
            try:
                until_s = time.monotonic() + self._query_limit_s
                connection.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS_BETWEEN_LOOKS)
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
            if self._closed:
                self.close()

    def _borrow(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise LedgerFault(
                f"cannot read the ledger {self.path}: there is none yet; start `joulegate run` on this folder"
            )
        connection = open_reader(self.path)
        try:
            self._check_version(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_version(self, connection: sqlite3.Connection) -> None:
        version = version_of(connection, self.path)
        refuse_newer(version, len(STEPS), self.path)
        if version < len(STEPS):
            raise LedgerFault(
                f"cannot read the ledger {self.path}: it has schema {version} and {len(STEPS)} is needed; "
                "start `joulegate run` on this folder once, it migrates"
            )


def _lenient_text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _uses_of(connection: sqlite3.Connection, seqs: Sequence[int]) -> dict[int, tuple[tuple[str, tuple[Any, ...]], ...]]:
    uses: dict[int, list[tuple[str, tuple[Any, ...]]]] = {}
    for seq, device, *values in connection.execute(_USES, (json.dumps(list(seqs)),)):
        uses.setdefault(seq, []).append((device, tuple(values)))
    return {seq: tuple(of_one) for seq, of_one in uses.items()}


def _pending_of(row: Sequence[Any]) -> RequestEntry:
    wide = len(SPAN_COLUMNS)
    return pending_entry(dict(zip(SPAN_COLUMNS, row[:wide], strict=True)), row[wide:])


def _pending_page(
    connection: sqlite3.Connection, place: _Place, limit: int, wanted: dict[str, str]
) -> tuple[list[RequestEntry], _Place | None]:
    where = "".join(f" AND s.{name} = ?" for name in wanted)
    rows = connection.execute(
        f"{_PENDING}{where} AND (s.span, m.place) < (?, ?) ORDER BY s.span DESC, m.place DESC LIMIT ?",
        (*wanted.values(), place.number, place.member, limit + 1),
    ).fetchall()
    wide = len(SPAN_COLUMNS)
    last = rows[limit - 1] if len(rows) > limit else None
    rest = None if last is None else _Place("pending", last[wide], last[wide + 1])
    return [_pending_of(row) for row in rows[:limit]], rest


def _final_page(
    connection: sqlite3.Connection, place: _Place, limit: int, wanted: dict[str, str], scanned_rows: int
) -> tuple[list[RequestEntry], _Place | None]:
    newest = connection.execute("SELECT max(seq) FROM entries").fetchone()[0] or 0
    below = min(place.number, newest + 1)
    lowest = max(1, below - scanned_rows) if wanted else 1
    where = "".join(f" AND {name} = ?" for name in wanted)
    rows = connection.execute(
        select(("seq", *ENTRY_COLUMNS), f"FROM entries WHERE seq < ? AND seq >= ?{where} ORDER BY seq DESC LIMIT ?"),
        (below, lowest, *wanted.values(), limit + 1),
    ).fetchall()
    rest = None if lowest == 1 else _Place("final", lowest)
    if len(rows) > limit:
        rest = _Place("final", rows[limit - 1][0])
    uses = _uses_of(connection, [row[0] for row in rows[:limit]])
    return [entry_of(EntryRow(tuple(row[1:]), uses.get(row[0], ()), ())) for row in rows[:limit]], rest

"""The ledger's writing side: one durable SQLite transaction for each batch, counted once, restored at a restart."""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from joulegate.metering.batch import Batch, Restored
from joulegate.metering.entry import Account, Position
from joulegate.metering.reading import Method, Quality
from joulegate.metering.snapshot import DeviceTotals, RequestTotals
from joulegate.stores.connection import LEDGER_NAME, LOCK_NAME, open_writer
from joulegate.stores.fault import LedgerFault, fault_of, faults
from joulegate.stores.lock import FolderLock
from joulegate.stores.plan import (
    AccountKey,
    Journalled,
    JournalPlan,
    Memory,
    NewEntry,
    Plan,
    account_keys,
    apply,
    candidate_ids,
    plan,
    remember_span,
)
from joulegate.stores.rows import (
    ENTRY_COLUMNS,
    MEMBER_COLUMNS,
    SPAN_COLUMNS,
    USE_COLUMNS,
    Moment,
    member_rows,
    same_axis,
    span_of,
    span_row,
)
from joulegate.stores.schema import migrate
from joulegate.stores.sql import insert, select

RESTORED_S = 3600
"""``restore`` gives the accounts this far around each position: a late span may still be served from them."""

CHECKED_BYTES = 128 * 1024 * 1024
"""Up to this size every page is checked when the last writer did not close (2 to 8 ms a MiB); above it, on demand."""

_TOTAL_COLUMNS = ("device_mj", "requests_mj", "idle_mj", "unattributed_mj", "estimated_mj")
_ACCOUNT_COLUMNS = ("bucket_s", "device", "epoch", *_TOTAL_COLUMNS, "method", "quality")
_POSITION_COLUMNS = ("device", "epoch", "counter_mj", "total_mj", "t_s", "wall_s", "boot_id")
_REQUEST_COLUMNS = ("model", "tier", "quality", "requests", "images", "energy_mj", "energy_j_buckets")


_INSERT_ENTRY = insert("entries", ("seq", *ENTRY_COLUMNS, "first_bucket_s", "last_bucket_s", "prev_hash", "hash"))
_INSERT_USE = insert("entry_devices", ("seq", "device", *USE_COLUMNS))
_INSERT_SHARE = insert("shares", ("bucket_s", "seq", "device", "energy_mj"))
_INSERT_SPAN = insert("spans", SPAN_COLUMNS)
_INSERT_MEMBER = insert("span_members", MEMBER_COLUMNS)
_PUT_ACCOUNT = insert("accounts", _ACCOUNT_COLUMNS, verb="INSERT OR REPLACE")
_PUT_POSITION = insert("positions", _POSITION_COLUMNS, verb="INSERT OR REPLACE")
_PUT_DEVICE_TOTALS = insert("device_totals", ("device", *_TOTAL_COLUMNS), verb="INSERT OR REPLACE")
_PUT_REQUEST_TOTALS = insert("request_totals", _REQUEST_COLUMNS, verb="INSERT OR REPLACE")

_OLD_ACCOUNT = select(_TOTAL_COLUMNS, "FROM accounts WHERE bucket_s = ? AND device = ? AND epoch = ?")
_FINAL_IDS = "SELECT request_id FROM entries WHERE request_id IN (SELECT value FROM json_each(?))"
_SHARED_SINCE = select(
    ("d.id", "s.bucket_s", "SUM(s.energy_mj)"),
    "FROM shares s JOIN devices d ON d.device = s.device WHERE s.bucket_s >= ? GROUP BY s.device, s.bucket_s",
)
_POSITIONS = select(("d.id", *_POSITION_COLUMNS[1:]), "FROM positions JOIN devices d USING (device) ORDER BY d.id")
_RECENT_ACCOUNTS = select(
    ("d.id", "a.epoch", "a.bucket_s", *_TOTAL_COLUMNS, "method", "quality"),
    f"""FROM positions p CROSS JOIN accounts a
    ON a.bucket_s BETWEEN CAST(p.wall_s AS INTEGER) - {RESTORED_S} AND CAST(p.wall_s AS INTEGER) + {RESTORED_S}
      AND a.device = p.device
    JOIN devices d ON d.device = a.device
    ORDER BY d.id, a.epoch, a.bucket_s""",
)


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """What this writer did since it opened; a repeat is an entry or span of a known request: it changed nothing."""

    commits: int = 0
    entries: int = 0
    repeated_entries: int = 0
    repeated_spans: int = 0


def system_moment() -> Moment:
    """Now on this machine's clocks."""
    return Moment(time.monotonic(), time.time())


def system_boot_id() -> str:
    """The kernel's id of this boot, or ``""`` where there is none to read; wall times are then what a restart uses."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Ledger:
    """The only writer of ``folder/ledger.db``; every method belongs to one thread at a time.

    It holds ``folder/ledger.lock`` until ``close``. All faults are ``LedgerFault`` with one line; after one, nothing of
    the batch is in the ledger, and the same batch may be given again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str | None = None,
        clock: Callable[[], Moment] = system_moment,
        boot_id: str | None = None,
    ) -> None:
        """Open, check and migrate the ledger in ``folder`` (made when missing); raises ``LedgerFault``."""
        self.path = folder / LEDGER_NAME
        self.counts = LedgerCounts()
        self._closed = False
        self._clock = clock
        self._boot_id = system_boot_id() if boot_id is None else boot_id
        with faults(self.path, "open"):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder / LOCK_NAME)
            try:
                self._connection = open_writer(self.path)
                try:
                    self._prepare(platform.node() if host is None else host)
                except BaseException:
                    self._connection.close()
                    raise
            except BaseException:
                self._lock.release()
                raise

    def restore(self) -> Restored:
        """State to go on from; its cost does not grow with the number of entries."""
        now = self._clock()
        with faults(self.path, "read"):
            spans, earlier = [], set()
            for values, members in self._journal_rows():
                span = span_of(values, members, self._boot_id, now)
                spans.append(span)
                if not same_axis(str(values[2]), self._boot_id):
                    earlier.add(span.request_id)
            positions = tuple(Position(*row) for row in self._connection.execute(_POSITIONS))
            return Restored(
                positions=positions,
                pending_mj=self._pending_mj() if spans else {},
                spans=tuple(spans),
                accounts=tuple(
                    Account(*(*row[:8], Method(row[8]), Quality(row[9])))
                    for row in self._connection.execute(_RECENT_ACCOUNTS)
                ),
                totals=dict(self._memory.totals),
                requests=tuple(self._memory.requests.values()),
                earlier_boot=frozenset(earlier),
            )

    def _pending_mj(self) -> dict[tuple[str, int], int]:
        """What the buckets around the positions placed on requests that have no final figure."""
        placed: dict[tuple[str, int], int] = {}
        for row in self._connection.execute(_RECENT_ACCOUNTS):
            key = (str(row[0]), int(row[2]))
            placed[key] = placed.get(key, 0) + int(row[4])
        if not placed:
            return {}
        first_s = min(bucket_s for _, bucket_s in placed)
        for device, bucket_s, energy_mj in self._connection.execute(_SHARED_SINCE, (first_s,)):
            if (device, bucket_s) in placed:
                placed[device, bucket_s] -= int(energy_mj)
        return {key: energy_mj for key, energy_mj in placed.items() if energy_mj > 0}

    def commit(self, batch: Batch) -> None:
        """Write ``batch`` in one durable transaction; raises ``LedgerFault`` with nothing written.

        A request id that is known changes nothing and is counted in ``counts``; a final entry never changes.
        """
        if batch == Batch():
            return
        with faults(self.path, "write"), self._transaction():
            done = plan(batch, self._memory, self.final_ids(candidate_ids(batch)), self._old_accounts(batch))
            self._write(done)
        apply(done, self._memory)
        self.counts = replace(
            self.counts,
            commits=self.counts.commits + 1,
            entries=self.counts.entries + len(done.entries),
            repeated_entries=self.counts.repeated_entries + done.repeated_entries,
            repeated_spans=self.counts.repeated_spans + done.journal.repeated,
        )

    def close(self) -> None:
        """Checkpoint, mark the ledger as closed cleanly and let the folder go; never raises, safe to call twice.

        What a full disk keeps from the checkpoint is durable in the WAL, and the next opening takes it in.
        """
        if self._closed:
            return
        self._closed = True
        try:
            with suppress(sqlite3.OperationalError):
                self._put_meta("closed", "1")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._connection.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, host: str) -> None:
        connection = self._connection
        migrate(connection, self.path)
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        if meta.get("closed") == "0":
            self._check_pages()
        with self._transaction():
            self._put_meta("closed", "0")
            if "created_s" not in meta:
                self._put_meta("created_s", repr(self._clock().wall_s))
                self._put_meta("host", host)
        self._memory = self._remembered()

    def _check_pages(self) -> None:
        pages, page_bytes = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size")
        )
        if pages * page_bytes > CHECKED_BYTES:
            return
        verdict = str(self._connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if verdict != "ok":
            error = sqlite3.DatabaseError(verdict)
            error.sqlite_errorname = "SQLITE_CORRUPT"
            raise fault_of(error, self.path, "open")

    def _remembered(self) -> Memory:
        connection = self._connection
        names = dict(connection.execute("SELECT id, device FROM devices"))
        head_seq, head_hash = connection.execute("SELECT seq, hash FROM head").fetchone()
        last = connection.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        if head_seq and last != (head_seq, head_hash):
            raise LedgerFault(
                f"cannot open the ledger {self.path}: its newest entry is not the one its head names ({head_seq}); "
                "run `joulegate verify`, then restore the file from a backup or move it away"
            )
        of_number = {number: name for name, number in names.items()}
        memory = Memory(devices=names, head_seq=head_seq, head_hash=head_hash)
        for device, *totals in connection.execute(select(("device", *_TOTAL_COLUMNS), "FROM device_totals")):
            memory.totals[of_number[device]] = DeviceTotals(*totals)
        for row in connection.execute(select(_REQUEST_COLUMNS, "FROM request_totals")):
            model, tier, quality = row[0], row[1], Quality(row[2])
            memory.requests[model, tier, quality] = RequestTotals(
                *(model, tier, quality, *row[3:6], tuple(json.loads(row[6])))
            )
        self._remember_journal(memory)
        return memory

    def _remember_journal(self, memory: Memory) -> None:
        rows = list(self._journal_rows())
        final = self.final_ids({str(row[2]) for _, members in rows for row in members})
        for values, members in rows:
            number, key, ended = int(str(values[0])), str(values[1]), values[7] is not None
            waiting = {str(row[2]) for row in members} - final - memory.owners.keys()
            remember_span(memory, key, Journalled(number, ended, frozenset(waiting)))

    def _journal_rows(self) -> Iterator[tuple[tuple[object, ...], list[tuple[object, ...]]]]:
        members: dict[object, list[tuple[object, ...]]] = {}
        for row in self._connection.execute(select(MEMBER_COLUMNS, "FROM span_members ORDER BY span, place")):
            members.setdefault(row[0], []).append(row)
        for values in self._connection.execute(select(SPAN_COLUMNS, "FROM spans ORDER BY span")):
            yield values, members.get(values[0], [])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _put_meta(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))

    def final_ids(self, ids: set[str]) -> set[str]:
        """Which of these requests have a final entry."""
        return {row[0] for row in self._connection.execute(_FINAL_IDS, (json.dumps(list(ids)),))} if ids else set()

    def _old_accounts(self, batch: Batch) -> dict[AccountKey, DeviceTotals]:
        old: dict[AccountKey, DeviceTotals] = {}
        for key in account_keys(batch):
            bucket_s, device, epoch = key
            number = self._memory.devices.get(device)
            row = number and self._connection.execute(_OLD_ACCOUNT, (bucket_s, number, epoch)).fetchone()
            if row:
                old[key] = DeviceTotals(*row)
        return old

    def _write(self, done: Plan) -> None:
        many = self._connection.executemany
        many("INSERT INTO devices (id, device) VALUES (?, ?)", done.devices.items())
        devices = {**self._memory.devices, **done.devices}
        self._write_entries(done.entries, devices)
        self._write_journal(done.journal)
        many(_PUT_ACCOUNT, (_account_row(key, account, devices) for key, account in done.accounts.items()))
        many(_PUT_POSITION, (_position_row(devices[device], position) for device, position in done.positions.items()))
        many(_PUT_DEVICE_TOTALS, ((devices[device], *_total_values(totals)) for device, totals in done.totals.items()))
        many(_PUT_REQUEST_TOTALS, (_request_values(totals) for totals in done.requests.values()))

    def _write_entries(self, entries: tuple[NewEntry, ...], devices: Mapping[str, int]) -> None:
        if not entries:
            return
        many = self._connection.executemany
        many(_INSERT_ENTRY, (_entry_values(entry) for entry in entries))
        many(
            _INSERT_USE,
            ((entry.seq, devices[device], *values) for entry in entries for device, values in entry.row.uses),
        )
        many(
            _INSERT_SHARE,
            (
                (bucket_s, entry.seq, devices[device], energy_mj)
                for entry in entries
                for bucket_s, device, energy_mj in entry.row.shares
            ),
        )
        self._connection.execute("UPDATE head SET seq = ?, hash = ?", (entries[-1].seq, entries[-1].hash))

    def _write_journal(self, journal: JournalPlan) -> None:
        now = self._clock()
        replaced = [key for key in (*journal.finished, *journal.written) if key in self._memory.journal]
        many = self._connection.executemany
        many("DELETE FROM spans WHERE span = ?", ((self._memory.journal[key].number,) for key in replaced))
        written = [(state.number, span) for state, span in journal.written.values()]
        many(_INSERT_SPAN, (span_row(number, span, self._boot_id, now) for number, span in written))
        many(_INSERT_MEMBER, (row for number, span in written for row in member_rows(number, span)))


def _entry_values(entry: NewEntry) -> tuple[object, ...]:
    shares = entry.row.shares
    first_s, last_s = (shares[0][0], shares[-1][0]) if shares else (None, None)
    return (entry.seq, *entry.row.values, first_s, last_s, entry.prev_hash, entry.hash)


def _account_row(key: AccountKey, account: Account, devices: Mapping[str, int]) -> tuple[object, ...]:
    bucket_s, device, epoch = key
    return (
        bucket_s, devices[device], epoch, account.device_mj, account.requests_mj, account.idle_mj,
        account.unattributed_mj, account.estimated_mj, str(account.method), str(account.quality),
    )  # fmt: skip


def _position_row(device: int, position: Position) -> tuple[object, ...]:
    return (
        device, position.epoch, position.counter_mj, position.total_mj, position.t_s, position.wall_s, position.boot_id,
    )  # fmt: skip


def _total_values(totals: DeviceTotals) -> tuple[int, ...]:
    return tuple(getattr(totals, name) for name in _TOTAL_COLUMNS)


def _request_values(totals: RequestTotals) -> tuple[object, ...]:
    return (
        totals.model, totals.tier, str(totals.quality), totals.requests, totals.images, totals.energy_mj,
        json.dumps(totals.energy_j_buckets),
    )  # fmt: skip

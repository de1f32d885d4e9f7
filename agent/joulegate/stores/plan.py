"""The plan of one commit: which rows a batch leads to, given what the ledger holds. Nothing here touches SQLite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from joulegate.metering.batch import Batch, add_entry, totals_key
from joulegate.metering.entry import Account, Position, RequestEntry
from joulegate.metering.reading import Quality
from joulegate.metering.snapshot import DeviceTotals, RequestTotals
from joulegate.metering.span import Span
from joulegate.stores.chain import FIRST_HASH, digest
from joulegate.stores.rows import EntryRow, member_ids, row_of, storable, text

AccountKey = tuple[int, str, int]
RequestKey = tuple[str, str, Quality]


@dataclass(frozen=True, slots=True)
class Journalled:
    """A span in the journal: its row number, whether it has ended, and its requests without a final entry yet."""

    number: int
    ended: bool
    waiting: frozenset[str]


@dataclass(slots=True)
class Memory:
    """What the only writer remembers of its own file between commits; changed only after a commit."""

    devices: dict[str, int] = field(default_factory=dict)
    journal: dict[str, Journalled] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    totals: dict[str, DeviceTotals] = field(default_factory=dict)
    requests: dict[RequestKey, RequestTotals] = field(default_factory=dict)
    head_seq: int = 0
    head_hash: bytes = FIRST_HASH
    next_span: int = 1


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry about to be written at its place in the chain."""

    seq: int
    prev_hash: bytes
    hash: bytes
    row: EntryRow


@dataclass(frozen=True, slots=True)
class JournalPlan:
    """Changes of the journal: spans to write under their number, and request ids of spans to delete or narrow."""

    written: Mapping[str, tuple[Journalled, Span]]
    finished: tuple[str, ...]
    narrowed: Mapping[str, Journalled]
    repeated: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one transaction writes."""

    devices: Mapping[str, int]
    entries: tuple[NewEntry, ...]
    repeated_entries: int
    journal: JournalPlan
    accounts: Mapping[AccountKey, Account]
    positions: Mapping[str, Position]
    totals: Mapping[str, DeviceTotals]
    requests: Mapping[RequestKey, RequestTotals]


def candidate_ids(batch: Batch) -> set[str]:
    """Ids in ``batch`` that may already have a final entry."""
    ids = {text(entry.request_id) for entry in batch.entries}
    for span in (*batch.opened, *batch.closed):
        ids.update(member_ids(span))
    return ids


def account_keys(batch: Batch) -> dict[AccountKey, Account]:
    """Accounts by (bucket, device, epoch); of one written twice the last counts."""
    return {(account.bucket_s, text(account.device), account.epoch): account for account in batch.accounts}


def plan(batch: Batch, memory: Memory, final: set[str], old: Mapping[AccountKey, DeviceTotals]) -> Plan:
    """The plan for ``batch``; ``final`` are ids that have entries already, ``old`` the accounts that it replaces."""
    entries, requests = _entries(batch.entries, memory, final)
    accounts = account_keys(batch)
    positions = {text(position.device): position for position in batch.positions}
    named = {device for entry in entries for device, _ in entry.row.uses}
    named.update(device for entry in entries for _, device, _ in entry.row.shares)
    named.update(device for _, device, _ in accounts)
    named.update(positions)
    new_devices = sorted(named - memory.devices.keys())
    return Plan(
        devices={device: len(memory.devices) + number for number, device in enumerate(new_devices, 1)},
        entries=tuple(entries),
        repeated_entries=len(batch.entries) - len(entries),
        journal=_journal(batch, memory, final, {str(entry.row.values[0]) for entry in entries}),
        accounts=accounts,
        positions=positions,
        totals=_device_totals(accounts, memory.totals, old),
        requests=requests,
    )


def _entries(
    batch: Iterable[RequestEntry], memory: Memory, final: set[str]
) -> tuple[list[NewEntry], dict[RequestKey, RequestTotals]]:
    new: list[NewEntry] = []
    requests: dict[RequestKey, RequestTotals] = {}
    seen = set(final)
    seq, prev_hash = memory.head_seq, memory.head_hash
    for given in batch:
        entry = storable(given)
        if entry.request_id in seen:
            continue
        seen.add(entry.request_id)
        row = row_of(entry)
        seq += 1
        entry_hash = digest(prev_hash, seq, row)
        new.append(NewEntry(seq, prev_hash, entry_hash, row))
        prev_hash = entry_hash
        key = totals_key(entry)
        requests[key] = add_entry(requests.get(key) or memory.requests.get(key), entry)
    return new, requests


def _journal(batch: Batch, memory: Memory, final: set[str], new: set[str]) -> JournalPlan:
    gone = final | new
    drafts: dict[str, tuple[Journalled, Span]] = {}
    owners: dict[str, str] = {}
    repeated, number = 0, memory.next_span
    for span in (*batch.opened, *batch.closed):
        key, ids = text(span.request_id), member_ids(span)
        known = drafts[key][0] if key in drafts else memory.journal.get(key)
        owned = {one: owner for one in ids if (owner := owners.get(one) or memory.owners.get(one))}
        if known is None:
            is_repeat = all(one in final or one in owned for one in ids)
        else:
            is_repeat = known.ended or span.ended_s is None
        if is_repeat:
            repeated += 1
        else:
            place = number if known is None else known.number
            number += known is None
            mine = frozenset(one for one in ids if one not in gone and owned.get(one, key) == key)
            drafts[key] = (Journalled(place, span.ended_s is not None, mine), span)
            owners.update(dict.fromkeys(mine, key))
    written = {key: draft for key, draft in drafts.items() if draft[0].waiting}
    finished = [key for key in drafts if key not in written and key in memory.journal]
    narrowed: dict[str, Journalled] = {}
    for key in {memory.owners[one] for one in new if one in memory.owners} - drafts.keys():
        before = memory.journal[key]
        if waiting := before.waiting - gone:
            narrowed[key] = replace(before, waiting=waiting)
        else:
            finished.append(key)
    return JournalPlan(written, tuple(finished), narrowed, repeated)


def _device_totals(
    accounts: Mapping[AccountKey, Account], totals: Mapping[str, DeviceTotals], old: Mapping[AccountKey, DeviceTotals]
) -> dict[str, DeviceTotals]:
    changed: dict[str, DeviceTotals] = {}
    for key, account in accounts.items():
        device = key[1]
        before = changed.get(device) or totals.get(device) or DeviceTotals()
        replaced = old.get(key, DeviceTotals())
        changed[device] = DeviceTotals(
            before.device_mj + account.device_mj - replaced.device_mj,
            before.requests_mj + account.requests_mj - replaced.requests_mj,
            before.idle_mj + account.idle_mj - replaced.idle_mj,
            before.unattributed_mj + account.unattributed_mj - replaced.unattributed_mj,
            before.estimated_mj + account.estimated_mj - replaced.estimated_mj,
        )
    return changed


def apply(done: Plan, memory: Memory) -> None:
    """Remember a plan whose transaction was committed."""
    memory.devices.update(done.devices)
    memory.totals.update(done.totals)
    memory.requests.update(done.requests)
    if done.entries:
        memory.head_seq, memory.head_hash = done.entries[-1].seq, done.entries[-1].hash
    for key in done.journal.finished:
        _forget_span(memory, key)
    for key, state in done.journal.narrowed.items():
        remember_span(memory, key, state)
    for key, (state, _) in done.journal.written.items():
        remember_span(memory, key, state)


def remember_span(memory: Memory, key: str, state: Journalled) -> None:
    """Add or replace one journalled span; every waiting request is owned by exactly one."""
    _forget_span(memory, key)
    memory.journal[key] = state
    memory.next_span = max(memory.next_span, state.number + 1)
    memory.owners.update(dict.fromkeys(state.waiting, key))


def _forget_span(memory: Memory, key: str) -> None:
    before = memory.journal.pop(key, None)
    for one in before.waiting if before else ():
        del memory.owners[one]

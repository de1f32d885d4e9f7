"""The chain: each entry's hash covers the one before it, so that a changed, removed or inserted entry shows.

``hash = sha256(prev_hash + record)``; the first ``prev_hash`` is 32 zero bytes. ``record`` is JSON with sorted keys, no
spaces and ASCII escapes, of: ``seq``; every column of ``ENTRY_COLUMNS`` as stored, left out when NULL (so that a later
schema can add columns without touching old hashes); ``devices``, device id to the columns of ``USE_COLUMNS`` by the
same rule; ``shares``, a sorted list of [bucket_s, device id, energy_mj]. Floats are written by ``repr``, the shortest
text that reads back as the same double.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from joulegate.stores.rows import ENTRY_COLUMNS, USE_COLUMNS, EntryRow, Value

FIRST_HASH = bytes(32)

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Link:
    """One stored entry with its place in the chain."""

    seq: int
    prev_hash: bytes
    hash: bytes
    row: EntryRow


@dataclass(frozen=True, slots=True)
class ChainFault:
    """What is wrong with the ledger at ``seq``; ``request_id`` is ``None`` when there is no readable entry there."""

    seq: int
    request_id: str | None
    why: str


def record(seq: int, row: EntryRow) -> bytes:
    """The canonical form of an entry, as the module describes it."""
    body: dict[str, object] = _present(ENTRY_COLUMNS, row.values)
    body["seq"] = seq
    body["devices"] = {device: _present(USE_COLUMNS, values) for device, values in row.uses}
    body["shares"] = row.shares
    return _encode(body).encode("ascii")


def _present(names: tuple[str, ...], values: tuple[Value, ...]) -> dict[str, object]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def digest(prev_hash: bytes, seq: int, row: EntryRow) -> bytes:
    """The hash of entry ``seq``."""
    return hashlib.sha256(prev_hash + record(seq, row)).digest()


def faults_of(links: Iterable[Link | ChainFault], head_seq: int, head_hash: bytes) -> Iterator[ChainFault]:
    """Check links in the order of ``seq`` up to the head; a fault found while reading is passed on in its place."""
    seq, last_hash = 0, FIRST_HASH
    for link in links:
        if isinstance(link, ChainFault):
            yield link
            seq, last_hash = link.seq, b""
            continue
        yield from _link_faults(link, seq, last_hash)
        seq, last_hash = link.seq, link.hash
    if (seq, last_hash) != (head_seq, head_hash) and last_hash:
        yield ChainFault(
            seq, None, f"the chain ends here, but its head is entry {head_seq}: entries were removed or changed"
        )


def _link_faults(link: Link, before_seq: int, before_hash: bytes) -> Iterator[ChainFault]:
    request_id = str(link.row.values[0])
    if not _hash_holds(link):
        yield ChainFault(link.seq, request_id, "it was changed after it was written")
    elif link.seq != before_seq + 1:
        yield ChainFault(link.seq, request_id, f"entries {before_seq + 1} to {link.seq - 1} before it were removed")
    elif before_hash and link.prev_hash != before_hash:
        yield ChainFault(link.seq, request_id, "it does not follow the entry before it")
    elif why := _sum_fault(link.row):
        yield ChainFault(link.seq, request_id, why)


def _hash_holds(link: Link) -> bool:
    try:
        return digest(link.prev_hash, link.seq, link.row) == link.hash
    except ValueError:
        return False  # an infinite number: never written, so put there later


def _sum_fault(row: EntryRow) -> str | None:
    energy_mj = row.values[ENTRY_COLUMNS.index("energy_mj")]
    of_devices = sum(int(values[0] or 0) for _, values in row.uses)
    of_shares = sum(energy for _, _, energy in row.shares)
    if (energy_mj or 0) == of_devices == of_shares:
        return None
    return f"its parts do not add up: {energy_mj} mJ, devices {of_devices} mJ, shares {of_shares} mJ"

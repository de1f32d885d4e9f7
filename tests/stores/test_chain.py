"""The chain of hashes: what it covers and what it says when somebody was at the file."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from tests.stores.examples import EPOCH_S, GPU, entry

from joulegate.metering.batch import Batch
from joulegate.metering.span import Work
from joulegate.stores import Ledger, LedgerFault, LedgerReader

ALTERATIONS = {
    "one letter of a tenant": ("UPDATE entries SET tenant = 'acmf' WHERE seq = 3", 3),
    "one millijoule": ("UPDATE entries SET energy_mj = energy_mj + 1 WHERE seq = 3", 3),
    "one bit of a start": ("UPDATE entries SET started_s = started_s + 2.384185791015625e-07 WHERE seq = 3", 3),
    "a figure made missing": ("UPDATE entries SET u_allocation_mj = NULL WHERE seq = 3", 3),
    "a device's power": ("UPDATE entry_devices SET power_max_w = 299 WHERE seq = 3", 3),
    "a share moved to another bucket": ("UPDATE shares SET bucket_s = bucket_s + 10 WHERE seq = 3", 3),
    "a share's energy": ("UPDATE shares SET energy_mj = energy_mj - 1 WHERE seq = 3", 3),
    "the way to the shares": ("UPDATE entries SET last_bucket_s = 9000000000000000000 WHERE seq = 3", 3),
    "the hash itself": ("UPDATE entries SET hash = zeroblob(32) WHERE seq = 3", 3),
    "an infinite power": ("UPDATE entry_devices SET power_max_w = 9e999 WHERE seq = 3", 3),
    "an entry taken out": ("DELETE FROM entries WHERE seq = 3", 4),
    "the newest taken out": ("DELETE FROM entries WHERE seq = 5", 4),
    "a share put in": (f"INSERT INTO shares VALUES ({EPOCH_S + 500}, 3, 1, 9)", 5),
    "text that is no text": ("UPDATE entries SET model = CAST(x'ff00' AS TEXT) WHERE seq = 3", 3),
}  # fmt: skip


@pytest.fixture
def five(ledger: Ledger) -> Ledger:
    """A ledger of five entries in two commits."""
    ledger.commit(Batch(entries=tuple(entry(f"r-{number}") for number in (1, 2, 3))))
    ledger.commit(Batch(entries=tuple(entry(f"r-{number}") for number in (4, 5))))
    return ledger


def alter(path: Path, statement: str) -> None:
    """Change the file behind the ledger's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_an_untouched_ledger_verifies(five: Ledger, reader: LedgerReader) -> None:
    """No fault is found in what the ledger itself wrote, with the writer still running."""
    assert list(reader.verify_chain()) == []
    assert reader.head()[0] == 5


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_alteration_is_found_and_located(five: Ledger, reader: LedgerReader, name: str) -> None:
    """Whatever is changed behind the ledger's back is named with the place where it shows first."""
    statement, seq = ALTERATIONS[name]
    alter(five.path, statement)
    faults = list(reader.verify_chain())
    assert faults
    assert faults[0].seq == seq


def test_removed_entries_are_counted(five: Ledger, reader: LedgerReader) -> None:
    """Where entries were taken out, the first one after them says which are gone."""
    alter(five.path, "DELETE FROM entries WHERE seq IN (2, 3)")
    fault = next(reader.verify_chain())
    assert (fault.seq, fault.request_id) == (4, "r-4")
    assert "2 to 3" in fault.why


def test_one_flipped_byte_in_the_file_is_found(five: Ledger, reader: LedgerReader) -> None:
    """A byte flipped on the disk, under SQLite, is traced to its entry."""
    five.commit(Batch(entries=(entry("r-6", tenant="needle-in-the-file"), entry("r-7"))))
    five.close()
    content = bytearray(five.path.read_bytes())
    at = content.index(b"needle-in-the-file")
    content[at] ^= 0x01
    five.path.write_bytes(content)
    assert [(fault.seq, fault.request_id) for fault in reader.verify_chain()] == [(6, "r-6")]


def test_the_hash_is_what_the_documentation_says(ledger: Ledger, reader: LedgerReader) -> None:
    """An independent program can recompute the first hash from the documented form alone."""
    ledger.commit(
        Batch(
            entries=(entry("r-é", [(GPU, EPOCH_S, 5)], work=Work(1), tenant=None, flags=(), arrived_s=None, tier=None),)
        )
    )
    record = {
        "devices": {GPU: {"clock_event_s": '{"sw_thermal":0.3}', "energy_mj": 5, "memory_max_bytes": 9_000_000_000,
                          "power_max_w": 300.1, "power_mean_w": 251.7, "temperature_max_c": 71.0,
                          "utilization_mean": 0.93}},
        "ended_s": EPOCH_S + 4.1, "energy_mj": 5, "flags": "", "images": 1, "method": "counter", "model": "sdxl",
        "outcome": "ok", "quality": "measured", "request_id": "r-é", "seq": 1, "shares": [[EPOCH_S, GPU, 5]],
        "start_source": "engine", "started_s": EPOCH_S + 1.25, "u_allocation_mj": 7, "u_measurement_mj": 11,
    }  # fmt: skip
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert reader.head() == (1, hashlib.sha256(bytes(32) + text.encode()).hexdigest())


def test_an_entry_whose_parts_do_not_add_up_is_named(ledger: Ledger, reader: LedgerReader) -> None:
    """Verification also says where an entry's total is not the sum over its devices and its shares."""
    ledger.commit(Batch(entries=(entry("r-1"), entry("r-2", energy_mj=3))))
    (fault,) = reader.verify_chain()
    assert (fault.seq, fault.request_id) == (2, "r-2")
    assert "3 mJ" in fault.why


def test_a_ledger_cut_off_behind_its_head_is_not_opened(five: Ledger, open_ledger) -> None:
    """A writer never builds on a chain whose newest entry is not the one its head names."""
    five.close()
    alter(five.path, "DELETE FROM entries WHERE seq = 5")
    with pytest.raises(LedgerFault, match="joulegate verify"):
        open_ledger()


def test_many_entries_are_verified_page_by_page(ledger: Ledger, reader: LedgerReader) -> None:
    """A chain longer than one page is followed across the pages, and an alteration on the last one is located."""
    ledger.commit(Batch(entries=tuple(entry(f"r-{number}") for number in range(2_100))))
    assert list(reader.verify_chain()) == []
    alter(ledger.path, "UPDATE entries SET tier = 'Free' WHERE seq = 2050")
    assert [fault.seq for fault in reader.verify_chain()] == [2050]

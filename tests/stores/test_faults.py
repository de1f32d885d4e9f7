"""Full disks, read-only folders, damaged files and a second daemon: one line, nothing half-written, nothing lost."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.stores.examples import EPOCH_S, GPU, account, entry

from joulegate.metering.batch import Batch
from joulegate.stores import Ledger, LedgerFault, LedgerReader

HOLD = """
import pathlib, sys
from joulegate.stores import Ledger
ledger = Ledger(pathlib.Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def batch(number: int, size: int = 40) -> Batch:
    """A batch of entries of one bucket, with the account that goes with them."""
    bucket_s = EPOCH_S + 10 * number
    entries = tuple(entry(f"r-{number}-{one}", [(GPU, bucket_s, 5)], tenant="t" * 400) for one in range(size))
    return Batch(entries=entries, accounts=(account(bucket_s, requests_mj=5 * size),))


def commit_until_fault(ledger: Ledger) -> tuple[int, LedgerFault]:
    """Commit batches until one fails; gives its number and the fault."""
    for number in range(10_000):
        try:
            ledger.commit(batch(number))
        except LedgerFault as fault:
            return number, fault
    pytest.fail("the disk never became full")


def assert_whole(reader: LedgerReader, batches: int) -> None:
    """Exactly the first ``batches`` are there, each whole, and the chain holds."""
    assert reader.head()[0] == 40 * batches
    table = reader.energy(EPOCH_S, EPOCH_S + 10 * (batches + 5))
    assert (table.totals.requests_mj, table.totals.pending_mj) == (200 * batches, 0)
    assert list(reader.verify_chain()) == []


@pytest.mark.parametrize(("size", "ballast_bytes"), [("2m", 400_000), ("9m", 1_500_000)])
def test_a_full_disk_loses_nothing(mounted: Callable[..., Path], size: str, ballast_bytes: int) -> None:
    """On a disk that runs full, before or after checkpoints, a commit fails whole; with space freed it goes in."""
    folder = mounted(f"size={size}")
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(ballast_bytes))
    with Ledger(folder / "state") as ledger:
        reader = LedgerReader(folder / "state")
        failed, fault = commit_until_fault(ledger)
        assert "the disk is full" in str(fault)
        assert str(ledger.path) in str(fault)
        assert "\n" not in str(fault)
        assert failed > 0
        assert_whole(reader, failed)
        with pytest.raises(LedgerFault, match="disk is full"):
            ledger.commit(batch(failed))
        ballast.unlink()
        ledger.commit(batch(failed))
        assert_whole(reader, failed + 1)
        reader.close()
    subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
    with Ledger(folder / "state") as again:
        assert again.restore().totals[GPU].device_mj == 200 * (failed + 1)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A limit on the size of files, as a quota sets it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_full_from_the_start_is_one_line(mounted: Callable[..., Path]) -> None:
    """Where not even an empty ledger fits, opening fails with one line that says to start again."""
    folder = mounted("size=64k")
    (folder / "ballast").write_bytes(bytes(48_000))
    with pytest.raises(LedgerFault, match=r"cannot open .*the disk is full .*free space; then start again"):
        Ledger(folder)


def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    """Where the kernel refuses to let the file grow, a commit fails whole, and goes in once the limit is lifted."""
    with Ledger(tmp_path) as ledger:
        reader = LedgerReader(tmp_path)
        with no_file_larger_than(600_000):
            failed, fault = commit_until_fault(ledger)
        assert str(fault).startswith(f"cannot write the ledger {ledger.path}: ")
        assert failed > 0
        assert_whole(reader, failed)
        ledger.commit(batch(failed))
        assert_whole(reader, failed + 1)
        reader.close()


def test_a_read_only_folder_is_one_line(mounted: Callable[..., Path]) -> None:
    """A ledger on a read-only medium cannot be opened for writing, and is still read and verified."""
    folder = mounted("size=4m")
    with Ledger(folder) as ledger:
        ledger.commit(Batch(entries=(entry("r-1"),)))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(LedgerFault, match=r"read-only .*choose another --state-dir") as caught:
        Ledger(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(LedgerFault, match="read-only"):
        Ledger(folder / "below")
    reader = LedgerReader(folder)
    assert reader.request("r-1") == entry("r-1")
    assert list(reader.verify_chain()) == []
    reader.close()


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    """A state folder that cannot be made is named with the reason."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(LedgerFault, match=r"cannot open the ledger .*/state/ledger\.db: .*check the path"):
        Ledger(tmp_path / "state")


def test_a_second_daemon_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    """Two daemons never write one ledger; the second names the first, and gets in once that one was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "open\n"
            with pytest.raises(LedgerFault, match=rf"{tmp_path} is in use by another joulegate \(pid {first.pid}\)"):
                Ledger(tmp_path)
        finally:
            first.kill()
    Ledger(tmp_path).close()


def test_one_process_cannot_open_a_ledger_twice(tmp_path: Path) -> None:
    """The lock holds within a process too, and is free again after closing."""
    with Ledger(tmp_path), pytest.raises(LedgerFault, match=rf"\(pid {os.getpid()}\)"):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


def test_a_foreign_lock_on_the_database_is_a_fault_that_passes(tmp_path: Path) -> None:
    """While another program holds the database, a commit fails with one line; afterwards the same batch goes in."""
    with Ledger(tmp_path) as ledger:
        other = sqlite3.connect(ledger.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerFault, match="another program holds it locked"):
            ledger.commit(batch(0))
        other.execute("ROLLBACK")
        other.close()
        ledger.commit(batch(0))
        reader = LedgerReader(tmp_path)
        assert_whole(reader, 1)
        reader.close()


def damage(path: Path) -> None:
    """Overwrite the middle of the file, as a failing disk does."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 3 * 4096] = b"\xa5" * (3 * 4096)
    path.write_bytes(content)


def test_damaged_pages_are_found_after_an_unclean_stop(tmp_path: Path) -> None:
    """A ledger that was not closed is looked through when it is opened, and damage is one line that says what to do."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.kill()
    with Ledger(tmp_path) as ledger:
        for number in range(5):
            ledger.commit(batch(number))
    connection = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    connection.execute("UPDATE meta SET value = '0' WHERE name = 'closed'")
    connection.close()
    damage(tmp_path / "ledger.db")
    with pytest.raises(LedgerFault, match=r"it is damaged .*\.recover") as caught:
        Ledger(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_pages_are_named_by_verification(tmp_path: Path) -> None:
    """Verification goes past pages that cannot be read and names the entries on them, without a traceback."""
    with Ledger(tmp_path) as ledger:
        for number in range(5):
            ledger.commit(batch(number))
    damage(tmp_path / "ledger.db")
    reader = LedgerReader(tmp_path)
    faults = list(reader.verify_chain())
    assert faults
    assert all(1 <= fault.seq <= 200 for fault in faults)
    reader.close()


def test_closing_twice_is_safe(tmp_path: Path) -> None:
    """A second close does nothing, and a commit after it is a fault, not a crash."""
    ledger = Ledger(tmp_path)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerFault, match="closed"):
        ledger.commit(batch(0))

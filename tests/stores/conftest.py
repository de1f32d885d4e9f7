"""Ledgers in a fresh folder, on a clock that stands still, and small file systems where the machine allows."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joulegate.stores import Ledger, LedgerReader
from joulegate.stores.rows import Moment

NOW = Moment(t_s=110.0, wall_s=1_760_000_510.0)


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens ledgers in one folder, by default on this boot; closes them all at the end."""
    opened: list[Ledger] = []

    def open_one(*, boot_id: str = "boot-1", now: Moment = NOW) -> Ledger:
        opened.append(Ledger(tmp_path, host="host-a", clock=lambda: now, boot_id=boot_id))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def ledger(open_ledger: Callable[..., Ledger]) -> Ledger:
    """A new ledger."""
    return open_ledger()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[LedgerReader]:
    """A reader of the folder's ledger."""
    one = LedgerReader(tmp_path)
    yield one
    one.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs with the given options and gives its folder; skips where this user may not mount."""
    folders: list[Path] = []
    mount = shutil.which("mount")

    def mount_one(options: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        if mount is None:
            pytest.skip("no mount command here")
        done = subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount_one
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)

"""Small disks for the trail, where the machine allows."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``small_disk("2m")`` mounts a tmpfs of that size and gives its folder; skips where this user may not mount."""
    folders: list[Path] = []
    mount = shutil.which("mount")

    def mount_one(size: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        if mount is None:
            pytest.skip("no mount command here")
        command = [mount, "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount_one
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)

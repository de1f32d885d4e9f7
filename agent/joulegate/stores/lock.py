"""The lock that keeps one state folder to one daemon."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from joulegate.stores.fault import LedgerFault, faults


class FolderLock:
    """An advisory ``flock`` on a file that holds its owner's pid; the kernel lets go of it when the process dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock; raises ``LedgerFault`` that names the pid when another process has it."""
        self._path = path
        with faults(path, "lock"):
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._take(self._fd)
            except BaseException:
                self.release()
                raise

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise LedgerFault(
                f"the state folder {self._path.parent} is in use by another joulegate (pid {owner}); "
                "stop that one or choose another --state-dir"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let go; safe to call twice. The file stays, because deleting it would race with the next owner."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

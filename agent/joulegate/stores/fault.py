"""The ledger's fault: one line for a person that says what, where and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GOES_ON = "the daemon then goes on by itself"
_ROOM_BYTES = 64 * 1024
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CORRUPT_FIX = (
    "stop joulegate, keep a copy of the folder and rescue it with `sqlite3 ledger.db .recover`, or move it away"
)
_ADVICE = {
    "SQLITE_FULL": ("the disk is full", f"free space; {_GOES_ON}"),
    "SQLITE_READONLY": (
        "the folder or file is read-only",
        "make it writable for this user or choose another --state-dir",
    ),
    "SQLITE_CANTOPEN": ("it cannot be opened", "make the folder writable for this user or choose another --state-dir"),
    "SQLITE_PERM": ("access is not permitted", "make it writable for this user or choose another --state-dir"),
    "SQLITE_NOTADB": ("it is not an SQLite database", "move the file away or choose another --state-dir"),
    "SQLITE_CORRUPT": ("it is damaged", _CORRUPT_FIX),
    "SQLITE_BUSY": ("another program holds it locked", f"close that program; {_GOES_ON}"),
    "SQLITE_LOCKED": ("another program holds it locked", f"close that program; {_GOES_ON}"),
    "SQLITE_INTERRUPT": ("the query took too long", "ask for a shorter period or fewer groups"),
    "SQLITE_CONSTRAINT": ("a figure breaks a rule of the ledger", "report this as a bug of joulegate with this line"),
    "SQLITE_IOERR": (
        "reading or writing failed",
        f"check the disk (dmesg, free space); {_GOES_ON}",
    ),
}


class LedgerFault(Exception):
    """The ledger cannot be read or written now; the text is one line: what, where and what to do."""


def fault_of(error: Exception, path: Path, doing: str) -> LedgerFault:
    """The fault that says in one line why ``doing`` failed on ``path``."""
    if isinstance(error, OSError):
        why, fix = _os_advice(error)
    else:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith("SQLITE_IOERR") and _is_full(path.parent):
            name = "SQLITE_FULL"
        why, fix = next(
            (advice for code, advice in _ADVICE.items() if name.startswith(code)),
            ("SQLite refused", "report this as a bug of joulegate with this line"),
        )
        detail = " ".join(str(error).split())
        why = f"{why} ({detail})" if detail else why
    if doing == "open":
        fix = fix.replace(_GOES_ON, "then start again")
    return LedgerFault(f"cannot {doing} the ledger {path}: {why}; {fix}")


def _is_full(folder: Path) -> bool:
    """Whether SQLite's own I/O error (as for the WAL's index) comes from a disk without room."""
    try:
        return shutil.disk_usage(folder).free < _ROOM_BYTES
    except OSError:
        return False


def _os_advice(error: OSError) -> tuple[str, str]:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return f"the disk is full ({reason})", f"free space; {_GOES_ON}"
    if error.errno in _READ_ONLY:
        return f"the folder is read-only ({reason})", "make it writable for this user or choose another --state-dir"
    return reason, "check the path and the disk"


@contextmanager
def faults(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite, the disk or a value out of range raises inside into a ``LedgerFault``."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError) as error:
        raise fault_of(error, path, doing) from error

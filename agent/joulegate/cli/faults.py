"""What a person reads when a command cannot go on: one line for each fault, and an exit code."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

EXIT_CHECKED_BAD = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70
"""EX_SOFTWARE of sysexits.h."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "check its owner and mode, or choose another",
    errno.EPERM: "check its owner and mode, or choose another",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.EADDRINUSE: "stop what listens there or choose another port",
    errno.EADDRNOTAVAIL: "choose an address of this machine",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class UserFault(Exception):
    """A fault that a person can mend. Each line says what, where and what to do; nothing else is shown of it.

    ``exit_code`` is 2 for what was asked for wrongly or cannot be done here, 1 when the thing that was checked is bad.
    """

    def __init__(self, *lines: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code


def explain(error: BaseException) -> tuple[tuple[str, ...], int]:
    """Lines to show for ``error`` and the exit code. What nobody foresaw is an internal error, in one line too."""
    if _is_for_a_person(type(error)):
        return tuple(str(error).splitlines()), getattr(error, "exit_code", EXIT_USAGE)
    if isinstance(error, OSError) and error.errno in _ADVICE:
        where = f"{error.filename}: " if error.filename is not None else ""
        return (f"{where}{error.strerror or error}; {_ADVICE[error.errno]}",), EXIT_USAGE
    return (_internal(error),), EXIT_INTERNAL


def _is_for_a_person(kind: type) -> bool:
    """Whether this is one of our exceptions whose text is written for its reader; each package has its own.

    They are known by name: the packages below may not import a common class from here, and importing theirs would make
    every command pay for all of them.
    """
    return any(
        cls.__module__.startswith("joulegate.") and cls.__name__.endswith(("Fault", "Unavailable"))
        for cls in kind.__mro__
    )


def _internal(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "joulegate" in Path(frame.filename).parts]
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return (
        f"internal error: {type(error).__name__}: {_one_line(error)}{where}; "
        "please report it, JOULEGATE_DEBUG=1 shows the trace"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

"""Results leave whole or not at all: to stdout when they are complete, or to a file by rename."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def deliver(text: str, output: Path | None) -> None:
    """Write ``text`` to ``output``, replacing it in one step, or to stdout. Raises ``OSError`` with nothing written."""
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

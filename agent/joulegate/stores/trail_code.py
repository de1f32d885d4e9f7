"""Which code makes recommendations here: recorded with them, so that a difference can be told from a change of code."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib import resources


def code_here(version: str) -> dict[str, str]:
    """Version, a hash over the sources of ``joulegate.throttle``, and the interpreter and machine."""
    return {
        "joulegate": version,
        "throttle": _sources_hash(),
        "python": ".".join(map(str, sys.version_info[:2])),
        "machine": platform.machine(),
    }


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(resources.files("joulegate.throttle").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()

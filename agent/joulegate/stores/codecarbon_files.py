"""The data files of an installed codecarbon, read by a process of its own.

Run as a program it prints one JSON object, ``{"version", "licence", "files": {name: text}}``, or ``{"missing": why}``.
It needs nothing but the standard library, never imports codecarbon and never touches the network: codecarbon's import
costs a second and 75 MiB, and its own look-ups fall back to Quebec's 3.9 g/kWh when there is no network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALL = "pip install 'joulegate[factors]'"
TIMEOUT_S = 60.0


class CodecarbonUnavailable(Exception):
    """codecarbon's data cannot be read; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class CodecarbonFiles:
    """What was found: the texts by the names asked for."""

    version: str
    licence: str
    files: Mapping[str, str]


def read_codecarbon(wanted: Mapping[str, str]) -> CodecarbonFiles:
    """Texts of the files ``wanted`` (name -> path in the package); raises ``CodecarbonUnavailable``."""
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and this file
            [sys.executable, __file__, json.dumps(dict(wanted))],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise CodecarbonUnavailable(f"codecarbon's data files cannot be read ({type(error).__name__})") from error
    if "missing" in answer:
        raise CodecarbonUnavailable(answer["missing"])
    return CodecarbonFiles(answer["version"], answer["licence"], answer["files"])


def _found(wanted: Mapping[str, str]) -> Mapping[str, object]:
    try:
        distribution = metadata.distribution("codecarbon")
    except metadata.PackageNotFoundError:
        return {"missing": f"codecarbon is not installed here: {INSTALL}"}
    about: Any = distribution.metadata
    folder = Path(str(distribution.locate_file("codecarbon")))
    files = {}
    for name, path in wanted.items():
        try:
            files[name] = (folder / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            return {
                "missing": f"codecarbon {distribution.version} has no usable {path} ({reason}); reinstall it: {INSTALL}"
            }
    licence = about.get("License-Expression") or about.get("License") or "not stated"
    return {"version": distribution.version, "licence": licence, "files": files}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_found(json.loads(sys.argv[1]))))

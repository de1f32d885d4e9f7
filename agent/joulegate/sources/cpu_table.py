"""Thermal design power of processors by name: codecarbon's table, shipped as dated data."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

DATA_FILE = "cpu_power.csv"

_FREQUENCY = re.compile(r"@.*$")
_NOISE = re.compile(
    r"\((r|tm)\)|\b\d+th gen\b|\b\d+-core\b|\b(cpu|processor)\b|\bwith radeon .*$|\b(w/|with) radeon.*$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class CpuPower:
    """A processor and its thermal design power in watts, for one socket."""

    name: str
    tdp_w: float


@cache
def cpu_table() -> tuple[CpuPower, ...]:
    """The shipped table (``tools/build_cpu_table.py`` makes it), about 4,900 processors."""
    text = files("joulegate.sources").joinpath("data", DATA_FILE).read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(CpuPower(row["name"], float(row["tdp_w"])) for row in rows)


def table_header() -> tuple[str, ...]:
    """The comment lines of the data file: source, version, licence, citation, date, hash."""
    text = files("joulegate.sources").joinpath("data", DATA_FILE).read_text(encoding="utf-8")
    return tuple(line[1:].strip() for line in text.splitlines() if line.startswith("#"))


def find_cpu(model_name: str, table: Sequence[CpuPower] | None = None) -> CpuPower | None:
    """The table's processor for a ``model name`` of /proc/cpuinfo, or ``None`` when it is not certain.

    Words with a digit are the model's identity and must agree exactly (an E5-2620 v4 is no E5-2620, a 7763 no 7763P);
    of the other words the table's must all be there, and the longest such name wins. Names that tie with different
    powers are no match: a wrong processor is worse than a stated default.
    """
    words = _words(model_name)
    identity = {word for word in words if _has_digit(word)}
    if not identity:
        return None
    best: list[CpuPower] = []
    most = 0
    for cpu in cpu_table() if table is None else table:
        theirs = _words(cpu.name)
        if not theirs <= words or {word for word in theirs if _has_digit(word)} != identity:
            continue
        if len(theirs) > most:
            best, most = [cpu], len(theirs)
        elif len(theirs) == most:
            best.append(cpu)
    return best[0] if best and len({cpu.tdp_w for cpu in best}) == 1 else None


def _words(name: str) -> frozenset[str]:
    plain = _NOISE.sub(" ", _FREQUENCY.sub("", name))
    return frozenset(plain.lower().replace("®", " ").replace("™", " ").split())


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)

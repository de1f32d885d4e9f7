"""Build the shipped processor power table from codecarbon's own data file.

codecarbon is installed into a temporary folder by a process of its own, read as data, never imported, and thrown away.

    python tools/build_cpu_table.py --retrieved 2026-11-24
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import hashlib
import io
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

VERSION = "3.3.2"
SOURCE = "codecarbon/data/hardware/cpu_power.csv"
LICENCE = "MIT"
CITATION = (
    "Courty, Schmidt, Luccioni et al.: CodeCarbon, doi:10.5281/zenodo.11171501; "
    "processor data collected from the vendors' product pages by codecarbon's cpu_dataset_builder"
)
TARGET = Path(__file__).parents[1] / "agent/joulegate/sources/data/cpu_power.csv"


@dataclass(frozen=True, slots=True)
class Table:
    """The rows that can be used, and the source's lines that cannot."""

    rows: tuple[tuple[str, float], ...]
    unusable: tuple[str, ...]


def main() -> int:
    """Install, read, check the licence, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrieved", default=dt.datetime.now(tz=dt.UTC).date().isoformat())
    parser.add_argument("--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        metadata = Parser().parsestr((Path(folder) / f"codecarbon-{VERSION}.dist-info/METADATA").read_text("utf-8"))
        if (metadata["Version"], metadata["License-Expression"]) != (VERSION, LICENCE):
            print(
                f"codecarbon {metadata['Version']} is under {metadata['License-Expression']}, not {VERSION}, {LICENCE}"
            )
            return 1
        raw = (Path(folder) / SOURCE).read_bytes()
        licence = (Path(folder) / f"codecarbon-{VERSION}.dist-info/licenses/LICENSE").read_text("utf-8")
    table = read(raw.decode("utf-8-sig"))
    write(arguments.output, render(table, raw, arguments.retrieved))
    write(arguments.output.with_suffix(".LICENSE"), licence)
    print(f"{len(table.rows)} processors in {arguments.output}; left out: {', '.join(table.unusable) or 'none'}")
    return 0


def install(folder: Path) -> None:
    """Put codecarbon without its dependencies into ``folder``."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, f"codecarbon=={VERSION}"], check=True)


def read(text: str) -> Table:
    """Names and watts, sorted by name; a row without a positive power, or at odds with an earlier one, is unusable."""
    powers: dict[str, float] = {}
    unusable: list[str] = []
    for row in csv.DictReader(io.StringIO(text)):
        name = " ".join(row["Name"].split())
        try:
            tdp_w = float(row["TDP"])
        except ValueError:
            tdp_w = math.nan
        if name and 0 < tdp_w < math.inf and powers.get(name, tdp_w) == tdp_w:
            powers[name] = tdp_w
        else:
            unusable.append(f"{name} ({row['TDP']})")
    return Table(tuple(sorted(powers.items())), tuple(unusable))


def render(table: Table, raw: bytes, retrieved: str) -> str:
    """The data file: comment lines that say where it is from, a header, the rows."""
    out = io.StringIO()
    out.write("# Thermal design power of processors, watts a socket\n")
    out.write(f"# source: codecarbon {VERSION}, {SOURCE}\n")
    out.write(
        f"# licence: {LICENCE}, copyright 2019 Mila, BCG Gamma, CometML, Haverford College; 2023 Code Carbon NGO\n"
    )
    out.write(f"# citation: {CITATION}\n")
    out.write(f"# retrieved: {retrieved}\n")
    out.write(f"# sha256 of the source: {hashlib.sha256(raw).hexdigest()}\n")
    out.write(f"# left out, no usable power: {'; '.join(table.unusable) or 'none'}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("name", "tdp_w"))
    writer.writerows((name, f"{tdp_w:g}") for name, tdp_w in table.rows)
    return out.getvalue()


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())

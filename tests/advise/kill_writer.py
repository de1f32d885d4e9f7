"""Writes a trail until it is killed, from where the last one ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.advise.recordings import records

from joulegate.stores.trail import DecisionTrail


def main(folder: Path) -> None:
    """Append without end and say so."""
    trail = DecisionTrail(folder, 10**9, segment_bytes=100_000)
    trail.start()
    print("ready", trail.state.cut_bytes, flush=True)
    for record in records(100_000, first=trail.kept.sequence + 1):
        while not trail.append(record):
            time.sleep(0.001)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

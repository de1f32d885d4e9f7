"""Observations of a host that warms up, and the command and the trail that take them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joulegate.stores.trail_records import Base, Chain, Decided, Why
from joulegate.throttle.adviser import Adviser, settings_hash
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.wire import encode

ROOT = Path(__file__).resolve().parents[2]
CALL = "import sys; from joulegate.cli.app import main; sys.exit(main())"
CODE = {"joulegate": "1.2.3", "throttle": "abc", "python": "3.x", "machine": "any"}
SETTINGS = ThrottleSettings()
BASE_EVERY = 10


def environment() -> dict[str, str]:
    """This process's environment with the package, without settings of ours, and with output buffered as usual."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JOULEGATE_", "PYTHONUNBUF"))}
    return {**kept, "PYTHONPATH": str(ROOT / "agent"), "OMP_NUM_THREADS": "1"}


def advise(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """``joulegate advise`` with ``given`` on its standard input."""
    return subprocess.run(
        [sys.executable, "-c", CALL, "advise", *arguments],
        input=given,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def observations(count: int, devices: int = 2, seed: int = 7) -> Iterator[dict[str, Any]]:
    """A host under more load than it can cool, one line each second."""
    chance = random.Random(seed)
    energy_j = [0.0] * devices
    for second in range(count):
        seen = []
        for index in range(devices):
            power_w = 640.0 + 60.0 * chance.random()
            energy_j[index] += power_w
            seen.append(
                {
                    "id": f"GPU-{index}",
                    "up": True,
                    "temperature_c": int(62 + min(25.0, second / 1.5) + index),
                    "power_w": power_w,
                    "energy_j": energy_j[index],
                    "utilization": 1.0,
                    "power_limit_w": 700,
                    "power_limit_min_w": 200,
                    "power_limit_max_w": 700,
                    "max_operating_c": 87,
                    "slowdown_c": 89,
                    "clock_events": [],
                }
            )
        yield {
            "t": float(second),
            "devices": seen,
            "images_done": 1.0,
            "arrivals": {"free": 2, "plus": 1, "pro": 0},
            "queue": {"free": 3.5},
        }


def lines(count: int, **options: Any) -> bytes:
    """The same as JSON Lines."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in observations(count, **options))


def records(count: int, *, first: int = 1, base_every: int = BASE_EVERY) -> Iterator[Base | Decided]:
    """Bases and decisions as a daemon makes them."""
    adviser = Adviser(SETTINGS)
    for offset, observation in enumerate(observations(count)):
        sequence = first + offset
        if offset % base_every == 0:
            why = Why.CONTINUED if offset else Why.START
            checkpoint = adviser.checkpoint() if offset else None
            yield Base(sequence, why, CODE, SETTINGS, settings_hash(SETTINGS), checkpoint)
        yield Decided(sequence, encode(adviser.advise(observation)), observation)


def chained(count: int) -> list[dict[str, Any]]:
    """The records of ``records`` as they stand in a file, one after another."""
    chain = Chain()
    return [json.loads(chain.line(record)) for record in records(count)]


def rehashed(changed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records that were changed, with a chain of hashes that holds again: what a careful forger would write."""
    from joulegate.stores.trail_records import hash_of

    last = None
    for record in changed:
        record["previous"] = last
        record["hash"] = last = hash_of(record)
    return changed

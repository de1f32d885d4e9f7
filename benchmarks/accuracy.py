"""How right the meter is, and how fast: the row of notes/measurement.md 6.7 that is ours, and spans a second.

PYTHONPATH=agent:. python benchmarks/accuracy.py                 # accuracy over ten seeds
PYTHONPATH=agent:. python benchmarks/accuracy.py --scaling 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

import numpy as np
from tests.support.meter import attribute, run_command
from tests.support.plant import Plant
from tests.support.scenarios import four_class_plant, recorded, serial_plant
from tests.support.sensors import spans_csv

CONCURRENT = 1000
STEP_S = 0.1
POWER_MJ_PER_STEP = 60_000
RATE_PER_S = 250.0
"""At 250 starts a second a span of 4 s is one of a thousand."""


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--scaling", type=int, nargs="+", default=[])
    options = parser.parse_args()
    if options.scaling:
        print_scaling(options.scaling)
    else:
        print_accuracy(range(options.seeds))


def print_accuracy(seeds: range) -> None:
    """Per seed and over all: sum/true, median, 95th percentile and largest error of the 236 requests."""
    print("600 s, 236 requests, four classes, cap 4, counter step = lag = 0.1 s, polled at 20 ms")
    print(f"{'input':28} {'seed':>4} {'sum/true':>9} {'median':>8} {'p95':>8} {'max':>8}")
    for title, classes, slots in (
        ("class column", True, 0),
        ("no class column", False, 0),
        ("serial 80 %, arrivals only", True, 1),
        ("same, no class column", False, 1),
    ):
        pooled = []
        for seed in seeds:
            plant = serial_plant(seed, count=200) if slots else four_class_plant(seed)
            case = recorded(plant, seed, classes=classes)
            spans = spans_csv(plant.runs, classes=classes, starts=not slots, arrivals=bool(slots))
            extra = ("--slots", str(slots)) if slots else ()
            got_j = figures_j(plant, attribute(case.readings_csv, spans, *extra))
            pooled.append(got_j)
            print_row(title, str(seed), got_j)
        print_row(title, "all", np.concatenate(pooled))


def figures_j(plant: Plant, result: dict) -> np.ndarray:
    """Rows of (meter, truth) in joules."""
    return np.array([(r["energy_mj"] / 1000, plant.request_j(r["request_id"])) for r in result["requests"]])


def print_row(title: str, seed: str, got_j: np.ndarray) -> None:
    errors = 100 * np.abs(got_j[:, 0] / got_j[:, 1] - 1)
    ratio = got_j[:, 0].sum() / got_j[:, 1].sum()
    low, high, worst = np.median(errors), np.quantile(errors, 0.95), errors.max()
    print(f"{title:28} {seed:>4} {ratio:9.4f} {low:6.2f} % {high:6.2f} % {worst:6.1f} %", flush=True)


def print_scaling(sizes: list[int]) -> None:
    """Spans a second of the whole command, start-up, reading and writing included."""
    print(f"{'spans':>9} {'readings':>9} {'seconds':>8} {'spans/s':>9} {'peak MiB':>9}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            readings, spans = Path(folder, "readings.csv"), Path(folder, "spans.csv")
            with readings.open("w") as out:
                rows = write_readings(out, size)
            with spans.open("w") as out:
                write_spans(out, size)
            begun_s = time.perf_counter()
            done = run_command(
                "attribute", "--readings", str(readings), "--spans", str(spans), "--json",
                "--output", str(Path(folder, "out.json")), timeout_s=3600,
            )  # fmt: skip
            took_s = time.perf_counter() - begun_s
            if done.code != 0:
                sys.exit(done.stderr)
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{size:9d} {rows:9d} {took_s:8.2f} {size / took_s:9.0f} {peak_mib:9.0f}", flush=True)


def write_readings(out: TextIO, size: int) -> int:
    """A counter that changes at every row, for as long as the spans last."""
    steps = int((size + CONCURRENT) / RATE_PER_S / STEP_S) + 100
    out.write("device,t_s,energy_mj\n")
    out.writelines(f"G0,{i * STEP_S:.1f},{i * POWER_MJ_PER_STEP}\n" for i in range(steps))
    return steps


def write_spans(out: TextIO, size: int) -> None:
    """Spans of 2 to 6 s, a thousand at once, in four classes."""
    rng = np.random.default_rng(1)
    durations_s = rng.uniform(0.5, 1.5, size) * CONCURRENT / RATE_PER_S
    out.write("request_id,devices,start_s,end_s,class\n")
    for i, duration_s in enumerate(durations_s):
        start_s = 2 + i / RATE_PER_S
        out.write(f"r{i},G0,{start_s:.4f},{start_s + duration_s:.4f},c{i % 4}\n")


if __name__ == "__main__":
    main()

"""How right the meter is: the row of notes/measurement.md 6.7 that is ours, and arrivals before a serial server.

PYTHONPATH=agent:. python benchmarks/accuracy.py --seeds 10
"""

from __future__ import annotations

import argparse

import numpy as np
from tests.support.meter import attribute
from tests.support.plant import Plant
from tests.support.scenarios import four_class_plant, recorded, serial_plant
from tests.support.sensors import spans_csv


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    print_accuracy(range(parser.parse_args().seeds))


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


if __name__ == "__main__":
    main()

"""Spans attributed per second, at 10^4, 10^5 and 10^6 recorded spans of which about a thousand run at once.

python benchmarks/bench_attribution.py                    # the three sizes, then the command with CSV files
python benchmarks/bench_attribution.py --sizes 10000 --cli 10000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CONCURRENT = 1000
RATE_PER_S = 250.0
"""Starts a second; a span of four seconds is then one of a thousand."""

STEP_S = 0.1
IDLE_W = 95.0
DYNAMIC_W = np.array([280.0, 360.0, 430.0, 520.0])
LINEAR = 1.3
"""The time of one span at the largest size, over that at a tenth of it, stays under this."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--cli", type=int, default=100_000, help="spans of the run through CSV files; 0 for none")
    parser.add_argument("--one", choices=("core", "cli"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure = measure_core if options.one == "core" else measure_command
        print(json.dumps(measure(options.sizes[0])))
        return
    print(f"about {CONCURRENT} spans at once, four classes, counter step {STEP_S} s; CPU seconds of one process each")
    print(f"{'':24} {'spans':>9} {'seconds':>8} {'spans/s':>8} {'us/span':>8} {'peak MiB':>9} {'left over':>10}")
    found = {size: print_row("attribute(), in process", "core", size) for size in options.sizes}
    if options.cli:
        print_row("command, CSV to JSON", "cli", options.cli)
    sizes = sorted(found)
    for small, large in pairwise(sizes):
        ratio = (found[large] / large) / (found[small] / small)
        verdict = "linear" if ratio <= LINEAR else "NOT LINEAR"
        print(f"time per span, {large} against {small}: {ratio:.2f} ({verdict}: limit {LINEAR})")


def print_row(title: str, kind: str, size: int) -> float:
    """Measure in a process of its own, so that peaks do not add up; returns its CPU seconds."""
    command = [sys.executable, __file__, "--one", kind, "--sizes", str(size)]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate, each = size / row["seconds"], 1e6 * row["seconds"] / size
    print(
        f"{title:24} {size:9d} {row['seconds']:8.2f} {rate:8.0f} {each:8.1f} {row['peak_mib']:9.0f} "
        f"{row['left_over_mj']:7d} mJ",
        flush=True,
    )
    return float(row["seconds"])


def measure_core(size: int) -> dict[str, float]:
    """Records in memory in, figures out."""
    from joulegate.metering.recorded import attribute
    from joulegate.sources.trace_csv import DeviceTrace, SpanRow

    starts_s, ends_s, classes = spans_of(size)
    energy_mj = counter_of(starts_s, ends_s, classes)
    t_s = np.arange(len(energy_mj)) * STEP_S
    trace = DeviceTrace("G0", range(len(t_s)), t_s.tolist(), energy_mj.tolist(), None, {})
    columns = zip(starts_s.tolist(), ends_s.tolist(), classes.tolist(), strict=True)
    rows = [
        SpanRow(i, f"r{i}", ("G0",), start_s, end_s, f"c{kind}") for i, (start_s, end_s, kind) in enumerate(columns)
    ]
    begun_s = time.process_time()
    result = attribute({"G0": trace}, rows)
    seconds = time.process_time() - begun_s
    device = result.devices["G0"]
    booked_mj = sum(request.energy_mj or 0 for request in result.requests)
    left_mj = device.counter_delta_mj - booked_mj - device.idle_mj - device.unattributed_mj
    return {"seconds": seconds, "peak_mib": peak_mib(resource.RUSAGE_SELF), "left_over_mj": left_mj}


def measure_command(size: int) -> dict[str, float]:
    """``joulegate attribute`` on files, with start-up, reading and writing."""
    with tempfile.TemporaryDirectory() as folder:
        readings, spans, output = (Path(folder, name) for name in ("readings.csv", "spans.csv", "out.json"))
        write_files(size, readings, spans)
        command = [sys.executable, "-c", "import sys; from joulegate.cli.app import main; sys.exit(main())"]
        command += ["attribute", "--readings", str(readings), "--spans", str(spans), "--json", "--output", str(output)]
        subprocess.run(command, check=True)
        device = json.loads(output.read_text())["devices"]["G0"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    left_mj = device["counter_delta_mj"] - device["requests_mj"] - device["idle_mj"] - device["unattributed_mj"]
    return {
        "seconds": used.ru_utime + used.ru_stime,
        "peak_mib": peak_mib(resource.RUSAGE_CHILDREN),
        "left_over_mj": left_mj,
    }


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def spans_of(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Starts and ends in seconds and classes of spans of 2 to 6 s, the same at every call."""
    rng = np.random.default_rng(1)
    starts_s = np.round(2 + np.arange(size) / RATE_PER_S, 4)
    durations_s = rng.uniform(0.5, 1.5, size) * CONCURRENT / RATE_PER_S
    return starts_s, np.round(starts_s + durations_s, 4), rng.integers(0, len(DYNAMIC_W), size)


def counter_of(
    starts_s: NDArray[np.float64], ends_s: NDArray[np.float64], classes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The counter in whole mJ every ``STEP_S``, from two seconds before the first span to two after the last."""
    times = np.concatenate([starts_s, ends_s])
    order = np.argsort(times, kind="stable")
    steps = np.concatenate([np.ones(len(starts_s)), -np.ones(len(ends_s))])
    watts = DYNAMIC_W[np.concatenate([classes, classes])]
    active = np.cumsum(steps[order])
    power_w = IDLE_W + np.where(active > 0, np.cumsum((steps * watts)[order]) / np.maximum(active, 1), 0.0)
    edges_s = np.concatenate([[0.0], times[order]])
    energy_j = np.concatenate([[0.0], np.cumsum(np.concatenate([[IDLE_W], power_w[:-1]]) * np.diff(edges_s))])
    ticks_s = np.arange(int((ends_s.max() + 2) / STEP_S)) * STEP_S
    after_s = np.maximum(0.0, ticks_s - edges_s[-1])
    return np.round(1000 * (np.interp(ticks_s, edges_s, energy_j) + IDLE_W * after_s)).astype(np.int64)


def write_files(size: int, readings: Path, spans: Path) -> None:
    starts_s, ends_s, classes = spans_of(size)
    energy_mj = counter_of(starts_s, ends_s, classes)
    with readings.open("w") as out:
        out.write("device,t_s,energy_mj\n")
        out.writelines(f"G0,{i * STEP_S:.1f},{value}\n" for i, value in enumerate(energy_mj.tolist()))
    with spans.open("w") as out:
        out.write("request_id,devices,start_s,end_s,class\n")
        columns = zip(starts_s.tolist(), ends_s.tolist(), classes.tolist(), strict=True)
        out.writelines(f"r{i},G0,{start_s},{end_s},c{kind}\n" for i, (start_s, end_s, kind) in enumerate(columns))


if __name__ == "__main__":
    main()

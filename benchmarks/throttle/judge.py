"""Run a simulated host's hours under controllers, print figures and bars; exit 1 if a bar is missed.

Exit 2 means that a controller broke the contract or the command line is wrong.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.throttle.bars import bars
from benchmarks.throttle.baselines import BASELINES
from benchmarks.throttle.controller import ControllerFault
from benchmarks.throttle.families import FAMILIES, HELD_OUT, TUNED, Family
from benchmarks.throttle.figures import figures
from benchmarks.throttle.loop import Case, Recording, run
from benchmarks.throttle.scenarios import SCENARIOS
from benchmarks.throttle.summary import Row, compared, summaries
from benchmarks.throttle.tables import LEGEND, table, verdict

CONTROLLERS = ("joulegate", "oracle", *BASELINES)
BESIDE = ("oracle", "queue_only")
CHECKED = ("hot_steady", "flash10", "fanfail", "stale")
QUICK = ("steady", "flash10", "fanfail", "stale")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases that the command line names."""
    options = _parser().parse_args(argv)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    cases = list(chosen(options))
    try:
        if options.trace is not None:
            write_trace(run(next(case for case in cases if case.controller == options.controllers[0])), options.trace)
            return 0
        return judge(cases, options.jobs, options.json)
    except ControllerFault as fault:
        print(f"benchmarks.throttle: {fault}", file=sys.stderr)
        return 2


def judge(cases: Sequence[Case], jobs: int, json_path: Path | None) -> int:
    """Print a table as soon as its runs are done, then the bars; 0 if all are met."""
    rows: list[Row] = []
    print(LEGEND)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = pool.map(_judged, cases)
        for _, part in itertools.groupby(done, key=lambda row: (row["scenario"], row["family"])):
            new = compared(list(part))
            rows += new
            print(table(summaries(new)), flush=True)
    decided = bars(rows)
    print(verdict(decided))
    if json_path is not None:
        whole = {"runs": rows, "means": summaries(rows), "bars": [bar.record() for bar in decided]}
        json_path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 0 if all(bar.met for bar in decided) else 1


def chosen(options: argparse.Namespace) -> Iterator[Case]:
    """Cases in the order of the tables; oracle and queue_only always run beside what is asked for."""
    seeds = options.seeds[:1] if options.quick else options.seeds
    for family in _families(options.families):
        usual = QUICK if options.quick else CHECKED if family in HELD_OUT else tuple(SCENARIOS)
        names = options.scenarios or usual
        order = itertools.product(names, options.governor, dict.fromkeys((*options.controllers, *BESIDE)), seeds)
        for name, governor, controller, seed in order:
            yield Case(SCENARIOS[name], family, governor, seed, controller, tuple(options.actuators))


def write_trace(recording: Recording, path: Path) -> None:
    """One CSV row a second of a run."""
    boards = range(recording.case.scenario.devices)
    heads = ["t_s", "die_max_c", *(f"die_{n}_c" for n in boards), *(f"cap_{n}_w" for n in boards)]
    heads += [f"published_cap_{n}_w" for n in boards]
    heads += ["published_per_minute", "arrivals", "done", "queue", "state", "binding"]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(heads)
        for n, t_s in enumerate(recording.t_s):
            die_c, cap_w = recording.die_c[n].round(2).tolist(), recording.cap_w[n].round(1).tolist()
            published_w = recording.published_cap_w[n].round(1).tolist()
            rates = (recording.published_per_minute[n], recording.asked[n], recording.done[n], recording.queued[n])
            out.writerow(
                [t_s, max(die_c), *die_c, *cap_w, *published_w, *rates, recording.state[n], recording.binding[n]]
            )


def _judged(case: Case) -> Row:
    labels = {
        "scenario": case.scenario.name, "family": case.family.name, "governor": case.governor,
        "actuators": "+".join(case.actuators), "seed": case.seed, "controller": case.controller,
    }  # fmt: skip
    return {**labels, **figures(run(case))}


def _families(name: str) -> Sequence[Family]:
    groups = {"tuned": TUNED, "held_out": HELD_OUT, "all": (*TUNED, *HELD_OUT)}
    return groups.get(name) or (FAMILIES[name],)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks.throttle", description=__doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    made.add_argument("--scenarios", nargs="+", choices=SCENARIOS, help="default: all, on held-out families a few")
    made.add_argument("--controllers", nargs="+", choices=CONTROLLERS, default=["joulegate"])
    made.add_argument("--governor", nargs="+", choices=["normal", "none"], default=["normal", "none"])
    made.add_argument("--families", choices=["tuned", "held_out", "all", *FAMILIES], default="tuned")
    made.add_argument("--actuators", nargs="+", choices=["rate", "power_cap"], default=["rate", "power_cap"])
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    made.add_argument("--quick", action="store_true", help="one seed of four scenarios")
    made.add_argument("--json", type=Path, help="write every figure here")
    made.add_argument("--trace", type=Path, help="write one CSV row a second of the first run, and judge nothing")
    return made

"""How right the energy prior is about a model it has not seen, and whether its range holds.

    python benchmarks/bench_prior.py [--csv configurations.csv] [--json]

Each model of the published configurations (or of a file as tools/fit_prior.py reads it) is left out in turn; fit and
range come from the others alone. The bars are a median error of at most 35 % and 90 % of the configurations held.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from joulegate.metering.prior_catalogue import shipped
from joulegate.metering.prior_fit import LeftOut, Observation, fit, leave_one_out

MEDIAN_BAR = 0.35
HELD_BAR = 0.90


def main() -> int:
    """Print the figures; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = shipped().observations() if options.csv is None else read(options.csv)
    judged = leave_one_out(rows)
    groups = {"all": list(judged)}
    for one in judged:
        groups.setdefault(one.observation.model, []).append(one)
    for gpus in sorted({one.observation.gpus for one in judged}):
        groups[f"{gpus} GPU"] = [one for one in judged if one.observation.gpus == gpus]
    figures = {name: summary(ones) for name, ones in groups.items()}
    passed = figures["all"]["median_error"] <= MEDIAN_BAR and figures["all"]["held"] >= HELD_BAR
    if options.json:
        print(json.dumps({"passed": passed, "left_out": figures}, indent=2))
    else:
        show(figures, rows, passed=passed)
    return 0 if passed else 1


def read(path: Path) -> list[Observation]:
    """The H100 configurations of a file, by the tool that fits the shipped prior."""
    tool = load_tool()
    observations: list[Observation] = tool.read(path.read_text("utf-8-sig"), shipped().published.gpu, shipped().models)
    return observations


def load_tool() -> ModuleType:
    """tools/fit_prior.py as a module; the folder is no package."""
    spec = importlib.util.spec_from_file_location("fit_prior", Path(__file__).parents[1] / "tools" / "fit_prior.py")
    if spec is None or spec.loader is None:
        sys.exit("tools/fit_prior.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(ones: Sequence[LeftOut]) -> dict[str, float]:
    errors = [one.error for one in ones]
    return {
        "configurations": len(ones),
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "median_ratio": statistics.median(one.ratio for one in ones),
        "held": sum(one.held for one in ones) / len(ones),
    }


def show(figures: dict[str, dict[str, float]], rows: Sequence[Observation], *, passed: bool) -> None:
    print(f"{'left out':28} {'n':>4} {'median':>8} {'worst':>8} {'pred/true':>9} {'held':>8}")
    for name, one in figures.items():
        errors = f"{one['median_error']:8.1%} {one['worst_error']:8.1%}"
        print(f"{name:28} {one['configurations']:4d} {errors} {one['median_ratio']:9.2f} {one['held']:8.1%}")
    whole = fit(rows)
    width = f"a factor of {2.718281828**whole.log_half:.2f} each way"
    print(f"shipped fit: FLOP^{whole.flop_exponent:.3f}, ln(GPUs)^2 x {whole.gpus_exponent:.3f}, range {width}")
    print(f"bars (all): median <= {MEDIAN_BAR:.0%}, held >= {HELD_BAR:.0%}: {'met' if passed else 'MISSED'}")


if __name__ == "__main__":
    sys.exit(main())

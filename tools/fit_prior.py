"""Fit the shipped energy prior on the ML.ENERGY leaderboard's text-to-image configurations.

Only what the prior needs leaves the file: joules an image by model and number of GPUs, and the fit on them.

    python tools/fit_prior.py configurations.csv [--gpu H100]

The columns read are model_id, gpu_model, num_gpus, image_width, image_height, inference_steps and
energy_per_image_joules.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from joulegate.metering import prior_catalogue, prior_fit

DATA = Path(__file__).parents[1] / "agent/joulegate/metering/data"
ABOUT = {
    "source": (
        "ML.ENERGY Leaderboard, text-to-image, https://ml.energy/leaderboard; "
        "data of commit 0cd52da of github.com/ml-energy/leaderboard"
    ),
    "citation": (
        "Chung, Ma, Wu, Liu, Kweon, Xia, Wu, Chowdhury: The ML.ENERGY Benchmark: Toward Automated Inference Energy "
        "Measurement and Optimization, NeurIPS Datasets and Benchmarks 2025"
    ),
    "licence": (
        "single measured figures, cited; no licence is stated for the figures themselves, "
        "the toolkit that publishes them (mlenergy-data) is Apache-2.0"
    ),
    "method": "GPU energy counter over synchronised batches (zeus), bf16, 1024 x 1024, GPU only",
}
FIGURES = 4
"""Significant figures that are kept."""


def main() -> int:
    """Read, fit, write, and say how well a model left out is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--output", type=Path, default=DATA / prior_catalogue.TABLE_FILE)
    arguments = parser.parse_args()
    try:
        raw = arguments.csv.read_bytes()
        catalogue = json.loads((DATA / prior_catalogue.CATALOGUE_FILE).read_text("utf-8"))
        observations = read(raw.decode("utf-8-sig"), arguments.gpu, prior_catalogue.models_of(catalogue))
        judged = prior_fit.leave_one_out(observations)
        text = render(observations, arguments.gpu, hashlib.sha256(raw).hexdigest())
        partial = arguments.output.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(arguments.output)
    except (OSError, ValueError) as error:
        print(f"fit_prior: {error}", file=sys.stderr)
        return 2
    held = sum(one.held for one in judged) / len(judged)
    median = sorted(one.error for one in judged)[len(judged) // 2]
    print(f"{len(judged)} configurations; one model left out: median error {median:.1%}, range holds {held:.1%}")
    return 0


def read(text: str, gpu: str, models: tuple[prior_catalogue.Model, ...]) -> list[prior_fit.Observation]:
    """The file's configurations on ``gpu``; raises ``ValueError`` with the line at fault."""
    known = {prior_catalogue.plain_model(name): model for model in models for name in (model.name, *model.aliases)}
    observations = []
    for line, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            if row["gpu_model"] != gpu:
                continue
            model = known[prior_catalogue.plain_model(row["model_id"])]
            steps, px = int(row["inference_steps"]), int(row["image_width"]) * int(row["image_height"])
            gpus, energy_j = int(row["num_gpus"]), float(f"{float(row['energy_per_image_joules']):.{FIGURES}g}")
        except KeyError as missing:
            raise ValueError(f"line {line}: {missing} is neither a column nor a model of the catalogue") from None
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None
        if (steps, px) != (model.steps, model.px):
            wanted = f"the catalogue has {model.steps}, {model.px}"
            raise ValueError(f"line {line}: {model.name} with {steps} steps, {px} pixels; {wanted}")
        observations.append(prior_fit.Observation(model.name, model.flop_per_step, steps, gpus, energy_j))
    if not observations:
        raise ValueError(f"no line with gpu_model {gpu}")
    return observations


def render(observations: list[prior_fit.Observation], gpu: str, sha256: str) -> str:
    """The data file: source, fit, joules by model and GPUs."""
    energies_j: dict[str, dict[str, list[float]]] = {}
    for row in sorted(observations):
        energies_j.setdefault(row.model, {}).setdefault(str(row.gpus), []).append(row.energy_j)
    table: dict[str, Any] = {
        "about": {**ABOUT, "sha256 of the configurations": sha256},
        "gpu": gpu,
        "fit": asdict(prior_fit.fit(observations)),
    }
    head = json.dumps(table, indent=2)[:-2]
    rows = ",\n".join(f"    {json.dumps(model)}: {json.dumps(by_gpus)}" for model, by_gpus in energies_j.items())
    return f'{head},\n  "energies_j": {{\n{rows}\n  }}\n}}\n'


if __name__ == "__main__":
    sys.exit(main())

"""The FLOP-based prior: a line through the logarithms of published energies, with a range that new models fit in.

ln(J per image / steps) = scale + flop_exponent * ln(FLOP a step) + gpus_exponent * ln(GPUs)^2. FLOP a step counts
every guidance pass: 2 * parameters * tokens * passes. Within a model energy is linear in steps (notes/measurement.md,
section 3), so the steps stand outside the fit: no table with one step count a model could teach them. Energy grows
slowly from one GPU to two and fast from four to eight, hence the square.

Every model has the same weight, however many configurations of it were measured. The range comes from leaving models
out: what a fit on the others gets wrong about a model is what a new model has to expect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

COVERAGE = 0.9
"""Share of a new model's configurations that the range should hold."""
MODELS_NEEDED = 4
"""With fewer, leaving one out leaves no spread to speak of."""

Vector = npt.NDArray[np.float64]


class FitFault(ValueError):
    """Observations that no prior can be fitted on; one line for a person."""


@dataclass(frozen=True, slots=True, order=True)
class Observation:
    """One measured configuration; ``energy_j`` is joules an image at the model's reference resolution."""

    model: str
    flop_per_step: float
    steps: int
    gpus: int
    energy_j: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients, and the half-width of the 90 % range in logarithms; the bounds are those of the observations."""

    scale: float
    flop_exponent: float
    gpus_exponent: float
    log_half: float
    models: int
    configurations: int
    flop_per_step_min: float
    flop_per_step_max: float
    gpus_max: int

    def log_energy(self, flop_per_step: float, steps: float, gpus: float) -> float:
        """Logarithm of the joules an image."""
        grown = self.flop_exponent * math.log(flop_per_step) + self.gpus_exponent * math.log(gpus) ** 2
        return self.scale + grown + math.log(steps)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A configuration of a model that the fit had not seen: predicted over measured energy; did the range hold it."""

    observation: Observation
    ratio: float
    held: bool

    @property
    def error(self) -> float:
        """Absolute error as a share of the measured energy."""
        return abs(self.ratio - 1.0)


def fit(observations: Iterable[Observation]) -> Fit:
    """Fit on all ``observations``; their order changes nothing. Raises ``FitFault``."""
    rows = _checked(observations)
    scale, flop_exponent, gpus_exponent = (float(value) for value in _solve(rows))
    misses = [_residuals(left, _solve(kept)) for left, kept in _folds(rows)]
    spread = math.sqrt(sum(float(np.mean(miss**2)) for miss in misses) / len(misses))
    # Intercept and slope are shared by all models: two degrees of freedom are gone.
    freedom = len(misses) - 2
    work = [row.flop_per_step for row in rows]
    return Fit(
        scale=scale,
        flop_exponent=flop_exponent,
        gpus_exponent=gpus_exponent,
        log_half=student_quantile(0.5 + COVERAGE / 2, freedom) * spread,
        models=len(misses),
        configurations=len(rows),
        flop_per_step_min=min(work),
        flop_per_step_max=max(work),
        gpus_max=max(row.gpus for row in rows),
    )


def leave_one_out(observations: Iterable[Observation]) -> tuple[LeftOut, ...]:
    """Judge each model by a fit, range included, on the others alone. Raises ``FitFault``."""
    judged: list[LeftOut] = []
    for left, kept in _folds(_checked(observations, MODELS_NEEDED + 1)):
        others = fit(kept)
        for row in left:
            miss = others.log_energy(row.flop_per_step, row.steps, row.gpus) - math.log(row.energy_j)
            judged.append(LeftOut(row, math.exp(miss), abs(miss) <= others.log_half))
    return tuple(judged)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by Hill's expansion (Abramowitz and Stegun 26.7.5); within 3 % from 2 degrees upwards."""
    z, v = NormalDist().inv_cdf(probability), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _checked(observations: Iterable[Observation], models_needed: int = MODELS_NEEDED) -> list[Observation]:
    rows = sorted(observations)
    for row in rows:
        if not all(0 < value < math.inf for value in astuple(row)[1:]):
            raise FitFault(f"{row.model}: {row} has a figure that is not finite and above zero")
    models = {row.model for row in rows}
    if len(models) < models_needed:
        raise FitFault(f"{len(models)} models are too few to leave one out; give at least {models_needed}")
    return rows


def _folds(rows: Sequence[Observation]) -> Iterator[tuple[list[Observation], list[Observation]]]:
    """(left out, kept) for each model."""
    for model in sorted({row.model for row in rows}):
        yield [row for row in rows if row.model == model], [row for row in rows if row.model != model]


def _solve(rows: Sequence[Observation]) -> Vector:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.model] = counts.get(row.model, 0) + 1
    weights = np.array([counts[row.model] ** -0.5 for row in rows])
    features, target = _design(rows)
    solution: Vector = np.linalg.lstsq(features * weights[:, None], target * weights, rcond=None)[0]
    return solution


def _residuals(rows: Sequence[Observation], coefficients: Vector) -> Vector:
    features, target = _design(rows)
    residuals: Vector = target - features @ coefficients
    return residuals


def _design(rows: Sequence[Observation]) -> tuple[Vector, Vector]:
    """Features, shape (rows, 3), and target, shape (rows,)."""
    work = np.log([row.flop_per_step for row in rows])
    gpus = np.log([float(row.gpus) for row in rows])
    target = np.log([row.energy_j for row in rows]) - np.log([float(row.steps) for row in rows])
    return np.column_stack([np.ones_like(work), work, gpus**2]), target

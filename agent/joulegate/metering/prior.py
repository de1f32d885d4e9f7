"""Energy of a request before it runs: the service's own measurements first, then published ones, then FLOP.

E = e_ref * images * (steps / steps_ref) * (px / px_ref)^1.15 (notes/measurement.md, section 3). Every range is meant to
hold nine requests in ten, covers the GPUs alone, and grows with the distance from what was measured. What cannot be
estimated has no figure and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from joulegate.metering import prior_catalogue
from joulegate.metering.prior_catalogue import EnergiesByGpus, Knowledge, Model
from joulegate.metering.prior_fit import Fit, student_quantile

PX_EXPONENT = 1.15
PX_EXPONENT_SD = 0.3
"""Energy against pixels within a model; models differ from 1.3 to 4.7 times for a doubled resolution."""
STEPS_EXPONENT_SD = 0.1
"""Linear in steps but for what is done once an image: text encoder, decoder."""
OUTSIDE_SD = 0.3
"""Per factor e that a model's FLOP a step lies outside those of the fit."""
STACK_SD = 0.15
"""Between two software stacks on one GPU: judged, not measured."""
SENSOR_SD = 0.029
"""5 % of gain, uniform (notes/measurement.md, section 4)."""
GPU_GENERATION_HALF = 0.22
"""Beside half of what peak FLOP a joule says two GPUs differ by; B200 against H100 was measured at 0.80 to 1.03."""
NEW_SERVICE_SD = 0.15
NEW_SERVICE_WEIGHT = 4
"""How much a request of one model and setting varies, until that many were seen."""
REGRESSION_RATIO = 1.5
TOKEN_PX = 256
"""A transformer's token is 16 x 16 pixels unless its catalogue entry says otherwise."""
GUIDANCE_PASSES = 2
REFERENCE_PX = 1024 * 1024
MAX_COUNT = 1_000_000
MAX_SIDE_PX = 65_536
MAX_PARAMS = 1e13
_Z90 = 1.6449


class EstimateFault(ValueError):
    """A request that cannot be: one line for a person, naming the figure at fault."""


class Prior(StrEnum):
    """What an estimate rests on."""

    MEASURED = "measured"
    REFERENCE = "reference"
    FLOPS = "flops"


@dataclass(frozen=True, slots=True)
class Range:
    """low <= central <= high, joules."""

    low: float
    central: float
    high: float


@dataclass(frozen=True, slots=True)
class MeasuredReference:
    """What this service measured of one model on one GPU, for one setting.

    ``image_j`` is the median joules an image and ``log_sd`` the standard deviation of its logarithm over ``n``
    requests. ``steps`` and ``px`` (width x height) are ``None`` where the requests did not say.
    """

    model: str
    gpu: str
    gpus: int
    image_j: float
    log_sd: float
    n: int
    steps: int | None
    px: int | None


class References(Protocol):
    """The service's own measurements."""

    def find(self, model: str, gpu: str, gpus: int, steps: int | None, px: int | None) -> MeasuredReference | None:
        """The reference whose setting is the one asked for, else the most measured one; ``None`` without any."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected joules of one request on its GPUs, or ``None``; ``why`` says where from, or why not.

    ``assumed`` names each input that nobody gave or measured; ``nearest`` are known names like an unknown one.
    """

    energy_j: Range | None
    prior: Prior | None
    why: str
    assumed: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Regression:
    """A request that took far more than its reference: ``ratio`` is measured over central."""

    energy_j: float
    ratio: float
    expected_j: Range
    prior: Prior
    evidence: str


@dataclass(frozen=True, slots=True)
class _Asked:
    model: str
    gpu: str
    gpus: int
    images: int
    steps: int | None
    px: int | None
    params: float | None


@dataclass(frozen=True, slots=True)
class _Basis:
    """Joules an image at ``steps`` and ``px``; ``below`` and ``above`` are half-widths of its range in logarithms."""

    image_j: float
    below: float
    above: float
    steps: int | None
    px: int | None
    prior: Prior
    why: str
    assumed: tuple[str, ...] = ()


def estimate(  # noqa: PLR0917 - the order of the outside contract
    model: str,
    gpu: str,
    images: int = 1,
    steps: int | None = None,
    width: int | None = None,
    height: int | None = None,
    references: References | None = None,
    *,
    gpus: int = 1,
    params: float | None = None,
    knowledge: Knowledge | None = None,
) -> Estimate:
    """Joules that a request will take: ``images`` of ``width`` x ``height`` pixels on ``gpus`` GPUs together.

    ``gpu`` is a product or driver name. ``params`` is the number of parameters of a model that nobody knows, so that
    its FLOP can be counted. Raises ``EstimateFault`` for figures that no request can have.
    """
    asked = _Asked(model, gpu, gpus, images, steps, None, params)
    _check(asked, width, height)
    if width is not None and height is not None:
        asked = replace(asked, px=width * height)
    known = prior_catalogue.shipped() if knowledge is None else knowledge
    found = _measured(asked, references) or _published(asked, known) or _from_flop(asked, known)
    return found if isinstance(found, Estimate) else _scaled(found, asked)


def is_regression(energy_j: float | None, expected: Estimate) -> Regression | None:
    """The evidence that a finished request was far above its estimate, or ``None``.

    Far is above the range and above 1.5 times its centre. ``expected`` must not have learned from this request.
    """
    if energy_j is None or expected.energy_j is None or expected.prior is None:
        return None
    ratio = energy_j / expected.energy_j.central
    if energy_j <= expected.energy_j.high or ratio <= REGRESSION_RATIO:
        return None
    evidence = (
        f"took {energy_j:.4g} J, {ratio:.2f} times the {expected.energy_j.central:.4g} J expected "
        f"and above the range's {expected.energy_j.high:.4g} J; {expected.why}"
    )
    return Regression(energy_j, ratio, expected.energy_j, expected.prior, evidence)


def _check(asked: _Asked, width: int | None, height: int | None) -> None:
    for name, text in (("model", asked.model), ("gpu", asked.gpu)):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise EstimateFault(f"{name}: {text!r} is not a name")
    for name, count, most in (("images", asked.images, MAX_COUNT), ("gpus", asked.gpus, MAX_COUNT)):
        _check_count(name, count, most)
    for name, given, most in (
        ("steps", asked.steps, MAX_COUNT),
        ("width", width, MAX_SIDE_PX),
        ("height", height, MAX_SIDE_PX),
    ):
        if given is not None:
            _check_count(name, given, most)
    if (width is None) != (height is None):
        raise EstimateFault("width and height: give both or neither")
    if asked.params is not None and not (_is_number(asked.params) and 0 < asked.params <= MAX_PARAMS):
        raise EstimateFault(f"params: {asked.params!r} is not a number of parameters above 0 and up to {MAX_PARAMS:g}")


def _check_count(name: str, count: object, most: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
        raise EstimateFault(f"{name}: {count!r} is not a whole number from 1 to {most}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _measured(asked: _Asked, references: References | None) -> _Basis | None:
    if references is None:
        return None
    found = references.find(asked.model, asked.gpu, asked.gpus, asked.steps, asked.px)
    if found is None:
        return None
    seen = NEW_SERVICE_WEIGHT + found.n - 1
    variance = (NEW_SERVICE_WEIGHT * NEW_SERVICE_SD**2 + (found.n - 1) * found.log_sd**2) / seen
    scatter = student_quantile(0.95, seen) * math.sqrt(variance * (1 + 1 / found.n))
    half = math.hypot(scatter, _Z90 * SENSOR_SD)
    requests = "1 request" if found.n == 1 else f"{found.n} requests"
    boards = _boards(found.gpus, found.gpu)
    why = f"measured here: {requests} of {found.model} on {boards}, {found.image_j:.4g} J an image"
    return _Basis(found.image_j, half, half, found.steps, found.px, Prior.MEASURED, why)


def _published(asked: _Asked, known: Knowledge) -> _Basis | None:
    """A known model's published energy, on the GPU it was measured on or moved from it to another known one."""
    model, gpu, table = known.model(asked.model), known.gpu(asked.gpu), known.published
    energies_j = None if model is None else table.energies_j.get(model.name)
    if model is None or gpu is None or energies_j is None or asked.gpus > max(energies_j):
        return None
    low, central, high = _between(energies_j, asked.gpus)
    stack = _Z90 * math.hypot(STACK_SD, SENSOR_SD)
    below, above = math.log(central / low) + stack, math.log(high / central) + stack
    said = f"ML.ENERGY measured {model.name} on {_boards(asked.gpus, table.gpu)} at {central:.4g} J an image"
    assumed = ["a software stack like ML.ENERGY's (bf16)"]
    if asked.gpus not in energies_j:
        assumed.append(f"{asked.gpus} GPUs lie between the measured numbers of GPUs")
    here = _Basis(central, below, above, model.steps, model.px, Prior.REFERENCE, said, tuple(assumed))
    return here if gpu.name == table.gpu else _moved(here, gpu.name, known)


def _between(energies_j: EnergiesByGpus, gpus: int) -> tuple[float, float, float]:
    """Lowest, median and highest energy with ``gpus`` GPUs, interpolated in logarithms where nobody measured that."""
    below = max(count for count in energies_j if count <= gpus)
    above = min(count for count in energies_j if count >= gpus)
    share = 0.0 if above == below else math.log(gpus / below) / math.log(above / below)
    ends = zip(_summary(energies_j[below]), _summary(energies_j[above]), strict=True)
    low, central, high = (start ** (1 - share) * end**share for start, end in ends)
    return low, central, high


def _summary(energies_j: tuple[float, ...]) -> tuple[float, float, float]:
    rising = sorted(energies_j)
    return rising[0], rising[len(rising) // 2], rising[-1]


def _from_flop(asked: _Asked, known: Knowledge) -> _Basis | Estimate:
    model, gpu, fit = known.model(asked.model), known.gpu(asked.gpu), known.published.fit
    if gpu is None:
        why = f"the GPU {asked.gpu!r} is not known and nothing was measured on it"
        return _unknown(why, known.nearest_gpus(asked.gpu))
    if asked.gpus > fit.gpus_max:
        return _unknown(f"{asked.gpus} GPUs for one image: nobody published more than {fit.gpus_max}")
    assumed: list[str] = []
    if asked.params is not None:
        model = _model_of(asked, asked.params, model, assumed)
    elif model is None:
        why = f"the model {asked.model!r} is not known and was not measured here; give its parameters (--params 12e9)"
        return _unknown(why, known.nearest_models(asked.model))
    if model is None:
        return _unknown(f"the steps of {asked.model!r} are not known; give them (--steps 28)")
    image_j = math.exp(fit.log_energy(model.flop_per_step, model.steps, asked.gpus))
    half = math.hypot(fit.log_half, _Z90 * OUTSIDE_SD * _outside(model.flop_per_step, fit))
    why = (
        f"{model.flop_per_step / 1e12:.3g} TFLOP a step of {model.name}, by a fit on {fit.models} models on "
        f"{known.published.gpu}"
    )
    basis = _Basis(image_j, half, half, model.steps, model.px, Prior.FLOPS, why, tuple(assumed))
    return basis if gpu.name == known.published.gpu else _moved(basis, gpu.name, known)


def _model_of(asked: _Asked, params: float, known: Model | None, assumed: list[str]) -> Model | None:
    """The model as the caller describes it; ``None`` when nobody knows its steps."""
    steps = known.steps if known is not None else asked.steps
    if steps is None:
        return None
    passes = GUIDANCE_PASSES if known is None else known.passes
    px = REFERENCE_PX if known is None else known.px
    assumed.append(f"a transformer with a token for each {TOKEN_PX} pixels")
    if known is None:
        assumed.append(f"{passes} passes a step (classifier-free guidance)")
    return Model(asked.model, 2.0 * params * px / TOKEN_PX, passes, steps, px)


def _outside(flop_per_step: float, fit: Fit) -> float:
    """How far outside the fitted models, in factors of e."""
    work = math.log(flop_per_step)
    return max(0.0, work - math.log(fit.flop_per_step_max), math.log(fit.flop_per_step_min) - work)


def _moved(basis: _Basis, gpu_name: str, known: Knowledge) -> _Basis:
    """``basis`` on another GPU: half of what peak FLOP a joule promises, with a range from nothing to all of it."""
    here, there = known.gpu(known.published.gpu), known.gpu(gpu_name)
    if here is None or there is None:
        raise EstimateFault(f"gpu: {gpu_name} and {known.published.gpu} must both be in the catalogue")
    half_gap = math.log(here.flop_per_j / there.flop_per_j) / 2
    more = abs(half_gap) + GPU_GENERATION_HALF
    return _Basis(
        basis.image_j * math.exp(half_gap),
        math.hypot(basis.below, more),
        math.hypot(basis.above, more),
        basis.steps,
        basis.px,
        Prior.FLOPS,
        f"{basis.why}; moved to {gpu_name} by peak FLOP a joule ({math.exp(half_gap):.2f} times)",
        (*basis.assumed, f"{gpu_name} was never measured: half of its peak FLOP a joule counts"),
    )


def _scaled(basis: _Basis, asked: _Asked) -> Estimate:
    assumed = list(basis.assumed)
    steps_ratio = _ratio("steps", asked.steps, basis.steps, assumed)
    px_ratio = _ratio("pixels", asked.px, basis.px, assumed)
    stretch = _Z90 * math.hypot(STEPS_EXPONENT_SD * math.log(steps_ratio), PX_EXPONENT_SD * math.log(px_ratio))
    central = basis.image_j * asked.images * steps_ratio * px_ratio**PX_EXPONENT
    energy_j = Range(
        low=central * math.exp(-math.hypot(basis.below, stretch)),
        central=central,
        high=central * math.exp(math.hypot(basis.above, stretch)),
    )
    scaled = "" if steps_ratio == px_ratio == 1.0 else "; scaled by steps and by pixels^1.15"
    return Estimate(energy_j, basis.prior, basis.why + scaled, tuple(assumed))


def _ratio(name: str, asked: int | None, reference: int | None, assumed: list[str]) -> float:
    if asked is None:
        assumed.append(f"{name}: as in the reference" if reference is None else f"{name}: {reference}")
        return 1.0
    if reference is None:
        assumed.append(f"{name}: the measured requests did not say theirs")
        return 1.0
    return asked / reference


def _boards(gpus: int, name: str) -> str:
    return name if gpus == 1 else f"{gpus} x {name}"


def _unknown(why: str, nearest: Iterable[str] = ()) -> Estimate:
    names = tuple(nearest)
    hint = f"; nearest: {', '.join(names)}" if names else ""
    return Estimate(None, None, why + hint, nearest=names)

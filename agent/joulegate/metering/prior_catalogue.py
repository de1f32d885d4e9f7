"""What the prior knows before it has measured anything: models, GPUs, published energies and the fit on them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Protocol, TypeVar

from joulegate.metering.prior_fit import Fit, Observation

CATALOGUE_FILE = "catalogue.json"
TABLE_FILE = "ml_energy.json"

_GPU_NOISE = re.compile(r"\b(nvidia|tesla|geforce|quadro|graphics|hbm\d?e?|\d+\s?gi?b)\b")
_NEAREST = 3
_NEAR_ENOUGH = 0.5

EnergiesByGpus = Mapping[int, tuple[float, ...]]
"""GPUs for one image -> joules an image of each configuration."""


@dataclass(frozen=True, slots=True)
class Model:
    """An image model: FLOP of one pass at ``px`` pixels, passes a step, and the steps it is usually run with."""

    name: str
    flop_per_pass: float
    passes: int
    steps: int
    px: int
    aliases: tuple[str, ...] = ()

    @property
    def flop_per_step(self) -> float:
        """FLOP of one step with all its guidance passes, at ``px`` pixels."""
        return self.flop_per_pass * self.passes


@dataclass(frozen=True, slots=True)
class Gpu:
    """A board: dense half-precision teraFLOPS and its largest power."""

    name: str
    tflops: float
    board_w: float
    aliases: tuple[str, ...] = ()

    @property
    def flop_per_j(self) -> float:
        """Peak operations a joule."""
        return self.tflops * 1e12 / self.board_w


@dataclass(frozen=True, slots=True)
class Published:
    """Published energies: model -> GPUs for one image -> joules an image of each configuration, rising.

    ``gpu`` is the one they and ``fit`` are for; ``about`` says source, citation and licence.
    """

    gpu: str
    energies_j: Mapping[str, EnergiesByGpus]
    fit: Fit
    about: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Models, GPUs and published energies; ``_names`` maps plain spellings to them."""

    models: tuple[Model, ...]
    gpus: tuple[Gpu, ...]
    published: Published
    _models_by_name: Mapping[str, Model] = field(init=False, repr=False)
    _gpus_by_name: Mapping[str, Gpu] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_models_by_name", _by_spelling(self.models, plain_model))
        object.__setattr__(self, "_gpus_by_name", _by_spelling(self.gpus, plain_gpu))

    def model(self, name: str) -> Model | None:
        """The model of that name, alias or repository path, however it is punctuated."""
        return self._models_by_name.get(plain_model(name))

    def gpu(self, name: str) -> Gpu | None:
        """The GPU of that name, or of that name as a driver gives it (``NVIDIA H100 80GB HBM3``)."""
        return self._gpus_by_name.get(plain_gpu(name))

    def nearest_models(self, name: str) -> tuple[str, ...]:
        """Up to three names that resemble ``name``."""
        return _nearest(plain_model(name), self._models_by_name)

    def nearest_gpus(self, name: str) -> tuple[str, ...]:
        """Up to three names that resemble ``name``."""
        return _nearest(plain_gpu(name), self._gpus_by_name)

    def observations(self) -> tuple[Observation, ...]:
        """The published configurations as the fit takes them."""
        return tuple(
            Observation(model.name, model.flop_per_step, model.steps, gpus, energy_j)
            for model in self.models
            for gpus, energies_j in self.published.energies_j.get(model.name, {}).items()
            for energy_j in energies_j
        )


def plain_model(name: str) -> str:
    """A model's name without owner, case and punctuation."""
    return "".join(character for character in name.rsplit("/", 1)[-1].lower() if character.isalnum())


def plain_gpu(name: str) -> str:
    """A GPU's name without vendor, brand, memory, case and punctuation."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower())
    return "".join(_GPU_NOISE.sub(" ", words).split())


@cache
def shipped() -> Knowledge:
    """What the package ships (``tools/fit_prior.py`` makes the table)."""
    folder = files("joulegate.metering").joinpath("data")
    catalogue, table = (
        json.loads(folder.joinpath(name).read_text(encoding="utf-8")) for name in (CATALOGUE_FILE, TABLE_FILE)
    )
    return Knowledge(models_of(catalogue), gpus_of(catalogue), _published(table))


def models_of(catalogue: Mapping[str, Any]) -> tuple[Model, ...]:
    """The catalogue's models; a transformer's pass costs 2 * parameters * tokens."""
    return tuple(
        Model(
            name=row["name"],
            flop_per_pass=row.get("flop_per_pass") or 2.0 * row["params"] * row["tokens"],
            passes=row["passes"],
            steps=row["steps"],
            px=row["px"],
            aliases=tuple(row["aliases"]),
        )
        for row in catalogue["models"]
    )


def gpus_of(catalogue: Mapping[str, Any]) -> tuple[Gpu, ...]:
    """The catalogue's GPUs."""
    return tuple(Gpu(row["name"], row["tflops"], row["board_w"], tuple(row["aliases"])) for row in catalogue["gpus"])


def _published(table: Mapping[str, Any]) -> Published:
    return Published(
        gpu=table["gpu"],
        energies_j={
            model: {int(gpus): tuple(energies_j) for gpus, energies_j in by_gpus.items()}
            for model, by_gpus in table["energies_j"].items()
        },
        fit=Fit(**table["fit"]),
        about=table["about"],
    )


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...


_N = TypeVar("_N", bound=_Named)


def _by_spelling(known: Iterable[_N], plain: Any) -> dict[str, _N]:
    return {plain(spelling): one for one in known for spelling in (one.name, *one.aliases)}


def _nearest(wanted: str, known: Mapping[str, _Named]) -> tuple[str, ...]:
    close = difflib.get_close_matches(wanted, known, n=2 * _NEAREST, cutoff=_NEAR_ENOUGH)
    return tuple(dict.fromkeys(known[spelling].name for spelling in close))[:_NEAREST]

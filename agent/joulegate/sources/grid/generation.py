"""Intensity of a generation mix: megawatts by production type, weighed with published factors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from joulegate.sources.grid.intensity import FactorType

MOST_UNKNOWN_SHARE = 0.05
"""A mix of which more has no factor gets no intensity: leaving it out would look like a figure and be a guess."""


@dataclass(frozen=True, slots=True)
class GenerationFactor:
    """Grams of CO2e per kilowatt hour of one production type; ``None`` where no figure was found published."""

    name: str
    storage: bool
    g_per_kwh: Mapping[FactorType, float]
    sources: Mapping[FactorType, str]


@dataclass(frozen=True, slots=True)
class MixIntensity:
    """``g_per_kwh`` of the part of a mix that has factors; ``unknown_share`` of the rest, storage left aside."""

    g_per_kwh: float
    unknown_share: float


@cache
def generation_table() -> Mapping[str, Any]:
    """The table as it ships, with the sources of its figures."""
    text = files("joulegate.sources.grid").joinpath("data", "generation_factors.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def generation_factors() -> Mapping[str, GenerationFactor]:
    """Factors by ENTSO-E ``psrType``."""
    table = generation_table()
    return {code: _factor(entry, table["sources"]) for code, entry in table["types"].items()}


def _factor(entry: Mapping[str, Any], sources: Mapping[str, Any]) -> GenerationFactor:
    given = {kind: entry[kind.value] for kind in FactorType if kind.value in entry}
    return GenerationFactor(
        name=entry["name"],
        storage=entry.get("storage", False),
        g_per_kwh={kind: float(figure["g_per_kwh"]) for kind, figure in given.items()},
        sources={kind: sources[figure["source"]]["title"] for kind, figure in given.items()},
    )


def is_storage(code: str) -> bool:
    """Whether this ``psrType`` only gives back what was generated before."""
    factor = generation_factors().get(code)
    return factor is not None and factor.storage


def mix_intensity(generation_mw: Mapping[str, float], kind: FactorType) -> MixIntensity | None:
    """Mean factor of ``generation_mw`` (psrType -> MW), or ``None`` where nothing is generated or too much is unknown.

    What stores give back and what is negative (a plant's own use) is left aside.
    """
    known_mw = unknown_mw = weighed = 0.0
    for code, power_mw in generation_mw.items():
        factor = generation_factors().get(code)
        if power_mw <= 0.0 or is_storage(code):
            continue
        if factor is None or kind not in factor.g_per_kwh:
            unknown_mw += power_mw
            continue
        known_mw += power_mw
        weighed += power_mw * factor.g_per_kwh[kind]
    if known_mw <= 0.0:
        return None
    unknown_share = unknown_mw / (known_mw + unknown_mw)
    return None if unknown_share > MOST_UNKNOWN_SHARE else MixIntensity(weighed / known_mw, unknown_share)

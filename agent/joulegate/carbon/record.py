"""A footprint as a record: its figures, the factor behind them, its boundary, and its shape on the wire."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from joulegate.carbon.factors import Factor
from joulegate.carbon.figure import Figure, Missing
from joulegate.carbon.intensity import Weighted


@dataclass(frozen=True, slots=True)
class FactorRef:
    """Which factor of which set; entries keep the hash."""

    set_id: str
    set_hash: str
    factor: Factor

    def to_wire(self) -> dict[str, Any]:
        """The JSON object ``factor``."""
        factor = self.factor
        return {
            "id": self.set_id,
            "hash": self.set_hash,
            "place": factor.place.code,
            "kind": factor.place.kind.value,
            "period": factor.period,
            "year": factor.year,
            "g_per_kwh": factor.value,
            "unit": factor.unit.value,
            "signal": factor.signal.value,
            "scope": factor.scope.value,
            "basis": factor.basis.value,
            "source": factor.source.name,
            "version": factor.source.version,
        }


@dataclass(frozen=True, slots=True)
class Assumed:
    """Inputs that nobody measured or entered, by the figures that rest on them; ``energy`` is under all of them."""

    energy: tuple[str, ...] = ()
    co2e: tuple[str, ...] = ()
    water: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Every figure with its reasons.

    ``pue`` was applied once, to the energy within ``boundary``, or, where it is ``None``, not at all.
    """

    energy: Figure
    location_based: Figure
    market_based: Figure
    embodied: Figure
    total_sci: Figure
    water_onsite: Figure
    water_offsite: Figure
    cost: Figure
    boundary: str
    pue: float | None
    factor: FactorRef | None = None
    intensity: Weighted | None = None
    assumed: Assumed = field(default_factory=Assumed)
    excluded: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """The JSON members ``co2e_g``, ``water_l`` and ``cost``; a missing figure is null, its reason stands beside."""
        co2e = {
            "location_based": self.location_based,
            "market_based": self.market_based,
            "embodied": self.embodied,
            "total_sci": self.total_sci,
        }
        return {
            "co2e_g": {
                **_figures(co2e),
                "factor": None if self.factor is None else self.factor.to_wire(),
                "intensity": None if self.intensity is None else _intensity_wire(self.intensity),
                **self._about(self.boundary, self.assumed.co2e),
            },
            "water_l": {
                **_figures({"onsite": self.water_onsite, "offsite": self.water_offsite}),
                **self._about("offsite", self.assumed.water),
            },
            "cost": {**_figures({"electricity": self.cost}), **self._about(self.boundary, ())},
        }

    def _about(self, pue_scope: str, assumed: tuple[str, ...]) -> dict[str, Any]:
        return {
            "boundary": self.boundary,
            "pue": None if self.pue is None else {"value": self.pue, "applied_to": pue_scope},
            "assumed": [*self.assumed.energy, *assumed],
            "excluded": list(self.excluded),
        }


def _figures(figures: dict[str, Figure]) -> dict[str, Any]:
    wire: dict[str, Any] = {
        name: None if isinstance(figure, Missing) else figure.to_wire() for name, figure in figures.items()
    }
    wire["why_missing"] = {name: figure.why for name, figure in figures.items() if isinstance(figure, Missing)}
    return wire


def _intensity_wire(intensity: Weighted) -> dict[str, Any]:
    return {
        **intensity.g_per_kwh.to_wire(),
        "covered": intensity.covered,
        "sources": list(intensity.sources),
        "age_s": intensity.age_s,
    }

"""The factor set as a source: one figure for a country and year, for where nothing better can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from joulegate.carbon.factors import FactorSet, Scope
from joulegate.carbon.factors import Signal as FactorSignal
from joulegate.carbon.place import PlaceKind
from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.intensity import FactorType, Intensity, Label, Place, Signal, require_believable
from joulegate.sources.grid.ports import StaticSet, WallClock

NAME = "static"

_TYPES: Mapping[Scope, FactorType] = MappingProxyType(
    {Scope.DIRECT: FactorType.DIRECT, Scope.LIFE_CYCLE: FactorType.LIFECYCLE}
)
"""A set's other scopes are neither, and are said to be neither."""

_SIGNALS: Mapping[FactorSignal, Signal] = MappingProxyType(
    {FactorSignal.AVERAGE: Signal.AVERAGE, FactorSignal.MARGINAL: Signal.MARGINAL}
)


@dataclass(frozen=True, slots=True)
class CountryFactor:
    """``StaticFactor`` of one country."""

    g_per_kwh: float
    year: int | None
    source: str
    signal: Signal | None
    emission_factor_type: FactorType | None


@dataclass(frozen=True, slots=True)
class CountryFactors:
    """``StaticSet`` over a factor set: its best average factor of exactly the country that is asked for."""

    factors: FactorSet

    def factor(self, country: str) -> CountryFactor | None:
        """The factor, named after the set, or ``None``."""
        found = self.factors.best(PlaceKind.COUNTRY, country)
        if found is None or found.place.code != country:
            return None
        return CountryFactor(
            g_per_kwh=found.value,
            year=found.year,
            source=f"{found.source.name} ({self.factors.id})",
            signal=_SIGNALS[found.signal],
            emission_factor_type=_TYPES.get(found.scope),
        )


class StaticSource:
    """``GridSource`` over a factor set; asks nobody."""

    name = NAME
    fresh_s = float("inf")

    def __init__(self, factors: StaticSet, clock: WallClock) -> None:
        self._factors = factors
        self._clock = clock

    def latest(self, place: Place) -> Intensity:
        """The factor of ``place.country``, and of no other country."""
        if not place.country:
            raise GridFault(FaultKind.REJECTED, f"{NAME}: no country is given; set grid.country, such as DEU")
        factor = self._factors.factor(place.country)
        if factor is None:
            raise GridFault(
                FaultKind.NO_DATA, f"{NAME}: the factor set has no factor of {place.country}; check grid.country"
            )
        return Intensity(
            g_per_kwh=require_believable(factor.g_per_kwh, NAME),
            place=place.country,
            source=factor.source,
            label=Label.STATIC,
            signal=factor.signal,
            emission_factor_type=factor.emission_factor_type,
            is_estimated=None,
            fetched_s=self._clock(),
            why=f"factor of {place.country} for {factor.year or 'no certain year'}",
        )

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """The same figure for all of the time."""
        return (replace(self.latest(place), start_s=from_s, end_s=to_s),)

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """A factor of a year does not know one hour from another."""
        del place, horizon_s
        raise GridFault(FaultKind.UNSUPPORTED, f"{NAME}: a factor of a year forecasts nothing; set grid.provider")

    def close(self) -> None:
        """Nothing is open."""

"""The factor set behind the port of the static source."""

from __future__ import annotations

import pytest
from tests.grid.conftest import NOW_S, SetClock

from joulegate.carbon.factors import Basis, Factor, FactorSet, Scope, Source, Unit
from joulegate.carbon.factors import Signal as FactorSignal
from joulegate.carbon.place import Place as FactorPlace
from joulegate.carbon.place import PlaceKind
from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.intensity import FactorType, Label, Place, Signal
from joulegate.sources.grid.static import CountryFactors, StaticSource

SOURCE = Source("World table", "7", "CC0-1.0", "World table, 2023", "https://example.org")


def factor_of(country: str, value: float, scope: Scope = Scope.LIFE_CYCLE, period: str = "2023") -> Factor:
    """A factor of the test's own."""
    return Factor(
        place=FactorPlace(PlaceKind.COUNTRY, country, country, country.title(), aliases=(f"land of {country}",)),
        period=period,
        value=value,
        low=value,
        high=value,
        unit=Unit.CO2E,
        signal=FactorSignal.AVERAGE,
        scope=scope,
        basis=Basis.PRODUCTION,
        source=SOURCE,
    )


def static(clock: SetClock, *factors: Factor) -> StaticSource:
    """A source over a set of ``factors``."""
    return StaticSource(CountryFactors(FactorSet.of("test", factors, built_at="2026-01-01", generator="test")), clock)


def test_the_countrys_newest_factor_with_its_provenance(clock: SetClock):
    """The figure is the set's own to the last bit, with year, publisher, version and the set's id."""
    source = static(clock, factor_of("DEU", 380.9500123, period="2023"), factor_of("DEU", 400.0, period="2022"))
    point = source.latest(Place(None, "DEU"))
    assert (point.g_per_kwh, point.label, point.place) == (380.9500123, Label.STATIC, "DEU")
    assert (point.signal, point.emission_factor_type) == (Signal.AVERAGE, FactorType.LIFECYCLE)
    assert "2023" in point.why
    assert point.source.startswith("World table (test-")


@pytest.mark.parametrize("country", ["FRA", "land of DEU", "deu", "DE"])
def test_no_other_country(country: str, clock: SetClock):
    """A country that is not in the set, or is spelled otherwise, has no figure."""
    with pytest.raises(GridFault) as caught:
        static(clock, factor_of("DEU", 381.0)).latest(Place(None, country))
    assert caught.value.kind is FaultKind.NO_DATA


def test_what_is_neither_direct_nor_life_cycle_says_neither(clock: SetClock):
    """A mixed scope is not passed off as one of the two."""
    point = static(clock, factor_of("DEU", 381.0, Scope.MIXED)).latest(Place(None, "DEU"))
    assert point.emission_factor_type is None


def test_a_year_forecasts_nothing(clock: SetClock):
    """History is the same figure throughout, and there is no forecast."""
    source = static(clock, factor_of("DEU", 381.0))
    (point,) = source.history(Place(None, "DEU"), NOW_S - 60.0, NOW_S)
    assert (point.start_s, point.end_s, point.g_per_kwh) == (NOW_S - 60.0, NOW_S, 381.0)
    with pytest.raises(GridFault) as caught:
        source.forecast(Place(None, "DEU"), 60.0)
    assert caught.value.kind is FaultKind.UNSUPPORTED

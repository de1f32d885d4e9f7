"""Every provider's client against its simulator, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.grid.conftest import NOW_S
from tests.grid.simulators import (
    HOUR_S,
    ElectricityMapsSimulator,
    EntsoeSimulator,
    GbSimulator,
    Production,
    Simulator,
    WattTimeSimulator,
    hourly,
)

from joulegate.sources.grid.electricity_maps import ElectricityMaps
from joulegate.sources.grid.entsoe import Entsoe
from joulegate.sources.grid.gb_carbon_intensity import GbCarbonIntensity
from joulegate.sources.grid.http_client import Limits
from joulegate.sources.grid.intensity import Place
from joulegate.sources.grid.ports import GridSource, WallClock
from joulegate.sources.grid.watttime import WattTime

TOKEN = "tok-7f3a9c1e5b"
HOUR_BEGUN_S = NOW_S // HOUR_S * HOUR_S
GERMANY = "10Y1001A1001A82H"


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider's simulator, its client, and a place that it knows."""

    name: str
    place: Place
    simulate: Callable[[], Simulator]
    client: Callable[[str, WallClock, Limits, str], GridSource]
    needs_token: bool = True


def _electricity_maps() -> Simulator:
    values = hourly(HOUR_BEGUN_S - 24 * HOUR_S, (300.0 + hour for hour in range(72)))
    return ElectricityMapsSimulator(NOW_S, {"DE": values}, token=TOKEN)


def _watttime() -> Simulator:
    values = hourly(HOUR_BEGUN_S - 24 * HOUR_S, (1000.0 + step for step in range(72 * 12)), 300.0)
    return WattTimeSimulator(NOW_S, {"CAISO_NORTH": values}, password=TOKEN)


def _gb() -> Simulator:
    values = hourly(HOUR_BEGUN_S - 24 * HOUR_S, (150.0 + step for step in range(144)), 1800.0)
    return GbSimulator(NOW_S, {"GB": values, "SW1": values, "13": values})


def _entsoe() -> Simulator:
    mix = [
        Production("B05", dict.fromkeys(range(1, 25), 100.0), 24),
        Production("B19", dict.fromkeys(range(1, 25), 300.0), 24),
    ]
    return EntsoeSimulator(HOUR_BEGUN_S - 24 * HOUR_S, GERMANY, mix, token=TOKEN)


PROVIDERS = (
    Provider(
        "electricity-maps",
        Place("DE"),
        _electricity_maps,
        lambda url, clock, limits, token: ElectricityMaps("electricity-maps", url, token, clock, limits=limits),
    ),
    Provider(
        "watttime",
        Place("CAISO_NORTH"),
        _watttime,
        lambda url, clock, limits, token: WattTime("watttime", url, "me", token, clock, limits=limits),
    ),
    Provider(
        "gb-carbon-intensity",
        Place("GB"),
        _gb,
        lambda url, clock, limits, _: GbCarbonIntensity("gb-carbon-intensity", url, clock, limits=limits),
        needs_token=False,
    ),
    Provider(
        "entsoe",
        Place(GERMANY),
        _entsoe,
        lambda url, clock, limits, token: Entsoe("entsoe", url, token, clock, limits=limits),
    ),
)

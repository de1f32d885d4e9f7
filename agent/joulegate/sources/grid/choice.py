"""From options to a source and a monitor: the one place that names every source."""

from __future__ import annotations

from pathlib import Path

from joulegate.sources.grid import electricity_maps, entsoe, gb_carbon_intensity, watttime
from joulegate.sources.grid.cache import DiskCache
from joulegate.sources.grid.electricity_maps import ElectricityMaps
from joulegate.sources.grid.entsoe import Entsoe
from joulegate.sources.grid.gb_carbon_intensity import GbCarbonIntensity
from joulegate.sources.grid.http_client import Limits
from joulegate.sources.grid.intensity import Place
from joulegate.sources.grid.monitor import GridMonitor, Rhythm
from joulegate.sources.grid.options import GridOptions, require_usable
from joulegate.sources.grid.ports import GridSource, StaticSet, WallClock
from joulegate.sources.grid.state import DAY_S, Ageing
from joulegate.sources.grid.static import StaticSource
from joulegate.sources.grid.watttime import WattTime

CACHE_FOLDER = "grid-cache"


def make_grid_source(options: GridOptions, clock: WallClock, limits: Limits | None = None) -> GridSource | None:
    """The provider's client, or ``None`` where none is configured; raises ``GridOptionsFault``. Asks nobody."""
    require_usable(options)
    limits = limits or Limits(
        connect_s=min(3.0, options.timeout_s),
        read_s=options.timeout_s,
        total_s=3.0 * options.timeout_s,
        attempts=options.attempts,
    )
    name, url, token = options.source_name, options.address if options.provider else "", options.token or ""
    direct = options.factor_type == "direct"
    match options.provider:
        case electricity_maps.NAME:
            return ElectricityMaps(name, url, token, clock, direct=direct, limits=limits)
        case watttime.NAME:
            return WattTime(name, url, options.username or "", token, clock, limits=limits)
        case gb_carbon_intensity.NAME:
            return GbCarbonIntensity(name, url, clock, limits=limits)
        case entsoe.NAME:
            return Entsoe(name, url, token, clock, direct=direct, limits=limits)
    return None


def make_monitor(
    options: GridOptions,
    *,
    factors: StaticSet | None,
    state_dir: Path | None,
    clock: WallClock,
    limits: Limits | None = None,
    horizon_s: float = DAY_S,
) -> GridMonitor:
    """A monitor on ``options``, restored from the cache under ``state_dir``; raises ``GridOptionsFault``.

    ``factors`` is the factor set in force, ``horizon_s`` how far ahead the forecast reaches.
    """
    return GridMonitor(
        make_grid_source(options, clock, limits),
        Place(options.zone, options.country),
        static=None if factors is None else StaticSource(factors, clock),
        clock=clock,
        cache=None if state_dir is None else DiskCache(state_dir / CACHE_FOLDER),
        rhythm=Rhythm(newest_s=options.refresh_s, forecast_s=options.forecast_refresh_s, horizon_s=horizon_s),
        ageing=Ageing(kept_s=options.kept_s),
    )

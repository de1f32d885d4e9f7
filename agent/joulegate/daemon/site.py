"""From settings to a site, a factor set and a grid monitor; every fault in them is found at the start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from joulegate.carbon.factors import FactorSet, Scope
from joulegate.carbon.site import Instrument, Site, site_faults
from joulegate.carbon.view import View
from joulegate.config import ConfigFault, GridSettings, Settings, SiteSettings
from joulegate.daemon.carbon import CarbonViews
from joulegate.daemon.estimating import with_co2e
from joulegate.daemon.jobs import Jobs, refresh_grid
from joulegate.http.ports import PartStatus
from joulegate.metering.entry import RequestEntry
from joulegate.metering.prior import Estimate
from joulegate.metering.reading import Device
from joulegate.sources.grid.choice import make_monitor
from joulegate.sources.grid.live import start_fault
from joulegate.sources.grid.monitor import GridMonitor
from joulegate.sources.grid.options import GridOptions, GridOptionsFault
from joulegate.sources.grid.static import CountryFactors
from joulegate.stores.factor_sets import FactorSetFault, FactorSets


def site_of(settings: SiteSettings, factors: FactorSet) -> Site:
    """The site as entered; raises ``ConfigFault`` with every fault."""
    given = settings.model_dump(exclude={"instruments", "scope"})
    instruments = tuple(Instrument(**one.model_dump()) for one in settings.instruments)
    scope = None if settings.scope is None else Scope(settings.scope)
    site = Site(**given, scope=scope, instruments=instruments)
    faults = site_faults(site, factors)
    if faults:
        raise ConfigFault(*faults)
    return site


def grid_options(settings: Settings) -> GridOptions:
    """The grid's options; its country is the site's where none is given."""
    return GridOptions.of(settings.grid, country=settings.site.country)


def estimate_here(answer: Estimate, settings: Settings) -> dict[str, Any]:
    """The estimate as JSON with the CO2e of the configured site, by the factor set in force; asks nobody."""
    factors = FactorSets(settings.state_dir).in_use()
    return with_co2e(answer, View(site_of(settings.site, factors), factors), time.time())


def local_views(settings: Settings, devices: Callable[[], Iterable[Device]]) -> CarbonViews | None:
    """Views for a meter inside a pipeline: the factor set only, nobody is asked; ``None`` where the site is faulty."""
    try:
        return Carbon(settings.model_copy(update={"grid": GridSettings()}), devices, tuple).views
    except (ConfigFault, FactorSetFault, GridOptionsFault):
        return None


class Carbon:
    """The carbon side of a daemon: its views, and the monitor and jobs behind them."""

    def __init__(
        self,
        settings: Settings,
        devices: Callable[[], Iterable[Device]],
        entries: Callable[[], Iterable[RequestEntry]],
    ) -> None:
        """Raises ``ConfigFault``, ``FactorSetFault`` or ``GridOptionsFault`` for what cannot be used."""
        factors = FactorSets(settings.state_dir).in_use()
        site = site_of(settings.site, factors)
        options = grid_options(settings)
        self.monitor: GridMonitor = make_monitor(
            options, factors=CountryFactors(factors), state_dir=settings.state_dir, clock=time.time
        )
        fault = start_fault(options) if options.provider is not None else None
        if fault is not None:
            self.monitor.close()
            raise ConfigFault(fault)
        self.views = CarbonViews(site, factors, self.monitor, devices, entries)
        self._jobs = Jobs()

    def status(self) -> PartStatus:
        """The grid's line of ``/readyz``: what is known now, and why not more."""
        ok, detail = self.monitor.state.summary(time.time())
        return PartStatus(ok=ok, detail=detail)

    def start(self) -> None:
        """Refresh the grid in the background."""
        refresh_grid(self._jobs, self.monitor)
        self._jobs.start()

    def stop(self) -> None:
        """End the background work."""
        self._jobs.stop()
        self.monitor.close()

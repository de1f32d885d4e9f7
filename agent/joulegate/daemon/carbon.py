"""The views on energy of a running daemon: site, factor set and grid as they stand, joined to joules when asked.

Nothing here touches the network: the grid monitor refreshes itself in the background, and its newest state is read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from joulegate.carbon.energy_use import EnergyUse, Slice
from joulegate.carbon.factors import FactorSet
from joulegate.carbon.figure import Missing, Range
from joulegate.carbon.footprint import footprint, footprint_of
from joulegate.carbon.intensity import steps_of
from joulegate.carbon.site import Site
from joulegate.carbon.tier import Tier, weakest
from joulegate.carbon.view import View
from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.prior import estimate
from joulegate.metering.prior_wire import estimate_to_wire
from joulegate.metering.reading import Device
from joulegate.sources.grid.monitor import GridMonitor
from joulegate.sources.grid.series import merged
from joulegate.sources.grid.state import GridState
from joulegate.sources.grid.wire import grid_to_wire
from joulegate.units import MJ_PER_J

Sample = tuple[str, str, Mapping[str, str], float]


class CarbonViews:
    """Implements ``http.ports.CarbonReader``; every method may be called from any thread."""

    def __init__(
        self,
        site: Site,
        factors: FactorSet | None,
        monitor: GridMonitor,
        devices: Callable[[], Iterable[Device]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._site = site
        self._factors = factors
        self._monitor = monitor
        self._devices = devices
        self._clock = clock
        self._seen: tuple[GridState, View] | None = None
        self._co2e_g: Counter[tuple[str, str, str]] = Counter()
        self._without: Counter[tuple[str, str]] = Counter()

    def view(self) -> View:
        """Site, factors and the grid's newest intensities; made anew only when the grid's state changed."""
        state, seen = self._monitor.state, self._seen
        if seen is not None and seen[0] is state:
            return seen[1]
        steps = steps_of(merged(state.history.points, state.newest.points))
        view = View(self._site, self._factors, steps)
        self._seen = (state, view)
        return view

    def of_request(self, entry: RequestEntry) -> Mapping[str, object]:
        """CO2e, water and cost of one request."""
        known = {device.id: device for device in self._devices()}
        mine = [known[device] for device in entry.devices if device in known]
        found = footprint_of(
            entry,
            self.view(),
            gpu_name=mine[0].name if mine else None,
            images=entry.work.images,
            scopes={device.scope for device in mine} or {"gpu"},
        )
        return found.to_wire()

    def of_energy(self, energy_mj: Mapping[int, int], bucket_s: int) -> Mapping[str, object]:
        """CO2e, water and cost of all devices' energy, with the intensity of each bucket."""
        devices = list(self._devices())
        tier = weakest(Tier(device.quality.value) for device in devices)
        parts = [Slice(float(at), float(at + bucket_s), float(mj)) for at, mj in sorted(energy_mj.items())]
        use = EnergyUse(tuple(parts), tier, u_known=False)
        return footprint(use, self.view(), scopes={device.scope for device in devices} or {"gpu"}).to_wire()

    def grid(self, duration_s: float) -> Mapping[str, object]:
        """The grid now and ahead."""
        return grid_to_wire(self._monitor.state, self._clock(), duration_s=duration_s)

    def estimate(self, model: str, gpu: str, work: Mapping[str, int | float | None]) -> Mapping[str, object]:
        """What a request would take; CO2e by the grid of now."""
        answer = estimate(model, gpu, **work)  # type: ignore[arg-type]
        if answer.energy_j is None:
            return estimate_to_wire(answer, None, answer.why)
        now_s = self._clock()
        low, central, high = (
            self._grams(now_s, value * MJ_PER_J)
            for value in (answer.energy_j.low, answer.energy_j.central, answer.energy_j.high)
        )
        if isinstance(low, Missing) or isinstance(central, Missing) or isinstance(high, Missing):
            why = next(f.why for f in (low, central, high) if isinstance(f, Missing))
            return estimate_to_wire(answer, None, why)
        grams = {"low": low.low, "central": central.central, "high": high.high, "unit": "g", "tier": central.tier.value}
        return estimate_to_wire(answer, grams, None)

    def _grams(self, now_s: float, energy_mj: float) -> Range | Missing:
        use = EnergyUse((Slice(now_s - 1.0, now_s, energy_mj),), Tier.MODELLED)
        return footprint(use, self.view()).location_based

    def with_co2e(self, entries: Sequence[RequestEntry]) -> list[RequestEntry]:
        """Entries with their CO2e attached, for the pipeline that waits; final ones are counted for the metrics."""
        seen = []
        for entry in entries:
            wire = self.of_request(entry)["co2e_g"]
            co2e = wire if isinstance(wire, Mapping) else None
            seen.append(replace(entry, co2e_g=co2e))
            if entry.status is Status.FINAL:
                self._count(entry, co2e)
        return seen

    def _count(self, entry: RequestEntry, co2e: Mapping[str, object] | None) -> None:
        figure = (co2e or {}).get("location_based")
        model, tier = entry.model or "", entry.tier or ""
        if isinstance(figure, Mapping):
            self._co2e_g[model, tier, str(figure["tier"])] += figure["central"]
        else:
            self._without[model, tier] += 1

    def series(self) -> Sequence[Sample]:
        """Samples for ``/metrics``."""
        now = self._monitor.state.intensity(self._clock())
        samples: list[Sample] = []
        if now.g_per_kwh is not None:
            labels = {"source": now.source, "label": now.label.value, "place": now.place}
            samples.append(("joulegate_grid_carbon_intensity_grams_per_kwh", "gauge", labels, now.g_per_kwh))
            if now.age_s is not None:
                samples.append(("joulegate_grid_age_seconds", "gauge", labels, now.age_s))
        for (model, tier, quality), grams in sorted(self._co2e_g.items()):
            labels = {"model": model, "tier": tier, "quality": quality}
            samples.append(("joulegate_request_co2e_grams", "counter", labels, grams))
        for (model, tier), count in sorted(self._without.items()):
            labels = {"model": model, "tier": tier}
            samples.append(("joulegate_request_without_co2e", "counter", labels, float(count)))
        return samples

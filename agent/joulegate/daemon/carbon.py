"""The views on energy of a running daemon: site, factor set and grid as they stand, joined to joules when asked.

Nothing here touches the network: the grid monitor refreshes itself in the background, and its newest state is read.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from joulegate.carbon.energy_use import EnergyUse, Slice
from joulegate.carbon.factors import FactorSet
from joulegate.carbon.footprint import footprint, footprint_of
from joulegate.carbon.intensity import steps_of
from joulegate.carbon.site import Site
from joulegate.carbon.tier import Tier, weakest
from joulegate.carbon.view import View
from joulegate.daemon.estimating import with_co2e
from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.prior import EstimateFault, estimate, is_regression
from joulegate.metering.prior_references import MeasuredReferences, learn
from joulegate.metering.reading import Device, Quality
from joulegate.metering.wire import VIEWS
from joulegate.sources.grid.monitor import GridMonitor
from joulegate.sources.grid.series import merged
from joulegate.sources.grid.state import GridState
from joulegate.sources.grid.wire import grid_to_wire
from joulegate.units import MJ_PER_J

COST = "joulegate_request_cost"
COUNTED = (
    ("joulegate_request_co2e_grams", "co2e_g", "location_based"),
    ("joulegate_request_water_litres", "water_l", "onsite"),
    (COST, "cost", "electricity"),
)
"""Metric family, member of the wire, figure."""

REFERENCES_EVERY_S = 60.0
MOST_NAMES = {"model": 100, "tier": 20}
OTHER = "other"

Sample = tuple[str, str, Mapping[str, str], float]


class CarbonViews:
    """Implements ``http.ports.CarbonReader``; every method may be called from any thread."""

    def __init__(
        self,
        site: Site,
        factors: FactorSet | None,
        monitor: GridMonitor,
        devices: Callable[[], Iterable[Device]],
        entries: Callable[[], Iterable[RequestEntry]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._site = site
        self._factors = factors
        self._monitor = monitor
        self._devices = devices
        self._entries = entries
        self._clock = clock
        self._learned: MeasuredReferences | None = None
        self._learned_s = 0.0
        self._seen: tuple[GridState, View] | None = None
        self._sums: defaultdict[tuple[str, str, str, str, str], float] = defaultdict(float)
        self._without: Counter[tuple[str, str]] = Counter()
        self._names: dict[str, set[str]] = {"model": set(), "tier": set()}
        self._faults = 0

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
        """CO2e, water and cost of one request, and whether it took far more than its like."""
        return {**self._footprint(entry), "efficiency_regression": self._regression(entry)}

    def _regression(self, entry: RequestEntry) -> Mapping[str, object] | None:
        """Evidence that the request is far above its reference, or ``None``."""
        names = {device.name for device in self._devices() if device.id in entry.devices}
        known = entry.status is Status.FINAL and entry.quality in (Quality.MEASURED, Quality.APPORTIONED)
        if not known or entry.energy_mj is None or entry.model is None or len(names) != 1:
            return None
        work = entry.work
        try:
            expected = estimate(
                entry.model,
                names.pop(),
                work.images or 1,
                work.steps,
                work.width,
                work.height,
                self._references(),
                gpus=len(entry.devices),
            )
        except EstimateFault:
            return None
        found = is_regression(entry.energy_mj / MJ_PER_J, expected)
        return None if found is None else {"ratio": found.ratio, "evidence": found.evidence}

    def _references(self) -> MeasuredReferences:
        """What this service measured itself, read from the ledger at most once a minute."""
        now_s = self._clock()
        if self._learned is None or now_s - self._learned_s > REFERENCES_EVERY_S:
            names = {device.id: device.name for device in self._devices()}
            self._learned, self._learned_s = learn(self._entries(), names), now_s
        return self._learned

    def _footprint(self, entry: RequestEntry) -> Mapping[str, Any]:
        """The wire's members; a defect here costs the views, never the energy beside them, and is counted."""
        try:
            return self._joined(entry)
        except Exception:  # noqa: BLE001 - energy is the base fact: it must reach its reader without its views
            self._faults += 1
            return dict.fromkeys(VIEWS)

    def _joined(self, entry: RequestEntry) -> Mapping[str, Any]:
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

    def of_energy(self, energy_mj: Mapping[int, int], bucket_s: int, qualities: Iterable[str]) -> Mapping[str, object]:
        """CO2e, water and cost of all devices' energy, with the intensity of each bucket."""
        devices = list(self._devices())
        tier = weakest(Tier(quality) for quality in qualities)
        parts = [Slice(float(at), float(at + bucket_s), float(mj)) for at, mj in sorted(energy_mj.items())]
        use = EnergyUse(tuple(parts), tier, u_known=False)
        return footprint(use, self.view(), scopes={device.scope for device in devices} or {"gpu"}).to_wire()

    def grid(self, duration_s: float) -> Mapping[str, object]:
        """The grid now and ahead."""
        return grid_to_wire(self._monitor.state, self._clock(), duration_s=duration_s)

    def estimate(self, model: str, gpu: str, work: Mapping[str, int | float | None]) -> Mapping[str, object]:
        """What a request would take; CO2e by the grid of now."""
        answer = estimate(model, gpu, references=self._references(), **work)  # type: ignore[arg-type]
        return with_co2e(answer, self.view(), self._clock())

    def with_co2e(self, entries: Sequence[RequestEntry]) -> list[RequestEntry]:
        """Entries with their CO2e attached, for the pipeline that waits; final ones are counted for the metrics."""
        seen = []
        for entry in entries:
            views = self._footprint(entry)
            seen.append(replace(entry, views=views))
            if entry.status is Status.FINAL:
                self._count(entry, views)
        return seen

    def _count(self, entry: RequestEntry, views: Mapping[str, Any]) -> None:
        model, tier = self._bounded("model", entry.model), self._bounded("tier", entry.tier)
        if (views["co2e_g"] or {}).get("location_based") is None:
            self._without[model, tier] += 1
        for family, view, name in COUNTED:
            figure = (views[view] or {}).get(name)
            if figure is not None:
                self._sums[family, model, tier, figure["tier"], figure["unit"]] += figure["central"]

    def _bounded(self, label: str, name: str | None) -> str:
        """A name from outside, or ``other`` once as many as are kept are known."""
        known, name = self._names[label], name or ""
        if name not in known and len(known) >= MOST_NAMES[label]:
            return OTHER
        known.add(name)
        return name

    def series(self) -> Sequence[Sample]:
        """Samples for ``/metrics``."""
        now = self._monitor.state.intensity(self._clock())
        samples: list[Sample] = [("joulegate_agent_carbon_faults", "counter", {}, float(self._faults))]
        if now.g_per_kwh is not None:
            labels = {"source": now.source, "label": now.label.value, "place": now.place}
            samples.append(("joulegate_grid_carbon_intensity_grams_per_kwh", "gauge", labels, now.g_per_kwh))
            if now.age_s is not None:
                samples.append(("joulegate_grid_age_seconds", "gauge", labels, now.age_s))
        for (family, model, tier, quality, unit), total in sorted(self._sums.items()):
            labels = {"model": model, "tier": tier, "quality": quality}
            if family == COST:
                labels["currency"] = unit
            samples.append((family, "counter", labels, total))
        for (model, tier), count in sorted(self._without.items()):
            labels = {"model": model, "tier": tier}
            samples.append(("joulegate_request_without_co2e", "counter", labels, float(count)))
        return samples

"""Figures of a request as a pipeline sees them: joules with one uncertainty, from one entry or a batch's entries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Outcome
from joulegate.units import j_from_mj

_WORST_LAST = (
    Quality.MEASURED,
    Quality.APPORTIONED,
    Quality.MODELLED,
    Quality.DEFAULT,
    Quality.SIMULATED,
    Quality.MISSING,
)


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of one request, or of a batch as a whole (``entries`` has one for each member).

    ``energy_j`` is ``None`` when no reading saw it; ``uncertainty_j`` is expanded (k=2): measurement and allocation in
    one. A batch adds its members' measurement parts, which share a sensor, and takes the root of the sum of squares of
    their allocation parts.
    """

    request_id: str
    status: Status
    energy_j: float | None
    uncertainty_j: float | None
    co2e_g: float | None
    water_l: float | None
    cost: float | None
    quality: Quality
    method: Method | None
    outcome: Outcome
    queue_s: float | None
    entries: tuple[RequestEntry, ...]

    @classmethod
    def of(cls, request_id: str, entries: tuple[RequestEntry, ...]) -> Result:
        """Figures of ``entries``, which are the members of one span."""
        first = entries[0]
        energies_mj = [entry.energy_mj for entry in entries if entry.energy_mj is not None]
        known = len(energies_mj) == len(entries)
        return cls(
            request_id=request_id,
            status=Status.FINAL if all(entry.status is Status.FINAL for entry in entries) else Status.PENDING,
            energy_j=j_from_mj(sum(energies_mj)) if known else None,
            uncertainty_j=_uncertainty_j(entries) if known else None,
            co2e_g=_central(entries, "co2e_g", "location_based"),
            water_l=_central(entries, "water_l", "onsite"),
            cost=_central(entries, "cost", "electricity"),
            quality=max((entry.quality for entry in entries), key=_WORST_LAST.index),
            method=first.method,
            outcome=first.outcome,
            queue_s=first.queue_s,
            entries=entries,
        )


def _central(entries: tuple[RequestEntry, ...], view: str, figure: str) -> float | None:
    """The central values of a figure together, or ``None`` where one of them is missing."""
    total = 0.0
    for entry in entries:
        views = (entry.views or {}).get(view)
        found = views.get(figure) if isinstance(views, Mapping) else None
        central = found.get("central") if isinstance(found, Mapping) else None
        if not isinstance(central, int | float):
            return None
        total += central
    return total


def _uncertainty_j(entries: tuple[RequestEntry, ...]) -> float | None:
    """Both parts in one, or ``None`` where an entry has neither."""
    if any(entry.u_measurement_mj is None and entry.u_allocation_mj is None for entry in entries):
        return None
    measurement_mj = sum(entry.u_measurement_mj or 0 for entry in entries)
    allocation_mj = math.hypot(*(entry.u_allocation_mj or 0 for entry in entries))
    return j_from_mj(math.hypot(measurement_mj, allocation_mj))

"""The state of the grid as JSON: the body of ``GET /v1/grid`` and of ``joulegate grid --json``."""

from __future__ import annotations

from typing import Any

from joulegate.metering.wire import rfc3339
from joulegate.sources.grid.intensity import Intensity
from joulegate.sources.grid.state import DAY_S, GridState, Outlook
from joulegate.sources.grid.window import Window

SCHEMA = "joulegate.grid/v1"


def grid_to_wire(
    state: GridState, now_s: float, *, duration_s: float = 3600.0, within_s: float = DAY_S
) -> dict[str, Any]:
    """``state`` as seen at ``now_s``, with the best window for work of ``duration_s`` in the next ``within_s``.

    Pure and quick: labels and ages are of ``now_s``. Times are RFC 3339 in UTC, intensities g/kWh.
    """
    window, why = state.best_window(now_s, duration_s, now_s + within_s)
    return {
        "schema": SCHEMA,
        "at": rfc3339(now_s),
        "place": {"zone": state.place.zone, "country": state.place.country},
        "provider": state.provider,
        "now": intensity_to_wire(state.intensity(now_s)),
        "forecast": _outlook(state.outlook(now_s)),
        "history": _outlook(state.past(now_s)),
        "best_window": None if window is None else _window(window),
        "best_window_why": why,
        "faults": dict(state.faults),
    }


def intensity_to_wire(point: Intensity) -> dict[str, Any]:
    """One figure with everything that is known of it."""
    return {
        "g_per_kwh": point.g_per_kwh,
        "label": point.label.value,
        "why": point.why,
        "place": point.place,
        "source": point.source,
        "signal": None if point.signal is None else point.signal.value,
        "emission_factor_type": None if point.emission_factor_type is None else point.emission_factor_type.value,
        "is_estimated": point.is_estimated,
        "simulated": point.simulated,
        "start": rfc3339(point.start_s),
        "end": rfc3339(point.end_s),
        "updated": rfc3339(point.updated_s),
        "age_s": point.age_s,
    }


def _outlook(outlook: Outlook) -> dict[str, Any]:
    first = outlook.points[0] if outlook.points else None
    return {
        "label": outlook.label.value,
        "why": outlook.why,
        "age_s": outlook.age_s,
        "source": None if first is None else first.source,
        "signal": None if first is None or first.signal is None else first.signal.value,
        "simulated": any(point.simulated for point in outlook.points),
        "points": [
            {
                "start": rfc3339(point.start_s),
                "end": rfc3339(point.end_s),
                "g_per_kwh": point.g_per_kwh,
                "is_estimated": point.is_estimated,
            }
            for point in outlook.points
        ],
    }


def _window(window: Window) -> dict[str, Any]:
    return {
        "start": rfc3339(window.start_s),
        "end": rfc3339(window.end_s),
        "duration_s": window.end_s - window.start_s,
        "g_per_kwh": window.g_per_kwh,
        "now_g_per_kwh": window.now_g_per_kwh,
        "saving_fraction": window.saving_fraction,
    }

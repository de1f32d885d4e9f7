"""What a grid source answers: how many grams of CO2e a kilowatt hour cost, where, when, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from joulegate.sources.grid.fault import FaultKind, GridFault

LEAST_G_PER_KWH = 0.0
MOST_G_PER_KWH = 3000.0
"""No grid is dirtier: lignite alone is at 1,100 g/kWh. What lies outside is a wrong unit or a broken answer."""


class Label(StrEnum):
    """Where the figure that is shown comes from."""

    LIVE = "live"
    CACHED = "cached"
    STATIC = "static"
    MISSING = "missing"


class Signal(StrEnum):
    """Whether it is the mean of all generation, or of the plants that answer to one more kilowatt hour."""

    AVERAGE = "average"
    MARGINAL = "marginal"


class FactorType(StrEnum):
    """Whether only the power station's own emissions are counted, or its fuel's and its making too."""

    DIRECT = "direct"
    LIFECYCLE = "lifecycle"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the electricity is used; only ever what the operator wrote, never guessed from an address.

    ``zone`` is in the words of the provider (``DE``, ``CAISO_NORTH``, ``GB:SW1``, ``10Y1001A1001A82H``), ``country`` is
    ISO 3166-1 alpha-3 and the place of the static factor.
    """

    zone: str | None = None
    country: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Grams of CO2e per kilowatt hour over [``start_s``, ``end_s``) at ``place``; all times are Unix seconds.

    ``g_per_kwh`` is ``None`` exactly where ``label`` is ``missing``, and then ``why`` says what to do. ``start_s`` and
    ``end_s`` are ``None`` where a factor holds for no certain period. ``updated_s`` is when the source says it made the
    figure, ``fetched_s`` when it was asked for. ``age_s`` counts from when the figure was last both fetched and of the
    present; it is ``None`` on a point of a series. ``simulated`` figures may never be reported as measured.
    """

    g_per_kwh: float | None
    place: str
    source: str
    label: Label
    start_s: float | None = None
    end_s: float | None = None
    signal: Signal | None = None
    emission_factor_type: FactorType | None = None
    is_estimated: bool | None = None
    updated_s: float | None = None
    fetched_s: float | None = None
    age_s: float | None = None
    why: str = ""
    simulated: bool = False


def believable(g_per_kwh: float) -> bool:
    """Whether a grid can have this intensity; NaN is none."""
    return LEAST_G_PER_KWH <= g_per_kwh <= MOST_G_PER_KWH


def require_believable(g_per_kwh: float, source: str) -> float:
    """``g_per_kwh``; raises ``GridFault`` where no grid can have it."""
    if not believable(g_per_kwh):
        raise GridFault(
            FaultKind.OUT_OF_RANGE,
            f"{source}: {g_per_kwh:g} g/kWh is not between {LEAST_G_PER_KWH:g} and {MOST_G_PER_KWH:g}; not used",
        )
    return g_per_kwh

"""What the monitor needs of a source of intensities, and what the static source needs of a factor set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from joulegate.sources.grid.intensity import FactorType, Intensity, Place, Signal

WallClock = Callable[[], float]
"""Unix seconds now."""


class GridSource(Protocol):
    """Where intensities come from. Calls may block for as long as the source's limits allow, and raise ``GridFault``.

    Answers are of ``place`` and of no other: a source that cannot be sure of that raises. Points are in order, do not
    overlap, and where the provider has no figure there is none; ``label`` is ``live`` (``static`` of a factor set).
    """

    @property
    def name(self) -> str:
        """The source as it stands in ``Intensity.source``; also names the host, where it is not the provider's own."""

    @property
    def fresh_s(self) -> float:
        """For how long after the end of its period the newest figure still counts as live: the provider's own lag."""

    def latest(self, place: Place) -> Intensity:
        """The newest figure there is, however old."""

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """What is known of [``from_s``, ``to_s``), Unix seconds."""

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """What is expected from now on for ``horizon_s``."""

    def close(self) -> None:
        """Give up any call under way, and close connections; safe to call twice and from another thread."""


class StaticFactor(Protocol):
    """One factor of a factor set."""

    @property
    def g_per_kwh(self) -> float:
        """Grams of CO2e per kilowatt hour."""

    @property
    def year(self) -> int | None:
        """The year that it is of."""

    @property
    def source(self) -> str:
        """Who published it, with version."""

    @property
    def signal(self) -> Signal | None:
        """Average or marginal."""

    @property
    def emission_factor_type(self) -> FactorType | None:
        """Direct or life-cycle."""


class StaticSet(Protocol):
    """A factor set, read from memory or from the package."""

    def factor(self, country: str) -> StaticFactor | None:
        """The factor of exactly this country (ISO 3166-1 alpha-3), or ``None``; never another's or the world's."""

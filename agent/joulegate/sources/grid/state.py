"""What is known of the grid, frozen: the monitor publishes it whole, everyone else reads it and asks for a time.

Labels are worked out from the time of the reading, not of the writing: a figure grows old by itself, also where the
thread that should renew it hangs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from joulegate.sources.grid.fault import FaultKind
from joulegate.sources.grid.intensity import Intensity, Label, Place
from joulegate.sources.grid.series import merged
from joulegate.sources.grid.window import Timeline, Window, best_window

DAY_S = 86_400.0
NO_PROVIDER = "no provider is configured; set grid.provider and grid.zone"
NOT_CONFIGURED = "no place is configured; set grid.provider and grid.zone, or grid.country for a yearly figure"


@dataclass(frozen=True, slots=True)
class Ageing:
    """How long what was fetched may stand for the present, in seconds.

    A figure is ``live`` while it was fetched within ``renewed_s`` and its period ended within ``fresh_s``; it is
    ``cached`` up to an age of ``kept_s``, and of no use after that. A forecast is used up to ``forecast_kept_s``.
    """

    renewed_s: float = 900.0
    fresh_s: float = 7200.0
    kept_s: float = 6 * 3600.0
    forecast_renewed_s: float = 5400.0
    forecast_kept_s: float = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Track:
    """One kind of answer: its newest points, when they were fetched, and what has been wrong since, if anything."""

    points: tuple[Intensity, ...] = ()
    fetched_s: float | None = None
    fault: str | None = None
    fault_kind: FaultKind | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """Points of a series as seen at one moment."""

    points: tuple[Intensity, ...]
    label: Label
    age_s: float | None
    why: str


@dataclass(frozen=True, slots=True)
class GridState:
    """Everything known of one place. ``provider`` is ``None`` where none is configured."""

    place: Place = field(default_factory=Place)
    provider: str | None = None
    newest: Track = Track()
    forecast: Track = Track()
    history: Track = Track()
    static: Track = Track()
    ageing: Ageing = Ageing()
    faults: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    refreshing_since_s: float | None = None

    def intensity(self, now_s: float) -> Intensity:
        """The best figure for the present, with label, age and reason; of this place or ``missing``."""
        return self._provided(now_s) or self._from_factors() or self._missing()

    def summary(self, now_s: float) -> tuple[bool, str]:
        """Whether there is a figure for the present, and one line about it, for ``/readyz``."""
        now = self.intensity(now_s)
        if now.g_per_kwh is None:
            return False, f"missing: {now.why}"
        age = "" if now.age_s is None else f", {now.age_s:.0f} s old"
        made_up = ", simulated" if now.simulated else ""
        why = f"; {now.why}" if now.why else ""
        return True, f"{now.label.value}: {now.g_per_kwh:.0f} g/kWh in {now.place} from {now.source}{age}{made_up}{why}"

    def outlook(self, now_s: float) -> Outlook:
        """The forecast from now on."""
        ageing, track = self.ageing, self.forecast
        age_s = None if track.fetched_s is None else max(0.0, now_s - track.fetched_s)
        ahead = tuple(p for p in track.points if p.end_s is not None and p.end_s > now_s)
        if age_s is None or not ahead or age_s > ageing.forecast_kept_s:
            why = track.fault or (NO_PROVIDER if self.provider is None else "no forecast has been fetched yet")
            return Outlook((), Label.MISSING, None, why)
        live = track.fault is None and age_s <= ageing.forecast_renewed_s
        return Outlook(ahead, Label.LIVE if live else Label.CACHED, age_s, track.fault or _fetched(age_s, live=live))

    def past(self, now_s: float) -> Outlook:
        """The last hours; points keep their gaps."""
        track = self.history
        if not track.points or track.fetched_s is None:
            why = track.fault or (NO_PROVIDER if self.provider is None else "no history has been fetched yet")
            return Outlook((), Label.MISSING, None, why)
        age_s = max(0.0, now_s - track.fetched_s)
        return Outlook(track.points, Label.LIVE if track.fault is None else Label.CACHED, age_s, track.fault or "")

    def best_window(self, now_s: float, duration_s: float, deadline_s: float) -> tuple[Window | None, str]:
        """The window, or ``None`` and why there is none."""
        outlook = self.outlook(now_s)
        if outlook.label is Label.MISSING:
            return None, outlook.why
        window = best_window(outlook.points, duration_s, deadline_s, now_s=now_s)
        return window, "" if window else "the forecast has no gapless stretch of this length before the deadline"

    def mean_g_per_kwh(self, start_s: float, end_s: float) -> tuple[float | None, float]:
        """Mean over what history and the newest figure know of [``start_s``, ``end_s``), and how many seconds that is.

        Only figures of the provider for this place count; the caller decides what to do about the rest.
        """
        known = merged(self.history.points, self.newest.points)
        return Timeline(known).mean(start_s, end_s)

    def _provided(self, now_s: float) -> Intensity | None:
        point = self.newest.points[-1] if self.newest.points else None
        if point is None or point.fetched_s is None or point.end_s is None or (point.start_s or 0.0) > now_s + 900.0:
            return None
        age_s = max(0.0, now_s - min(point.fetched_s, point.end_s))
        if age_s > self.ageing.kept_s:
            return None
        old_s, since_fetch_s = now_s - point.end_s, now_s - point.fetched_s
        live = point.label is Label.LIVE and self.newest.fault is None and since_fetch_s <= self.ageing.renewed_s
        if live and old_s <= self.ageing.fresh_s:
            return replace(point, label=Label.LIVE, age_s=age_s)
        stale = f"its period ended {old_s / 60:.0f} min ago" if live else _fetched(since_fetch_s, live=False)
        why = "; ".join(part for part in (self.newest.fault or stale, point.why) if part)
        return replace(point, label=Label.CACHED, age_s=age_s, why=why)

    def _from_factors(self) -> Intensity | None:
        if not self.static.points:
            return None
        point = self.static.points[0]
        why = "; ".join(part for part in (point.why, self._why_not_provided()) if part)
        return replace(point, label=Label.STATIC, why=why)

    def _missing(self) -> Intensity:
        reasons = [self._why_not_provided(), self.static.fault]
        why = "; ".join(reason for reason in reasons if reason) or NOT_CONFIGURED
        where = self.place.zone or self.place.country or ""
        return Intensity(g_per_kwh=None, place=where, source=self.provider or "none", label=Label.MISSING, why=why)

    def _why_not_provided(self) -> str | None:
        if self.provider is None:
            return None
        return self.newest.fault or f"{self.provider}: nothing of the present has been fetched"


def _fetched(age_s: float, *, live: bool) -> str:
    return "" if live else f"fetched {age_s / 60:.0f} min ago and not renewed since"

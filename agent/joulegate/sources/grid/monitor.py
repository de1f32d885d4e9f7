"""Keeps the newest answers of one source for one place, and publishes them whole; nobody who reads ever waits."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from joulegate.sources.grid.cache import DiskCache
from joulegate.sources.grid.fault import HOST_WIDE, FaultKind, GridFault
from joulegate.sources.grid.intensity import Intensity, Place
from joulegate.sources.grid.ports import GridSource, WallClock
from joulegate.sources.grid.series import merged
from joulegate.sources.grid.state import Ageing, GridState, Track

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 60.0
_PATIENT = frozenset({FaultKind.UNAUTHORIZED, FaultKind.FORBIDDEN, FaultKind.REJECTED, FaultKind.WRONG_ZONE})
"""Faults that asking again soon does not mend."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often to ask, and for how much, in seconds. ``backoff_most_s`` bounds how rarely a failing host is asked."""

    newest_s: float = 300.0
    forecast_s: float = 1800.0
    history_s: float = 3600.0
    horizon_s: float = 86_400.0
    looked_back_s: float = 86_400.0
    backoff_most_s: float = 3600.0


class _Feed:
    """One question, asked again and again: when it is due, what was answered. Of the refreshing thread alone."""

    def __init__(self, kind: str, period_s: float, ask: Callable[[float], Sequence[Intensity]]) -> None:
        self.kind = kind
        self.ask = ask
        self.track = Track()
        self.due_s = -math.inf
        self._period_s = period_s
        self._failures = 0

    def answered(self, points: Sequence[Intensity], now_s: float) -> None:
        self.track = Track(tuple(points), now_s, None)
        self._failures = 0
        self.due_s = now_s + self._period_s

    def failed(self, fault: GridFault, now_s: float, most_s: float) -> None:
        """A fault of this question alone: it is asked again after a pause, the others go on."""
        self.tell(fault)
        self._failures += 1
        endless = fault.kind is FaultKind.UNSUPPORTED
        self.due_s = math.inf if endless else now_s + _pause_s(fault, self._failures, most_s)

    def tell(self, fault: GridFault) -> None:
        """What was answered before stays, with what is wrong since."""
        self.track = replace(self.track, fault=str(fault), fault_kind=fault.kind)


def _pause_s(fault: GridFault, failures: int, most_s: float) -> float:
    """Twice as long with each failure in a row, and at least what the provider asked for."""
    doubled_s = _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20)
    pause_s = most_s if fault.kind in _PATIENT else min(most_s, doubled_s)
    return max(pause_s, fault.retry_after_s or 0.0)


class GridMonitor:
    """Asks ``source`` for ``place`` in the background; ``state`` is one load of a reference.

    ``source`` may be ``None`` where only the factor set is configured, and ``static`` where there is none. One thread
    refreshes at a time; ``start_refresh`` gives it a daemon thread and never waits: a name that does not resolve or a
    server that never answers holds up that thread and nothing else, not even the end of the process.
    """

    def __init__(
        self,
        source: GridSource | None,
        place: Place,
        *,
        static: GridSource | None,
        clock: WallClock,
        cache: DiskCache | None = None,
        rhythm: Rhythm | None = None,
        ageing: Ageing | None = None,
    ) -> None:
        self._source = source
        self._static = static
        self._place = place
        self._clock = clock
        self._cache = cache
        self._rhythm = rhythm or Rhythm()
        self._feeds = self._make_feeds()
        self._faults: Counter[str] = Counter()
        self._skipped = 0
        self._host_failures = 0
        self._resume_s = -math.inf
        self._static_track = Track()
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        base = ageing or Ageing()
        self._ageing = replace(
            base,
            renewed_s=max(base.renewed_s, 3.0 * self._rhythm.newest_s),
            forecast_renewed_s=max(base.forecast_renewed_s, 3.0 * self._rhythm.forecast_s),
            fresh_s=base.fresh_s if source is None else source.fresh_s,
        )
        self._restore()
        self._state = self._snapshot()

    @property
    def state(self) -> GridState:
        """The newest state; no lock, no disk, no network."""
        return self._state

    def start_refresh(self) -> bool:
        """Refresh what is due in a thread of its own; ``False`` where the refresh before is still under way."""
        if self._closed.is_set() or (self._thread is not None and self._thread.is_alive()):
            self._skipped += 1
            return False
        self._thread = threading.Thread(target=self.refresh, name="joulegate-grid", daemon=True)
        self._thread.start()
        return True

    def refresh(self) -> GridState:
        """Ask what is due, publish, and return the state; blocks for as long as the source may. Never raises."""
        with self._one_at_a_time:
            self._state = replace(self._state, refreshing_since_s=self._clock())
            self._static_track = self._factors()
            for feed in self._feeds:
                if self._closed.is_set():
                    break
                if feed.due_s <= self._clock() >= self._resume_s:
                    self._ask(feed)
            self._state = self._snapshot()
            return self._state

    def close(self, wait_s: float = 1.0) -> None:
        """Stop asking; a call under way is given up, and waited for no longer than ``wait_s``."""
        self._closed.set()
        for source in (self._source, self._static):
            if source is not None:
                source.close()
        if self._thread is not None:
            self._thread.join(wait_s)

    def _make_feeds(self) -> list[_Feed]:
        source, place, rhythm = self._source, self._place, self._rhythm
        if source is None:
            return []
        return [
            _Feed("newest", rhythm.newest_s, lambda _: [source.latest(place)]),
            _Feed("forecast", rhythm.forecast_s, lambda _: source.forecast(place, rhythm.horizon_s)),
            _Feed(
                "history",
                rhythm.history_s,
                lambda now_s: source.history(place, now_s - rhythm.looked_back_s, now_s),
            ),
        ]

    def _ask(self, feed: _Feed) -> None:
        """One question; what goes wrong is counted, and the answer before it stays."""
        try:
            points = feed.ask(self._clock())
        except GridFault as fault:
            self._note(feed, fault)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the refreshing; it is told and counted
            kind = FaultKind.CLOSED if self._closed.is_set() else FaultKind.INTERNAL
            text = f"reading the {feed.kind} answer failed ({type(error).__name__}); please report it"
            self._note(feed, GridFault(kind, text))
        else:
            self._host_failures = 0
            self._keep(feed, points)

    def _note(self, feed: _Feed, fault: GridFault) -> None:
        if fault.kind is FaultKind.CLOSED:
            return
        self._faults[fault.kind.value] += 1
        if feed.track.fault != str(fault):
            log.warning("grid: %s", fault)
        now_s, most_s = self._clock(), self._rhythm.backoff_most_s
        if fault.kind not in HOST_WIDE:
            self._host_failures = 0
            feed.failed(fault, now_s, most_s)
            return
        self._host_failures += 1
        self._resume_s = now_s + _pause_s(fault, self._host_failures, most_s)
        for other in self._feeds:
            if other is feed or other.due_s <= now_s:
                other.tell(fault)

    def _keep(self, feed: _Feed, points: Sequence[Intensity]) -> None:
        now_s = self._clock()
        if feed.track.fault is not None:
            log.info("grid: %s is answered again", feed.kind)
        if feed.kind == "history":
            points = self._recent(merged(feed.track.points, points), now_s)
        feed.answered(points, now_s)
        if feed.kind == "newest":
            self._remember(points, now_s)
        if self._cache is not None and self._source is not None:
            self._cache.store(self._source.name, self._place, feed.kind, feed.track.points)

    def _remember(self, points: Sequence[Intensity], now_s: float) -> None:
        """Add the newest figure to the history, which is asked for less often."""
        history = self._feeds[-1]
        history.track = replace(history.track, points=self._recent(merged(history.track.points, points), now_s))

    def _recent(self, points: Sequence[Intensity], now_s: float) -> tuple[Intensity, ...]:
        since_s = now_s - self._rhythm.looked_back_s
        return tuple(point for point in points if point.end_s is not None and point.end_s > since_s)

    def _factors(self) -> Track:
        if not self._place.country:
            return Track(fault=None if self._source is None else "grid.country is not set for a yearly figure instead")
        if self._static is None:
            return Track(fault=f"there is no factor set with a yearly figure of {self._place.country}")
        try:
            return Track((self._static.latest(self._place),), self._clock())
        except GridFault as fault:
            return Track(fault=str(fault))

    def _restore(self) -> None:
        now_s = self._clock()
        self._static_track = self._factors()
        if self._cache is None or self._source is None:
            return
        for feed in self._feeds:
            points = self._cache.load(self._source.name, self._place, feed.kind, now_s)
            if points:
                fetched_s = max(point.fetched_s or 0.0 for point in points)
                feed.track = Track(points, fetched_s, "restored from disk, not renewed yet")

    def _snapshot(self) -> GridState:
        tracks = {feed.kind: feed.track for feed in self._feeds}
        return GridState(
            place=self._place,
            provider=None if self._source is None else self._source.name,
            newest=tracks.get("newest", Track()),
            forecast=tracks.get("forecast", Track()),
            history=tracks.get("history", Track()),
            static=self._static_track,
            ageing=self._ageing,
            faults=self._counts(),
        )

    def _counts(self) -> Mapping[str, int]:
        cached = self._cache.faults if self._cache is not None else Counter[str]()
        return MappingProxyType(dict(self._faults + cached + Counter(refresh_skipped=self._skipped)))

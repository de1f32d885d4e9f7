"""What is asked for, waits and was done since the line before: counted from spans, gateways and reports."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.span import Outcome, Span
from joulegate.throttle.settings import ThrottleSettings
from joulegate.units import MJ_PER_J

QUEUE_KEPT_S = 15.0
ASKS_RULE_S = 60.0
"""So long after a gateway last asked, its questions are the demand, and the spans behind them are not counted again."""

KEPT_IDS = 50_000
KEPT_CLASSES = 64
MOST_NAME = 256
WORK_S = 1800.0
"""What images of a kind took is told over the last half hour to hour."""


_Class = tuple[str, int, int | None]
"""Model, GPUs and steps of an image."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Members of an observation; ``queue`` is ``None`` where nobody reports one."""

    arrivals: Mapping[str, float]
    images_done: float
    queue: Mapping[str, float] | None
    work: Sequence[Mapping[str, Any]]


class DemandCount:
    """Counts between two lines. Every method may be called from another thread; none waits longer than a dictionary.

    Arrivals are what gateways asked for (``asked``, by tier, before any limit) and where none asks, the images of the
    spans that began. A name that is no configured tier counts for the last one, as decisions treat it.
    """

    def __init__(
        self,
        settings: ThrottleSettings,
        asked: Callable[[], Mapping[str, float]],
        *,
        clock: Callable[[], float],
        began_s: float,
    ) -> None:
        """``began_s`` is the Unix time from which finished requests are this run's."""
        self._settings = settings
        self._asked = asked
        self._clock = clock
        self._began_s = began_s
        self._asked_s = float("-inf")
        self._lock = threading.Lock()
        self._arrivals: defaultdict[str, float] = defaultdict(float)
        self._done = 0.0
        self._told: OrderedDict[str, None] = OrderedDict()
        self._work: dict[_Class, tuple[float, float]] = {}
        self._work_before: dict[_Class, tuple[float, float]] = {}
        self._work_s = clock()
        self._queue: dict[str, tuple[float, float]] = {}

    def began(self, span: Span) -> None:
        """A request began on the devices."""
        with self._lock:
            self._arrivals[self._settings.tier(span.tier).name] += span.work.images or max(1, len(span.members))

    def finished(self, entries: Sequence[RequestEntry]) -> None:
        """Requests ended (pending) or got their figures (final): images of each are counted once, when it ended."""
        with self._lock:
            for entry in entries:
                if entry.status is Status.FINAL:
                    self._learn(entry)
                self._count_done(entry)

    def _count_done(self, entry: RequestEntry) -> None:
        known = entry.request_id in self._told
        if not known and entry.outcome is Outcome.OK and entry.ended_s >= self._began_s:
            self._done += entry.work.images or 1
        self._told[entry.request_id] = None
        if len(self._told) > KEPT_IDS:
            self._told.popitem(last=False)

    def _learn(self, entry: RequestEntry) -> None:
        if entry.energy_mj is None or not entry.devices or entry.outcome is not Outcome.OK:
            return
        model = (entry.model or "").encode("utf-8", "replace").decode()[:MOST_NAME]
        key = (model, len(entry.devices), entry.work.steps)
        if key in self._work or len(self._work) < KEPT_CLASSES:
            images, energy_j = self._work.get(key, (0.0, 0.0))
            self._work[key] = (images + (entry.work.images or 1), energy_j + entry.energy_mj / MJ_PER_J)

    def report(self, queue: Mapping[str, float]) -> None:
        """Units by tier that are admitted and not started; implements ``http.throttle_ports.QueueSink``."""
        now_s = self._clock()
        with self._lock:
            for name in [name for name, (_, at_s) in self._queue.items() if now_s - at_s > QUEUE_KEPT_S]:
                del self._queue[name]
            fresh: defaultdict[str, float] = defaultdict(float)
            for tier, units in queue.items():
                fresh[self._settings.tier(tier).name] += units
            self._queue |= {tier: (units, now_s) for tier, units in fresh.items()}

    def take(self) -> Counts:
        """Everything since the last call."""
        now_s, asked = self._clock(), self._asked()
        if any(asked.values()):
            self._asked_s = now_s
        with self._lock:
            began, self._arrivals = self._arrivals, defaultdict(float)
            done, self._done = self._done, 0.0
            if now_s - self._work_s >= WORK_S:
                self._work_before, self._work, self._work_s = self._work, {}, now_s
            work = _summed(self._work_before, self._work)
            queue = {tier: units for tier, (units, at_s) in self._queue.items() if now_s - at_s <= QUEUE_KEPT_S}
        arrivals = asked if now_s - self._asked_s <= ASKS_RULE_S else began
        tiers = [tier.name for tier in self._settings.tiers]
        return Counts(
            arrivals={tier: arrivals.get(tier, 0.0) for tier in tiers},
            images_done=done,
            queue=queue or None,
            work=[
                {"model": model, "gpus": gpus, "steps": steps, "images": images, "energy_j": energy_j}
                for (model, gpus, steps), (images, energy_j) in work.items()
            ],
        )


def _summed(
    one: Mapping[_Class, tuple[float, float]], other: Mapping[_Class, tuple[float, float]]
) -> dict[_Class, tuple[float, float]]:
    none = (0.0, 0.0)
    return {
        key: (one.get(key, none)[0] + other.get(key, none)[0], one.get(key, none)[1] + other.get(key, none)[1])
        for key in (*one, *(key for key in other if key not in one))
    }

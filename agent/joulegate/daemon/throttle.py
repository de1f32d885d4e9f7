"""The adviser of a running daemon: every second one observation, one recommendation, one record of the trail.

It has a thread of its own. The meter's thread must not pay for it, a job of the scheduler must return at once while
this one may block for the ledger when a budget's period begins, and a model that learns lags wants an even beat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from joulegate.daemon.throttle_board import Board
from joulegate.daemon.throttle_budget import BudgetMeter
from joulegate.daemon.throttle_demand import DemandCount
from joulegate.daemon.throttle_observation import BudgetNow, GoneWatch, GridNow, blind, observe
from joulegate.http.ports import PartStatus
from joulegate.http.throttle_bytes import prepare
from joulegate.metering.snapshot import Snapshot
from joulegate.stores.trail import DecisionTrail
from joulegate.stores.trail_records import Base, Decided, Why
from joulegate.stores.trail_verify import replay
from joulegate.throttle.adviser import Adviser, settings_hash
from joulegate.throttle.recommendation import Recommendation
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.wire import encode

PERIOD_S = 1.0
BASE_EVERY = 60
"""Decisions between two bases of the trail: what a restart replays, and the shortest part that verifies alone."""

GIVE_UP_AFTER = 3
"""A model that fails so often in a row is forgotten."""

STOP_WAIT_S = 5.0
_LOG = logging.getLogger("joulegate.throttle")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Feeds:
    """Where the parts of an observation come from; a feed that fails costs its part only.

    ``grid`` is given Unix seconds.
    """

    snapshot: Callable[[], Snapshot | None]
    demand: DemandCount
    grid: Callable[[float], GridNow]
    budget: BudgetMeter


class ThrottleAdviser:
    """Observes, advises, records, publishes. ``step`` is one turn with the time given; ``start`` runs it each second.

    A defect in the adviser costs recommendations only: it is counted, the newest recommendation stays until its readers
    see by its age that they are on their own, and the adviser goes on from its last base.
    """

    def __init__(
        self,
        settings: ThrottleSettings,
        feeds: Feeds,
        trail: DecisionTrail,
        board: Board,
        code: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Go on from what ``trail`` kept, where it was made with these settings."""
        self.faults = 0
        self._settings = settings
        self._settings_hash = settings_hash(settings)
        self._feeds = feeds
        self._trail = trail
        self._board = board
        self._code = code
        self._clock = clock
        self._wall_clock = wall_clock
        self._gone = GoneWatch()
        self._sequence = trail.kept.sequence + 1
        self._published = 0
        self._failed_in_a_row = 0
        self._trouble: str | None = None
        self._said: str | None = None
        self._since_base = 0
        self._checkpoint: Mapping[str, Any] | None = None
        self._why: Why | None = Why.START
        self._adviser = self._restored()
        # A clock that was set back must not make every later line bad input.
        self._offset_s = max(wall_clock(), (_last_t(self._adviser) or 0.0) + 2 * PERIOD_S) - clock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _restored(self) -> Adviser:
        """The adviser of the run before, brought to where that run ended; a new one where that cannot be had."""
        kept = self._trail.kept
        if kept.base is None or kept.base.get("configuration_hash") != self._settings_hash:
            return Adviser(self._settings)
        try:
            checkpoint = kept.base["checkpoint"]
            adviser = Adviser(self._settings) if checkpoint is None else Adviser.restored(self._settings, checkpoint)
            for decision in kept.decisions:
                replay(adviser, decision)
        except Exception as error:  # noqa: BLE001 - a record of other code may hold anything; a start must not fail on it
            _LOG.warning("the last model of the throttle adviser cannot be used (%s); it learns anew", _line(error))
            return Adviser(self._settings)
        self._why = Why.RESTORED
        return adviser

    # Any thread

    def start(self) -> None:
        """Advise in a thread until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="joulegate-throttle", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = STOP_WAIT_S) -> None:
        """End after the turn under way. Safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def status(self) -> PartStatus:
        """The line of ``/readyz``: how old the newest recommendation is and what it says, and what is wrong."""
        newest, trail = self._board.newest(), self._trail.state
        if newest is None:
            return PartStatus(ok=False, detail=self._trouble or "nothing has been recommended yet")
        age_s = max(0.0, self._clock() - newest.made_s)
        recommendation = newest.recommendation
        detail = f"{recommendation.state.value}, {age_s:.1f} s old"
        if recommendation.binding is not None:
            detail += f", bound by {recommendation.binding.value}"
        if self._trouble is not None:
            detail += f"; {self._trouble}"
        if self._feeds.budget.error is not None:
            detail += f"; the budget is not known: {self._feeds.budget.error}"
        if trail.error is not None or trail.lost:
            detail += f"; trail: {trail.error or 'goes on'}, {trail.lost} decisions lost"
        return PartStatus(ok=age_s <= recommendation.ttl_s and self._trouble is None, detail=detail)

    # The adviser's thread

    def _run(self) -> None:
        deadline_s = self._clock()
        while not self._stop.is_set():
            self.step(self._clock(), self._wall_clock())
            deadline_s = max(deadline_s + PERIOD_S, self._clock())
            self._stop.wait(deadline_s - self._clock())

    def step(self, now_s: float, wall_s: float) -> None:
        """One turn; whatever happens in it, the next one comes."""
        self._trouble = None
        try:
            snapshot = self._feeds.snapshot()
            if snapshot is not None:
                self._advise(self._observation(snapshot, now_s, wall_s), now_s)
        except Exception as error:  # noqa: BLE001 - without this thread nothing is recommended any more, in silence
            self._note(error)

    def _observation(self, snapshot: Snapshot, now_s: float, wall_s: float) -> dict[str, Any]:
        budget = self._feeds.budget
        totals = {device: state.totals for device, state in snapshot.devices.items()}
        left = self._ask(lambda: budget.left(wall_s, totals), None)
        return observe(
            snapshot,
            now_s,
            round(now_s + self._offset_s, 3),
            counts=self._feeds.demand.take(),
            grid=self._ask(lambda: self._feeds.grid(wall_s), GridNow()),
            budget=None if left is None else BudgetNow(left.energy_j, left.co2e_g, left.until_s - wall_s),
            gone=self._gone.look(snapshot.devices),
        )

    def _ask(self, call: Callable[[], _T], otherwise: _T) -> _T:
        """What a feed says; one that fails is unknown for this turn."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - a broken feed must not keep the thermals from being looked at
            self._note(error)
            return otherwise

    def _advise(self, observation: dict[str, Any], now_s: float) -> None:
        last_t = _last_t(self._adviser)
        if last_t is not None and observation["t"] - last_t > self._settings.stale_after_s:
            self._decide(blind(observation, PERIOD_S))
        recommendation = self._decide(observation)
        self._failed_in_a_row = 0
        newest = self._board.newest()
        if newest is None or due(newest.recommendation, recommendation, now_s - newest.made_s):
            self._published += 1
            self._board.publish(prepare(recommendation, self._published, now_s))

    def _decide(self, observation: dict[str, Any]) -> Recommendation:
        """Advise and put it into the trail."""
        self._lay_base()
        try:
            recommendation = self._adviser.advise(observation)
            text = encode(recommendation)
        except Exception:
            self._recover()
            raise
        self._trail.append(Decided(self._sequence, text, observation))
        self._sequence += 1
        self._since_base += 1
        return recommendation

    def _lay_base(self) -> None:
        if self._why is None and self._since_base < BASE_EVERY:
            return
        why = self._why or Why.CONTINUED
        checkpoint = None if why is Why.START else self._adviser.checkpoint()
        base = Base(self._sequence, why, self._code, self._settings, self._settings_hash, checkpoint)
        self._checkpoint = checkpoint
        if self._trail.append(base):
            self._why, self._since_base = None, 0

    def _recover(self) -> None:
        """Go on from the last base: on what a failed turn left half done nothing is built, nor could it be verified."""
        self._failed_in_a_row += 1
        checkpoint = self._checkpoint if self._failed_in_a_row < GIVE_UP_AFTER else None
        self._why = Why.START if checkpoint is None else Why.RESTORED
        self._checkpoint = checkpoint
        self._adviser = Adviser(self._settings) if checkpoint is None else Adviser.restored(self._settings, checkpoint)

    def _note(self, error: Exception) -> None:
        self.faults += 1
        what = _line(error)
        self._trouble = f"the throttle adviser had an internal fault ({what}), {self.faults} in all; please report it"
        if what != self._said:
            _LOG.error("%s", self._trouble)
        self._said = what


def due(shown: Recommendation, made: Recommendation, since_s: float) -> bool:
    """Whether ``made`` is published now: at once when anything falls or changes its kind, else at the readers' beat."""
    kinds = [(r.state, r.binding, {name: tier.action for name, tier in r.tiers.items()}) for r in (shown, made)]
    if kinds[0] != kinds[1] or since_s >= shown.poll_after_s - PERIOD_S / 2:
        return True
    before, after = _limits(shown), _limits(made)
    return any(_falls(before.get(name), value) for name, value in after.items())


def _limits(recommendation: Recommendation) -> dict[tuple[str, ...], float | None]:
    found: dict[tuple[str, ...], float | None] = {
        ("rate",): recommendation.max_images_per_minute,
        ("fraction",): recommendation.admit_fraction,
        ("concurrency",): recommendation.max_concurrency,
        ("host_power",): recommendation.host_power_cap_w,
    }
    found |= {("power", device): cap_w for device, cap_w in recommendation.power_cap_w.items()}
    for name, tier in recommendation.tiers.items():
        found["tier", name, "rate"] = tier.max_images_per_minute
        found["tier", name, "fraction"] = tier.admit_fraction
        found["tier", name, "day"] = tier.images_per_tenant_day
    return found


def _falls(before: float | None, after: float | None) -> bool:
    return after is not None and (before is None or after < before)


def _last_t(adviser: Adviser) -> float | None:
    """The time of the last usable observation."""
    return None if adviser.newest is None else adviser.newest.t


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")

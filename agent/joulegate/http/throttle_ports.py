"""Ports of the throttle endpoints: who gives recommendations, keeps their trail, decides, and hears of queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from joulegate.throttle.decision import Decision
from joulegate.throttle.recommendation import Recommendation


@dataclass(frozen=True, slots=True)
class Prepared:
    """One recommendation as it goes out: everything that can be encoded ahead is encoded, once.

    ``sequence`` rises by one with every recommendation of a process. ``etag`` has its quotes. ``body`` is the JSON of
    design 5.4, ``tiers`` that of each tier by its name, ``scale`` the flat numbers, ``event`` a whole frame of the
    stream (id, event, data). ``made_s`` is CLOCK_MONOTONIC seconds.
    """

    sequence: int
    decision_id: str
    etag: bytes
    body: bytes
    tiers: Mapping[str, bytes]
    scale: bytes
    event: bytes
    recommendation: Recommendation
    made_s: float


class ThrottleReader(Protocol):
    """Holds the newest recommendation and a few before it; called in the server's event loop."""

    def newest(self) -> Prepared | None:
        """The newest one, by one load of a reference: no lock, no SQL, no device. ``None`` before the first."""

    def after(self, sequence: int) -> Sequence[Prepared]:
        """The kept ones (at most 64) later than ``sequence``, oldest first."""

    async def changed(self, sequence: int, timeout_s: float) -> Prepared | None:
        """Wait for one later than ``sequence`` and give the newest; ``None`` after ``timeout_s`` seconds."""


@dataclass(frozen=True, slots=True)
class TrailPage:
    """Records of decisions, oldest first, and the cursor of those after them; ``None`` at the end."""

    items: Sequence[Mapping[str, Any]]
    next: str | None


class TrailUnreadable(Exception):
    """The audit trail cannot be read now; the text is one line: what, where and what to do. Answered with 503."""


class Trail(Protocol):
    """The audit trail on disk; raises what ``ThrottleParts.trail_fault`` names where it cannot be read."""

    async def decisions(self, since: str | None, limit: int) -> TrailPage:
        """At most ``limit`` records after ``since`` (a cursor or a decision id).

        Raises ``ValueError`` with one line for a ``since`` that it does not know.
        """

    async def decision(self, decision_id: str) -> Mapping[str, Any] | None:
        """The record of one decision, or ``None``."""


@dataclass(frozen=True, slots=True)
class Ask:
    """May this request run? ``cost`` is in units (1 is a reference image); with ``count`` off nothing is taken."""

    tier: str | None
    tenant: str | None
    cost: float = 1.0
    count: bool = True


class Decider(Protocol):
    """Answers for one tier and tenant, now; it never raises for what a caller can send."""

    async def decide(self, ask: Ask) -> Decision:
        """The decision; unless ``ask.count`` is off, what it admits is taken."""


class QueueSink(Protocol):
    """Hears what gateways and image servers have admitted and not started."""

    def report(self, queue: Mapping[str, float]) -> None:
        """Units by tier; the newest report of a tier counts, and is forgotten after 15 s."""

"""Deciding without the agent: by its last recommendation while that holds, then by the fail-safe. Time is given."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from threading import Lock

from joulegate.pipelines.gate_decision import GateDecision, Source
from joulegate.pipelines.gate_wire import Heard, HeardTier
from joulegate.throttle.decision import Verdict
from joulegate.throttle.pacing import Bucket, Sampler
from joulegate.throttle.recommendation import Action

PAID_BEFORE_ANY_ANSWER = ("pro", "plus")
SOONEST_S, LATEST_S = 1.0, 60.0
"""Bounds of the wait that is asked for: the agent may be back long before a bucket has room."""
_SILENT = "no answer from the agent: "
_FLOOR = ""


class Fallback:
    """The last recommendation and the buckets that stand in for the agent's; safe to share between threads.

    ``paid_open`` names the tiers that stay open without an answer; ``None`` means every tier but the last.
    ``floor_per_minute`` (units) is the floor of the others where there never was a recommendation. ``share`` is the
    part of the host's limits that falls to this process.
    """

    def __init__(self, paid_open: Collection[str] | None, floor_per_minute: float, share: float) -> None:
        self._paid_open = None if paid_open is None else frozenset(paid_open)
        self._floor_per_minute = floor_per_minute
        self._share = share
        self._heard: Heard | None = None
        self._buckets: dict[str, Bucket] = {}
        self._sampler = Sampler()
        self._lock = Lock()

    @property
    def heard(self) -> Heard | None:
        """The last recommendation, which may have run out."""
        return self._heard

    def hear(self, heard: Heard) -> None:
        """Keep a recommendation. The same one again is no newer: its time to live runs from when it first came."""
        with self._lock:
            known = self._heard
            if known is not None and heard.decision_id is not None and heard.decision_id == known.decision_id:
                heard = replace(heard, received_s=known.received_s)
            kept = {_FLOOR, *heard.tiers}
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in kept}
            self._heard = heard

    def decide(self, tier: str | None, cost: float, now_s: float) -> GateDecision:
        """The decision of this process alone, at ``now_s`` of the clock on which recommendations are received."""
        with self._lock:
            heard = self._heard
            name = _applied(tier, heard)
            if heard is not None and heard.fresh(now_s):
                verdict, wait_s, said = self._by_limit(name, heard.tiers[name], cost, now_s)
                source, decision_id = Source.RECOMMENDATION, heard.decision_id
            else:
                source, decision_id = Source.FAIL_SAFE, None
                verdict, wait_s, said = self._by_fail_safe(name, heard, cost, now_s)
        allow = verdict is Verdict.ADMITTED
        return GateDecision(
            allow=allow,
            tier=name,
            reason=verdict.value,
            detail=f"{_SILENT}tier {name} {said}",
            retry_after_s=0.0 if allow else min(LATEST_S, max(SOONEST_S, wait_s)),
            remaining=None,
            decision_id=decision_id,
            source=source,
            would_allow=allow,
            cost=cost,
        )

    def after_fork(self) -> None:
        """In a forked child: a lock of its own."""
        self._lock = Lock()

    def _by_limit(self, name: str, limit: HeardTier, cost: float, now_s: float) -> tuple[Verdict, float, str]:
        if limit.action in {Action.REJECT, Action.DEFER}:
            verdict = Verdict.DEFERRED if limit.action is Action.DEFER else Verdict.CAPACITY
            return verdict, limit.retry_after_s, "takes nothing by its last recommendation"
        if limit.per_minute is None:
            return Verdict.ADMITTED, 0.0, "has no limit by its last recommendation"
        return self._take(name, (limit.per_minute, limit.burst), cost, now_s, Verdict.RATE)

    def _by_fail_safe(self, name: str, heard: Heard | None, cost: float, now_s: float) -> tuple[Verdict, float, str]:
        if name in self._open(heard):
            return Verdict.ADMITTED, 0.0, "stays open"
        if heard is None:
            return self._take(_FLOOR, (self._floor_per_minute, 1.0), cost, now_s, Verdict.STALE)
        limit = heard.tiers[name]
        if limit.action in {Action.REJECT, Action.DEFER}:
            return Verdict.STALE, LATEST_S, "took nothing by its last recommendation, which has run out"
        if limit.per_minute is not None:
            per_minute = limit.per_minute * heard.floor_fraction
            return self._take(_FLOOR, (per_minute, 1.0), cost, now_s, Verdict.STALE)
        admitted = self._sampler.take(cost, heard.floor_fraction)
        said = f"is held to its floor, {heard.floor_fraction:.0%} of what is asked for"
        return Verdict.ADMITTED if admitted else Verdict.STALE, 0.0, said

    def _take(
        self, key: str, pace: tuple[float, float], cost: float, now_s: float, refusal: Verdict
    ) -> tuple[Verdict, float, str]:
        rate, burst = (part * self._share for part in pace)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(rate, burst, now_s)
        bucket.adjust(rate, burst, now_s)
        said = f"may start {rate:g} units a minute here"
        if bucket.take(cost, now_s):
            return Verdict.ADMITTED, 0.0, said
        wait_s = bucket.wait_s(cost, now_s)
        return refusal, wait_s if math.isfinite(wait_s) else LATEST_S, said

    def _open(self, heard: Heard | None) -> Collection[str]:
        if self._paid_open is not None:
            return self._paid_open
        return PAID_BEFORE_ANY_ANSWER if heard is None else [*heard.tiers][:-1]


def _applied(tier: str | None, heard: Heard | None) -> str:
    """The tier that is applied: an unknown one is the last, which promises least."""
    if heard is None:
        return tier or ""
    return tier if tier is not None and tier in heard.tiers else [*heard.tiers][-1]

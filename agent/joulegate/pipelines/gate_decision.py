"""What a gate answers: a decision, where it comes from, and the exception of a request that must wait."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from joulegate.throttle.decision import Decision, Verdict
from joulegate.throttle.rate_headers import problem_members


class Source(StrEnum):
    """Who decided: the agent, or this process by its last recommendation, by the fail-safe, or by itself."""

    AGENT = "agent"
    RECOMMENDATION = "recommendation"
    FAIL_SAFE = "fail_safe"
    GATE = "gate"


@dataclass(frozen=True, slots=True)
class GateDecision:
    """May this request run? ``reason`` is a word of ``joulegate.throttle.decision.Verdict``, ``detail`` one sentence.

    ``allow`` is what to do. ``would_allow`` differs from it in shadow mode only, where everything is let through.
    ``remaining`` is what could start at once (units, 1 is a reference image), ``None`` where that is not known.
    """

    allow: bool
    tier: str
    reason: str
    detail: str
    retry_after_s: float
    remaining: float | None
    decision_id: str | None
    source: Source
    would_allow: bool
    cost: float

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP answer: when to come back (whole seconds, at least 1) and the decision's id."""
        headers = {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))} if self.status == 429 else {}
        return headers if self.decision_id is None else headers | {"X-Throttle-Decision": self.decision_id}

    @property
    def status(self) -> int:
        """Status of an HTTP answer: 200, 429, or 400 for a request that can never be admitted."""
        if self.allow:
            return 200
        return 400 if self.reason == Verdict.BAD_REQUEST else 429

    def problem(self) -> dict[str, object]:
        """Members of the RFC 9457 problem of a denial."""
        decision = Decision(
            allow=self.allow,
            tier=self.tier,
            reason=self.reason,
            detail=self.detail,
            retry_after_s=self.retry_after_s,
            remaining=self.remaining,
            decision_id=self.decision_id,
            window=None,
            quota=None,
            unknown_tier=False,
            cost=self.cost,
        )
        return problem_members(decision, self.status)


class Throttled(Exception):
    """This request may not run now. ``headers`` and ``decision`` are what an HTTP answer needs."""

    def __init__(self, decision: GateDecision) -> None:
        super().__init__(decision.detail)
        self.decision = decision

    @property
    def retry_after_s(self) -> float:
        """Seconds until it is worth asking again."""
        return self.decision.retry_after_s

    @property
    def headers(self) -> Mapping[str, str]:
        """``Retry-After`` and ``X-Throttle-Decision``."""
        return self.decision.headers

    def __reduce__(self) -> tuple[type[Throttled], tuple[GateDecision]]:
        return type(self), (self.decision,)

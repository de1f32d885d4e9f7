"""What a gate reads of the agent: a decision, and of a recommendation what a process can go on by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulegate.pipelines.gate_decision import GateDecision, Source
from joulegate.throttle.decision import Verdict
from joulegate.throttle.recommendation import Action

MAX_TIERS = 64
MAX_TEXT = 500
"""Characters kept of any text that the agent sent."""
MAX_WAIT_S = 86_400.0


class AnswerFault(Exception):
    """The agent answered something that cannot be used; the text is one line."""


@dataclass(frozen=True, slots=True)
class HeardTier:
    """What one tier may start: units a minute (``None`` is no limit), depth of its bucket, when to ask again."""

    action: Action
    per_minute: float | None
    burst: float
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A recommendation as this process received it; ``received_s`` is on this process's clock.

    ``tiers`` stand in the order of their priority. ``floor_fraction`` is the share that is kept without an answer.
    """

    decision_id: str | None
    tiers: Mapping[str, HeardTier]
    floor_fraction: float
    ttl_s: float
    poll_after_s: float
    received_s: float

    def fresh(self, now_s: float) -> bool:
        """Whether it still holds."""
        return now_s - self.received_s <= self.ttl_s


def read_decision(body: bytes, cost: float) -> GateDecision:
    """The answer of ``POST /v1/throttle/decide``; raises ``AnswerFault``."""
    answer = _object(body)
    allow = answer.get("allow")
    if not isinstance(allow, bool):
        raise AnswerFault(f"allow is {_shown(allow)} where true or false belongs")
    reason = str(answer.get("reason"))
    if reason not in [*Verdict] or (reason == Verdict.ADMITTED) != allow:
        reason = (Verdict.ADMITTED if allow else Verdict.CAPACITY).value
    return GateDecision(
        allow=allow,
        tier=_text(answer, "tier") or "",
        reason=reason,
        detail=_text(answer, "detail") or reason,
        retry_after_s=min(MAX_WAIT_S, _number(answer, "retry_after_s", 0.0 if allow else 1.0)),
        remaining=None if answer.get("remaining") is None else _number(answer, "remaining"),
        decision_id=_id(answer),
        source=Source.AGENT,
        would_allow=allow,
        cost=cost,
    )


def read_recommendation(body: bytes, received_s: float) -> Heard:
    """The answer of ``GET /v1/throttle`` (design 5.4); raises ``AnswerFault``."""
    answer = _object(body)
    tiers = answer.get("tiers")
    if not isinstance(tiers, dict) or not 0 < len(tiers) <= MAX_TIERS:
        raise AnswerFault(f"tiers is {_shown(tiers)} where 1 to {MAX_TIERS} tiers belong")
    floor = _member(_member(answer, "fail_safe"), "floor")
    return Heard(
        decision_id=_id(answer),
        tiers={name[:MAX_TEXT]: _tier(_member(tiers, name)) for name in tiers},
        floor_fraction=min(1.0, _number(floor, "admit_fraction")),
        ttl_s=_number(answer, "ttl_s"),
        poll_after_s=_number(answer, "poll_after_s"),
        received_s=received_s,
    )


def _tier(members: Mapping[str, Any]) -> HeardTier:
    try:
        action = Action(str(members.get("action")))
    except ValueError as error:
        raise AnswerFault(f"action is {_shown(members.get('action'))}") from error
    limit = members.get("max_images_per_minute")
    return HeardTier(
        action=action,
        per_minute=None if limit is None else _number(members, "max_images_per_minute"),
        burst=max(1.0, _number(members, "burst")),
        retry_after_s=_number(members, "retry_after_s"),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AnswerFault(f"the body is not JSON: {_shown(body[:40])}") from error
    if not isinstance(answer, dict):
        raise AnswerFault(f"the body is {_shown(answer)} where an object belongs")
    return answer


def _member(members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = members.get(name)
    if not isinstance(value, dict):
        raise AnswerFault(f"{name[:40]} is {_shown(value)} where an object belongs")
    return value


def _number(members: Mapping[str, Any], name: str, missing: float | None = None) -> float:
    value = members.get(name, missing)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0.0:
        raise AnswerFault(f"{name} is {_shown(value)} where a number from 0 belongs")
    return float(value)


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    return value[:MAX_TEXT] if isinstance(value, str) else None


def _id(members: Mapping[str, Any]) -> str | None:
    """The decision's id, if it can stand in a header."""
    text = _text(members, "decision_id")
    return text if text and text.isascii() and text.isprintable() else None


def _shown(value: object) -> str:
    return repr(value)[:60]

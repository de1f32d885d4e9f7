"""A recommendation as the bytes that go out, encoded once when it was made; pure, and given the time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from joulegate.http.throttle_ports import Prepared
from joulegate.throttle.recommendation import Binding, Code, Recommendation, State
from joulegate.throttle.wire import encode

NO_LIMIT = 1e9
"""``max_images_per_minute`` of the flat numbers where nothing limits: an autoscaler cannot read null."""
MAX_REPLICAS = 64.0
STATE_LEVELS: Mapping[State, int] = {state: level for level, state in enumerate(State)}
"""The state as a number: nominal 0, watch 1, constrained 2, critical 3, emergency 4, stale 5, unknown 6."""

_BUDGETS = {Binding.ENERGY, Binding.CO2E}
_BLIND = {State.STALE, State.UNKNOWN}


def prepare(recommendation: Recommendation, sequence: int, made_s: float) -> Prepared:
    """Everything that is served of ``recommendation``; ``made_s`` is CLOCK_MONOTONIC seconds."""
    decision_id = recommendation.decision_id
    body = encode(recommendation).strip().encode()
    return Prepared(
        sequence=sequence,
        decision_id=decision_id,
        etag=f'"{decision_id}"'.encode("ascii"),
        body=body,
        tiers={name: _compact(tier_members(recommendation, name)) for name in recommendation.tiers},
        scale=scale_body(recommendation),
        event=b"id: %b\nevent: recommendation\ndata: %b\n\n" % (decision_id.encode("ascii"), body),
        recommendation=recommendation,
        made_s=made_s,
    )


def tier_members(recommendation: Recommendation, name: str) -> dict[str, Any]:
    """What ``/v1/throttle/tiers/{name}`` tells; raises ``KeyError`` for a tier that the recommendation has not."""
    return {
        "decision_id": recommendation.decision_id,
        "t": recommendation.t,
        "ttl_s": recommendation.ttl_s,
        "poll_after_s": recommendation.poll_after_s,
        "state": recommendation.state.value,
        "binding": None if recommendation.binding is None else recommendation.binding.value,
        "tier": name,
        **recommendation.tiers[name].wire(),
        "reasons": [reason.wire() for reason in recommendation.reasons],
        "fail_safe": recommendation.fail_safe.wire(),
    }


def part_etag(decision_id: str, part: str) -> bytes:
    """The strong ETag of a part of a recommendation: a tier by its name, or the flat numbers."""
    return f'"{decision_id}.{quote(part, safe="")}"'.encode("ascii")


def scale_body(recommendation: Recommendation) -> bytes:
    """Flat numbers for KEDA's ``metrics-api`` and HPAs.

    What is not known is absent (KEDA then applies its fallback), never null and never a made-up 0; no limit is
    ``NO_LIMIT``. ``replicas_wanted`` is how many hosts like this one its own demand needs, a fraction, so that the sum
    over hosts is what the fleet needs.
    """
    capacity, demand = _capacity(recommendation), _demand(recommendation)
    limit = recommendation.max_images_per_minute
    members = {
        "replicas_wanted": replicas_wanted(recommendation),
        "admit_fraction": recommendation.admit_fraction,
        "max_images_per_minute": NO_LIMIT if limit is None else limit,
        "limited": 0 if limit is None else 1,
        "state": STATE_LEVELS[recommendation.state],
        "confidence": recommendation.confidence,
        "ttl_s": recommendation.ttl_s,
        "capacity_images_per_minute": capacity,
        "demand_images_per_minute": demand,
        "max_concurrency": recommendation.max_concurrency,
        "host_power_cap_w": recommendation.host_power_cap_w,
    }
    known = {name: value for name, value in members.items() if value is not None}
    return _compact({**known, "decision_id": recommendation.decision_id})


def replicas_wanted(recommendation: Recommendation) -> float:
    """Hosts like this one that its demand needs, from 0 to ``MAX_REPLICAS``; 1 (leave it) where that is not known.

    A budget of energy or CO2e is not stretched by more hosts, so under one it is at most 1. A host without any capacity
    counts as a replica all the same, so it asks for one more.
    """
    capacity, demand = _capacity(recommendation), _demand(recommendation)
    if recommendation.state in _BLIND or demand is None or capacity is None:
        return 1.0
    wanted = demand / capacity if capacity > 0.0 else (2.0 if demand > 0.0 else 1.0)
    if recommendation.binding in _BUDGETS:
        wanted = min(wanted, 1.0)
    return round(min(wanted, MAX_REPLICAS), 3)


def _capacity(recommendation: Recommendation) -> float | None:
    known = recommendation.inputs.get("capacity_images_per_minute")
    return recommendation.max_images_per_minute if known is None else known


def _demand(recommendation: Recommendation) -> float | None:
    known = recommendation.inputs.get("demand_images_per_minute")
    if known is not None:
        return known
    for reason in recommendation.reasons:
        if reason.code is Code.DEMAND_EXCEEDS_CAPACITY and reason.observed is not None:
            return reason.observed
    limit, fraction = recommendation.max_images_per_minute, recommendation.admit_fraction
    return limit / fraction if limit is not None and 0.0 < fraction < 1.0 else None


def _compact(members: Mapping[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":"), allow_nan=False).encode("ascii")

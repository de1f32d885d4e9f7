"""What the last word is worth when nothing follows it: the adviser itself has fallen silent."""

from __future__ import annotations

import dataclasses

from joulegate.throttle.recommendation import Binding, Code, Reason, Recommendation, State, TierLimit

KEPT_RATE = 0.75
"""About what a device of 700 W does at the 400 W that caps decay to (notes/throttle.md, 4.4 and 4.5)."""


def silent(recommendation: Recommendation, age_s: float) -> Recommendation:
    """``recommendation`` as it may still be used ``age_s`` after it was made: stale, and tighter than it was.

    Caps go to the fail-safe floor where they are above it, rates to three quarters; nobody is let in more than before.
    """
    floor_w = recommendation.fail_safe.power_cap_w
    rate = recommendation.max_images_per_minute
    caps_w = recommendation.power_cap_w
    if floor_w is not None:
        caps_w = {device: min(cap_w, floor_w) for device, cap_w in caps_w.items()}
    note = f"the adviser has said nothing for {age_s:.0f} s"
    reason = Reason(Code.TELEMETRY_STALE, round(age_s, 1), recommendation.ttl_s, "s", note=note)
    return dataclasses.replace(
        recommendation,
        decision_id=f"{recommendation.decision_id}-silent",
        state=State.STALE,
        binding=Binding.TELEMETRY,
        confidence=0.0,
        reasons=(reason, *recommendation.reasons),
        max_images_per_minute=None if rate is None else rate * KEPT_RATE,
        admit_fraction=recommendation.admit_fraction * KEPT_RATE,
        power_cap_w=caps_w,
        tiers={name: _held(limit) for name, limit in recommendation.tiers.items()},
        explain=f"The adviser has said nothing for {age_s:.0f} s: what held then is held to three quarters.",
    )


def _held(limit: TierLimit) -> TierLimit:
    rate = limit.max_images_per_minute
    return dataclasses.replace(
        limit,
        max_images_per_minute=None if rate is None else rate * KEPT_RATE,
        admit_fraction=limit.admit_fraction * KEPT_RATE,
    )

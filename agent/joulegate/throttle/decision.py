"""The decision: may this request run now, for one tier and tenant, and if not, when to ask again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from joulegate.throttle.pacing import Allowance, Paced
from joulegate.throttle.recommendation import Action
from joulegate.throttle.settings import ThrottleSettings

MAX_TENANT_CHARS = 256
MAX_COST = 1000.0
"""Units of one request; a batch of 16 images in 4K with 100 steps is some 850 reference images."""

_SHOWN_CHARS = 64
_ROUNDING = 1e-6
_MINUTE_S = 60
_LEAST_RATE = 1e-6
"""Units a minute under which a rate is shown as 0: less than one in two years."""


class Verdict(StrEnum):
    """Why a decision came out as it did: a closed list. ``admitted`` is the only one that allows."""

    ADMITTED = "admitted"
    RATE = "rate"
    QUOTA = "quota"
    CAPACITY = "capacity"
    DEFERRED = "deferred"
    STALE = "stale"
    BAD_REQUEST = "bad_request"


@dataclass(frozen=True, slots=True)
class RateWindow:
    """What one policy still grants; the RateLimit headers are made of it.

    Policy ``policy`` grants ``q`` units per ``window_s`` seconds, of which ``remaining`` may still be used within the
    next ``t_s`` seconds (the effective window of draft-ietf-httpapi-ratelimit-headers-11).
    """

    policy: str
    q: int
    window_s: int
    remaining: int
    t_s: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer. ``reason`` is a word of `Verdict`, ``detail`` one sentence with numbers.

    ``remaining`` is what could be used at once (units): the smaller of bucket and quota; ``None`` is no limit.
    ``tier`` is the tier that was applied; ``unknown_tier`` says that another was asked for. ``window`` is the tier's
    pace, ``quota`` the tenant's quota, each ``None`` where there is none.
    """

    allow: bool
    tier: str
    reason: str
    detail: str
    retry_after_s: float
    remaining: float | None
    decision_id: str | None
    window: RateWindow | None
    quota: RateWindow | None
    unknown_tier: bool
    cost: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it is judged: ``named`` is the tier that was asked for, ``tier`` the one that applies."""

    named: str | None
    tier: str
    cost: float

    @property
    def unknown_tier(self) -> bool:
        """Whether the tier that was asked for does not exist, or none was named."""
        return self.named != self.tier


@dataclass(frozen=True, slots=True)
class QuotaState:
    """A tenant's quota that binds first: ``amount`` units per ``window_s`` seconds, called ``policy`` (day, 2hour).

    ``remaining`` is in units after the ask; the window ends in ``resets_in_s`` seconds. ``admitted`` says whether the
    cost fits, and was taken unless it was only looked at.
    """

    policy: str
    amount: int
    window_s: int
    remaining: float
    resets_in_s: float
    admitted: bool


def asked(settings: ThrottleSettings, tier: str | None, cost: float) -> Asked:
    """The request for ``cost`` units in that tier; an unknown tier is treated as the last."""
    return Asked(tier, settings.tier(tier).name, cost)


def request_fault(tenant: object, cost: object) -> str | None:
    """What makes a request unfit to be judged, in one sentence; ``None`` if nothing does."""
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return "the cost is not a number; give units, 1 for a reference image"
    if not 0.0 < cost <= MAX_COST:
        return f"the cost is not above 0 and at most {MAX_COST:g}; give units, 1 for a reference image"
    if tenant is None:
        return None
    if not isinstance(tenant, str) or not 1 <= len(tenant) <= MAX_TENANT_CHARS:
        return f"the tenant is not a name of 1 to {MAX_TENANT_CHARS} characters; give a shorter one, or none"
    return None


def refusal(request: Asked, fault: str, decision_id: str | None) -> Decision:
    """The decision on a request that is not fit to be judged: no, and nothing is taken."""
    return Decision(
        allow=False,
        tier=request.tier,
        reason=Verdict.BAD_REQUEST.value,
        detail=fault,
        retry_after_s=0.0,
        remaining=None,
        decision_id=decision_id,
        window=None,
        quota=None,
        unknown_tier=request.unknown_tier,
        cost=request.cost,
    )


def decide(request: Asked, allowed: Allowance, paced: Paced | None, quota: QuotaState | None) -> Decision:
    """The decision on a request that is fit to be judged.

    ``paced`` is ``None`` where the tier's action kept the request from its bucket, ``quota`` where the tier has none.
    Of two grounds for a no, the one that holds longer is the reason.
    """
    grounds = [
        ground
        for ground in (_pace_ground(request, allowed, paced), _quota_ground(request, quota))
        if ground is not None
    ]
    yes = (
        0.0,
        Verdict.ADMITTED,
        f"admitted at a cost of {request.cost:g} in tier {_shown(request.tier)}{_left(paced, quota)}",
    )
    wait_s, verdict, detail = max(grounds, key=lambda ground: ground[0], default=yes)
    return Decision(
        allow=not grounds,
        tier=request.tier,
        reason=verdict.value,
        detail=_about_tier(request) + detail,
        retry_after_s=wait_s,
        remaining=_remaining(paced, quota),
        decision_id=allowed.decision_id,
        window=_pace_window(allowed, paced),
        quota=None if quota is None else _quota_window(request.tier, quota),
        unknown_tier=request.unknown_tier,
        cost=request.cost,
    )


def _pace_ground(request: Asked, allowed: Allowance, paced: Paced | None) -> tuple[float, Verdict, str] | None:
    tier = f"tier {_shown(request.tier)}"
    if paced is None:
        wait_s = max(1.0, allowed.retry_after_s)
        if allowed.action is Action.DEFER:
            return wait_s, Verdict.DEFERRED, f"{tier} is put off to cleaner hours, for {wait_s:.0f} s more"
        return wait_s, Verdict.CAPACITY, f"{tier} gets no capacity now; ask again in {wait_s:.0f} s"
    if paced.admitted:
        return None
    flows_s = paced.wait_s if math.isfinite(paced.wait_s) else 0.0
    wait_s = max(1.0, flows_s, allowed.retry_after_s)
    if allowed.rate_per_minute is None:
        share = f"{allowed.fraction:.0%} of what is asked for in {tier} is admitted"
    elif allowed.shared:
        share = f"the host has no room for {request.cost:g} more now"
    else:
        rate = f"{tier} may start {allowed.rate_per_minute:g} units a minute"
        share = f"{rate} and holds {max(0.0, paced.level or 0.0):.3g} of the {request.cost:g} asked for"
    if not allowed.stale:
        return wait_s, Verdict.RATE, share
    age = f"the newest is {allowed.age_s:.0f} s old" if allowed.decision_id is not None else "there is none yet"
    return wait_s, Verdict.STALE, f"without a fresh recommendation ({age}) {share}"


def _quota_ground(request: Asked, quota: QuotaState | None) -> tuple[float, Verdict, str] | None:
    if quota is None or quota.admitted:
        return None
    units = f"{max(0.0, quota.remaining):g} of {quota.amount} units per {quota.policy}"
    detail = f"the tenant has {units} left in tier {_shown(request.tier)}, {request.cost:g} asked for"
    if request.cost > quota.amount:
        detail += f", more than a whole {quota.policy} holds; ask for less"
    else:
        detail += f"; the next {quota.policy} begins in {quota.resets_in_s:.0f} s"
    return max(1.0, quota.resets_in_s), Verdict.QUOTA, detail


def _left(paced: Paced | None, quota: QuotaState | None) -> str:
    parts = []
    if paced is not None and paced.level is not None:
        parts.append(f"{max(0.0, paced.level):.3g} left in the bucket")
    if quota is not None:
        parts.append(f"{max(0.0, quota.remaining):g} of {quota.amount} left in the tenant's {quota.policy}")
    return "".join(f", {part}" for part in parts)


def _about_tier(request: Asked) -> str:
    if not request.unknown_tier:
        return ""
    what = "no tier was named" if request.named is None else f"tier {_shown(request.named)!r} is unknown"
    return f"{what}, treated as {_shown(request.tier)!r}: "


def _shown(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARS else f"{name[: _SHOWN_CHARS - 1]}…"


def _remaining(paced: Paced | None, quota: QuotaState | None) -> float | None:
    levels = [0.0] if paced is None else [] if paced.level is None else [paced.level]
    levels += [] if quota is None else [quota.remaining]
    return max(0.0, min(levels)) if levels else None


def _pace_window(allowed: Allowance, paced: Paced | None) -> RateWindow | None:
    """The tier's own rate as a window; the host's numbers are nobody's business."""
    closed_s = math.ceil(max(1.0, allowed.retry_after_s))
    if paced is None:
        return RateWindow(allowed.tier, 0, _MINUTE_S, 0, closed_s)
    if allowed.rate_per_minute is None or allowed.shared:
        return None
    if allowed.rate_per_minute < _LEAST_RATE:
        return RateWindow(allowed.tier, 0, _MINUTE_S, 0, closed_s)
    level = paced.level or 0.0
    units = max(0, math.floor(level + _ROUNDING))
    # Without a whole unit left, the window lasts until there is one; else as long as using them up may take.
    t_s = (units or 1.0 - level) * _MINUTE_S / allowed.rate_per_minute
    per_minute = math.floor(allowed.rate_per_minute + _ROUNDING)
    window_s = _MINUTE_S if per_minute else math.ceil(_MINUTE_S / allowed.rate_per_minute)
    return RateWindow(allowed.tier, per_minute or 1, window_s, units, max(1, math.ceil(t_s - _ROUNDING)))


def _quota_window(tier: str, quota: QuotaState) -> RateWindow:
    units = math.floor(max(0.0, quota.remaining) + _ROUNDING)
    t_s = max(1, math.ceil(quota.resets_in_s))
    return RateWindow(f"{tier}-{quota.policy}", quota.amount, quota.window_s, units, t_s)

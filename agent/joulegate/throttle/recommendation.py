"""The recommendation: what may come next, why, and how long that holds (the contract of design 5.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = "joulegate.throttle/v1"


class State(StrEnum):
    """For people and alerts; the numbers move continuously."""

    NOMINAL = "nominal"
    WATCH = "watch"
    CONSTRAINED = "constrained"
    CRITICAL = "critical"
    EMERGENCY = "emergency"
    STALE = "stale"
    UNKNOWN = "unknown"


class Binding(StrEnum):
    """The constraint that is the lowest."""

    THERMAL = "thermal"
    MEMORY = "memory"
    POWER = "power"
    ENERGY = "energy"
    CO2E = "co2e"
    QUEUE = "queue"
    TELEMETRY = "telemetry"


class Action(StrEnum):
    """What a tier gets: everything, a rate, nothing now, or work that can wait later."""

    ADMIT = "admit"
    LIMIT = "limit"
    DEFER = "defer"
    REJECT = "reject"


class Code(StrEnum):
    """Reasons: a closed list (notes/throttle.md, section 5)."""

    THERMAL_HEADROOM_LOW = "THERMAL_HEADROOM_LOW"
    MEMORY_TEMP = "MEMORY_TEMP"
    HW_SLOWDOWN = "HW_SLOWDOWN"
    POWER_BRAKE = "POWER_BRAKE"
    POWER_CAP = "POWER_CAP"
    POWER_BUDGET = "POWER_BUDGET"
    ENERGY_BUDGET = "ENERGY_BUDGET"
    CARBON_INTENSITY = "CARBON_INTENSITY"
    QUEUE_DELAY = "QUEUE_DELAY"
    DEMAND_EXCEEDS_CAPACITY = "DEMAND_EXCEEDS_CAPACITY"
    COOLING_DEGRADED = "COOLING_DEGRADED"
    WORK_PER_IMAGE_UP = "WORK_PER_IMAGE_UP"
    TELEMETRY_STALE = "TELEMETRY_STALE"
    MODEL_UNCERTAIN = "MODEL_UNCERTAIN"
    OPERATOR_OVERRIDE = "OPERATOR_OVERRIDE"
    WARMUP = "WARMUP"
    BAD_INPUT = "BAD_INPUT"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason with its numbers: ``observed`` against ``limit`` in ``unit``, and what is foreseen within a horizon.

    ``note`` names what could not be used or seen. On the wire, what is ``None`` is left out but for ``observed`` and
    ``limit``.
    """

    code: Code
    observed: float | None = None
    limit: float | None = None
    unit: str = ""
    device: str | None = None
    predicted: float | None = None
    horizon_s: float | None = None
    note: str | None = None

    def wire(self) -> dict[str, Any]:
        """Members of the JSON object."""
        members: dict[str, Any] = {"code": self.code.value}
        if self.device is not None:
            members["device"] = self.device
        members |= {"observed": self.observed, "limit": self.limit}
        for name in ("predicted", "horizon_s", "note"):
            value = getattr(self, name)
            if value is not None:
                members[name] = value
        return members | {"unit": self.unit}


@dataclass(frozen=True, slots=True)
class TierLimit:
    """What one tier may start.

    ``max_images_per_minute`` is authoritative, in cost-weighted units; ``None`` is no limit. ``burst`` is the depth of
    the bucket in units, at least 1.
    """

    action: Action
    max_images_per_minute: float | None
    admit_fraction: float
    burst: float
    retry_after_s: float
    images_per_tenant_day: int | None = None
    defer_until_t: float | None = None

    def wire(self) -> dict[str, Any]:
        """Members of the JSON object."""
        return {
            "action": self.action.value,
            "max_images_per_minute": self.max_images_per_minute,
            "admit_fraction": self.admit_fraction,
            "burst": self.burst,
            "retry_after_s": self.retry_after_s,
            "images_per_tenant_day": self.images_per_tenant_day,
            "defer_until_t": self.defer_until_t,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that would save energy or make room, with the evidence for it."""

    code: str
    saves_fraction: float
    evidence: Mapping[str, Any]

    def wire(self) -> dict[str, Any]:
        """Members of the JSON object."""
        return {"code": self.code, "saves_fraction": self.saves_fraction, "evidence": dict(self.evidence)}


@dataclass(frozen=True, slots=True)
class FailSafe:
    """What a consumer does once it has had no answer for ``after_s``: decay to a floor, neither open nor closed."""

    after_s: float
    admit_fraction: float
    power_cap_w: float | None

    def wire(self) -> dict[str, Any]:
        """Members of the JSON object."""
        floor = {"admit_fraction": self.admit_fraction, "power_cap_w": self.power_cap_w}
        return {"after_s": self.after_s, "policy": "decay", "floor": floor}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommendation. ``t`` is that of the observation; ``decision_id`` is a hash of configuration and input.

    ``power_cap_w`` names the devices that get a cap (W); the others have none. ``max_images_per_minute`` is the host's
    rate in units, ``None`` for no limit.
    """

    decision_id: str
    t: float | None
    state: State
    binding: Binding | None
    confidence: float
    reasons: tuple[Reason, ...]
    max_images_per_minute: float | None
    admit_fraction: float
    max_concurrency: int | None
    power_cap_w: Mapping[str, float]
    host_power_cap_w: float | None
    tiers: Mapping[str, TierLimit]
    fail_safe: FailSafe
    inputs: Mapping[str, float | None]
    ttl_s: float
    poll_after_s: float
    explain: str
    advice: tuple[Advice, ...] = ()
    counterfactual: Mapping[str, float] = field(default_factory=dict)

    def wire(self) -> dict[str, Any]:
        """The JSON object of design 5.4."""
        return {
            "schema": SCHEMA,
            "decision_id": self.decision_id,
            "t": self.t,
            "ttl_s": self.ttl_s,
            "poll_after_s": self.poll_after_s,
            "state": self.state.value,
            "binding": None if self.binding is None else self.binding.value,
            "confidence": self.confidence,
            "reasons": [reason.wire() for reason in self.reasons],
            "max_images_per_minute": self.max_images_per_minute,
            "admit_fraction": self.admit_fraction,
            "max_concurrency": self.max_concurrency,
            "power_cap_w": dict(self.power_cap_w),
            "host_power_cap_w": self.host_power_cap_w,
            "tiers": {name: tier.wire() for name, tier in self.tiers.items()},
            "fail_safe": self.fail_safe.wire(),
            "inputs": dict(self.inputs),
            "advice": [item.wire() for item in self.advice],
            "counterfactual": dict(self.counterfactual),
            "explain": self.explain,
        }

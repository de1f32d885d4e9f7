"""Shapes of the throttle endpoints as OpenAPI shows them; ``null`` is "not known" or "no limit", never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel

from joulegate.http.problems import MEDIA_TYPE, Problem, documented
from joulegate.throttle.decision import MAX_COST, MAX_TENANT_CHARS, Verdict
from joulegate.throttle.recommendation import Action, Binding, Code, State

MAX_NAME = MAX_TENANT_CHARS
COST_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,12})?$"
_COST_IN_DOCUMENT = r"^[ \t]*([0-9]{1,12}(\.[0-9]{1,12})?)?[ \t]*$"
MAX_QUEUES = 64
MAX_QUEUED = 1e9
MAX_RECORDS = 1000

_REASON: dict[str, JsonValue] = {
    "code": "THERMAL_HEADROOM_LOW", "device": "GPU-3", "observed": 84.0, "limit": 85.5, "predicted": 85.4,
    "horizon_s": 25.0, "unit": "C",
}  # fmt: skip
_FREE: dict[str, JsonValue] = {
    "action": "limit", "max_images_per_minute": 34.0, "admit_fraction": 0.09, "burst": 3.0, "retry_after_s": 20.0,
    "images_per_tenant_day": 3, "defer_until_t": None,
}  # fmt: skip
_FAIL_SAFE: dict[str, JsonValue] = {
    "after_s": 10.0, "policy": "decay", "floor": {"admit_fraction": 0.25, "power_cap_w": 400.0},
}  # fmt: skip
_HEAD: dict[str, JsonValue] = {
    "decision_id": "5c0f6d2e9b7a41d3", "t": 12.0, "ttl_s": 10.0, "poll_after_s": 5.0, "state": "constrained",
    "binding": "thermal",
}  # fmt: skip
_RECOMMENDATION: dict[str, JsonValue] = {
    "schema": "joulegate.throttle/v1", **_HEAD, "confidence": 0.93, "reasons": [_REASON],
    "max_images_per_minute": 174.0, "admit_fraction": 0.28, "max_concurrency": 24, "power_cap_w": {"GPU-3": 565.0},
    "host_power_cap_w": 4520.0, "tiers": {"free": _FREE}, "fail_safe": _FAIL_SAFE,
    "inputs": {"telemetry_age_s": 0.6, "grid_age_s": 240.0}, "advice": [], "counterfactual": {},
    "explain": "Free tier held to 34 a minute: GPU-3 would pass 85.5 C in 25 s; demand is 3.5 times capacity.",
}  # fmt: skip


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow")


class ReasonBody(_Shape):
    """One reason with its numbers."""

    code: Code
    observed: float | None
    limit: float | None
    unit: str
    device: str | None = None
    predicted: float | None = None
    horizon_s: float | None = None
    note: str | None = None


class TierLimitBody(_Shape):
    """What one tier may start."""

    action: Action
    max_images_per_minute: float | None = Field(description="units; null is no limit")
    admit_fraction: float = Field(description="the same for engines that can only sample")
    burst: float = Field(description="depth of the bucket in units")
    retry_after_s: float
    images_per_tenant_day: int | None
    defer_until_t: float | None


class FloorBody(_Shape):
    """What a consumer decays to without an answer."""

    admit_fraction: float
    power_cap_w: float | None


class FailSafeBody(_Shape):
    """What a consumer does once it has had no answer for ``after_s``."""

    after_s: float
    policy: str
    floor: FloorBody


class AdviceBody(_Shape):
    """What would save energy or make room."""

    code: str
    saves_fraction: float
    evidence: dict[str, Any]


class _Headline(_Shape):
    decision_id: str = Field(description="a hash of configuration and input; the ETag is made of it")
    t: float | None
    ttl_s: float = Field(description="seconds from receipt for which this holds; then fail_safe")
    poll_after_s: float
    state: State
    binding: Binding | None = Field(description="the constraint that rules")


class RecommendationBody(_Headline):
    """What hardware, budgets and grid can take next, and why."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_RECOMMENDATION]})

    schema_: str = Field(alias="schema")
    confidence: float
    reasons: list[ReasonBody]
    max_images_per_minute: float | None = Field(description="units that may start; null is no limit")
    admit_fraction: float
    max_concurrency: int | None
    power_cap_w: dict[str, float]
    host_power_cap_w: float | None
    tiers: dict[str, TierLimitBody]
    fail_safe: FailSafeBody
    inputs: dict[str, float | None]
    advice: list[AdviceBody]
    counterfactual: dict[str, float]
    explain: str


class TierBody(_Headline, TierLimitBody):
    """One tier's part of the recommendation."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{**_HEAD, "tier": "free", **_FREE, "reasons": [_REASON], "fail_safe": _FAIL_SAFE}]
        },
    )

    tier: str
    reasons: list[ReasonBody]
    fail_safe: FailSafeBody


class ScaleBody(_Shape):
    """Flat numbers for autoscalers. What is not known is absent, never null."""

    replicas_wanted: float = Field(
        description="hosts like this one that its own demand needs, a fraction: sum it over hosts. 1 where demand or "
        "capacity is not known; at most 1 under an energy or CO2e budget"
    )
    admit_fraction: float
    max_images_per_minute: float = Field(description="1e9 where nothing limits (limited is then 0)")
    limited: int = Field(description="1 while there is a limit")
    state: int = Field(description="nominal 0, watch 1, constrained 2, critical 3, emergency 4, stale 5, unknown 6")
    confidence: float
    ttl_s: float
    decision_id: str


class DecideBody(BaseModel):
    """The question: which tier and tenant, and how many units (1 is a reference image)."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"tier": "free", "tenant": "acme", "cost": 1}]}
    )

    tier: str | None = Field(None, max_length=MAX_NAME)
    tenant: str | None = Field(None, max_length=MAX_NAME)
    cost: float = Field(1.0, gt=0, le=MAX_COST, allow_inf_nan=False)


class DecisionBody(_Shape):
    """The decision. ``tier`` is the one that was applied: an unknown one counts as the last."""

    allow: bool
    tier: str
    reason: Verdict
    detail: str
    retry_after_s: float
    remaining: float | None = Field(description="units that could be used at once; null is no limit")
    decision_id: str | None
    unknown_tier: bool


class RecordPageBody(BaseModel):
    """Records of the audit trail, oldest first."""

    items: list[dict[str, Any]]
    next: str | None = Field(description="`since` of those after them, null at the end")


class QueueReportBody(
    RootModel[
        Annotated[
            dict[
                Annotated[str, Field(min_length=1, max_length=MAX_NAME)],
                Annotated[float, Field(strict=True, ge=0, le=MAX_QUEUED, allow_inf_nan=False)],
            ],
            Field(max_length=MAX_QUEUES),
        ]
    ]
):
    """Units by tier that were admitted and have not started."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"free": 10, "pro": 0}]})


def parameter(place: str, name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A parameter as OpenAPI has it, for those that are read from the raw request."""
    return {"in": place, "name": name, "description": description, "schema": {"type": "string", **schema}}


def header(description: str, kind: str = "string") -> dict[str, Any]:
    """An answer's header as OpenAPI has it."""
    return {"description": description, "schema": {"type": kind}}


IF_NONE_MATCH = {
    "parameters": [parameter("header", "If-None-Match", "Tags that the client has; `W/` is ignored and `*` is any.")]
}
ASKED = [
    parameter("header", "X-Tier", "Unknown or absent is the last tier.", maxLength=MAX_NAME),
    parameter("header", "X-Tenant", "Whose quota is counted.", maxLength=MAX_NAME),
    parameter("header", "X-Cost", "Units, over 0 and at most 1000; 1 without it.", pattern=_COST_IN_DOCUMENT),
    parameter("query", "deny_status", "What a refusal is answered with.", enum=["403", "429", "503"]),
    parameter("query", "mode", "`shadow` lets everything through.", enum=["enforce", "shadow"]),
]
"""What ``authz`` reads. On paths below its own the query is the client's, and nobody looks at it."""

CACHED_HEADERS = {
    "ETag": header('Strong; `"<decision_id>"`, for a part `"<decision_id>.<part>"`.'),
    "Cache-Control": header("`max-age=5, must-revalidate`"),
    "Date": header("When the answer was sent."),
}
RATE_HEADERS = {
    "RateLimit": header('What the policies still grant, as in `"free";r=5;t=10`.'),
    "RateLimit-Policy": header('The policies that apply, as in `"free";q=34;w=60`.'),
    "X-Throttle-Decision": header("The recommendation behind it; `/v1/throttle/decisions/{id}` explains it."),
    "X-Throttle-Reason": header("A word of the closed list of reasons."),
    "X-Throttle-Would": header("`allow` or `deny`, with `mode=shadow` alone."),
}
_REFUSALS = {
    400: ("The question cannot be understood; nothing was counted.", "X-Cost must be a decimal number over 0"),
    401: ("A control token is configured, and this is not it.", "send Authorization: Bearer with the control token"),
    403: ("As 429 or 400, where `deny_status=403` (nginx knows no other).", "the tier has no unit left"),
    429: ("Not now: `Retry-After` says when to ask again.", "the tier has no unit left"),
}


def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of refusals that other routes do not have."""
    entries: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        text, detail = _REFUSALS[status]
        example: Mapping[str, Any] = Problem(status, "refused", detail).body()
        schema = {"$ref": "#/components/schemas/ProblemBody"}
        entries[status] = {"description": text, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}
    return entries


def cached(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of an answer that is cached and revalidated, with its problems."""
    return {
        **documented(503, *statuses),
        200: {"headers": CACHED_HEADERS},
        304: {"description": "If-None-Match names this one.", "headers": CACHED_HEADERS},
    }

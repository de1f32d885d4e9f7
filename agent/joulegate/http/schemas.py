"""Shapes of the answers and of the one body that is taken, as OpenAPI shows them. ``null`` is "not known", never 0."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from joulegate.metering.entry import Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Outcome, StartSource

MAX_SPANS = 1000
"""Spans in one post."""

_FINISHED_SPAN: dict[str, JsonValue] = {
    "request_id": "a1b2c3",
    "devices": ["GPU-0"],
    "started": "2025-03-30T12:00:00Z",
    "ended": "2025-03-30T12:00:04.2Z",
    "arrived": "2025-03-30T11:59:58Z",
    "model": "sdxl",
    "tier": "free",
    "tenant": "acme",
    "images": 4,
    "steps": 30,
    "width": 1024,
    "height": 1024,
}


class TotalsBody(BaseModel):
    """Accounts in whole millijoules; device_mj = requests_mj + idle_mj + unattributed_mj, estimated_mj is apart."""

    device_mj: int
    requests_mj: int
    idle_mj: int
    unattributed_mj: int
    estimated_mj: int


class ProcessBody(BaseModel):
    """A foreign process seen on the device while energy was unattributed."""

    pid: int
    name: str
    memory_bytes: int | None
    sm_share: float | None


class DeviceBody(BaseModel):
    """One device now. Figures of a device that is down, or silent for too long, are null."""

    id: str
    name: str
    index: int | None
    up: bool
    method: Method = Field(description="how energy_j comes to be")
    quality: Quality
    scope: str = Field(description="what energy_j covers: gpu, module, board, package, host")
    power_w: float | None
    power_method: Method | None = Field(description="how power_w comes to be")
    energy_j: float | None = Field(description="our own total over resets and restarts; it never falls")
    temperature_c: float | None
    memory_temperature_c: float | None
    utilization: float | None = Field(description="share from 0 to 1")
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_limit_w: float | None
    max_operating_c: float | None
    slowdown_c: float | None
    headroom_c: float | None = Field(description="max_operating_c, else slowdown_c, minus temperature_c")
    memory_headroom_c: float | None
    clock_events: list[str] | None = Field(description="in force now; null where the device does not say")
    clock_event_s: dict[str, float] = Field(description="seconds under each since the agent started")
    age_s: float | None = Field(description="seconds since the newest reading with values")
    errors: dict[str, int] = Field(description="failed sensor calls by the sensor's own name")
    totals: TotalsBody | None
    epoch: int
    active_spans: int
    calibrated: bool
    idle_w: float | None
    lag_s: float | None
    step_s: float | None
    processes: list[ProcessBody]
    notes: list[str]
    warnings: list[str]


class DeviceListBody(BaseModel):
    """Every device, in the order of the source."""

    devices: list[DeviceBody]
    source: str
    snapshot_age_s: float


class UncertaintyBody(BaseModel):
    """Expanded uncertainty (k=2) in joules; the two parts are independent."""

    measurement: float | None
    allocation: float | None


class DeviceUseBody(BaseModel):
    """What one device gave to the request and went through while it ran."""

    model_config = ConfigDict(extra="allow")

    energy_j: float
    energy_mj: int
    power_mean_w: float | None
    power_max_w: float | None
    temperature_max_c: float | None
    utilization_mean: float | None
    clock_event_s: dict[str, float]


class RequestBody(BaseModel):
    """One request. A pending one has no energy yet; the figures of a final one never change."""

    model_config = ConfigDict(extra="allow")

    request_id: str
    status: Status
    model: str | None
    tier: str | None
    tenant: str | None
    images: int | None
    steps: int | None
    width: int | None
    height: int | None
    arrived: str | None = Field(description="RFC 3339")
    started: str = Field(description="RFC 3339")
    ended: str | None = Field(description="RFC 3339")
    start_source: StartSource
    queue_s: float | None
    energy_j: float | None
    energy_mj: int | None
    uncertainty_j: UncertaintyBody | None
    method: Method | None
    quality: Quality
    outcome: Outcome
    devices: dict[str, DeviceUseBody]
    co2e_g: dict[str, object] | None


class RequestPageBody(BaseModel):
    """Requests, newest first."""

    items: list[RequestBody]
    next: str | None = Field(description="cursor of the next page, null at the end")


class EnergyTotalsBody(TotalsBody):
    """Accounts of a range."""

    pending_mj: int = Field(description="what of requests_mj is on requests that are not final yet")


class EnergyGroupBody(BaseModel):
    """Energy of the requests under one combination of the keys asked for."""

    model: str | None = None
    tier: str | None = None
    tenant: str | None = None
    device: str | None = None
    hour: str | None = Field(None, description="RFC 3339, start of the hour")
    requests: int = Field(description="final requests that used energy here")
    requests_mj: int
    pending_mj: int = Field(description="what of requests_mj is on requests that are not final yet")
    device_mj: int | None = Field(description="null where grouped by model, tier or tenant, as are the next three")
    idle_mj: int | None
    unattributed_mj: int | None
    estimated_mj: int | None
    quality: dict[Quality, float] = Field(description="shares of what is final of requests_mj; they add up to 1")
    pending: bool = Field(description="pending energy alone; its model, tier and tenant are null")


class EnergyQualityBody(BaseModel):
    """Shares by quality, adding up to 1; empty where there is no energy."""

    device: dict[Quality, float] = Field(description="of device_mj, by the quality of the reading")
    requests: dict[Quality, float] = Field(description="of what is final of requests_mj, by the quality of its figure")


class EnergyBody(BaseModel):
    """Energy of the whole stretches of ten seconds that the range touches; groups add up to totals.requests_mj."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from", description="RFC 3339, inclusive")
    to: str = Field(description="RFC 3339, exclusive")
    by: list[str]
    groups: list[EnergyGroupBody]
    totals: EnergyTotalsBody
    quality: EnergyQualityBody


class WorkBody(BaseModel):
    """What was asked for."""

    images: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)


class MemberBody(WorkBody):
    """One request of a batch."""

    request_id: str = Field(min_length=1, max_length=256)


class SpanBody(WorkBody):
    """One request's use of devices, while it runs (without end) or after it.

    Times are RFC 3339 with an offset, or CLOCK_MONOTONIC seconds of this machine under the names with `_s`, which win.
    Without a start the arrival stands for it. Post a running span at its start and again with its end: a long request
    that is first heard of at its end is served from energy that was closed as idle, and flagged `late`.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_FINISHED_SPAN]})

    request_id: str = Field(min_length=1, max_length=256)
    devices: list[str] | None = Field(None, max_length=256, description="ids; without them those that the agent meters")
    started: str | None = None
    ended: str | None = None
    arrived: str | None = None
    started_s: float | None = Field(None, ge=0)
    ended_s: float | None = Field(None, ge=0)
    arrived_s: float | None = Field(None, ge=0)
    start_source: StartSource | None = None
    model: str | None = Field(None, max_length=256)
    tier: str | None = Field(None, max_length=256)
    tenant: str | None = Field(None, max_length=256)
    batch_id: str | None = Field(None, max_length=256)
    power_class: str | None = Field(None, alias="class", max_length=256, description="requests that draw alike")
    outcome: Outcome | None = None
    edge_error_s: float | None = Field(None, ge=0, le=3600, description="standard uncertainty of the edges")
    members: list[MemberBody] | None = Field(None, max_length=1024, description="the requests of a batch")


class SpanPostBody(BaseModel):
    """Spans, taken all or none."""

    spans: list[SpanBody] = Field(max_length=MAX_SPANS)


class ReceiptBody(BaseModel):
    """What became of a post; every span of it is in the ledger's journal now."""

    accepted: int
    duplicates: int = Field(description="known already; posting again changes nothing")


class HealthBody(BaseModel):
    """The loop turns."""

    status: Literal["ok", "starting"]
    snapshot_age_s: float | None


class PartBody(BaseModel):
    """How one part does. A part that is not required does not hold readiness back."""

    name: str
    ok: bool
    detail: str
    required: bool


class ReadinessBody(BaseModel):
    """Whether figures can be given and kept."""

    ready: bool
    parts: list[PartBody]

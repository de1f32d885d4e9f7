"""The snapshot: the frozen newest totals. One writer publishes it whole, many readers only read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from joulegate.metering.reading import Device, GpuProcess, Quality, Reading, Sensor


@dataclass(frozen=True, slots=True)
class DeviceTotals:
    """A device's accounts since its first epoch (whole millijoules; they never fall, also not at a restart)."""

    device_mj: int = 0
    requests_mj: int = 0
    idle_mj: int = 0
    unattributed_mj: int = 0
    estimated_mj: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device now. ``reading`` is the newest that carried values, ``age_s`` how old it was when this was published.

    ``clock_event_s`` counts seconds under each clock event since the daemon started; ``errors`` counts failed calls by
    the sensor's own error name; ``processes`` are foreign ones seen while energy was ``unattributed``.
    """

    device: Device
    up: bool
    quality: Quality
    reading: Reading | None
    age_s: float | None
    totals: DeviceTotals = DeviceTotals()
    epoch: int = 0
    idle_w: float | None = None
    lag_s: float | None = None
    step_s: float | None = None
    calibrated: bool = False
    active_spans: int = 0
    clock_event_s: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    processes: tuple[GpuProcess, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestTotals:
    """Finished requests of one model, tier and quality, for counters and histograms."""

    model: str
    tier: str
    quality: Quality
    requests: int
    images: int
    energy_mj: int
    energy_j_buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AgentState:
    """The agent's own health: what it dropped, how late it is, what it costs."""

    started_wall_s: float
    readings: int = 0
    requests_finished: int = 0
    requests_pending: int = 0
    spans_late: int = 0
    messages_dropped: int = 0
    loop_s: float = 0.0
    ledger_error: str | None = None
    ledger_backlog: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a reader may ask about the present. ``t_s`` is monotonic, ``wall_s`` Unix time of publication."""

    t_s: float
    wall_s: float
    source: str
    devices: Mapping[str, DeviceState]
    sensors: tuple[Sensor, ...]
    requests: tuple[RequestTotals, ...]
    agent: AgentState


ENERGY_BUCKETS_J = (100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000)
"""Upper bounds of the joules-per-image histogram: the span of the ML.ENERGY table (notes/peers.md, section 4)."""

"""Entries: what the ledger keeps. Energies are whole millijoules; times are Unix seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Outcome, StartSource, Work

BUCKET_S = 10
"""Accounts are kept per device and stretch of ten seconds, so that any range of whole buckets closes exactly."""


class Status(StrEnum):
    """A request is pending until every counter has passed its end; a final figure never changes."""

    PENDING = "pending"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one device gave to one request and went through while it ran; ``None`` is "no reading"."""

    energy_mj: int
    power_mean_w: float | None = None
    power_max_w: float | None = None
    temperature_max_c: float | None = None
    utilization_mean: float | None = None
    memory_max_bytes: int | None = None
    clock_event_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """Energy of one request on one device within one bucket (``bucket_s`` = Unix second at which the bucket starts)."""

    request_id: str
    device: str
    bucket_s: int
    energy_mj: int


@dataclass(frozen=True, slots=True)
class RequestEntry:
    """One finished request.

    ``energy_mj`` is the sum over ``devices`` and over ``shares``, or ``None`` when no reading
    saw it (``quality`` is then ``missing``). ``u_*_mj`` are expanded (k=2) and independent. ``flags`` are closed words:
    ``late``, ``partial``, ``inferred_start``, ``below_resolution``, ``gap``, ``contended``, ``source_changed``.
    """

    request_id: str
    status: Status
    outcome: Outcome
    work: Work
    started_s: float
    ended_s: float
    start_source: StartSource
    energy_mj: int | None
    u_measurement_mj: int | None
    u_allocation_mj: int | None
    method: Method | None
    quality: Quality
    model: str | None = None
    tier: str | None = None
    tenant: str | None = None
    arrived_s: float | None = None
    batch_id: str | None = None
    devices: Mapping[str, DeviceUse] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    flags: tuple[str, ...] = ()
    views: Mapping[str, object] | None = None
    """CO2e, water and cost as of when they were asked for (law 6), as on the wire: never stored, never hashed."""

    @property
    def queue_s(self) -> float | None:
        """Seconds between arrival and start, where the arrival is known."""
        return None if self.arrived_s is None else max(0.0, self.started_s - self.arrived_s)


@dataclass(frozen=True, slots=True)
class Account:
    """One device's accounts within one bucket and epoch, as totals so far (writing it again replaces it).

    Law 1: ``device_mj == requests_mj + idle_mj + unattributed_mj``. ``estimated_mj`` is outside the law.
    """

    device: str
    epoch: int
    bucket_s: int
    device_mj: int
    requests_mj: int
    idle_mj: int
    unattributed_mj: int
    estimated_mj: int
    method: Method
    quality: Quality


@dataclass(frozen=True, slots=True)
class Position:
    """How far a device's energy line has been placed: what a restart needs to go on without losing or doubling a joule.

    ``counter_mj`` is the device's own counter at ``wall_s``, ``total_mj`` our monotone total over all epochs.
    ``boot_id`` tells whether ``t_s`` (CLOCK_MONOTONIC) still means anything.
    """

    device: str
    epoch: int
    counter_mj: int | None
    total_mj: int
    t_s: float
    wall_s: float
    boot_id: str

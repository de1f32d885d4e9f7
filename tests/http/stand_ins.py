"""Implementations of the HTTP ports over real parts: a settable clock, a shelf for snapshots, a real ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import httpx
from fastapi import FastAPI

from joulegate.http.app import create_app
from joulegate.http.parts import Parts
from joulegate.http.ports import PartStatus, Receipt
from joulegate.metering.batch import Batch
from joulegate.metering.entry import Account, DeviceUse, RequestEntry, Share, Status
from joulegate.metering.reading import Device, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.metering.snapshot import AgentState, DeviceState, DeviceTotals, RequestTotals, Snapshot
from joulegate.metering.span import Outcome, Span, StartSource, Work
from joulegate.stores import Ledger

NOON_S = 1_743_336_000.0
"""2025-03-30T12:00:00Z, a whole hour."""


@dataclass
class SetClock:
    """A clock that goes when it is told to."""

    t_s: float = 1_000.0
    now_s: float = NOON_S

    def monotonic_s(self) -> float:
        """As set."""
        return self.t_s

    def wall_s(self) -> float:
        """As set."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass on both axes."""
        self.t_s += seconds
        self.now_s += seconds


@dataclass
class Shelf:
    """Holds what was put on it."""

    newest: Snapshot | None = None

    def snapshot(self) -> Snapshot | None:
        """What is there."""
        return self.newest


@dataclass
class JournalIngest:
    """Takes spans into a real ledger's journal before it answers."""

    ledger: Ledger
    seen: set[tuple[str, bool]] = field(default_factory=set)
    taken: list[Span] = field(default_factory=list)

    async def submit(self, spans: Sequence[Span]) -> Receipt:
        """Commit what is new."""
        fresh = [span for span in spans if not self._known(span)]
        opened = tuple(span for span in fresh if span.ended_s is None)
        closed = tuple(span for span in fresh if span.ended_s is not None)
        self.ledger.commit(Batch(opened=opened, closed=closed))
        self.seen.update((span.request_id, span.ended_s is not None) for span in fresh)
        self.taken += fresh
        return Receipt(len(fresh), len(spans) - len(fresh))

    def _known(self, span: Span) -> bool:
        ended = (span.request_id, True) in self.seen
        return ended or (span.ended_s is None and (span.request_id, False) in self.seen)


@dataclass
class FixedStatus:
    """A part that always says the same."""

    ok: bool
    detail: str

    def status(self) -> PartStatus:
        """What it always says."""
        return PartStatus(self.ok, self.detail)


@dataclass
class World:
    """The parts and what the test holds of them."""

    parts: Parts
    clock: SetClock
    shelf: Shelf
    ledger: Ledger
    ingest: JournalIngest

    def app(self, **changed: object) -> FastAPI:
        """The application, with some parts changed."""
        return create_app(replace(self.parts, **changed))

    def client(self, **changed: object) -> httpx.AsyncClient:
        """A client of the application, with some parts changed."""
        transport = httpx.ASGITransport(self.app(**changed), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9288")


H100 = Device(
    id="GPU-h100",
    name="NVIDIA H100 80GB HBM3",
    method=Method.COUNTER,
    quality=Quality.MEASURED,
    index=0,
    max_operating_c=87.0,
    slowdown_c=89.0,
    memory_max_operating_c=95.0,
    memory_total_bytes=85_899_345_920,
)


def reading(device: str = H100.id, **figures: object) -> Reading:
    """A reading with every figure, but for what is given."""
    whole = Reading(
        device=device,
        t_s=999.6,
        wall_s=NOON_S - 0.4,
        energy_mj=91_231_400,
        power_w=652.1,
        power_average_w=640.0,
        temperature_c=71.0,
        memory_temperature_c=80.0,
        utilization=0.97,
        memory_used_bytes=30_000_000_000,
        power_limit_w=700.0,
        clock_events=0x24,
    )
    return replace(whole, **figures)


def state(device: Device = H100, **fields: object) -> DeviceState:
    """A device that works, but for what is given."""
    whole = DeviceState(
        device=device,
        up=True,
        quality=device.quality,
        reading=reading(device.id),
        age_s=0.4,
        totals=DeviceTotals(10_000, 7_000, 2_500, 500, 40),
        epoch=1,
        idle_w=95.0,
        lag_s=0.1,
        step_s=0.1,
        calibrated=True,
        active_spans=2,
        clock_event_s={"sw_power_cap": 12.5, "sw_thermal": 0.25},
        errors={"NVML_ERROR_TIMEOUT": 3},
    )
    return replace(whole, **fields)


def snapshot(*states: DeviceState, requests: Sequence[RequestTotals] = (), agent: AgentState | None = None) -> Snapshot:
    """What the loop would publish at t = 1000 s."""
    sensor = Sensor(H100.id, SensorStatus.MEASURED, Method.COUNTER, "counter agrees with power")
    return Snapshot(
        t_s=1_000.0,
        wall_s=NOON_S,
        source="nvml",
        devices={one.device.id: one for one in states},
        sensors=(sensor,),
        requests=tuple(requests),
        agent=AgentState(started_wall_s=NOON_S - 60, readings=1_200) if agent is None else agent,
    )


def entry(number: int, **fields: object) -> RequestEntry:
    """A final request of 6 J that ended ``number`` seconds after 11:00, one share in each of two buckets."""
    ended_s = NOON_S - 3_600 + number
    first_s = int(ended_s) // 10 * 10 - 10
    request_id = f"r{number}"
    whole = RequestEntry(
        request_id=request_id,
        status=Status.FINAL,
        outcome=Outcome.OK,
        work=Work(2, 30, 1024, 1024),
        started_s=ended_s - 4.0,
        ended_s=ended_s,
        start_source=StartSource.ENGINE,
        energy_mj=6_000,
        u_measurement_mj=300,
        u_allocation_mj=None,
        method=Method.COUNTER,
        quality=Quality.MEASURED,
        model="sdxl",
        tier="free",
        tenant="acme",
        arrived_s=ended_s - 6.5,
        devices={H100.id: DeviceUse(6_000, 600.0, 690.0, 72.0, 0.9, 1_000, {"sw_thermal": 0.5})},
        shares=(
            Share(request_id, H100.id, first_s, 2_000),
            Share(request_id, H100.id, first_s + 10, 4_000),
        ),
    )
    return replace(whole, **fields)


def account(bucket_s: int, requests_mj: int, idle_mj: int, unattributed_mj: int = 0, estimated_mj: int = 0) -> Account:
    """One bucket of the H100."""
    return Account(
        device=H100.id,
        epoch=1,
        bucket_s=bucket_s,
        device_mj=requests_mj + idle_mj + unattributed_mj,
        requests_mj=requests_mj,
        idle_mj=idle_mj,
        unattributed_mj=unattributed_mj,
        estimated_mj=estimated_mj,
        method=Method.COUNTER,
        quality=Quality.MEASURED,
    )

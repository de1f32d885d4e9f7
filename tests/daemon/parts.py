"""Real parts around the loop in virtual time: a scripted counter as source, a settable clock, a real ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from joulegate.daemon.loop import Began, Delivery, Edge, Ended, MeterLoop
from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.metering.span import Outcome, Span
from joulegate.stores import Ledger, LedgerFault, LedgerReader

ORIGIN_S = 1_700_000_000.0
POLL_S = 0.05
IDLE_W, BUSY_W = 100.0, 500.0
SOON = Options(hold_s=0.2)


@dataclass
class Clock:
    """Monotonic seconds that go when they are told to; the wall clock runs beside and can be set."""

    t_s: float = 100.0
    origin_s: float = ORIGIN_S

    def monotonic_s(self) -> float:
        """Now."""
        return self.t_s

    def wall_s(self) -> float:
        """Now, as Unix time."""
        return self.t_s + self.origin_s


@dataclass
class Plant:
    """Boards that live on whether or not anybody reads them: idle power, and a busy one while spans run."""

    ids: tuple[str, ...] = ("GPU-a",)
    t_s: float = 0.0
    energy_mj: dict[str, float] = field(default_factory=dict)
    running: dict[str, set[str]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def live(self, to_s: float) -> None:
        """Use power until ``to_s``."""
        for device in self.ids:
            power_w = IDLE_W + (BUSY_W if self.running.get(device) else 0.0)
            self.energy_mj[device] = self.energy_mj.get(device, 1e9) + 1000 * power_w * max(0.0, to_s - self.t_s)
        self.t_s = max(self.t_s, to_s)


class PlantSource:
    """Implements ``daemon.ports.Source``: the plant's counters, polled every ``POLL_S`` up to now."""

    name = "plant"

    def __init__(self, plant: Plant, from_s: float) -> None:
        self.plant = plant
        self.breaks: Callable[[], None] | None = None
        self._next_s = from_s

    def open(self) -> None:
        """Nothing to do."""

    def devices(self) -> Sequence[Device]:
        """Counters without lag."""
        return [Device(i, i, Method.COUNTER, Quality.MEASURED, step_s=POLL_S, lag_s=0.0) for i in self.plant.ids]

    def sensors(self) -> Sequence[Sensor]:
        """All measured."""
        return [Sensor(i, SensorStatus.MEASURED, Method.COUNTER, "scripted") for i in self.plant.ids]

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """Polls that came due."""
        if self.breaks is not None:
            self.breaks()
        readings = []
        while self._next_s <= now_s:
            self.plant.live(self._next_s)
            for device in self.plant.ids:
                up = device not in self.plant.silent
                energy_mj = int(self.plant.energy_mj[device]) if up else None
                error = None if up else "GPU_IS_LOST"
                wall = self._next_s + wall_s - now_s
                power_w = IDLE_W + (BUSY_W if self.plant.running.get(device) else 0.0) if up else None
                readings.append(
                    Reading(device, self._next_s, wall, energy_mj=energy_mj, power_w=power_w, up=up, error=error)
                )
            self._next_s += POLL_S
        return readings

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """None."""
        return {}

    def processes(self) -> Sequence[GpuProcess]:
        """None."""
        return ()

    def close(self) -> None:
        """Nothing to do."""


class House:
    """A daemon's inside without its threads: it can be stopped, killed and started again on the same folder."""

    def __init__(self, folder: Path, ids: tuple[str, ...] = ("GPU-a",), options: Options = SOON) -> None:
        self.folder = folder
        self.clock = Clock()
        self.plant = Plant(ids, self.clock.t_s)
        self.plant.live(self.clock.t_s)
        self.options = options
        self.boot_id = "boot-1"
        self.acknowledged: list[str] = []
        self.published: list = []
        self.start()

    def start(self) -> None:
        """Open ledger, source and loop."""
        self.ledger = Ledger(self.folder, boot_id=self.boot_id)
        self.source = PlantSource(self.plant, self.clock.t_s)
        meter = HostMeter(self.options, origin_s=self.clock.origin_s, boot_id=self.boot_id)
        self.loop = MeterLoop(
            self.source,
            meter,
            self.ledger,
            faults=(LedgerFault,),
            publish=self.published.extend,
            clock=self.clock.monotonic_s,
            wall_clock=self.clock.wall_s,
        )

    def kill(self) -> None:
        """Nothing more is said or written; what the transaction log holds is what is left."""
        self.ledger.close()

    def turn(self, seconds: float = 0.2) -> None:
        """Time passes in ticks."""
        until_s = self.clock.t_s + seconds - 1e-9
        while self.clock.t_s < until_s:
            self.clock.t_s = min(self.clock.t_s + 0.2, until_s + 1e-9)
            self.loop.step(self.clock.t_s, self.clock.wall_s())

    def sleep(self, seconds: float) -> None:
        """Time passes and nobody looks."""
        self.clock.t_s += seconds

    def begin(self, request_id: str, devices: tuple[str, ...] = ("GPU-a",), **fields: object) -> None:
        """A pipeline begins a request now."""
        self.plant.live(self.clock.t_s)
        for device in devices:
            self.plant.running.setdefault(device, set()).add(request_id)
        span = Span(request_id, devices, self.clock.t_s, model="m", **fields)
        self.submit(Began(span), f"begin {request_id}")

    def end(self, request_id: str, outcome: Outcome = Outcome.OK) -> None:
        """It ends now."""
        self.plant.live(self.clock.t_s)
        for running in self.plant.running.values():
            running.discard(request_id)
        self.submit(Ended(request_id, self.clock.t_s, outcome), f"end {request_id}")

    def tell(self, span: Span) -> None:
        """A span is told whole."""
        self.submit(Began(span), f"whole {span.request_id}")

    def submit(self, edge: Edge, name: str) -> None:
        """Send an edge and note its acknowledgement."""
        assert self.loop.submit(Delivery(edge, lambda _new: self.acknowledged.append(name)))

    def reader(self) -> LedgerReader:
        """The ledger's reading side."""
        return LedgerReader(self.folder)


def span(request_id: str, started_s: float, ended_s: float | None = None, **fields: object) -> Span:
    """A span on GPU-a."""
    return replace(Span(request_id, ("GPU-a",), started_s, ended_s, model="m"), **fields)


def check_books(folder: Path) -> tuple[int, dict[str, int | None]]:
    """Law 1 and shares in every bucket of the whole ledger; returns pending energy and every final request's energy."""
    reader = LedgerReader(folder)
    try:
        energies: dict[str, int | None] = {}
        cursor = None
        while True:
            page = reader.requests(1000, cursor, status="final")
            for item in page.items:
                assert item.request_id not in energies
                energies[item.request_id] = item.energy_mj
            cursor = page.next
            if cursor is None:
                break
        table = reader.energy(0, 4e9, ("device", "hour"))
        totals = table.totals
        assert totals.device_mj == totals.requests_mj + totals.idle_mj + totals.unattributed_mj
        for group in table.groups:
            assert group.device_mj == group.requests_mj + group.idle_mj + group.unattributed_mj
        final_mj = sum(energy or 0 for energy in energies.values())
        assert final_mj + totals.pending_mj == totals.requests_mj, (final_mj, totals)
        assert totals.pending_mj >= 0
        return totals.pending_mj, energies
    finally:
        reader.close()

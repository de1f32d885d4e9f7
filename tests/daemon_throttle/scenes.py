"""Snapshots of a host as the loop publishes them, and a daemon's throttle side in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from zoneinfo import ZoneInfo

from joulegate.daemon.throttle import Feeds, ThrottleAdviser
from joulegate.daemon.throttle_board import Board
from joulegate.daemon.throttle_budget import BudgetMeter, Used
from joulegate.daemon.throttle_demand import DemandCount
from joulegate.daemon.throttle_observation import GridNow
from joulegate.metering.reading import Device, Method, Quality, Reading
from joulegate.metering.snapshot import AgentState, DeviceState, DeviceTotals, Snapshot
from joulegate.stores.trail import FOLDER, DecisionTrail
from joulegate.throttle.settings import ThrottleSettings

CODE = {"joulegate": "1.2.3", "throttle": "abc", "python": "3.x", "machine": "any"}
SETTINGS = ThrottleSettings()
WALL_S = 1_790_000_000.0
BOARD = Device(
    "GPU-0",
    "board",
    Method.COUNTER,
    Quality.MEASURED,
    power_limit_min_w=200.0,
    power_limit_max_w=700.0,
    max_operating_c=87.0,
    slowdown_c=89.0,
    memory_max_operating_c=95.0,
)


def reading(t_s: float, *, device: str = "GPU-0", temperature_c: float = 60.0, energy_mj: int = 0) -> Reading:
    """A board that answers with everything it has."""
    return Reading(
        device,
        t_s,
        t_s + WALL_S,
        energy_mj=energy_mj,
        power_w=500.0,
        temperature_c=temperature_c,
        memory_temperature_c=70.0,
        utilization=0.9,
        power_limit_w=700.0,
        clock_events=0x21,
    )


def state(newest: Reading | None, age_s: float | None = 0.1, *, device: Device = BOARD, up: bool = True) -> DeviceState:
    """A device of the snapshot."""
    return DeviceState(device, up=up, quality=device.quality, reading=newest, age_s=age_s)


def snapshot(t_s: float, *states: DeviceState) -> Snapshot:
    """What the loop published at ``t_s``."""
    return Snapshot(
        t_s=t_s,
        wall_s=t_s + WALL_S,
        source="scripted",
        devices={one.device.id: one for one in states},
        sensors=(),
        requests=(),
        agent=AgentState(started_wall_s=WALL_S),
    )


def no_budget() -> BudgetMeter:
    """Where none is configured."""
    return BudgetMeter(
        None, None, "day", ZoneInfo("UTC"), read=lambda *_: Used({}, frozenset()), co2e_of=lambda _: None, faults=()
    )


@dataclass
class Host:
    """A host under load, and the throttle side of its daemon; ``run`` lets seconds pass."""

    folder: Path
    settings: ThrottleSettings = SETTINGS
    t_s: float = 1000.0
    origin_s: float = WALL_S
    budget: BudgetMeter = field(default_factory=no_budget)
    temperature_c: float = 60.0
    energy_mj: int = 0
    silent: bool = False
    asked: dict[str, float] = field(default_factory=dict)
    breaks: Exception | None = None

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.start()

    def start(self) -> None:
        """Wire it as at the start of a process."""
        self.trail = DecisionTrail(self.folder / FOLDER, 10**8)
        self.trail.start()
        self.board = Board(self.loop, clock=lambda: self.t_s)
        self.demand = DemandCount(
            self.settings, lambda: dict(self.asked), clock=lambda: self.t_s, began_s=self.t_s + self.origin_s
        )
        feeds = Feeds(self.snapshot, self.demand, lambda _: GridNow(300.0, 5.0, "live", [(3600.0, 200.0)]), self.budget)
        self.adviser = ThrottleAdviser(
            self.settings,
            feeds,
            self.trail,
            self.board,
            CODE,
            clock=lambda: self.t_s,
            wall_clock=lambda: self.t_s + self.origin_s,
        )

    def stop(self) -> None:
        """End the process cleanly."""
        self.adviser.stop()
        assert self.trail.close()

    def close(self) -> None:
        """End it for good."""
        self.stop()
        self.loop.close()

    def snapshot(self) -> Snapshot | None:
        """What the loop would have published; raises what ``breaks`` says."""
        if self.breaks is not None:
            raise self.breaks
        newest = reading(self.t_s - 0.1, temperature_c=self.temperature_c, energy_mj=self.energy_mj)
        shown = replace(state(newest), totals=DeviceTotals(device_mj=self.energy_mj, idle_mj=self.energy_mj))
        return snapshot(self.t_s, shown if not self.silent else replace(shown, age_s=99.0, up=False))

    def run(self, seconds: int, *, power_w: float = 650.0) -> None:
        """Let time pass, a turn each second."""
        for _ in range(seconds):
            self.t_s += 1.0
            self.energy_mj += int(power_w * 1000)
            self.adviser.step(self.t_s, self.t_s + self.origin_s)

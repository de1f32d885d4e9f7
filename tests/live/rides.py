"""Drive the live meter in virtual time over simulated boards whose truth is known, and check the books as it goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tests.support.plant import Run, serve
from tests.support.scenarios import FOUR_CLASSES, four_class_jobs

from joulegate.metering.entry import Account, Position, RequestEntry
from joulegate.metering.host_meter import HostMeter, Options, Progress
from joulegate.metering.reading import Device, Method, Quality
from joulegate.metering.span import Outcome, Span
from joulegate.sources.gpu_model import GpuModel
from joulegate.sources.gpu_profiles import H100, GpuProfile

ORIGIN_S = 1_700_000_000.0
TICK_S, POLL_S = 0.2, 0.05
CLASS_W = {kind.name: kind.dynamic_w for kind in FOUR_CLASSES}


@dataclass(slots=True)
class Books:
    """What a meter gave out so far, checked as it comes: finals once and for ever, accounts closed, totals rising."""

    entries: dict[str, RequestEntry] = field(default_factory=dict)
    accounts: dict[tuple[str, int, int], Account] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)

    def take(self, progress: Progress) -> None:
        """One step's news."""
        for entry in progress.entries:
            assert entry.request_id not in self.entries, f"{entry.request_id} became final twice"
            self.entries[entry.request_id] = entry
            shared_mj = sum(share.energy_mj for share in entry.shares)
            assert shared_mj == (entry.energy_mj or 0) == sum(use.energy_mj for use in entry.devices.values())
        for account in progress.accounts:
            self.accounts[account.device, account.epoch, account.bucket_s] = account
            parts = (account.requests_mj, account.idle_mj, account.unattributed_mj, account.estimated_mj)
            assert min(parts) >= 0, account
            assert account.device_mj == sum(parts[:3]), account
        self.positions.update({position.device: position for position in progress.positions})

    def device_mj(self, device: str) -> int:
        """Everything placed on a device's accounts, over all epochs."""
        return sum(a.device_mj for a in self.accounts.values() if a.device == device)

    def shares_close(self, *, pending: bool = False) -> None:
        """In every bucket what requests got is what the accounts say that requests got (or, while some run, less)."""
        given: dict[tuple[str, int], int] = {}
        for entry in self.entries.values():
            for share in entry.shares:
                key = (share.device, share.bucket_s)
                given[key] = given.get(key, 0) + share.energy_mj
        booked: dict[tuple[str, int], int] = {}
        for account in self.accounts.values():
            key = (account.device, account.bucket_s)
            booked[key] = booked.get(key, 0) + account.requests_mj
        for key in given.keys() | booked.keys():
            left_mj = booked.get(key, 0) - given.get(key, 0)
            assert left_mj >= 0 if pending else left_mj == 0, (key, left_mj)


def device_of(profile: GpuProfile, name: str = "twin-0", *, lag_known: bool = True) -> Device:
    """The simulated board as a source would describe it; without its lag the meter has to learn it."""
    return Device(
        id=name,
        name=profile.name,
        method=Method.COUNTER,
        quality=Quality.MEASURED,
        step_s=profile.sensor.step_s,
        lag_s=profile.sensor.lag_s if lag_known else None,
    )


def span_of(run: Run, device: str = "twin-0", *, classes: bool = True) -> Span:
    """A run as its pipeline tells it at the start."""
    return Span(
        request_id=run.job.request_id,
        devices=(device,),
        started_s=run.started_s,
        power_class=run.job.kind.name if classes else "",
        model=run.job.kind.name if classes else None,
    )


@dataclass(slots=True)
class Ride:
    """One simulated board under one schedule of requests, read and metered tick by tick."""

    model: GpuModel
    meter: HostMeter
    runs: Sequence[Run]
    books: Books = field(default_factory=Books)
    classes: bool = True
    poll_s: float = POLL_S
    jitter: np.random.Generator | None = None

    def drive(self, until_s: float) -> None:
        """Requests begin and end in the model and are told; polls are read; the meter advances every tick."""
        edges = sorted(
            [(run.started_s, 1, number) for number, run in enumerate(self.runs)]
            + [(run.ended_s, 0, number) for number, run in enumerate(self.runs)]
        )
        place, now_s = 0, self.model.now_s
        poll_s = now_s
        while now_s < until_s:
            now_s += TICK_S
            readings = []
            while poll_s < now_s or (place < len(edges) and edges[place][0] < now_s):
                if place < len(edges) and edges[place][0] <= poll_s:
                    self._cross(*edges[place])
                    place += 1
                    continue
                if poll_s >= now_s:
                    break
                self.model.advance(poll_s)
                readings.append(self.model.read(poll_s + ORIGIN_S))
                late_s = 0.0 if self.jitter is None else float(self.jitter.uniform(0, 0.004))
                poll_s = (
                    poll_s + self.poll_s if not late_s else max(poll_s + 0.01, poll_s + self.poll_s + late_s - 0.002)
                )
            self.meter.feed(readings)
            self.books.take(self.meter.advance(now_s))

    def _cross(self, edge_s: float, begins: int, number: int) -> None:
        run = self.runs[number]
        if begins:
            self.model.start(run.job.request_id, run.job.kind.name, edge_s)
            self.meter.begin(span_of(run, self.model.device, classes=self.classes))
        else:
            self.model.stop(run.job.request_id, edge_s)
            self.meter.end(run.job.request_id, edge_s, Outcome.OK)


def board(profile: GpuProfile, *, seed: int = 0, t0_s: float = 100.0, device: str = "twin-0") -> GpuModel:
    """A model that draws what the four classes draw."""
    return GpuModel(profile, seed=seed, t0_s=t0_s, device=device, class_power_w=CLASS_W)


def host(options: Options | None = None) -> HostMeter:
    """A live meter on a wall clock of its own."""
    return HostMeter(options or Options(), origin_s=ORIGIN_S, boot_id="boot")


@dataclass(frozen=True, slots=True)
class Judged:
    """One request of a randomised ride, relative to its truth."""

    group: str
    error: float
    u: float

    @property
    def inside(self) -> bool:
        """Whether U covers the truth."""
        return abs(self.error) <= self.u


def randomised(seed: int, requests: int, duration_s: float) -> list[Judged]:
    """A board as one may meet it under one to six of four classes at once; books are checked to the millijoule."""
    rng = np.random.default_rng(seed)
    profile = replace(H100.varied(seed), share_sd=float(rng.uniform(0, 0.5)))
    runs = serve(four_class_jobs(rng, requests, duration_s, 0.0, 110.0), int(rng.integers(1, 7)))
    ride = Ride(board(profile, seed=seed), host(), runs, classes=bool(rng.integers(2)), jitter=rng)
    ride.meter.add_device(device_of(profile, lag_known=bool(rng.integers(2))))
    ride.drive(max(run.ended_s for run in runs) + 8.0)
    assert len(ride.books.entries) == len(runs)
    ride.books.shares_close()
    return outcomes(ride)


def outcomes(ride: Ride) -> list[Judged]:
    """Every request's error and U, each relative to the truth."""
    found = []
    for run in ride.runs:
        entry = ride.books.entries[run.job.request_id]
        truth_mj = ride.model.energy_true_mj(run.job.request_id)
        assert entry.energy_mj is not None
        lone = not any(o is not run and o.started_s < run.ended_s and run.started_s < o.ended_s for o in ride.runs)
        group = "short" if run.ended_s - run.started_s < 0.2 else "lone" if lone else "shared"
        u_mj = math.hypot(entry.u_measurement_mj or 0, entry.u_allocation_mj or 0)
        found.append(Judged(group, (entry.energy_mj - truth_mj) / truth_mj, u_mj / truth_mj))
    return found


def table(found: Iterable[Judged]) -> str:
    """Coverage, median |error| and median U, of all and by group."""
    found, lines = list(found), []
    for group in ("all", "lone", "shared", "short"):
        mine = [o for o in found if group in ("all", o.group)]
        if mine:
            share, half = np.mean([o.inside for o in mine]), np.mean([abs(o.error) <= o.u / 2 for o in mine])
            error, u = np.median([abs(o.error) for o in mine]), np.median([o.u for o in mine])
            lines.append(
                f"{group:7} n={len(mine):5} inside U {share:6.1%}  inside u {half:6.1%}  error {error:6.1%}  U {u:6.1%}"
            )
    return "\n".join(lines)

"""A plant with known truth: jobs time-slice devices, power is piecewise constant, every integral is closed form.

Units: seconds, watts, joules. Nothing here knows the meter; the tests of this folder check it against closed forms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GPU = "GPU-0"
FAR_S = 1e5
"""The plant idles for this long before its first and after its last edge, so that late sensors see no end of it."""


@dataclass(frozen=True, slots=True)
class PowerClass:
    """Requests that draw alike: dynamic power over idle, seconds when alone, share of the arrivals."""

    name: str
    dynamic_w: float
    solo_s: float = 1.0
    mix: float = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch; an unknown figure counts as 1."""

    request_id: str
    images: int | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None

    @property
    def units(self) -> int:
        """Declared work: images x steps x width x height."""
        units = 1
        for factor in (self.images, self.steps, self.width, self.height):
            units *= 1 if factor is None else factor
        return units


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of the plant. ``hidden_share`` skews its part of the dynamic power, which no meter can see."""

    request_id: str
    arrived_s: float
    kind: PowerClass
    devices: tuple[str, ...] = (GPU,)
    hidden_share: float = 1.0
    items: tuple[Item, ...] = ()
    solo_s: float | None = None

    @property
    def work_s(self) -> float:
        """Seconds of work when alone."""
        return self.kind.solo_s if self.solo_s is None else self.solo_s


@dataclass(frozen=True, slots=True)
class Run:
    """A job with its times of service."""

    job: Job
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Burst:
    """Power of a foreign process, nobody's request."""

    started_s: float
    ended_s: float
    power_w: float
    device: str = GPU


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A stretch in which all dynamic power is scaled, as when clocks fall."""

    started_s: float
    ended_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class PowerLine:
    """Power of one device over time: ``power_w[i]`` holds in ``[edges_s[i], edges_s[i + 1])``."""

    edges_s: Floats
    power_w: Floats
    energy_to_edge_j: Floats

    def energy_j(self, t_s: Floats | float) -> Floats:
        """Energy used until ``t_s``, in joules from a far past."""
        return np.asarray(np.interp(t_s, self.edges_s, self.energy_to_edge_j), dtype=np.float64)

    def power_at_w(self, t_s: Floats | float) -> Floats:
        """Power at ``t_s``; at an edge, that of the segment which begins there."""
        index = np.searchsorted(self.edges_s, t_s, side="right") - 1
        return np.asarray(self.power_w[np.clip(index, 0, len(self.power_w) - 1)], dtype=np.float64)


@dataclass(slots=True)
class Plant:
    """Truth of a whole run. ``truth_j[request][device]``; idle and foreign energy are asked for a window."""

    runs: tuple[Run, ...]
    idle_w: float
    lines: dict[str, PowerLine]
    truth_j: dict[str, dict[str, float]]
    busy_s: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    bursts: tuple[Burst, ...] = ()

    def request_j(self, request_id: str) -> float:
        """True energy of one request over all its devices."""
        return sum(self.truth_j[request_id].values())

    def idle_j(self, device: str, start_s: float, end_s: float) -> float:
        """Idle power times the seconds in the window in which no request was active."""
        busy_s = sum(max(0.0, min(end_s, b) - max(start_s, a)) for a, b in self.busy_s[device])
        return self.idle_w * (end_s - start_s - busy_s)

    def foreign_j(self, device: str) -> float:
        """Energy of all bursts on a device."""
        return sum(b.power_w * (b.ended_s - b.started_s) for b in self.bursts if b.device == device)

    @property
    def last_edge_s(self) -> float:
        """End of the last run."""
        return max((run.ended_s for run in self.runs), default=0.0)


def serve(jobs: Iterable[Job], cap: int, *, sliced: bool = True) -> tuple[Run, ...]:
    """Serve jobs first come, first served, at most ``cap`` at once.

    Time-sliced: of n active on its fullest device, each runs at 1/n speed. Otherwise each runs at full speed.
    """
    waiting = deque(sorted(jobs, key=lambda job: (job.arrived_s, job.request_id)))
    left_s: dict[Job, float] = {}
    started_s: dict[Job, float] = {}
    runs: list[Run] = []
    now_s = waiting[0].arrived_s if waiting else 0.0
    while waiting or left_s:
        while waiting and len(left_s) < cap and waiting[0].arrived_s <= now_s:
            job = waiting.popleft()
            left_s[job], started_s[job] = job.work_s, now_s
        speeds = _speeds(left_s, sliced=sliced)
        until_end_s = min((left / speeds[job] for job, left in left_s.items()), default=float("inf"))
        until_arrival_s = waiting[0].arrived_s - now_s if waiting and len(left_s) < cap else float("inf")
        step_s = min(until_end_s, until_arrival_s)
        now_s = waiting[0].arrived_s if until_arrival_s <= until_end_s else now_s + step_s
        for job in list(left_s):
            left_s[job] -= step_s * speeds[job]
            if left_s[job] <= 1e-9:
                runs.append(Run(job, started_s.pop(job), now_s))
                del left_s[job]
    return tuple(runs)


def _speeds(active: Iterable[Job], *, sliced: bool) -> dict[Job, float]:
    active = tuple(active)
    if not sliced:
        return dict.fromkeys(active, 1.0)
    crowd: dict[str, int] = {}
    for job in active:
        for device in job.devices:
            crowd[device] = crowd.get(device, 0) + 1
    return {job: 1.0 / max(crowd[device] for device in job.devices) for job in active}


def build(
    runs: Sequence[Run],
    idle_w: float,
    *,
    devices: Sequence[str] = (),
    bursts: Sequence[Burst] = (),
    slowdowns: Sequence[Slowdown] = (),
) -> Plant:
    """Draw the power of every device and integrate what each request owes: P0/n and its part of the dynamic power."""
    names = dict.fromkeys((*devices, *(device for run in runs for device in run.job.devices))) or {GPU: None}
    plant = Plant(tuple(runs), idle_w, {}, {}, bursts=tuple(bursts))
    for run in runs:
        for item in run.job.items or (Item(run.job.request_id),):
            plant.truth_j[item.request_id] = {}
    for name in names:
        _draw(plant, name, slowdowns)
    return plant


def _draw(plant: Plant, device: str, slowdowns: Sequence[Slowdown]) -> None:
    mine = [run for run in plant.runs if device in run.job.devices]
    bursts = [burst for burst in plant.bursts if burst.device == device]
    cuts = {t for part in (*mine, *bursts, *slowdowns) for t in (part.started_s, part.ended_s)} or {0.0}
    edges = [min(cuts) - FAR_S, *sorted(cuts), max(cuts) + FAR_S]
    begins = deque(sorted(mine, key=lambda run: run.started_s))
    active: list[Run] = []
    owed_j: dict[str, float] = {run.job.request_id: 0.0 for run in mine}
    powers: list[float] = []
    busy: list[tuple[float, float]] = []
    for start_s, end_s in pairwise(edges):
        active = [run for run in active if run.ended_s > start_s]
        while begins and begins[0].started_s <= start_s:
            run = begins.popleft()
            if run.ended_s > start_s:
                active.append(run)
        factor = float(np.prod([s.factor for s in slowdowns if s.started_s <= start_s < s.ended_s]))
        weight = sum(run.job.hidden_share for run in active)
        power_w = plant.idle_w + sum(b.power_w for b in bursts if b.started_s <= start_s < b.ended_s)
        for run in active:
            own_w = factor * run.job.kind.dynamic_w * run.job.hidden_share / weight
            owed_j[run.job.request_id] += (plant.idle_w / len(active) + own_w) * (end_s - start_s)
            power_w += own_w
        powers.append(power_w)
        if active:
            busy.append((start_s, end_s))
    _settle(plant, device, mine, owed_j)
    plant.busy_s[device] = busy
    energy_j = np.concatenate(([0.0], np.cumsum(np.diff(edges) * np.asarray(powers))))
    plant.lines[device] = PowerLine(np.asarray(edges), np.asarray(powers), energy_j)


def _settle(plant: Plant, device: str, runs: Sequence[Run], owed_j: Mapping[str, float]) -> None:
    for run in runs:
        items = run.job.items or (Item(run.job.request_id),)
        units = sum(item.units for item in items)
        for item in items:
            share = item.units / units if units else 1 / len(items)
            plant.truth_j[item.request_id][device] = owed_j[run.job.request_id] * share

"""Named runs of the plant: worked oracle, four-class trace, serial server (notes/measurement.md, section 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tests.support.plant import GPU, Burst, Job, Plant, PowerClass, Run, build, serve
from tests.support.sensors import Counter, PowerMeter, Windows, polls, readings_csv, record, spans_csv

FOUR_CLASSES = (
    PowerClass("turbo", 330.0, 0.12, 0.25),
    PowerClass("sana", 435.0, 0.79, 0.35),
    PowerClass("pixart", 536.0, 1.13, 0.25),
    PowerClass("sd35L", 579.0, 6.56, 0.15),
)
THREE_SIZES = (
    PowerClass("small", 400.0, 0.35),
    PowerClass("middle", 400.0, 1.2),
    PowerClass("large", 400.0, 8.0),
)
IDLE_W = 95.0
ORIGIN_S = 10.0
"""Every scenario begins here: readings before it are idle, and no time is negative."""


@dataclass(frozen=True, slots=True)
class Case:
    """A plant with the two files a user would have of it."""

    plant: Plant
    readings_csv: str
    spans_csv: str


def worked_plant() -> Plant:
    """Oracle 6.6 from ``ORIGIN_S``: A 1-5 s at 500 W, B 3-7 s at 300 W, idle 100 W; A 1800, B 1200, idle 300 J."""
    a, b = PowerClass("A", 500.0), PowerClass("B", 300.0)
    runs = (
        Run(Job("A", ORIGIN_S + 1, a), ORIGIN_S + 1, ORIGIN_S + 5),
        Run(Job("B", ORIGIN_S + 3, b), ORIGIN_S + 3, ORIGIN_S + 7),
    )
    return build(runs, 100.0)


def worked_case(lag_s: float = 0.1, step_s: float = 0.1, poll_s: float = 0.02, poll_phase_s: float = 0.0) -> Case:
    """Oracle 6.6 through a counter whose first and last readings show exactly the 9 s of the trace."""
    plant = worked_plant()
    counter = Counter(step_s=step_s, phase_s=lag_s, lag_s=lag_s)
    t_s = polls(ORIGIN_S + lag_s, ORIGIN_S + 9 + lag_s, poll_s) + poll_phase_s
    readings = readings_csv({GPU: record(plant.lines[GPU], t_s, counter)})
    return Case(plant, readings, spans_csv(plant.runs))


def four_class_jobs(
    rng: np.random.Generator, count: int, duration_s: float, hidden_sd: float = 0.0, start_s: float = ORIGIN_S
) -> list[Job]:
    """``count`` Poisson arrivals within ``duration_s``; hidden shares are lognormal with ``hidden_sd``."""
    arrivals = np.sort(rng.uniform(start_s, start_s + duration_s, count))
    mixes = np.array([kind.mix for kind in FOUR_CLASSES])
    kinds = rng.choice(len(FOUR_CLASSES), size=count, p=mixes / mixes.sum())
    shares = np.exp(rng.normal(0.0, hidden_sd, count)) if hidden_sd else np.ones(count)
    return [
        Job(f"r{i:05d}", float(arrivals[i]), FOUR_CLASSES[kinds[i]], hidden_share=float(shares[i]))
        for i in range(count)
    ]


def four_class_plant(
    seed: int,
    *,
    count: int = 236,
    duration_s: float = 600.0,
    cap: int = 4,
    idle_w: float = IDLE_W,
    hidden_sd: float = 0.0,
    bursts: tuple[Burst, ...] = (),
) -> Plant:
    """The trace of section 6.7."""
    rng = np.random.default_rng(seed)
    return build(serve(four_class_jobs(rng, count, duration_s, hidden_sd), cap), idle_w, bursts=bursts)


def recorded(
    plant: Plant,
    seed: int,
    counter: Counter | None = None,
    *,
    classes: bool = True,
    poll_s: float = 0.02,
    drop: float = 0.0,
    gaps: Windows = (),
    power: PowerMeter | None = None,
    counter_seen: bool = True,
) -> Case:
    """A plant through a 0.1 s counter that lags 0.1 s, with a random phase, polled on a jittered clock."""
    rng = np.random.default_rng(seed + 1_000_003)
    sensor = counter or Counter()
    sensor = replace(sensor, phase_s=float(rng.uniform(0, sensor.step_s)))
    t_s = polls(ORIGIN_S - 5, plant.last_edge_s + 5, poll_s, rng=rng, jitter_s=poll_s / 10, drop=drop, gaps=gaps)
    recordings = {
        device: record(line, t_s, sensor if counter_seen else None, power) for device, line in plant.lines.items()
    }
    return Case(plant, readings_csv(recordings), spans_csv(plant.runs, classes=classes))


def serial_plant(seed: int, *, count: int = 400, load: float = 0.8, slots: int = 1) -> Plant:
    """Three sizes of one model before a server that works on ``slots`` at once."""
    rng = np.random.default_rng(seed)
    mean_s = sum(kind.solo_s for kind in THREE_SIZES) / len(THREE_SIZES)
    arrivals = ORIGIN_S + np.cumsum(rng.exponential(mean_s / load, count))
    kinds = rng.integers(len(THREE_SIZES), size=count)
    jobs = [Job(f"r{i:05d}", float(arrivals[i]), THREE_SIZES[kinds[i]]) for i in range(count)]
    return build(serve(jobs, slots), IDLE_W)

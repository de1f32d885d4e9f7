"""A host of its own making, for checking advice that was not tuned on it: heat, clocks, sensors, a queue and a gateway.

Each device is a die on a sink (two thermal masses), draws ``idle + dynamic * clock ** exponent`` and works through
images of some seconds at ``clock ** yield``. The driver lowers clocks softly from the operating limit on (or not at
all) and halves them at the slowdown limit. Temperatures are shown truncated and late. The gateway reads the newest
advice every 5 s, applies it 3 s later, and has one bucket a tier. Units: seconds, watts, joules, degrees Celsius.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Advise = Callable[[dict[str, Any]], dict[str, Any]]

STEP_S = 0.25
READ_EVERY_S = 5.0
ACT_AFTER_S = 3.0
HALVED_UNTIL_K = 3.0
SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Board:
    """One kind of device and the room it stands in; ``spread`` is the relative difference between neighbours."""

    count: int = 4
    idle_w: float = 62.0
    dynamic_w: float = 420.0
    exponent: float = 2.6
    yields: float = 0.8
    limit_w: float = 480.0
    min_w: float = 120.0
    image_s: float = 3.5
    die_j_per_k: float = 70.0
    die_k_per_w: float = 0.045
    sink_j_per_k: float = 900.0
    sink_k_per_w: float = 0.055
    memory_k_per_w: float = 0.09
    memory_lag_s: float = 25.0
    air_c: float = 27.0
    spread: float = 0.05
    leak_per_k: float = 0.003
    max_operating_c: float = 85.0
    slowdown_c: float = 88.0
    memory_max_operating_c: float | None = None
    late_s: float = 2.0
    soft_governor: bool = True

    def sustainable_images_per_s(self, shy_k: float = 0.4) -> float:
        """What an all-knowing controller finishes per second while every die stays ``shy_k`` under the limit."""
        hot_c = self.max_operating_c - shy_k
        resistance = (self.die_k_per_w + self.sink_k_per_w) * spread_of(self)
        watts = (hot_c - self.air_c) / resistance - self.idle_w * (1 + self.leak_per_k * (hot_c - 40.0))
        clock = np.clip(watts / self.dynamic_w, 0.0, 1.0) ** (1 / self.exponent)
        return float(np.sum(clock**self.yields) / self.image_s)

    @property
    def full_images_per_s(self) -> float:
        """What it finishes at full clock."""
        return self.count / self.image_s


def spread_of(board: Board) -> Floats:
    """Relative thermal resistance of each device."""
    return np.linspace(1 - board.spread, 1 + board.spread, board.count) if board.count > 1 else np.ones(1)


@dataclass(slots=True)
class Story:
    """What happens to the host. ``demand`` is a multiple of full capacity over time; shares are by tier.

    ``turns`` changes the board at a time; ``blind`` and ``gone`` name the devices without any reading, and
    fallen off the bus, at a time; ``shape`` may change an observation before it is sent.
    """

    demand: Callable[[float], float]
    shares: Mapping[str, float] = field(default_factory=lambda: {"pro": 0.08, "plus": 0.16, "free": 0.76})
    turns: Mapping[float, Mapping[str, float]] = field(default_factory=dict)
    blind: Callable[[float], Sequence[int]] = lambda _: ()
    gone: Callable[[float], Sequence[int]] = lambda _: ()
    shape: Callable[[dict[str, Any]], dict[str, Any]] = lambda seen: seen
    event_s: float = 0.0
    start_c: float | None = None
    patience_s: float = 60.0


@dataclass(slots=True, repr=False)
class Run:
    """What came of it: observations sent, advice got, heat in device-seconds, images by tier."""

    seen: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    hot_s: float = 0.0
    halved_s: float = 0.0
    top_c: float = 0.0
    done: list[float] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    admitted: dict[str, int] = field(default_factory=dict)
    waits_s: dict[str, list[float]] = field(default_factory=dict)
    good: list[float] = field(default_factory=list)

    def finished_between(self, begin_s: float, end_s: float) -> float:
        """Images finished per second in an interval."""
        return sum(begin_s <= t < end_s for t in self.done) / (end_s - begin_s)

    def good_between(self, begin_s: float, end_s: float) -> float:
        """Images per second finished in an interval before their caller lost patience."""
        return sum(begin_s <= t < end_s for t in self.good) / (end_s - begin_s)

    def numbers(self, begin_s: float, pick: Callable[[dict[str, Any]], float | None]) -> list[float]:
        """One figure of the advice over time, from ``begin_s`` on, where it is a number."""
        return [x for said in self.said if said["t"] >= begin_s and (x := pick(said)) is not None]


class Host:
    """Devices, queue and gateway; ``step`` moves time on."""

    def __init__(self, board: Board, story: Story, seed: int) -> None:
        """A host at rest in its room, or at ``story.start_c`` under full load."""
        self.board, self.story, self.rng = board, story, np.random.default_rng(seed)
        self.t = 0.0
        count = board.count
        start_c = board.air_c + 8.0 if story.start_c is None else story.start_c
        self.die_c = np.full(count, start_c)
        self.sink_c = board.air_c + (self.die_c - board.air_c) * 0.6
        self.memory_c = np.full(count, start_c - 3.0)
        self.energy_j = self.rng.uniform(1e3, 1e7, count)
        self.power_w = np.full(count, board.idle_w)
        self.soft, self.halved = np.ones(count), np.zeros(count, bool)
        self.cap_w = np.full(count, board.limit_w)
        self.left_s, self.busy_s = np.zeros(count), np.zeros(count)
        self.owners: list[tuple[float, str] | None] = [None] * count
        self.queue: deque[tuple[float, str]] = deque()
        self.tokens = dict.fromkeys(story.shares, 10.0)
        self.rules: dict[str, Any] = {}
        self.past_c: deque[Floats] = deque([self.die_c.copy()], maxlen=int(board.late_s / STEP_S) + 1)
        self.counts: dict[str, Any] = {"images_done": 0, "arrivals": dict.fromkeys(story.shares, 0)}
        self.run = Run(
            asked=dict.fromkeys(story.shares, 0),
            admitted=dict.fromkeys(story.shares, 0),
            waits_s={tier: [] for tier in story.shares},
        )

    def obey(self, advice: Mapping[str, Any]) -> None:
        """The gateway takes the tiers' limits, whoever sets caps takes the caps."""
        self.rules = dict(advice["tiers"])
        caps = [advice["power_cap_w"].get(f"GPU-{k}") for k in range(self.board.count)]
        self.cap_w = np.array([self.board.limit_w if cap is None else cap for cap in caps], float)

    def step(self) -> None:
        """One step of everything."""
        if (turn := self.story.turns.get(self.t)) is not None:
            self.board = replace(self.board, **turn)
        self._arrive()
        speed = self._clocks() ** self.board.yields
        self._work(speed)
        self._heat()
        self.t = round(self.t + STEP_S, 6)

    def _arrive(self) -> None:
        mean = self.story.demand(self.t) * self.board.full_images_per_s * STEP_S
        for tier, share in self.story.shares.items():
            asked = int(self.rng.poisson(mean * share))
            self.counts["arrivals"][tier] += asked
            self.run.asked[tier] += asked
            admitted = min(asked, self._room(tier))
            self.tokens[tier] -= admitted
            self.run.admitted[tier] += admitted
            self.queue.extend(repeat((self.t, tier), admitted))

    def _room(self, tier: str) -> int:
        rule = self.rules.get(tier)
        if rule is None or (rule["max_images_per_minute"] is None and rule["action"] in {"admit", "limit"}):
            self.tokens[tier] = 1e6
            return 1_000_000
        rate = 0.0 if rule["action"] == "reject" else rule["max_images_per_minute"] / 60.0
        self.tokens[tier] = min(self.tokens[tier] + rate * STEP_S, max(rule["burst"], 1.0))
        return int(self.tokens[tier])

    def _clocks(self) -> Floats:
        board = self.board
        hot = self.die_c >= board.max_operating_c
        if board.soft_governor:
            self.soft = np.clip(self.soft + np.where(hot, -0.06, 0.02) * STEP_S, 0.3, 1.0)
        self.halved = (self.die_c >= board.slowdown_c) | (
            self.halved & (self.die_c > board.slowdown_c - HALVED_UNTIL_K)
        )
        room = np.clip((self.cap_w - board.idle_w) / board.dynamic_w, 0.01, 1.0) ** (1 / board.exponent)
        self.capped = room < 1.0
        return np.minimum(room, self.soft) * np.where(self.halved, 0.5, 1.0)

    def _work(self, speed: Floats) -> None:
        busy = np.zeros(self.board.count)
        gone = set(self.story.gone(self.t))
        for k in gone:
            if (owner := self.owners[k]) is not None:
                self.queue.appendleft(owner)
                self.owners[k] = None
        for k in set(range(self.board.count)) - gone:
            time_s = STEP_S
            while time_s > 1e-9:
                if self.owners[k] is None:
                    if not self.queue:
                        break
                    self.owners[k] = self.queue.popleft()
                    self.run.waits_s[self.owners[k][1]].append(self.t - self.owners[k][0])
                    self.left_s[k] = self.board.image_s
                used_s = min(time_s, self.left_s[k] / speed[k])
                self.left_s[k] -= used_s * speed[k]
                time_s -= used_s
                busy[k] += used_s / STEP_S
                if self.left_s[k] <= 1e-9:
                    self._finish(k)
        self.busy_s += busy * STEP_S
        clock = speed ** (1 / self.board.yields)
        leak = 1 + self.board.leak_per_k * (self.die_c - 40.0)
        self.power_w = self.board.idle_w * leak + self.board.dynamic_w * clock**self.board.exponent * busy
        self.power_w[list(gone)] = 0.0

    def _finish(self, k: int) -> None:
        arrived_s = self.owners[k][0]
        self.owners[k] = None
        self.counts["images_done"] += 1
        self.run.done.append(self.t)
        if self.t - arrived_s <= self.story.patience_s:
            self.run.good.append(self.t)

    def _heat(self) -> None:
        board, spread = self.board, spread_of(self.board)
        up_w = (self.die_c - self.sink_c) / (board.die_k_per_w * spread)
        out_w = (self.sink_c - board.air_c) / (board.sink_k_per_w * spread)
        self.die_c = self.die_c + (self.power_w - up_w) / board.die_j_per_k * STEP_S
        self.sink_c = self.sink_c + (up_w - out_w) / board.sink_j_per_k * STEP_S
        aim_c = board.air_c + board.memory_k_per_w * spread * self.power_w
        self.memory_c = self.memory_c + (aim_c - self.memory_c) / board.memory_lag_s * STEP_S
        self.energy_j = self.energy_j + self.power_w * STEP_S
        self.past_c.append(self.die_c.copy())
        self.run.top_c = max(self.run.top_c, float(self.die_c.max()))
        self.run.halved_s += float(self.halved.sum()) * STEP_S
        if self.t >= self.story.event_s + SETTLE_S:
            self.run.hot_s += float((self.die_c >= board.max_operating_c).sum()) * STEP_S

    def observe(self, elapsed_s: float) -> dict[str, Any]:
        """What the sensors and counters say now; counts are since the last call."""
        blind, gone = set(self.story.blind(self.t)), set(self.story.gone(self.t))
        devices = [self._device(k, elapsed_s, dark=k in blind) for k in range(self.board.count) if k not in gone]
        waiting = dict.fromkeys(self.story.shares, 0)
        for _, tier in self.queue:
            waiting[tier] += 1
        seen = {"t": self.t, "devices": devices, "queue": waiting, **self.counts}
        self.counts = {"images_done": 0, "arrivals": dict.fromkeys(self.story.shares, 0)}
        self.busy_s[:] = 0.0
        return self.story.shape(seen)

    def _device(self, k: int, elapsed_s: float, *, dark: bool) -> dict[str, Any]:
        board = self.board
        flags = {
            "gpu_idle": self.owners[k] is None,
            "sw_power_cap": bool(self.capped[k]) if self.t else False,
            "sw_thermal": self.soft[k] < 1.0,
            "hw_slowdown": bool(self.halved[k]),
        }
        limits = {
            "power_limit_w": board.limit_w,
            "power_limit_min_w": board.min_w,
            "power_limit_max_w": board.limit_w,
            "max_operating_c": board.max_operating_c,
            "slowdown_c": board.slowdown_c,
            "memory_max_operating_c": board.memory_max_operating_c,
        }
        if dark:
            return {"id": f"GPU-{k}", "up": True, "temperature_c": None, **limits}
        has_memory = board.memory_max_operating_c is not None
        return limits | {
            "id": f"GPU-{k}",
            "up": True,
            "temperature_c": int(self.past_c[0][k]),
            "memory_temperature_c": int(self.memory_c[k]) if has_memory else None,
            "power_w": round(float(self.power_w[k] * self.rng.normal(1.0, 0.01)), 1),
            "energy_j": round(float(self.energy_j[k]), 3),
            "utilization": round(min(1.0, float(self.busy_s[k]) / max(elapsed_s, STEP_S)), 3),
            "clock_events": [name for name, on in flags.items() if on],
        }


def drive(
    board: Board,
    story: Story,
    advise: Advise | None,
    duration_s: float,
    gaps_s: Iterator[float] | None = None,
    *,
    seed: int = 7,
) -> Run:
    """The closed loop: observe after each gap (1 s), read the newest advice every 5 s, act on it 3 s later.

    Gaps are multiples of ``STEP_S``; ``advise`` may be ``None``: then nothing limits the host but its driver.
    """
    host = Host(board, story, seed)
    gaps_s = repeat(1.0) if gaps_s is None else gaps_s
    last_s, next_s, read_s = 0.0, 0.0, READ_EVERY_S
    newest: dict[str, Any] | None = None
    pending: deque[tuple[float, dict[str, Any]]] = deque()
    while host.t < duration_s:
        if advise is not None and host.t >= next_s:
            seen = host.observe(host.t - last_s)
            newest = advise(seen)
            host.run.seen.append(seen)
            host.run.said.append(newest)
            last_s, next_s = host.t, host.t + next(gaps_s)
        if newest is not None and host.t >= read_s:
            pending.append((host.t + ACT_AFTER_S, newest))
            read_s += READ_EVERY_S
        while pending and host.t >= pending[0][0]:
            host.obey(pending.popleft()[1])
        host.step()
    return host.run

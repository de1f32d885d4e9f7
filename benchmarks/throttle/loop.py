"""One hour in a closed loop: plant, telemetry, controller, policy engine, gateway, service."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.throttle import arrivals as arriving
from benchmarks.throttle.baselines import BASELINES
from benchmarks.throttle.controller import Advise, Controller, ControllerFault, Observation, Recommendation
from benchmarks.throttle.families import SPEED_EXPONENT, Family
from benchmarks.throttle.gateway import TIERS, Gateway
from benchmarks.throttle.oracle import Oracle, Truth
from benchmarks.throttle.plant import Array, Governor, Plant
from benchmarks.throttle.scenarios import Points, Scenario
from benchmarks.throttle.service import Service
from benchmarks.throttle.telemetry import Telemetry

DT_S = 0.25
STEPS = 4
READ_EVERY_S = 5
ACTS_AFTER_S = 3
J_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Case:
    """What is run; everything random follows from scenario, family and seed, so controllers share it."""

    scenario: Scenario
    family: Family
    governor: Governor
    seed: int
    controller: str
    actuators: tuple[str, ...] = ("rate", "power_cap")

    def rng(self, stream: str) -> np.random.Generator:
        """A generator of its own for each use."""
        names = (self.scenario.name, self.family.name, stream)
        return np.random.default_rng([self.seed, *(zlib.crc32(name.encode()) for name in names)])

    def caps_act(self) -> bool:
        """Whether caps are applied: where the operator does, and for the oracle, which is a bound of either."""
        return "power_cap" in self.actuators or self.controller == "oracle"

    def board(self) -> Family:
        """The family as this scenario cools it."""
        family = self.family.liquid() if self.scenario.cooling == "liquid" else self.family
        return family.hot_memory() if self.scenario.hot_memory else family


@dataclass(slots=True)
class Recording:
    """What happened: one row a second, sums over the hour in board-seconds, and each request's times."""

    case: Case
    arrivals: arriving.Arrivals
    service: Service
    t_s: list[int] = field(default_factory=list)
    die_c: list[Array] = field(default_factory=list)
    cap_w: list[Array] = field(default_factory=list)
    published_cap_w: list[Array] = field(default_factory=list)
    published_per_minute: list[float] = field(default_factory=list)
    tier_per_minute: list[tuple[float, ...]] = field(default_factory=list)
    hot_s: list[float] = field(default_factory=list)
    soft_s: float = 0.0
    hard_s: float = 0.0
    die_max_c: float = 0.0
    energy_j: float = 0.0
    co2e_g: float = 0.0
    budget_j: float | None = None
    budget_g: float | None = None
    asked: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    binding: list[str] = field(default_factory=list)


class Host:
    """The world of one case, stepped a second at a time."""

    def __init__(self, case: Case) -> None:
        scenario, family = case.scenario, case.board()
        self.case, self.family = case, family
        rng = case.rng("plant")
        shift_k = family.inlet_shift_k + rng.uniform(-1.0, 1.0)
        self.inlet_c = course(scenario.inlet_c, shift_k)
        self.work_factor, self.grid_g_per_kwh = course(scenario.work_factor), course(scenario.grid_g_per_kwh)
        self._sink_factor = course(scenario.sink_factor)
        self._sink_spread = rng.uniform(0.92, 1.08, scenario.devices)
        self.plant = Plant(family, scenario.devices, case.governor, self.inlet_c(0.0), rng)
        self.nominal_per_s = scenario.devices / family.image_s
        self.arrivals = arriving.draw(scenario, self.nominal_per_s, family.image_s, case.rng("arrivals"))
        self.service = Service(scenario.devices, self.arrivals)
        self.telemetry, self.gateway = Telemetry(self.plant, case.rng("sensors")), Gateway()
        self.recording = Recording(case, self.arrivals, self.service)
        self._lost = "null" if case.seed % 2 == 0 else "frozen"
        self._next, self._done = 0, 0
        self._arrival_s, self._tier = self.arrivals.t_s.tolist(), self.arrivals.tier.tolist()
        self._set_budgets()

    def second(self, t_s: int) -> Observation:
        """Let the second that ends at ``t_s`` pass; what can be seen of it."""
        self._boards_come_and_go(t_s - 1)
        asked, busy, hot_s, energy_j = [0] * len(TIERS), np.zeros(self.plant.devices), 0.0, self.plant.energy_j.sum()
        factor = self._sink_factor(t_s - 1.0)
        sink_factor = 1.0 + (factor - 1.0) * self._sink_spread if factor != 1.0 else np.ones(self.plant.devices)
        inlet_c, self.service.work_factor = self.inlet_c(t_s - 1.0), self.work_factor(t_s - 1.0)
        for step in range(STEPS):
            at_s = t_s - 1 + step * DT_S
            self._let_in(at_s + DT_S, asked)
            clock = self.plant.clock()
            worked = self.service.advance(at_s, DT_S, clock**SPEED_EXPONENT)
            self.plant.advance(DT_S, clock, worked, inlet_c, sink_factor)
            busy += worked * DT_S
            hot_s += float(self.plant.hot().sum()) * DT_S
            self._tally()
        used_j = float(self.plant.energy_j.sum() - energy_j)
        self.recording.energy_j += used_j
        self.recording.co2e_g += used_j / J_PER_KWH * self.grid_g_per_kwh(t_s - 1.0)
        self.recording.hot_s.append(hot_s)
        return self._observe(t_s, busy, asked)

    def apply(self, t_s: float, recommendation: Recommendation) -> None:
        """Let a recommendation act: tier limits, and caps where they act."""
        self.gateway.apply(t_s, recommendation)
        if self.case.caps_act():
            self.plant.cap_w = self.caps_w(recommendation)

    def caps_w(self, recommendation: Recommendation) -> Array:
        """Caps by board; one not named, or null, has none: its greatest limit."""
        caps, most_w = recommendation.get("power_cap_w") or {}, self.family.max_w
        asked = [caps.get(f"GPU-{device}") for device in range(self.plant.devices)]
        caps_w = np.clip([most_w if cap is None else float(cap) for cap in asked], self.family.min_w, most_w)
        if np.isnan(caps_w).any():
            raise ValueError("a cap is not a number")
        return caps_w

    def _set_budgets(self) -> None:
        scenario, full_j = self.case.scenario, self.plant.devices * self.family.max_w * self.case.scenario.duration_s
        if scenario.energy_share is not None:
            self.recording.budget_j = scenario.energy_share * full_j
        if scenario.co2e_share is not None:
            grid = np.mean([self.grid_g_per_kwh(float(t_s)) for t_s in range(scenario.duration_s)])
            self.recording.budget_g = scenario.co2e_share * full_j / J_PER_KWH * float(grid)

    def _let_in(self, until_s: float, asked: list[int]) -> None:
        while self._next < len(self._arrival_s) and self._arrival_s[self._next] < until_s:
            tier = self._tier[self._next]
            asked[tier] += 1
            if self.gateway.admits(tier, self._arrival_s[self._next]):
                self.service.admit(self._next)
            self._next += 1

    def _tally(self) -> None:
        recording, plant = self.recording, self.plant
        recording.die_max_c = max(recording.die_max_c, float(plant.die_c.max()))
        recording.soft_s += float(plant.soft.sum()) * DT_S
        recording.hard_s += float(plant.hard.sum()) * DT_S

    def _boards_come_and_go(self, t_s: int) -> None:
        for absence in self.case.scenario.absences:
            if t_s == absence.from_s:
                self.plant.up[absence.device] = False
                self.service.remove(absence.device)
            elif t_s == absence.to_s:
                self.plant.up[absence.device] = True
                self.plant.cap_w = self.plant.cap_w.copy()
                self.plant.cap_w[absence.device] = self.family.max_w
                self.service.restore(absence.device)
                if absence.listed:
                    self.telemetry.restart_counter(absence.device)

    def _observe(self, t_s: int, busy: Array, asked: list[int]) -> Observation:
        scenario, recording = self.case.scenario, self.recording
        lost = self._lost if scenario.lost_s and scenario.lost_s[0] <= t_s < scenario.lost_s[1] else None
        gone = frozenset(a.device for a in scenario.absences if not a.listed and a.from_s < t_s <= a.to_s)
        done, self._done = self.service.done - self._done, self.service.done
        recording.t_s.append(t_s)
        recording.die_c.append(self.plant.die_c)
        recording.cap_w.append(self.plant.cap_w)
        recording.asked.append(sum(asked))
        recording.done.append(done)
        recording.queued.append(sum(self.service.waiting))
        return {
            "t": float(t_s),
            "devices": self.telemetry.read(busy, gone, lost),
            "images_done": float(done),
            "arrivals": dict(zip(TIERS, asked, strict=True)),
            "queue": dict(zip(TIERS, self.service.waiting, strict=True)),
            "grid_g_per_kwh": self.grid_g_per_kwh(float(t_s)),
            "grid_forecast": self._forecast(t_s),
            "budget": self._budget(),
        }

    def _forecast(self, t_s: int) -> list[dict[str, float]]:
        later_s = range(t_s - t_s % 600 + 600, self.case.scenario.duration_s + 1, 600)
        return [{"t": float(at_s), "g_per_kwh": self.grid_g_per_kwh(float(at_s))} for at_s in later_s]

    def _budget(self) -> dict[str, Any] | None:
        recording = self.recording
        if recording.budget_j is None and recording.budget_g is None:
            return None
        left_j = None if recording.budget_j is None else recording.budget_j - recording.energy_j
        left_g = None if recording.budget_g is None else recording.budget_g - recording.co2e_g
        return {"energy_j_left": left_j, "co2e_g_left": left_g, "until_t": float(self.case.scenario.duration_s)}


def course(points: Points, shift: float = 0.0) -> Callable[[float], float]:
    """The value over time of points joined by straight lines, plus ``shift``."""
    times, values = [t_s for t_s, _ in points], [value + shift for _, value in points]
    if len(points) == 1:
        return lambda _: values[0]
    return lambda t_s: float(np.interp(t_s, times, values))


def run(case: Case, controller: Controller | None = None) -> Recording:
    """The whole hour, under another controller than the case names if one is given.

    ControllerFault when the controller breaks the contract.
    """
    host = Host(case)
    controller = controller or make(case, host)
    try:
        _drive(host, controller, at_once=isinstance(controller, Oracle))
    finally:
        controller.close()
    return host.recording


def make(case: Case, host: Host) -> Controller:
    """The controller that a case names."""
    if case.controller == "joulegate":
        return Advise(case.actuators)
    if case.controller == "oracle":
        return Oracle(Truth(host.plant, host.inlet_c, host.work_factor, host.grid_g_per_kwh))
    return BASELINES[case.controller](host.family)


def _drive(host: Host, controller: Controller, *, at_once: bool) -> None:
    phase_s = int(host.case.rng("policy").integers(READ_EVERY_S))
    coming: list[tuple[int, Recommendation]] = []
    for t_s in range(1, host.case.scenario.duration_s + 1):
        recommendation = controller.advise(host.second(t_s))
        try:
            _publish(host, recommendation)
            if at_once:
                host.apply(t_s, recommendation)
            elif t_s % READ_EVERY_S == phase_s:
                coming.append((t_s + ACTS_AFTER_S, recommendation))
            if coming and coming[0][0] == t_s:
                host.apply(t_s, coming.pop(0)[1])
        except (KeyError, TypeError, ValueError) as error:
            raise ControllerFault(f"{host.case.controller}, t={t_s}: no usable recommendation: {error!r}") from None


def _publish(host: Host, recommendation: Recommendation) -> None:
    recording, nominal = host.recording, 60.0 * host.nominal_per_s
    tiers = [recommendation["tiers"][name]["max_images_per_minute"] for name in TIERS]
    host_rate = recommendation["max_images_per_minute"]
    recording.published_per_minute.append(min(nominal if host_rate is None else float(host_rate), nominal))
    recording.tier_per_minute.append(tuple(min(nominal if rate is None else float(rate), nominal) for rate in tiers))
    recording.published_cap_w.append(host.caps_w(recommendation))
    recording.state.append(str(recommendation.get("state") or ""))
    recording.binding.append(str(recommendation.get("binding") or ""))

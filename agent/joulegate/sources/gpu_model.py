"""A GPU in software: power, heat, clocks and sensors, stepped by a time that is given, with the truth kept beside."""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from joulegate.metering.reading import CLOCK_EVENTS, Reading
from joulegate.sources.gpu_profiles import GpuProfile

FaultKind = Literal["lost", "hung", "reset", "stuck", "lying", "zero", "not_supported"]
"""lost: no answer, and the counter starts at 0 when it returns; hung: calls time out; reset: the counter falls to 0;
stuck: it stands still; lying: it gains 0.57 of the energy; zero: power reads 0 W; not_supported: no counter."""

FAULT_KINDS: tuple[FaultKind, ...] = ("lost", "hung", "reset", "stuck", "lying", "zero", "not_supported")

STEP_S = 0.01
POWER_EXPONENT = 2.2
SPEED_EXPONENT = 0.9
LYING_GAIN = 0.57
"""Counter over integrated power as seen in ml-energy/zeus#181."""

_DYNAMIC_SHARE = (0.58, 0.97)
_HISTORY_S = 3.0
_TRIM_AT = 2048
_MAX_STEPS = 20_000
_MIN_CLOCK = 0.2
_SLOWED_CLOCK = 0.5
_SLOWDOWN_RELEASE_K = 3.0
_SLOWDOWN_RELEASE_S = 2.0
_SOFT_DOWN_PER_S = 0.05
_SOFT_UP_PER_S = 0.02
_RESIDENT_SHARE = 0.25
_REQUEST_SHARE = 0.02
_BIT = {name: 1 << bit for bit, name in enumerate(CLOCK_EVENTS)}


def dynamic_power_w(power_class: str, profile: GpuProfile) -> float:
    """Watts above idle that a request of an unknown class draws alone: from its name, the same on every run.

    0.58 to 0.97 of the board's span between idle and limit, where the seven ML.ENERGY text-to-image models lie on one
    H100 (449 to 683 W of 95 to 700 W, notes/measurement.md, section 3).
    """
    digest = hashlib.blake2b(power_class.encode(), digest_size=8).digest()
    low, high = _DYNAMIC_SHARE
    share = low + (high - low) * int.from_bytes(digest, "big") / 2**64
    return share * (profile.power_limit_w - profile.idle_w)


@dataclass(slots=True)
class _Running:
    """A request while it runs: its draw, its hidden share factor, and where the running totals stood at its start."""

    dynamic_w: float
    factor: float
    idle_line: float
    dynamic_line: float
    work_line: float


@dataclass(frozen=True, slots=True)
class _Knot:
    """Where the true totals stood at one instant; power is constant between knots."""

    t_s: float
    energy_j: float
    counter_j: float
    active_s: float
    die_c: float
    memory_c: float


class GpuModel:
    """One simulated GPU. Times are seconds on any axis and never go back; ``t0_s`` is where it begins, idle and rested.

    With n requests active, request r owes idle/n plus its share of the dynamic power: f_r * D_r / sum(f), where f is 1
    for all unless ``share_sd`` hides a factor. That is the truth of design 5.2. All of it follows from ``profile``,
    ``seed`` and the calls made; how finely ``advance`` is called changes nothing.
    """

    def __init__(
        self,
        profile: GpuProfile,
        *,
        seed: int = 0,
        t0_s: float = 0.0,
        device: str = "twin-0",
        class_power_w: Mapping[str, float] | None = None,
        keep_finished: int | None = None,
    ) -> None:
        """``class_power_w`` fixes the dynamic watts of classes; ``keep_finished`` bounds the truths that are kept."""
        self.profile = profile
        self.device = device
        self.now_s = t0_s
        self.power_limit_w = profile.power_limit_w
        self._seed = seed
        self._t0_s = t0_s
        self._class_power_w = dict(class_power_w or {})
        self._keep_finished = keep_finished
        self._heat = _HeatPath(profile)
        self._governor = _Governor(profile)
        self._running: dict[str, _Running] = {}
        self._finished: dict[str, tuple[float, float]] = {}
        self._factor_sum = 0.0
        self._draw_sum = 0.0
        self._idle_line = self._dynamic_line = self._work_line = 0.0
        self._energy_j = self._counter_j = self._idle_j = self._active_s = 0.0
        self._grid = 0
        self._grid_energy_j = 0.0
        self._faults = _Faults()
        self._counter_base_j = 0.0
        self._frozen_mj: int | None = None
        self._times: list[float] = []
        self._knots: list[_Knot] = []
        self._refresh()
        self._remember()

    def start(self, request_id: str, power_class: str, at_s: float, dynamic_w: float | None = None) -> None:
        """A request begins to use the device; one that already runs is left as it is."""
        self.advance(at_s)
        if request_id in self._running:
            return
        if dynamic_w is None:
            dynamic_w = self._class_power_w.get(power_class)
        if dynamic_w is None:
            dynamic_w = dynamic_power_w(power_class, self.profile)
        running = _Running(
            dynamic_w, self._hidden_factor(request_id), self._idle_line, self._dynamic_line, self._work_line
        )
        self._running[request_id] = running
        self._factor_sum += running.factor
        self._draw_sum += running.factor * dynamic_w
        self._refresh()

    def stop(self, request_id: str, at_s: float) -> None:
        """The request lets the device go; an unknown one changes nothing."""
        self.advance(at_s)
        running = self._running.pop(request_id, None)
        if running is None:
            return
        self._finished[request_id] = self._owed(running)
        if self._keep_finished is not None and len(self._finished) > self._keep_finished:
            del self._finished[next(iter(self._finished))]
        if self._running:
            self._factor_sum -= running.factor
            self._draw_sum -= running.factor * running.dynamic_w
        else:
            self._factor_sum = self._draw_sum = 0.0
        self._refresh()

    def fault(self, kind: FaultKind, at_s: float, for_s: float = math.inf) -> None:
        """Break something from ``at_s`` (not before now) for ``for_s`` seconds; a reset happens once, at ``at_s``."""
        begin_s = max(at_s, self.now_s)
        self._faults.add(kind, begin_s, begin_s + for_s)

    def set_power_limit(self, limit_w: float, at_s: float) -> None:
        """What a power cap does: from now on the clock falls until the draw fits."""
        self.advance(at_s)
        self.power_limit_w = min(max(limit_w, self.profile.power_limit_min_w), self.profile.power_limit_max_w)
        self._refresh()

    def set_cooling(self, at_s: float, *, inlet_c: float | None = None, sink_factor: float | None = None) -> None:
        """Warm the inlet, or multiply the heat sink's resistance (a failed fan: 2.6; notes/throttle.md, 4.1)."""
        self.advance(at_s)
        self._heat.change(inlet_c, sink_factor)

    def advance(self, to_s: float) -> None:
        """Live until ``to_s``; raises ``ValueError`` when that is in the past.

        After a long sleep the steps grow, so that no call does more than 20,000 of them.
        """
        if to_s < self.now_s:
            raise ValueError(f"time goes back from {self.now_s} to {to_s}")
        stride = 1 + int((to_s - self.now_s) / STEP_S / _MAX_STEPS)
        while True:
            while self._faults.edges and self._faults.edges[0][0] <= self.now_s:
                self._cross_fault_edge()
            if self.now_s >= to_s:
                return
            grid = max(self._grid + stride, 1 + int((self.now_s - self._t0_s) / STEP_S + 1e-6))
            grid_s = self._t0_s + grid * STEP_S
            edge_s = min(grid_s, to_s, self._faults.edges[0][0] if self._faults.edges else math.inf)
            self._flow(edge_s)
            if edge_s == grid_s:
                self._on_grid(grid)
            self._remember()

    def read(self, wall_s: float) -> Reading:
        """What the sensors show now."""
        down = self._faults.down(self.now_s)
        if down is not None:
            return Reading(self.device, self.now_s, wall_s, up=False, error=down)
        sensor = self.profile.sensor
        update_s = self._refreshed(self.now_s, 0.0, sensor.update_s, 0.0)
        sample = self._at(self._refreshed(self.now_s, sensor.temperature_lag_s, sensor.temperature_period_s, 0.0))
        dead = self._faults.active("zero", self.now_s)
        average_w = self._mean_w(update_s, 1.0) if sensor.has_average else None
        hot_memory = self.profile.memory_max_operating_c is not None
        return Reading(
            device=self.device,
            t_s=self.now_s,
            wall_s=wall_s,
            energy_mj=self.counter_mj(),
            power_w=0.0 if dead else self._noisy(self._mean_w(update_s, sensor.window_s), update_s),
            power_average_w=0.0 if dead and average_w is not None else average_w,
            temperature_c=float(int(sample.die_c)),
            memory_temperature_c=float(int(sample.memory_c)) if hot_memory else None,
            utilization=min(1.0, self._at(update_s).active_s - self._at(update_s - 1.0).active_s),
            memory_used_bytes=self._memory_used_bytes(),
            power_limit_w=self.power_limit_w,
            sm_clock_mhz=self.sm_clock_mhz,
            clock_events=self.clock_events,
        )

    def counter_mj(self) -> int | None:
        """The energy counter as it shows now; ``None`` where it is not supported."""
        if self._faults.active("not_supported", self.now_s):
            return None
        if self._frozen_mj is not None:
            return self._frozen_mj
        sensor = self.profile.sensor
        shown = self._at(self._refreshed(self.now_s, sensor.lag_s, sensor.step_s, sensor.phase_s))
        return max(0, int((shown.counter_j - self._counter_base_j) * 1000 + 1e-6))

    @property
    def power_w(self) -> float:
        """True power now."""
        return self._idle_w + self._dynamic_w

    @property
    def die_c(self) -> float:
        """True die temperature now."""
        return self._heat.die_c

    @property
    def sm_clock_mhz(self) -> float:
        """The clock now."""
        return self._clock * self.profile.sm_clock_max_mhz if self._running else self.profile.sm_clock_idle_mhz

    @property
    def clock_events(self) -> int:
        """Mask over ``CLOCK_EVENTS`` of what holds the clock down now."""
        if not self._running:
            return _BIT["gpu_idle"] | self._governor.events
        return self._governor.events | (_BIT["sw_power_cap"] if self._capped else 0)

    def active(self) -> tuple[str, ...]:
        """Requests that run now."""
        return tuple(self._running)

    def energy_true_mj(self, request_id: str) -> float:
        """True energy of a request so far; raises ``KeyError`` for one that never ran or is no longer kept."""
        return self._truth(request_id)[0] * 1000

    def work_true_s(self, request_id: str) -> float:
        """Seconds of lone work at full clock that a request has got: it stands still when others or heat slow it."""
        return self._truth(request_id)[1]

    def idle_true_mj(self) -> float:
        """True energy while no request was active."""
        return self._idle_j * 1000

    def total_true_mj(self) -> float:
        """True energy since ``t0_s``: idle and every request."""
        return self._energy_j * 1000

    def total_true_at_mj(self, t_s: float) -> float:
        """True energy until ``t_s``, within the last three seconds."""
        return self._at(t_s).energy_j * 1000

    def _truth(self, request_id: str) -> tuple[float, float]:
        running = self._running.get(request_id)
        return self._finished[request_id] if running is None else self._owed(running)

    def _owed(self, running: _Running) -> tuple[float, float]:
        """Joules and seconds of work since its start: differences of running totals, so O(1) however many run."""
        dynamic_j = running.factor * running.dynamic_w * (self._dynamic_line - running.dynamic_line)
        work_s = running.factor * (self._work_line - running.work_line)
        return self._idle_line - running.idle_line + dynamic_j, work_s

    def _hidden_factor(self, request_id: str) -> float:
        if not self.profile.share_sd:
            return 1.0
        rng = random.Random(f"share {self._seed} {self.device} {request_id}")  # noqa: S311 - a simulation
        return math.exp(rng.gauss(0.0, self.profile.share_sd))

    def _refresh(self) -> None:
        """Power and clock for the present load and temperature."""
        profile = self.profile
        above_k = self._heat.die_c - self._heat.rest_c
        self._idle_w = profile.idle_w * (1 + profile.leakage_per_k * above_k)
        full_w = self._draw_sum / self._factor_sum if self._running else 0.0
        clock = self._governor.clock
        room_w = max(0.0, self.power_limit_w - self._idle_w)
        self._capped = full_w * math.pow(clock, POWER_EXPONENT) > room_w
        if self._capped:
            clock = max(_MIN_CLOCK, math.pow(room_w / full_w, 1 / POWER_EXPONENT))
        self._clock = clock
        self._power_factor = math.pow(clock, POWER_EXPONENT)
        self._speed = math.pow(clock, SPEED_EXPONENT)
        self._dynamic_w = full_w * self._power_factor

    def _flow(self, to_s: float) -> None:
        dt_s = to_s - self.now_s
        energy_j = (self._idle_w + self._dynamic_w) * dt_s
        self._energy_j += energy_j
        gain = self.profile.sensor.gain * (LYING_GAIN if self._faults.active("lying", self.now_s) else 1.0)
        self._counter_j += energy_j * gain
        if self._running:
            self._active_s += dt_s
            self._idle_line += self._idle_w / len(self._running) * dt_s
            self._dynamic_line += self._power_factor / self._factor_sum * dt_s
            self._work_line += self._speed / self._factor_sum * dt_s
        else:
            self._idle_j += energy_j
        self.now_s = to_s

    def _on_grid(self, grid: int) -> None:
        dt_s = (grid - self._grid) * STEP_S
        self._heat.step((self._energy_j - self._grid_energy_j) / dt_s, dt_s)
        self._governor.step(self._heat.die_c, dt_s)
        self._grid = grid
        self._grid_energy_j = self._energy_j
        self._refresh()

    def _cross_fault_edge(self) -> None:
        _, kind, begins = self._faults.edges.pop(0)
        if (kind == "reset" and begins) or (kind == "lost" and not begins):
            self._counter_base_j = self._counter_j
        if kind == "stuck":
            self._frozen_mj = self.counter_mj() if begins else None

    def _remember(self) -> None:
        heat = self._heat
        knot = _Knot(self.now_s, self._energy_j, self._counter_j, self._active_s, heat.die_c, heat.memory_c)
        self._times.append(self.now_s)
        self._knots.append(knot)
        if len(self._times) > _TRIM_AT:
            keep_from = max(0, bisect_right(self._times, self.now_s - _HISTORY_S) - 1)
            del self._times[:keep_from], self._knots[:keep_from]

    def _at(self, t_s: float) -> _Knot:
        """Totals at a past instant: exact, because power is constant between knots."""
        index = bisect_right(self._times, t_s)
        if index == 0:
            return self._knots[0]
        before = self._knots[index - 1]
        if index == len(self._knots) or before.t_s == t_s:
            return before
        after = self._knots[index]
        part = (t_s - before.t_s) / (after.t_s - before.t_s)
        return _Knot(
            t_s,
            before.energy_j + part * (after.energy_j - before.energy_j),
            before.counter_j + part * (after.counter_j - before.counter_j),
            before.active_s + part * (after.active_s - before.active_s),
            before.die_c,
            before.memory_c,
        )

    def _refreshed(self, t_s: float, lag_s: float, period_s: float, phase_s: float) -> float:
        """The instant whose value a sensor with this lag and period shows at ``t_s``."""
        origin_s = self._t0_s + phase_s
        periods = math.floor((t_s - lag_s - origin_s) / period_s + 1e-6)
        return max(self._t0_s, origin_s + periods * period_s)

    def _mean_w(self, t_s: float, window_s: float) -> float:
        begin_s = max(self._t0_s, t_s - window_s)
        if t_s <= begin_s:
            return self.power_w * self.profile.sensor.gain
        return (self._at(t_s).energy_j - self._at(begin_s).energy_j) / (t_s - begin_s) * self.profile.sensor.gain

    def _noisy(self, power_w: float, update_s: float) -> float:
        if not self.profile.sensor.noise:
            return power_w
        rng = random.Random(f"noise {self._seed} {self.device} {round(update_s * 1e4)}")  # noqa: S311 - a simulation
        return power_w * (1 + rng.gauss(0.0, self.profile.sensor.noise))

    def _memory_used_bytes(self) -> int:
        share = min(1.0, _RESIDENT_SHARE + _REQUEST_SHARE * len(self._running))
        return int(share * self.profile.memory_total_bytes)


class _HeatPath:
    """Die on a heat sink in an air stream, and the memory beside; stepped exactly for power constant over the step."""

    def __init__(self, profile: GpuProfile) -> None:
        self._profile = profile
        self._inlet_c = profile.inlet_c
        self._sink_k_per_w = profile.sink_k_per_w
        self.rest_c = profile.inlet_c + (profile.die_k_per_w + profile.sink_k_per_w) * profile.idle_w
        self.die_c = self.rest_c
        self._sink_c = profile.inlet_c + profile.sink_k_per_w * profile.idle_w
        self.memory_c = self._sink_c + profile.memory_k_per_w * profile.idle_w
        self._matrices: dict[float, tuple[float, float, float, float]] = {}

    def change(self, inlet_c: float | None, sink_factor: float | None) -> None:
        """New inlet temperature, new sink resistance as a multiple of the profile's."""
        if inlet_c is not None:
            self._inlet_c = inlet_c
        if sink_factor is not None:
            self._sink_k_per_w = self._profile.sink_k_per_w * sink_factor
            self._matrices.clear()

    def step(self, power_w: float, dt_s: float) -> None:
        """Let ``power_w`` flow through for ``dt_s``."""
        m = self._matrices.get(dt_s)
        if m is None:
            if len(self._matrices) > 8:
                self._matrices.clear()
            m = self._matrices[dt_s] = self._matrix(dt_s)
        sink_goal_c = self._inlet_c + self._sink_k_per_w * power_w
        die_goal_c = sink_goal_c + self._profile.die_k_per_w * power_w
        die_k, sink_k = self.die_c - die_goal_c, self._sink_c - sink_goal_c
        self.die_c = die_goal_c + m[0] * die_k + m[1] * sink_k
        self._sink_c = sink_goal_c + m[2] * die_k + m[3] * sink_k
        memory_goal_c = self._sink_c + self._profile.memory_k_per_w * power_w
        self.memory_c += (memory_goal_c - self.memory_c) * -math.expm1(-dt_s / self._profile.memory_tau_s)

    def _matrix(self, dt_s: float) -> tuple[float, float, float, float]:
        """exp(A dt) of the two-mass system, by Sylvester's formula (its eigenvalues are real and distinct)."""
        profile = self._profile
        a = -1 / (profile.die_k_per_w * profile.die_j_per_k)
        c = 1 / (profile.die_k_per_w * profile.sink_j_per_k)
        d = -c - 1 / (self._sink_k_per_w * profile.sink_j_per_k)
        middle, spread = (a + d) / 2, math.sqrt(((a - d) / 2) ** 2 - a * c)
        fast, slow = middle - spread, middle + spread
        up, down = math.exp(slow * dt_s) / (slow - fast), math.exp(fast * dt_s) / (fast - slow)
        return (
            up * (a - fast) + down * (a - slow),
            -a * (up + down),
            c * (up + down),
            up * (d - fast) + down * (d - slow),
        )


class _Governor:
    """The driver's slowdown: clocks halved at ``slowdown_c`` until 3 K below for 2 s, softly from ``max_operating_c``.

    NVIDIA's soft law is not public; 5 % a second down and 2 % up are assumed.
    """

    def __init__(self, profile: GpuProfile) -> None:
        self._profile = profile
        self._slowed = False
        self._cool_s = 0.0
        self._soft_clock = 1.0

    @property
    def clock(self) -> float:
        """Share of the full clock that heat leaves."""
        return min(self._soft_clock, _SLOWED_CLOCK) if self._slowed else self._soft_clock

    @property
    def events(self) -> int:
        """Mask of the thermal clock events."""
        hard = _BIT["hw_slowdown"] | _BIT["hw_thermal"] if self._slowed else 0
        return hard | (_BIT["sw_thermal"] if self._soft_clock < 1 else 0)

    def step(self, die_c: float, dt_s: float) -> None:
        """Judge the die's temperature after ``dt_s``."""
        profile = self._profile
        if die_c >= profile.slowdown_c:
            self._slowed, self._cool_s = True, 0.0
        elif self._slowed:
            self._cool_s = self._cool_s + dt_s if die_c < profile.slowdown_c - _SLOWDOWN_RELEASE_K else 0.0
            self._slowed = self._cool_s < _SLOWDOWN_RELEASE_S
        if not profile.soft_governor:
            return
        if die_c > profile.max_operating_c:
            self._soft_clock = max(_MIN_CLOCK, self._soft_clock - _SOFT_DOWN_PER_S * dt_s)
        elif die_c < profile.max_operating_c - 1:
            self._soft_clock = min(1.0, self._soft_clock + _SOFT_UP_PER_S * dt_s)


class _Faults:
    """Faults by command: windows in which they hold, and their edges in the order of time."""

    def __init__(self) -> None:
        self.edges: list[tuple[float, FaultKind, bool]] = []
        self._windows: list[tuple[FaultKind, float, float]] = []

    def add(self, kind: FaultKind, begin_s: float, end_s: float) -> None:
        """From ``begin_s`` up to, not including, ``end_s``."""
        self._windows.append((kind, begin_s, end_s))
        insort(self.edges, (begin_s, kind, True))
        if end_s < math.inf:
            insort(self.edges, (end_s, kind, False))

    def active(self, kind: FaultKind, now_s: float) -> bool:
        """Whether it holds now."""
        return any(name == kind and begin_s <= now_s < end_s for name, begin_s, end_s in self._windows)

    def down(self, now_s: float) -> str | None:
        """The error of a device that does not answer now, by NVML's name."""
        if self.active("lost", now_s):
            return "GPU_IS_LOST"
        return "TIMEOUT" if self.active("hung", now_s) else None

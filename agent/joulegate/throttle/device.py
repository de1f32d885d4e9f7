"""One device as the recommender knows it: limits, freshness, thermal models, and the ceiling of its power."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from joulegate.throttle.observation import DeviceObservation
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.thermal import ThermalModel
from joulegate.throttle.work import saturated_from

FALLBACK_OPERATING_C = 83.0
"""Where a device names no limit: the lowest of today's data-centre boards; the recommendation says so."""

FALLBACK_GAP_C = 6.0
FALLBACK_MAX_W = 700.0
SLOWDOWN_MARGIN_C = 1.0
MIN_SHARE = 0.3
IDLE_SHARE = 0.13
"""H100 SXM: 75 to 90 W idle of 700 W (nvidia-smi captures, notes/throttle.md 1.2)."""

RISE_PER_S = 8.0 / 700.0 / 5.0
"""Slow up: 8 W in 5 s of 700 W. It must exceed the dead band, or a ceiling could never climb back."""

DEAD_BAND = 5.0 / 700.0
TRIFLE, TRIFLE_S = 0.05, 6.0
CALM_K = 0.2
OVER_FROM_K, OVER_PER_K = 0.5, 0.06
DECAY_PER_S = 0.03 / 5.0
THERMAL_MEMORY_S = 30.0
THERMAL_EXTRA_C = 1.0
MISFIT_WEIGHT = 0.6
POWER_MEAN_S = 3.0
GONE_MODEL_S = 600.0
PATIENCE_S = 5.0
"""So long a first power is waited for before a temperature is explained by the highest one."""

DRAW_S = 20.0
UNDER_CAP = 0.95
NOT_FOLLOWED = 1.08
NOT_FOLLOWED_S = 20.0
THERMAL_EVENTS = frozenset({"sw_thermal", "hw_thermal", "hw_slowdown"})
HARD_EVENTS = frozenset({"hw_slowdown", "hw_thermal", "hw_power_brake"})


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The largest power (W) that one constraint allows a device, when it would be met, and how far a cap may rise."""

    power_w: float
    horizon_s: float
    rise_w: float


@dataclass(slots=True)
class DeviceTrack:
    """What is remembered of a device. Times are those of the observations; ``None`` is never or unknown."""

    id: str
    up: bool = False
    since_t: float = 0.0
    seen_t: float = 0.0
    gone_t: float | None = None
    max_w: float = FALLBACK_MAX_W
    min_w: float = FALLBACK_MAX_W * MIN_SHARE
    limit_w: float | None = None
    told_min_w: float | None = None
    limits_known: bool = False
    energy_told: bool = False
    draw_w: float | None = None
    operating_c: float | None = None
    slowdown_c: float | None = None
    memory_operating_c: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    temperature_t: float | None = None
    energy_j: float | None = None
    energy_t: float | None = None
    moved_t: float | None = None
    power_w: float | None = None
    mean_w: float = 0.0
    idle_w: float | None = None
    utilization: float | None = None
    events: list[str] = field(default_factory=list)
    thermal_t: float | None = None
    core: ThermalModel | None = None
    memory: ThermalModel | None = None
    ceiling_w: float | None = None
    cap_w: float | None = None
    cause: str | None = None
    not_followed_s: float = 0.0
    simulated: bool = False

    def see(self, seen: DeviceObservation, t: float, dt_s: float, *, queued: bool | None) -> None:
        """Take what one line says of this device, ``dt_s`` after the line before (0 on the first).

        ``queued`` tells whether work was waiting for it, where that is told.
        """
        if not self.up:
            self.up, self.since_t, self.moved_t, self.temperature_t = True, t, t, t
        self.seen_t = t
        self._limits(seen)
        self.utilization = seen.utilization
        self.events = sorted(seen.clock_events)
        self.simulated = seen.quality in {"simulated", "modelled"}
        if THERMAL_EVENTS & seen.clock_events:
            self.thermal_t = t
        self._power(seen, t)
        power_w = self.planned_w if self.power_w is None else self.power_w
        self.mean_w += (power_w - self.mean_w) * (1.0 - math.exp(-dt_s / POWER_MEAN_S)) if dt_s else 0.0
        if self.core is None:
            self.mean_w = power_w
        if seen.temperature_c is not None:
            self.temperature_t = t
        self.temperature_c = seen.temperature_c
        self.memory_temperature_c = seen.memory_temperature_c
        if self.power_w is not None or t - self.since_t >= PATIENCE_S:
            time = {"t": t, "dt_s": dt_s, "power_w": power_w}
            self.core = _learned(self.core, self.max_w, seen.temperature_c, **time)
            self.memory = _learned(self.memory, self.max_w, seen.memory_temperature_c, **time)
        self._draw(dt_s, queued=queued)
        if seen.utilization is not None and seen.utilization < 0.05 and self.power_w:
            self.idle_w = self.power_w if self.idle_w is None else min(self.idle_w, self.power_w)

    def _draw(self, dt_s: float, *, queued: bool | None) -> None:
        """Learn what the work draws at full clock, up at once and down slowly."""
        if self.power_w is None or (self.utilization or 0.0) < saturated_from(queued=queued):
            return
        if self.cap_w is not None and self.power_w > UNDER_CAP * self.cap_w:
            return
        before_w = self.max_w if self.draw_w is None else self.draw_w
        weight = 1.0 if self.power_w > before_w else 1.0 - math.exp(-dt_s / DRAW_S)
        self.draw_w = before_w + (self.power_w - before_w) * weight

    def leave(self, t: float) -> None:
        """The device is gone: no capacity; what was learned of it is kept for a while."""
        if self.up:
            self.up, self.gone_t = False, t
        if self.gone_t is not None and t - self.gone_t > GONE_MODEL_S:
            self.core = self.memory = None
        self.energy_j = self.energy_t = self.power_w = None

    def _limits(self, seen: DeviceObservation) -> None:
        self.operating_c = seen.max_operating_c or self.operating_c
        self.slowdown_c = seen.slowdown_c or self.slowdown_c
        self.memory_operating_c = seen.memory_max_operating_c or self.memory_operating_c
        highest_w = seen.power_limit_max_w or (None if self.limits_known else seen.power_limit_w)
        if highest_w is not None:
            self.max_w, self.limits_known = highest_w, True
            lowest_w = seen.power_limit_min_w or self.told_min_w or highest_w * MIN_SHARE
            self.min_w = min(lowest_w, highest_w)
        self.told_min_w = seen.power_limit_min_w or self.told_min_w
        self.limit_w = seen.power_limit_w

    def _power(self, seen: DeviceObservation, t: float) -> None:
        before_j, before_t = self.energy_j, self.energy_t
        delta_j = None if seen.energy_j is None or before_j is None else seen.energy_j - before_j
        if seen.energy_j is not None:
            self.energy_j, self.energy_t = seen.energy_j, t
        self.power_w = seen.power_w
        if delta_j is not None and before_t is not None and delta_j > 0.0:
            mean_w = delta_j / (t - before_t)
            if mean_w <= 1.5 * self.max_w:
                self.power_w = mean_w
        # A counter that stands still proves nothing, whatever a frozen gauge beside it says.
        if delta_j == 0.0 and seen.energy_j:
            self.power_w = None
        self.energy_told = self.energy_told or seen.energy_j is not None
        first = seen.energy_j is not None and before_j is None
        if delta_j or first or (seen.energy_j is None and before_j is None and seen.power_w):
            self.moved_t = t

    @property
    def planned_w(self) -> float:
        """What the device may draw by the newest ceiling."""
        return self.max_w if self.ceiling_w is None else self.ceiling_w

    @property
    def told_cap_w(self) -> float:
        """The published cap (W), to a tenth and within the device's range."""
        return min(max(round(self.max_w if self.cap_w is None else self.cap_w, 1), self.min_w), self.max_w)

    @property
    def full_w(self) -> float:
        """The power of a busy device without our ceiling: what it drew so, or an operator's lower limit."""
        full_w = self.max_w if self.draw_w is None else min(self.max_w, self.draw_w)
        if self.limit_w is not None and self.limit_w < 0.95 * self.planned_w:
            full_w = min(full_w, self.limit_w)
        return max(self.min_w, full_w)

    @property
    def floor_w(self) -> float:
        """Idle power, measured or assumed."""
        return min(self.idle_w if self.idle_w is not None else IDLE_SHARE * self.max_w, 0.5 * self.max_w)

    def limit_c(self) -> float:
        """The operating limit."""
        if self.operating_c is not None:
            return self.operating_c
        if self.slowdown_c is None:
            return FALLBACK_OPERATING_C
        return min(FALLBACK_OPERATING_C, self.slowdown_c - FALLBACK_GAP_C)

    def stale_s(self, t: float) -> float:
        """Seconds since the device last told its temperature and its energy moved, whichever is longer ago."""
        marks = [mark for mark in (self.temperature_t, self.moved_t) if mark is not None]
        return max((t - mark for mark in marks), default=0.0)

    def target_c(self, t: float, settings: ThrottleSettings) -> float:
        """What the plan aims at: under the operating limit by the margin, and by what the model lately missed."""
        margin_c = settings.margin_c + (0.0 if settings.sets_power else settings.rate_margin_c)
        target_c = self.limit_c() - margin_c
        if self.slowdown_c is not None:
            target_c = min(target_c, self.slowdown_c - SLOWDOWN_MARGIN_C - margin_c)
        if self.core is not None:
            target_c -= MISFIT_WEIGHT * max(0.0, self.core.misfit_k - 0.4) + max(0.0, self.core.bias_k - 0.2)
        if self.thermal_t is not None and t - self.thermal_t <= THERMAL_MEMORY_S:
            target_c -= THERMAL_EXTRA_C
        return target_c

    def thermal(self, t: float, settings: ThrottleSettings, image_s: float | None) -> Ceiling | None:
        """The ceiling of the core's temperature; ``image_s`` is how long an image keeps the device busy.

        Where temperatures do not do what was foreseen, or are at the operating limit, a sensor over the target outranks
        the model: less must be drawn than was.
        """
        if self.core is None:
            return None
        target_c = self.target_c(t, settings)
        ceiling = self._ceiling(self.core, target_c, settings, image_s)
        over_k = -math.inf if self.temperature_c is None else self.temperature_c - target_c
        at_limit = self.temperature_c is not None and self.temperature_c >= self.limit_c()
        if over_k <= OVER_FROM_K or (self.calm and not at_limit):
            return ceiling
        less_w = self.mean_w * (1.0 - OVER_PER_K * over_k)
        return Ceiling(min(ceiling.power_w, less_w), ceiling.horizon_s, min(ceiling.rise_w, less_w))

    def memory_thermal(self, settings: ThrottleSettings, image_s: float | None) -> Ceiling | None:
        """The ceiling of the memory's temperature, where device and limit are known."""
        if self.memory is None or self.memory_operating_c is None:
            return None
        target_c = self.memory_operating_c - settings.margin_c - MISFIT_WEIGHT * max(0.0, self.memory.misfit_k - 0.4)
        return self._ceiling(self.memory, target_c, settings, image_s)

    @property
    def calm(self) -> bool:
        """Whether temperatures do what was foreseen."""
        return self.core is None or (self.core.bias_k < CALM_K and self.core.drift_k_per_s() <= 0.0)

    def _ceiling(
        self, model: ThermalModel, target_c: float, settings: ThrottleSettings, image_s: float | None
    ) -> Ceiling:
        if settings.sets_power and self.obeys:
            return Ceiling(*model.sustainable_w(target_c, self.mean_w, settings.act_after_s))
        idle_w, full_w = self.floor_w, self.full_w
        powers_w = (self.mean_w, idle_w, full_w)
        duty, horizon_s = model.sustainable_duty(target_c, powers_w, image_s, settings.act_after_s)
        allowed_w = math.inf if duty >= 1.0 else idle_w + duty * (full_w - idle_w)
        return Ceiling(allowed_w, horizon_s, allowed_w)

    def set_ceiling(self, wanted_w: float, dt_s: float, *, rise_w: float, calm: bool = False) -> None:
        """Move the ceiling: down at once, up slowly to ``rise_w``, and what is published only past a dead band.

        A trifle less is followed within seconds where all is ``calm``: sensors that show whole degrees ask for it at
        every step.
        """
        before_w = self.planned_w
        if calm and 0.0 < before_w - wanted_w < TRIFLE * self.max_w:
            wanted_w = before_w + (wanted_w - before_w) * (1.0 - math.exp(-dt_s / TRIFLE_S))
        highest_w = max(before_w, min(rise_w, self.max_w, before_w + RISE_PER_S * self.max_w * dt_s))
        wanted_w = min(wanted_w, highest_w)
        self.ceiling_w = None if wanted_w >= self.max_w else wanted_w
        published_w = self.max_w if self.cap_w is None else self.cap_w
        if self.ceiling_w is None:
            self.cap_w = None
        elif abs(wanted_w - published_w) >= DEAD_BAND * self.max_w:
            self.cap_w = wanted_w

    def decay(self, dt_s: float, floor_w: float) -> None:
        """Tighten without telemetry: 3 % in 5 s down to the floor."""
        before_w = self.planned_w
        wanted_w = max(before_w * math.exp(-DECAY_PER_S * dt_s), min(before_w, floor_w))
        self.set_ceiling(wanted_w, dt_s, rise_w=before_w)

    def check_followed(self, dt_s: float) -> None:
        """Count how long the device has drawn more than a cap that should act by now."""
        over = self.cap_w is not None and self.power_w is not None and self.power_w > NOT_FOLLOWED * self.cap_w
        self.not_followed_s = min(60.0, self.not_followed_s + dt_s) if over else max(0.0, self.not_followed_s - dt_s)

    @property
    def followed(self) -> bool:
        """Whether the published caps act."""
        return self.not_followed_s < NOT_FOLLOWED_S

    @property
    def obeys(self) -> bool:
        """Whether a cap can be named and acts."""
        return self.limits_known and self.followed


def _learned(
    model: ThermalModel | None, scale_w: float, temperature_c: float | None, *, t: float, dt_s: float, power_w: float
) -> ThermalModel | None:
    """The model after ``dt_s`` at a mean power, and after the sensor's value where there is one."""
    if model is None:
        if temperature_c is None:
            return None
        model = ThermalModel(scale_w)
        model.begin(power_w, temperature_c)
        return model
    model.advance(t, power_w, dt_s)
    if temperature_c is not None and dt_s > 0.0:
        model.learn(t, temperature_c, dt_s)
    return model

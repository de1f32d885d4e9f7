"""The recommender: observations in, recommendations out; time comes with the observation (design 5.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from joulegate.throttle.advice import advise_on, cleaner_later
from joulegate.throttle.budgets import Allowance
from joulegate.throttle.device import DeviceTrack
from joulegate.throttle.explaining import explain
from joulegate.throttle.judging import Judgement, judge
from joulegate.throttle.memory import Memory
from joulegate.throttle.observation import Observation
from joulegate.throttle.plan import HostPlan, held_by_rate, make_plan, move_ceilings, speeds
from joulegate.throttle.reasons import reasons_for
from joulegate.throttle.recommendation import Action, Binding, FailSafe, Recommendation, TierLimit
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.tiering import by_tier, held_day, limits, per_tenant_day
from joulegate.throttle.work import Busy, speed, speed_seconds

RATE_DEAD_BAND = 0.02
RATE_TURN_BAND = 0.07
TIGHT_TURN_BAND = 0.2
RATE_RISE_PER_S = 0.01
SERVICE_S = 5.0
"""Work in flight beside what the devices hold: enough to keep them fed, little enough to wait for."""

GONE_KEPT_S = 3600.0
MAX_GONE = 64


def recommend(
    observation: Observation, memory: Memory, settings: ThrottleSettings, decision_id: str, quotas: Mapping[str, int]
) -> Recommendation:
    """Take one observation into ``memory`` and say what may come next.

    ``quotas`` are the images a day of the tiers that have such a quota.
    """
    dt_s = 0.0 if memory.t is None else observation.t - memory.t
    memory.t = observation.t
    up = _see_devices(observation, memory, dt_s)
    host_w = math.fsum(track.power_w for track in up if track.power_w is not None) if up else None
    memory.demand.arrive(_by_tier(observation.arrivals, settings), dt_s)
    _learn_work(observation, memory, up, dt_s)
    memory.budgets.take(observation, host_w, dt_s)

    plan = make_plan(up, observation.t, settings, _allowances(observation, memory, settings), _image_s(memory))
    move_ceilings(plan, dt_s, settings)
    capacity = _capacity(plan, memory, settings)
    memory.demand.wait(_by_tier(observation.queue, settings), memory.rate, len(up), dt_s)
    memory.rate = _published(memory, capacity, dt_s)
    memory.demand.compare(memory.rate, dt_s, tight=held_by_rate(plan, settings))

    tiers = _tiers(observation, memory, settings, quotas, dirty=_dirty(plan))
    held = any(limit.action is not Action.ADMIT for limit in tiers.values())
    judgement = judge(observation.t, plan, memory, settings, held=held)
    state = memory.ladder.move(judgement.state, observation.t)
    caps_w = {
        d.track.id: d.track.told_cap_w for d in plan.devices if d.track.cap_w is not None and d.track.limits_known
    }
    reasons = reasons_for(observation, plan, memory, settings, judgement)
    return Recommendation(
        decision_id=decision_id,
        t=observation.t,
        state=state,
        binding=judgement.binding,
        confidence=judgement.confidence,
        reasons=reasons,
        max_images_per_minute=None if memory.rate is None else math.floor(memory.rate * 60_000.0) / 1000.0,
        admit_fraction=_fraction(memory, judgement),
        max_concurrency=None if memory.rate is None else len(up) + math.ceil(memory.rate * SERVICE_S),
        power_cap_w=caps_w if settings.sets_power else {},
        host_power_cap_w=_host_cap(plan, settings),
        tiers=tiers,
        fail_safe=_fail_safe(plan, settings),
        inputs=_inputs(observation, memory, plan),
        ttl_s=settings.ttl_s,
        poll_after_s=settings.poll_after_s,
        explain=explain(state, judgement, reasons, tiers, memory.rate) + _origin(up),
        advice=advise_on(observation, plan, memory, settings),
        counterfactual=_counterfactual(plan, memory),
    )


def _by_tier(counts: Mapping[str, float] | None, settings: ThrottleSettings) -> dict[str, float] | None:
    return None if counts is None else by_tier(settings.tiers, counts)


def _see_devices(observation: Observation, memory: Memory, dt_s: float) -> list[DeviceTrack]:
    """The devices that are up, each with what this line says of it."""
    t = observation.t
    seen = {device.id: device for device in observation.devices if device.up}
    for track in memory.devices.values():
        if track.id not in seen:
            track.leave(t)
    _forget(memory, t)
    known = [track for track in memory.devices.values() if track.up]
    up = []
    for device in seen.values():
        track = memory.devices.setdefault(device.id, DeviceTrack(device.id))
        returns = not track.up and (bool(known) or track.gone_t is not None)
        track.see(device, t, dt_s, queued=_queued(observation))
        if returns:
            _start_no_looser(track, known)
        up.append(track)
    return up


def _forget(memory: Memory, t: float) -> None:
    """Devices that are gone for long, or are too many."""
    gone = sorted((track.gone_t or 0.0, track.id) for track in memory.devices.values() if not track.up)
    for index, (gone_t, name) in enumerate(reversed(gone)):
        if index >= MAX_GONE or t - gone_t > GONE_KEPT_S:
            del memory.devices[name]


def _start_no_looser(track: DeviceTrack, known: Sequence[DeviceTrack]) -> None:
    """A device that joins may draw no more, for its size, than the most restrained of those already there."""
    shares = [other.planned_w / other.max_w for other in known if other.ceiling_w is not None]
    if track.ceiling_w is not None:
        shares.append(track.ceiling_w / track.max_w)
    if shares:
        track.ceiling_w = max(track.min_w, min(shares) * track.max_w)
        track.cap_w = track.ceiling_w
        held = [other.cause for other in known if other.ceiling_w is not None and other.cause is not None]
        track.cause = track.cause or (held[0] if held else Binding.THERMAL.value)


def _queued(observation: Observation) -> bool | None:
    """Whether work waits; ``None`` where that is not told."""
    return None if observation.queue is None else math.fsum(observation.queue.values()) > 0.0


def _learn_work(observation: Observation, memory: Memory, up: Sequence[DeviceTrack], dt_s: float) -> None:
    if observation.images_done is None or dt_s <= 0.0:
        return
    if any(track.power_w is None for track in up):
        # Images of devices that do not tell their power would look like work done for nothing.
        return
    queued = _queued(observation)
    busy = [Busy(track.power_w or 0.0, track.floor_w, track.max_w, track.utilization) for track in up]
    energy_j = math.fsum(track.power_w or 0.0 for track in up) * dt_s
    memory.work.learn(observation.images_done, *speed_seconds(busy, dt_s, queued=queued), energy_j, dt_s)


def _allowances(observation: Observation, memory: Memory, settings: ThrottleSettings) -> dict[Binding, Allowance]:
    found: dict[Binding, Allowance] = {}
    if settings.host_power_limit_w is not None:
        limit_w = settings.host_power_limit_w
        found[Binding.POWER] = Allowance(limit_w, limit_w, limit_w, "W", settings.ttl_s)
    energy = memory.budgets.energy(observation.t)
    co2e = memory.budgets.co2e(observation.t, observation.grid_forecast)
    if energy is not None:
        found[Binding.ENERGY] = energy
    if co2e is not None:
        found[Binding.CO2E] = co2e
    return found


def _image_s(memory: Memory) -> float | None:
    """Seconds that an image keeps one device busy at full clock."""
    per_speed_s = memory.work.images_per_speed_s
    return None if not per_speed_s else 1.0 / per_speed_s


def _capacity(plan: HostPlan, memory: Memory, settings: ThrottleSettings) -> float | None:
    """Units a second under the ceilings; ``None`` while neither the work of an image nor the demand is known."""
    shares = speeds(plan, settings)
    total = math.fsum(shares)
    if not plan.devices:
        return 0.0
    per_speed_s = memory.work.images_per_speed_s
    if per_speed_s is None:
        full = math.fsum(_full_speed(plan))
        restrained = full > 0.0 and total < 0.98 * full
        return memory.demand.total * total / full if restrained and memory.demand.known else None
    kept = math.fsum(tier.floor for tier in settings.tiers)
    if plan.duty_by is not None:
        total = max(total, kept * len(plan.devices))
    return per_speed_s * total


def _full_speed(plan: HostPlan) -> list[float]:
    return [speed(d.track.full_w, d.track.floor_w, d.track.max_w) for d in plan.devices]


def _published(memory: Memory, capacity: float | None, dt_s: float) -> float | None:
    """The host's rate: down at once, up slowly, neither for a trifle, and a turn only for more than that."""
    before = memory.rate
    if capacity is None:
        return None
    wanted = capacity
    if before is None or before <= 0.0:
        return wanted
    if wanted <= 0.0:
        return 0.0
    change = wanted / before - 1.0
    against = change * memory.heading < 0.0
    turn = TIGHT_TURN_BAND if memory.demand.tight and change > 0.0 else RATE_TURN_BAND
    if abs(change) <= (turn if against else RATE_DEAD_BAND):
        return before
    memory.heading = math.copysign(1.0, change)
    return wanted if change < 0.0 else min(wanted, before * (1.0 + RATE_RISE_PER_S * dt_s))


def _tiers(
    observation: Observation,
    memory: Memory,
    settings: ThrottleSettings,
    quotas: Mapping[str, int],
    *,
    dirty: bool,
) -> dict[str, TierLimit]:
    """The limits of all tiers; ``dirty`` tells whether the CO2e budget holds the host."""
    found = limits(memory.rate, settings.tiers, memory.demand, memory.shares)
    result = {}
    for tier in settings.tiers:
        limit = found[tier.name]
        active = (observation.active_tenants or {}).get(tier.name)
        wanted = per_tenant_day(tier, limit, active, quotas.get(tier.name))
        day = held_day(memory.shares.track(tier.name), wanted, observation.t)
        later = cleaner_later(observation, tier)
        result[tier.name] = TierLimit(
            action=Action.DEFER if later is not None and dirty else limit.action,
            max_images_per_minute=_rounded_up(limit.max_images_per_minute),
            admit_fraction=round(limit.admit_fraction, 4),
            burst=round(limit.burst, 2),
            retry_after_s=limit.retry_after_s,
            images_per_tenant_day=day,
            defer_until_t=None if later is None else later[1],
        )
    return result


def _dirty(plan: HostPlan) -> bool:
    return plan.duty_by is Binding.CO2E or any(device.track.cause == Binding.CO2E.value for device in plan.devices)


def _origin(up: Sequence[DeviceTrack]) -> str:
    """Law 3: what rests on simulated or modelled devices says so in its own sentence."""
    count = sum(track.simulated for track in up)
    return f" {count} of {len(up)} devices are simulated or modelled." if count else ""


def _fraction(memory: Memory, judgement: Judgement) -> float:
    if memory.rate is None:
        return 1.0
    if not judgement.short or memory.demand.total <= 0.0:
        return 1.0 if memory.rate > 0.0 else 0.0
    return round(min(1.0, memory.rate * min(1.0, memory.demand.factor) / memory.demand.total), 4)


def _host_cap(plan: HostPlan, settings: ThrottleSettings) -> float | None:
    if not settings.sets_power or not plan.devices:
        return None
    allowed_w = math.fsum(
        device.track.max_w if device.track.cap_w is None else device.track.cap_w for device in plan.devices
    )
    bounds = [allowance.ceiling_w for allowance in plan.allowances.values()]
    if all(device.track.cap_w is None for device in plan.devices) and not bounds:
        return None
    return round(min([allowed_w, *bounds]), 1)


def _fail_safe(plan: HostPlan, settings: ThrottleSettings) -> FailSafe:
    floors = [max(d.track.min_w, settings.stale_floor * d.track.max_w) for d in plan.devices if d.track.limits_known]
    cap_w = round(min(floors), 1) if floors and settings.sets_power else None
    return FailSafe(settings.stale_after_s, settings.stale_admit_fraction, cap_w)


def _inputs(observation: Observation, memory: Memory, plan: HostPlan) -> dict[str, float | None]:
    budgets = memory.budgets
    return {
        "telemetry_age_s": max((device.stale_s for device in plan.devices), default=None),
        "grid_age_s": budgets.grid_age_s(observation.t),
        "devices_up": float(len(plan.devices)),
        "devices_simulated": float(sum(device.track.simulated for device in plan.devices)),
        "demand_images_per_minute": round(memory.demand.total * 60.0, 3) if memory.demand.known else None,
        "queue_s": _rounded(memory.demand.wait_s, 2),
        "joules_per_image": _rounded(memory.work.joules_per_image, 1),
        "energy_j_left": _rounded(budgets.energy_j_left, 1) if budgets.left_s(observation.t) else None,
        "co2e_g_left": _rounded(budgets.co2e_g_left, 3) if budgets.left_s(observation.t) else None,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _rounded_up(per_minute: float | None) -> float | None:
    """Up, where the host's is rounded down: no tier is shown under its floor."""
    return None if per_minute is None else math.ceil(per_minute * 1000.0) / 1000.0


def _counterfactual(plan: HostPlan, memory: Memory) -> dict[str, float]:
    """What the host could start without any ceiling."""
    per_speed_s = memory.work.images_per_speed_s
    if per_speed_s is None or not plan.devices:
        return {}
    return {"unrestrained_images_per_minute": round(per_speed_s * math.fsum(_full_speed(plan)) * 60.0, 1)}

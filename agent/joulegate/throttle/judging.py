"""The judgement: which constraint rules, which state that is, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulegate.throttle.device import HARD_EVENTS, THERMAL_EVENTS
from joulegate.throttle.memory import Memory
from joulegate.throttle.plan import DevicePlan, HostPlan
from joulegate.throttle.recommendation import Binding, State
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.work import speed

WATCH_C = 3.0
CRITICAL_C = 1.0
FORESEEN_S = 120.0
LEARNED_UPDATES = 30
SURE_SD_K = 3.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """``ruling`` is the device that loses most work; ``short`` whether demand or backlog is held back."""

    state: State
    binding: Binding | None
    confidence: float
    ruling: DevicePlan | None
    short: bool


def judge(t: float, plan: HostPlan, memory: Memory, settings: ThrottleSettings, *, held: bool) -> Judgement:
    """What rules now; ``held`` tells whether a tier is."""
    short = memory.short or held
    ruling = _ruling(plan)
    binding = _binding(plan, short=short)
    state = _state(t, plan, binding, settings)
    return Judgement(state, binding, _confidence(plan, memory.rate), ruling, short)


def _loss(device: DevicePlan) -> float:
    track = device.track
    return 1.0 - speed(track.planned_w, track.floor_w, track.max_w)


def _restrained(device: DevicePlan) -> bool:
    return device.track.cap_w is not None


def _ruling(plan: HostPlan) -> DevicePlan | None:
    """The restrained device that loses most; the first of equals."""
    restrained = [device for device in plan.devices if _restrained(device)]
    return max(restrained, key=_loss, default=None)


def _binding(plan: HostPlan, *, short: bool) -> Binding | None:
    if not plan.devices or all(device.stale for device in plan.devices):
        return Binding.TELEMETRY
    if plan.duty_by is not None:
        return plan.duty_by
    lost: dict[str, float] = {}
    for device in plan.devices:
        if _restrained(device) and device.track.cause is not None:
            lost[device.track.cause] = lost.get(device.track.cause, 0.0) + _loss(device)
    if lost:
        return Binding(max(lost, key=lambda cause: lost[cause]))
    return Binding.QUEUE if short else None


def _state(t: float, plan: HostPlan, binding: Binding | None, settings: ThrottleSettings) -> State:
    if not plan.devices:
        return State.UNKNOWN
    events = frozenset(event for device in plan.devices for event in device.track.events)
    soon = any(_headroom_c(device) < WATCH_C or _foreseen(device, t, settings) for device in plan.devices)
    late = any(device.stale_s > settings.ttl_s / 3.0 for device in plan.devices)
    levels = (
        (State.EMERGENCY, bool(events & HARD_EVENTS) or any(_over_slowdown(device) for device in plan.devices)),
        (State.STALE, all(device.stale for device in plan.devices)),
        (State.CRITICAL, bool(events & THERMAL_EVENTS) or any(_headroom_c(d) <= CRITICAL_C for d in plan.devices)),
        (State.CONSTRAINED, binding is not None),
        (State.UNKNOWN, all(device.track.core is None for device in plan.devices)),
        (State.WATCH, soon or late),
    )
    return next((state for state, holds in levels if holds), State.NOMINAL)


def _over_slowdown(device: DevicePlan) -> bool:
    track = device.track
    return track.slowdown_c is not None and track.temperature_c is not None and track.temperature_c >= track.slowdown_c


def _headroom_c(device: DevicePlan) -> float:
    """Kelvins from the newest temperature to the operating limit; infinite where there is no temperature."""
    track = device.track
    return math.inf if track.temperature_c is None else track.limit_c() - track.temperature_c


def _foreseen(device: DevicePlan, t: float, settings: ThrottleSettings) -> bool:
    """Whether the power of now would bring the device to its target within two minutes."""
    track = device.track
    if track.core is None or track.core.updates < LEARNED_UPDATES:
        return False
    return track.core.predicted_c(track.mean_w, FORESEEN_S) > track.target_c(t, settings)


def _confidence(plan: HostPlan, rate: float | None) -> float:
    """From 0 to 1: how well the thermal models foresee, less for what is stale or not learned yet."""
    if not plan.devices:
        return 0.0
    total = 0.0
    for device in plan.devices:
        core = device.track.core
        if core is None or device.stale:
            continue
        sd_k = core.sd_k(device.track.max_w)
        learned = min(1.0, core.updates / LEARNED_UPDATES)
        total += learned / (1.0 + (sd_k / SURE_SD_K) ** 2 + (core.misfit_k / SURE_SD_K) ** 2)
    return round((total / len(plan.devices)) * (1.0 if rate is not None else 0.8), 3)

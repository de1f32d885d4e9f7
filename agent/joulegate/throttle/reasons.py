"""The reasons of a recommendation, each with what was observed against which limit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from joulegate.throttle.device import DeviceTrack
from joulegate.throttle.judging import Judgement
from joulegate.throttle.memory import Memory
from joulegate.throttle.observation import Observation
from joulegate.throttle.plan import DevicePlan, HostPlan
from joulegate.throttle.recommendation import Binding, Code, Reason
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.thermal import BIAS_K

MOST_DEVICES = 4
HOTTER_KEPT_S = 120.0
COST_UP = 1.15
HORIZON_S = 25.0
UNSURE = 0.3


def reasons_for(
    observation: Observation, plan: HostPlan, memory: Memory, settings: ThrottleSettings, judgement: Judgement
) -> tuple[Reason, ...]:
    """What rules first, then what else is known, then what could not be seen."""
    found = [
        *_heat(observation.t, plan, settings),
        *_events(plan),
        *_host(plan),
        *_demand(memory, judgement),
        *_changes(observation.t, plan, memory),
        *_unseen(observation, plan, memory, settings, judgement),
    ]
    if judgement.binding is not None:
        codes = _CODES[judgement.binding]
        found.sort(key=lambda reason: reason.code not in codes)
    return tuple(found)


_CODES = {
    Binding.THERMAL: (Code.THERMAL_HEADROOM_LOW,),
    Binding.MEMORY: (Code.MEMORY_TEMP,),
    Binding.POWER: (Code.POWER_BUDGET,),
    Binding.ENERGY: (Code.ENERGY_BUDGET,),
    Binding.CO2E: (Code.CARBON_INTENSITY,),
    Binding.QUEUE: (Code.DEMAND_EXCEEDS_CAPACITY, Code.QUEUE_DELAY),
    Binding.TELEMETRY: (Code.TELEMETRY_STALE,),
}


def _hottest(plan: HostPlan, binding: Binding) -> list[DevicePlan]:
    held = [d for d in plan.devices if d.track.cap_w is not None and d.track.cause == binding.value]
    return sorted(held, key=lambda device: (device.track.planned_w / device.track.max_w, device.track.id))[
        :MOST_DEVICES
    ]


def _heat(t: float, plan: HostPlan, settings: ThrottleSettings) -> Iterator[Reason]:
    for device in _hottest(plan, Binding.THERMAL):
        track = device.track
        if track.core is None:
            continue
        yield Reason(
            Code.THERMAL_HEADROOM_LOW,
            observed=track.temperature_c if track.temperature_c is not None else round(track.core.now_c(), 1),
            limit=round(track.target_c(t, settings), 1),
            unit="C",
            device=track.id,
            predicted=round(track.core.predicted_c(track.max_w, HORIZON_S), 1),
            horizon_s=HORIZON_S,
        )
    for device in _hottest(plan, Binding.MEMORY):
        track = device.track
        if track.memory is None or track.memory_operating_c is None:
            continue
        yield Reason(
            Code.MEMORY_TEMP,
            observed=track.memory_temperature_c
            if track.memory_temperature_c is not None
            else round(track.memory.now_c(), 1),
            limit=round(track.memory_operating_c - settings.margin_c, 1),
            unit="C",
            device=track.id,
            predicted=round(track.memory.predicted_c(track.max_w, HORIZON_S), 1),
            horizon_s=HORIZON_S,
        )


def _events(plan: HostPlan) -> Iterator[Reason]:
    for device in plan.devices:
        track = device.track
        for event, code in _EVENT_CODES.items():
            if event in track.events:
                limit_c = track.slowdown_c if code is Code.HW_SLOWDOWN else track.limit_c()
                if code is Code.POWER_BRAKE:
                    yield Reason(code, _round(track.power_w), track.max_w, "W", track.id, note=event)
                else:
                    yield Reason(code, track.temperature_c, limit_c, "C", track.id, note=event)
        if not track.followed:
            yield Reason(
                Code.POWER_CAP, _round(track.power_w), _round(track.cap_w), "W", track.id, note="the cap does not act"
            )


_EVENT_CODES = {
    "hw_slowdown": Code.HW_SLOWDOWN,
    "hw_thermal": Code.HW_SLOWDOWN,
    "hw_power_brake": Code.POWER_BRAKE,
    "sw_thermal": Code.THERMAL_HEADROOM_LOW,
}


def _host(plan: HostPlan) -> Iterator[Reason]:
    drawn_w = math.fsum(device.track.power_w or 0.0 for device in plan.devices)
    for binding, allowance in plan.allowances.items():
        held = plan.duty_by is binding or any(d.track.cause == binding.value for d in plan.devices)
        if not held:
            continue
        note = None if binding is Binding.POWER else f"{allowance.left:.6g} {allowance.unit} left"
        horizon_s = None if binding is Binding.POWER else round(allowance.left_s, 1)
        yield Reason(
            _CODES[binding][0], round(drawn_w, 1), round(allowance.mean_w, 1), "W", horizon_s=horizon_s, note=note
        )


def _demand(memory: Memory, judgement: Judgement) -> Iterator[Reason]:
    if memory.rate is None or not judgement.short:
        return
    if memory.demand.over or not memory.demand.late:
        yield Reason(
            Code.DEMAND_EXCEEDS_CAPACITY,
            round(memory.demand.total * 60.0, 1),
            round(memory.rate * 60.0, 1),
            "images/min",
        )
    if memory.demand.late and memory.demand.wait_s is not None:
        yield Reason(Code.QUEUE_DELAY, round(memory.demand.wait_s, 1), round(memory.demand.long_s, 1), "s")


def _changes(t: float, plan: HostPlan, memory: Memory) -> Iterator[Reason]:
    for device in plan.devices:
        core = device.track.core
        if core is not None and core.hotter_t is not None and t - core.hotter_t <= HOTTER_KEPT_S:
            yield Reason(Code.COOLING_DEGRADED, round(core.hotter_k, 1), BIAS_K, "K", device.track.id)
    ratio = memory.work.cost_ratio
    if ratio is not None and ratio > COST_UP:
        yield Reason(Code.WORK_PER_IMAGE_UP, round(ratio, 2), COST_UP, "times")


def _unseen(
    observation: Observation, plan: HostPlan, memory: Memory, settings: ThrottleSettings, judgement: Judgement
) -> Iterator[Reason]:
    if not plan.devices:
        yield Reason(Code.TELEMETRY_STALE, 0.0, 1.0, "devices", note="no device is up")
    for device in plan.devices:
        if device.stale:
            yield Reason(Code.TELEMETRY_STALE, round(device.stale_s, 1), settings.stale_after_s, "s", device.track.id)
        elif device.track.cause == Binding.TELEMETRY.value and device.track.cap_w is not None:
            note = "recovers from a loss of telemetry"
            yield Reason(
                Code.TELEMETRY_STALE, round(device.stale_s, 1), settings.stale_after_s, "s", device.track.id, note=note
            )
    if memory.work.images_per_speed_s is None:
        yield Reason(Code.WARMUP, None, None, "images/s", note="the work of an image is not known yet")
    if judgement.confidence < UNSURE:
        yield Reason(Code.MODEL_UNCERTAIN, judgement.confidence, UNSURE, "share")
    missing = [*_missing(observation), *(text for device in plan.devices for text in _untold(device.track))]
    named = [text for text in missing if text]
    if named:
        yield Reason(Code.MODEL_UNCERTAIN, None, None, "", note="; ".join(named[: MOST_DEVICES * 2]))
    if observation.notes:
        yield Reason(Code.BAD_INPUT, float(len(observation.notes)), 0.0, "values", note="; ".join(observation.notes))
    strays = sorted(
        {*(observation.arrivals or {}), *(observation.queue or {})} - {tier.name for tier in settings.tiers}
    )
    if strays:
        names = ", ".join(name[:40] for name in strays[:MOST_DEVICES])
        note = f"no tier is called {names}; counted as {settings.tiers[-1].name}"
        yield Reason(Code.BAD_INPUT, float(len(strays)), 0.0, "tiers", note=note)


def _missing(observation: Observation) -> Iterator[str]:
    """What a plan needs and this line does not tell."""
    for name in ("images_done", "arrivals", "queue"):
        if getattr(observation, name) is None:
            yield f"{name} is not told"
    budget = observation.budget
    if budget is not None and budget.co2e_g_left is not None and observation.grid_g_per_kwh is None:
        yield "grid_g_per_kwh is not told"
    if budget is not None and budget.until_t is not None and budget.until_t <= observation.t:
        yield "the budget's until_t is past"


def _untold(track: DeviceTrack) -> Iterator[str]:
    """What one device does not tell."""
    if track.operating_c is None:
        yield f"{track.id} names no max_operating_c, {track.limit_c():g} C is taken"
    if not track.limits_known:
        yield f"{track.id} names no power limit"
    if track.temperature_c is None:
        yield f"{track.id} tells no temperature"
    if not track.energy_told:
        yield f"{track.id} tells no energy"
    elif track.power_w is None:
        yield f"{track.id}'s power is not known"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)

"""Advice: what would save energy or make room, ranked, each with the evidence it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from joulegate.throttle.memory import Memory
from joulegate.throttle.observation import Observation, WorkClass
from joulegate.throttle.plan import HostPlan
from joulegate.throttle.recommendation import Advice
from joulegate.throttle.settings import ThrottleSettings, Tier
from joulegate.throttle.work import SPEED_EXPONENT, speed

ENOUGH_IMAGES = 10.0
WORTH_SAYING = 0.05
SLOWEST = 0.8
"""A cap is advised down to four fifths of full speed: below, images wait longer than the joules are worth."""

CLEANER = 0.85


def advise_on(
    observation: Observation, plan: HostPlan, memory: Memory, settings: ThrottleSettings
) -> tuple[Advice, ...]:
    """What is measured first, by what it saves; a power cap before deferral (notes/throttle.md, 4.4)."""
    measured = [*_fewer_gpus(observation.work), *_fewer_steps(observation.work)]
    measured.sort(key=lambda advice: -advice.saves_fraction)
    return (*measured, *_power_cap(plan, memory, settings), *_defer(observation, settings))


def _joules(work: WorkClass) -> float:
    return work.energy_j / work.images


def _fewer_gpus(work: tuple[WorkClass, ...]) -> list[Advice]:
    pairs = [
        (wide, narrow)
        for wide in work
        for narrow in work
        if wide.model == narrow.model and wide.steps == narrow.steps and narrow.gpus < wide.gpus
    ]
    return _best("FEWER_GPUS_PER_IMAGE", "gpus", pairs)


def _fewer_steps(work: tuple[WorkClass, ...]) -> list[Advice]:
    pairs = [
        (long, short)
        for long in work
        for short in work
        if long.model == short.model and long.gpus == short.gpus and (short.steps or 0) < (long.steps or 0)
        if short.steps is not None
    ]
    return _best("FEWER_STEPS", "steps", pairs)


def _best(code: str, what: str, pairs: Sequence[tuple[WorkClass, WorkClass]]) -> list[Advice]:
    """The comparison of each model that saves most, with what was measured on both sides."""
    best: dict[str, Advice] = {}
    for before, after in pairs:
        if min(before.images, after.images) < ENOUGH_IMAGES or before.energy_j <= 0.0:
            continue
        saves = 1.0 - _joules(after) / _joules(before)
        known = best.get(before.model)
        if saves < WORTH_SAYING or (known is not None and known.saves_fraction >= saves):
            continue
        evidence = {
            "model": before.model,
            what: getattr(before, what),
            f"{what}_advised": getattr(after, what),
            "joules_per_image": round(_joules(before), 1),
            "joules_per_image_advised": round(_joules(after), 1),
            "images": before.images,
            "images_advised": after.images,
            "basis": "measured",
        }
        best[before.model] = Advice(code, round(saves, 3), evidence)
    return list(best.values())


def _power_cap(plan: HostPlan, memory: Memory, settings: ThrottleSettings) -> list[Advice]:
    """A cap at four fifths of full speed, for devices that have none and work."""
    if not settings.sets_power or memory.work.joules_per_image is None:
        return []
    free = [device.track for device in plan.devices if device.track.cap_w is None]
    busy = [track for track in free if (track.power_w or 0.0) > 1.5 * track.floor_w]
    if not busy:
        return []
    track = busy[0]
    cap_w = track.floor_w + (track.max_w - track.floor_w) * math.pow(SLOWEST, 1.0 / SPEED_EXPONENT)
    if cap_w < track.min_w:
        return []
    saves = 1.0 - cap_w / track.max_w / speed(cap_w, track.floor_w, track.max_w)
    evidence = {
        "power_cap_w": round(cap_w, 1),
        "power_max_w": track.max_w,
        "speed_fraction": SLOWEST,
        "joules_per_image": round(memory.work.joules_per_image, 1),
        "basis": f"modelled: speed over dynamic power to the {SPEED_EXPONENT}",
    }
    return [Advice("POWER_CAP", round(saves, 3), evidence)] if saves >= WORTH_SAYING else []


def cleaner_later(observation: Observation, tier: Tier) -> tuple[float, float] | None:
    """The cleanest moment within the time that the tier's work may wait: (g/kWh, t), where it is worth waiting for."""
    now = observation.grid_g_per_kwh
    until_t = observation.t + tier.defer_max_s
    ahead = [(g, at) for at, g in observation.grid_forecast if observation.t < at <= until_t]
    if not tier.deferrable or not now or not ahead or min(ahead)[0] > CLEANER * now:
        return None
    return min(ahead)


def _defer(observation: Observation, settings: ThrottleSettings) -> list[Advice]:
    """The most that a deferrable tier could save by waiting, with its deadline."""
    found = [(later, tier) for tier in settings.tiers if (later := cleaner_later(observation, tier)) is not None]
    now = observation.grid_g_per_kwh
    if not found or not now:
        return []
    (best_g, best_t), tier = min(found, key=lambda pair: pair[0])
    evidence = {
        "tier": tier.name,
        "grid_g_per_kwh": now,
        "grid_g_per_kwh_then": best_g,
        "defer_until_t": best_t,
        "deadline_t": observation.t + tier.defer_max_s,
        "basis": "forecast",
    }
    return [Advice("DEFER", round(1.0 - best_g / now, 3), evidence)]

"""The plan: which power each device may draw under every constraint, and how much work that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from joulegate.throttle.budgets import Allowance, divided
from joulegate.throttle.device import Ceiling, DeviceTrack
from joulegate.throttle.recommendation import Binding
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.work import speed


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device's ceiling under each constraint (W), and which is the lowest."""

    track: DeviceTrack
    ceilings: dict[Binding, Ceiling]
    stale_s: float
    stale: bool

    def lowest(self) -> tuple[Binding | None, float]:
        """The constraint that allows least and what it allows; ``None`` and the highest power where none binds."""
        best: tuple[Binding | None, float] = (None, self.track.max_w)
        for binding, ceiling in self.ceilings.items():
            if ceiling.power_w < best[1]:
                best = (binding, ceiling.power_w)
        return best

    def rise_w(self) -> float:
        """How far the cap may rise under all of them."""
        return min((ceiling.rise_w for ceiling in self.ceilings.values()), default=self.track.max_w)


@dataclass(slots=True)
class HostPlan:
    """All devices that are up. ``duty`` is the share of time in which they may work when no cap is low enough."""

    devices: list[DevicePlan]
    allowances: dict[Binding, Allowance] = field(default_factory=dict)
    duty: float = 1.0
    duty_by: Binding | None = None


def make_plan(
    tracks: Sequence[DeviceTrack],
    t: float,
    settings: ThrottleSettings,
    allowances: dict[Binding, Allowance],
    image_s: float | None,
) -> HostPlan:
    """Ceilings of heat by device, then the host's own divided over the devices."""
    plan = HostPlan([_device_plan(track, t, settings, image_s) for track in tracks], allowances)
    lowest_w = [_lowest_w(device.track, settings) for device in plan.devices]
    idle_w = math.fsum(device.track.floor_w for device in plan.devices)
    for binding, allowance in allowances.items():
        wishes = [max(device.lowest()[1], low) for device, low in zip(plan.devices, lowest_w, strict=True)]
        for device, grant in zip(plan.devices, divided(allowance.ceiling_w, wishes, lowest_w), strict=True):
            device.ceilings[binding] = Ceiling(grant, allowance.left_s, grant)
        needed_w = math.fsum(lowest_w)
        if allowance.ceiling_w < needed_w:
            duty = max(0.0, (allowance.ceiling_w - idle_w) / max(1.0, needed_w - idle_w))
            if duty < plan.duty:
                plan.duty, plan.duty_by = duty, binding
    return plan


def _lowest_w(track: DeviceTrack, settings: ThrottleSettings) -> float:
    """Under a cap the device's own minimum; without one, no work at all."""
    return track.min_w if settings.sets_power else track.floor_w


def _device_plan(track: DeviceTrack, t: float, settings: ThrottleSettings, image_s: float | None) -> DevicePlan:
    stale_s = track.stale_s(t)
    ceilings = {}
    core, memory = track.thermal(t, settings, image_s), track.memory_thermal(settings, image_s)
    if core is not None:
        ceilings[Binding.THERMAL] = core
    if memory is not None:
        ceilings[Binding.MEMORY] = memory
    return DevicePlan(track, ceilings, stale_s, stale_s > settings.stale_after_s)


def move_ceilings(plan: HostPlan, dt_s: float, settings: ThrottleSettings) -> None:
    """Move every device's ceiling towards its plan, and remember why it is where it is."""
    for device in plan.devices:
        track = device.track
        binding, wanted_w = device.lowest()
        lowest_w = _lowest_w(track, settings)
        if device.stale:
            before_w = track.planned_w
            track.decay(dt_s, max(lowest_w, settings.stale_floor * track.max_w))
            if wanted_w < track.planned_w:
                track.set_ceiling(max(wanted_w, lowest_w), dt_s, rise_w=0.0)
            if track.planned_w < before_w or track.cause is None:
                track.cause = Binding.TELEMETRY.value
        else:
            if wanted_w < track.planned_w and binding is not None:
                track.cause = binding.value
            track.set_ceiling(max(wanted_w, lowest_w), dt_s, rise_w=device.rise_w(), calm=track.calm)
        if track.ceiling_w is None:
            track.cause = None
        track.check_followed(dt_s)


def speeds(plan: HostPlan, settings: ThrottleSettings) -> list[float]:
    """Each device's share of its full speed under its ceiling."""
    caps_act = settings.sets_power and all(device.track.obeys for device in plan.devices)
    if caps_act:
        return [
            plan.duty
            * _forced(device, settings)
            * speed(min(device.track.planned_w, device.track.full_w), device.track.floor_w, device.track.max_w)
            for device in plan.devices
        ]
    # At full clock the mean power is what counts, and one queue loads all devices alike: the hottest decides.
    shares = [
        (device.track.planned_w - device.track.floor_w) / max(1.0, device.track.full_w - device.track.floor_w)
        for device in plan.devices
    ]
    least = min(max(0.0, min([1.0, *shares])), plan.duty)
    return [least * speed(device.track.full_w, device.track.floor_w, device.track.max_w) for device in plan.devices]


def held_by_rate(plan: HostPlan, settings: ThrottleSettings) -> bool:
    """Whether the rate, not a cap, keeps devices under what they could do: then no queue forms, and none is wanted."""
    if plan.duty < 1.0 or any(_forced(device, settings) < 1.0 for device in plan.devices):
        return True
    caps_act = settings.sets_power and all(device.track.obeys for device in plan.devices)
    return not caps_act and any(device.track.planned_w < device.track.full_w for device in plan.devices)


def _forced(device: DevicePlan, settings: ThrottleSettings) -> float:
    """The share of time that is left to work where even the lowest cap is too much."""
    track = device.track
    wanted_w = min(
        (device.ceilings[b].power_w for b in (Binding.THERMAL, Binding.MEMORY) if b in device.ceilings),
        default=track.max_w,
    )
    lowest_w = _lowest_w(track, settings)
    if wanted_w >= lowest_w:
        return 1.0
    return min(1.0, max(0.0, (wanted_w - track.floor_w) / max(1.0, lowest_w - track.floor_w)))

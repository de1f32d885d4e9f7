"""The meter of one host, live and pure: readings and span edges in, final entries and accounts out. Time is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from joulegate.metering.apportion import apportion
from joulegate.metering.batch import Restored
from joulegate.metering.device_meter import DeviceMeter
from joulegate.metering.entry import BUCKET_S, Account, DeviceUse, Position, RequestEntry, Share, Status
from joulegate.metering.figures import (
    combine,
    flags_of,
    least_trusted,
    member_uncertainty,
    quality_of,
    split_members,
)
from joulegate.metering.partition import SpanUse
from joulegate.metering.policy import IdlePolicy
from joulegate.metering.reading import Device, Method, Quality, Reading
from joulegate.metering.snapshot import DeviceState, DeviceTotals
from joulegate.metering.span import Member, Outcome, Span

PROVISIONAL_ERROR = 0.5
"""Relative expanded uncertainty of a provisional figure: a model's word, not yet the counter's."""


@dataclass(frozen=True, slots=True)
class Options:
    """How this host is metered; the settings of the same names."""

    idle_policy: IdlePolicy = IdlePolicy.SEPARATE
    foreign_tolerance: float = 0.15
    lag_s: float | None = None
    hold_s: float = 2.0
    longest_s: float = 3600.0
    """A span that nobody ended for this long is ended as cancelled."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What became final, and which accounts moved, in one step of time."""

    entries: tuple[RequestEntry, ...] = ()
    accounts: tuple[Account, ...] = ()
    positions: tuple[Position, ...] = ()


@dataclass(slots=True)
class _Tracked:
    """A span on its way to its final figure."""

    span: Span
    waiting_for: set[str]
    uses: list[SpanUse] = field(default_factory=list)


class HostMeter:
    """Meters all devices of a host. ``origin_s`` is Unix time minus the monotonic clock at the start."""

    def __init__(self, options: Options, *, origin_s: float, boot_id: str = "") -> None:
        self.devices: dict[str, DeviceMeter] = {}
        self.late_spans = 0
        self.unknown_devices = 0
        self._options = options
        self._origin_s = origin_s
        self._boot_id = boot_id
        self._tracked: dict[str, _Tracked] = {}
        self._done: list[RequestEntry] = []
        self._positions: dict[str, Position] = {}
        self._restored = Restored()

    @property
    def pending(self) -> int:
        """Spans without a final figure."""
        return len(self._tracked)

    # Devices

    def add_device(self, device: Device) -> None:
        """Meter a device; one that is known already takes over what is new about it."""
        known = self.devices.get(device.id)
        if known is not None:
            known.device = device
            return
        meter = DeviceMeter(
            device,
            origin_s=self._origin_s,
            hold_s=self._options.hold_s,
            idle_policy=self._options.idle_policy,
            tolerance=self._options.foreign_tolerance,
            lag_s=self._options.lag_s,
            totals=self._restored.totals.get(device.id, DeviceTotals()),
        )
        self.devices[device.id] = meter
        for position in self._restored.positions:
            if position.device == device.id:
                mine = [account for account in self._restored.accounts if account.device == device.id]
                meter.restore(position, mine, same_boot=bool(self._boot_id) and position.boot_id == self._boot_id)

    def restore(self, restored: Restored) -> None:
        """What an earlier run left; call before devices are added, then ``reopen`` after."""
        self._restored = restored

    def reopen(self, pending_mj: Mapping[tuple[str, int], int]) -> None:
        """Spans without a final figure go on.

        ``pending_mj`` is what the earlier run had placed on unfinished requests,
        by device and bucket start; it is divided over the restored spans by the time they held the device.
        """
        positions = {position.device: position for position in self._restored.positions}
        for span in self._restored.spans:
            ended = span
            if span.ended_s is None and span.request_id in self._restored.earlier_boot:
                stopped_s = max((p.t_s for p in positions.values()), default=span.started_s)
                ended = replace(span, ended_s=max(span.started_s, stopped_s), outcome=Outcome.CANCELLED)
            self.begin(ended)
        for (device, bucket_s), energy_mj in sorted(pending_mj.items()):
            self._hand_back(device, bucket_s, energy_mj, positions.get(device))

    def _hand_back(self, device: str, bucket_s: int, energy_mj: int, position: Position | None) -> None:
        meter = self.devices.get(device)
        if meter is None or position is None or energy_mj <= 0:
            return
        until_s = min(bucket_s + BUCKET_S, position.wall_s) - self._origin_s
        held = []
        for request_id, tracked in sorted(self._tracked.items()):
            ended_s = math.inf if tracked.span.ended_s is None else tracked.span.ended_s
            seconds = min(ended_s, until_s) - max(tracked.span.started_s, bucket_s - self._origin_s)
            if device in tracked.waiting_for and seconds > 0:
                held.append((request_id, seconds))
        for (request_id, seconds), part in zip(
            held, apportion(energy_mj, [s for _, s in held]) if held else [], strict=True
        ):
            meter.adopt(request_id, [(bucket_s, part, seconds)])

    # Spans

    def begin(self, span: Span) -> bool:
        """A span began, or is told whole. False when its id is known and nothing changed."""
        known = self._tracked.get(span.request_id)
        if known is not None:
            return self.end(span.request_id, span.ended_s, span.outcome) if span.ended_s is not None else False
        devices = span.devices or tuple(self.devices)
        mine = tuple(device for device in devices if device in self.devices)
        self.unknown_devices += len(devices) - len(mine)
        members = span.members or (Member(span.request_id),)
        span = replace(span, devices=mine, members=members)
        self._tracked[span.request_id] = _Tracked(span, set(mine))
        for device in mine:
            self.devices[device].open(span)
        if not mine and span.ended_s is not None:
            self._finish(span.request_id)
        return True

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> bool:
        """A span ended. False when it is unknown or had ended already."""
        tracked = self._tracked.get(request_id)
        if tracked is None or tracked.span.ended_s is not None:
            return False
        ended_s = max(ended_s, tracked.span.started_s)
        tracked.span = replace(tracked.span, ended_s=ended_s, outcome=outcome)
        for device in tracked.span.devices:
            self.devices[device].partition.end(request_id, ended_s)
        if not tracked.span.devices:
            self._finish(request_id)
        return True

    def span(self, request_id: str) -> Span | None:
        """A span without a final figure."""
        tracked = self._tracked.get(request_id)
        return None if tracked is None else tracked.span

    # Time

    def feed(self, readings: Sequence[Reading]) -> None:
        """Readings, in order of time for each device; those of devices that were never added are left out."""
        for reading in readings:
            meter = self.devices.get(reading.device)
            if meter is not None:
                meter.feed(reading)

    def advance(self, now_s: float) -> Progress:
        """Let time pass: place what has waited long enough."""
        for tracked in list(self._tracked.values()):
            if tracked.span.ended_s is None and now_s - tracked.span.started_s > self._options.longest_s:
                self.end(tracked.span.request_id, now_s, Outcome.CANCELLED)
        for meter in self.devices.values():
            self._take(meter.advance(now_s))
        self._give_up_on_the_silent(now_s)
        return self._progress()

    def finish(self) -> Progress:
        """The run ends: settle what readings reach; what they do not stays pending for the next run."""
        for meter in self.devices.values():
            self._take(meter.finish())
        return self._progress()

    def _take(self, uses: Sequence[SpanUse]) -> None:
        for use in uses:
            tracked = self._tracked.get(use.span_id)
            if tracked is None:
                continue
            tracked.uses.append(use)
            tracked.waiting_for.discard(use.device)
            self.late_spans += use.late
            if not tracked.waiting_for:
                self._finish(use.span_id)

    def _give_up_on_the_silent(self, now_s: float) -> None:
        """A device that gives no readings cannot hold its spans' figures for ever."""
        for request_id, tracked in list(self._tracked.items()):
            ended_s = tracked.span.ended_s
            if ended_s is None or now_s - ended_s < SILENT_S:
                continue
            silent = {d for d in tracked.waiting_for if self._is_silent(d, ended_s, now_s)}
            tracked.waiting_for -= silent
            for device in silent:
                self._take(self.devices[device].partition.drop(request_id))
            if request_id in self._tracked and not tracked.waiting_for:
                self._finish(request_id)

    def _is_silent(self, device: str, ended_s: float, now_s: float) -> bool:
        frontier_s = self.devices[device].partition.frontier_s
        return now_s - ended_s > SILENT_S and (frontier_s is None or frontier_s < ended_s)

    def _progress(self) -> Progress:
        entries, self._done = tuple(self._done), []
        accounts: list[Account] = []
        positions: list[Position] = []
        for device, meter in self.devices.items():
            accounts += meter.take_accounts()
            position = meter.position(self._boot_id)
            if position is not None and position != self._positions.get(device):
                self._positions[device] = position
                positions.append(position)
        return Progress(entries, tuple(accounts), tuple(positions))

    # Figures

    def _finish(self, request_id: str) -> None:
        tracked = self._tracked.pop(request_id)
        self._done.extend(self._entries(tracked))

    def _entries(self, tracked: _Tracked) -> list[RequestEntry]:
        span, uses = tracked.span, tracked.uses
        known = [use for use in uses if use.energy_mj is not None]
        step_s = max((self.devices[use.device].sensor_error().step_s for use in uses), default=0.0)
        devices = [self.devices[use.device].device for use in uses]
        simulated = any(device.method is Method.SIMULATED for device in devices)
        method = Method.SIMULATED if simulated and known else least_trusted(m for u in known for m in u.methods)
        primary = least_trusted(device.method for device in devices)
        quality = quality_of(
            uses,
            method,
            primary=primary,
            step_s=step_s,
            members=len(span.members),
            start_source=span.start_source,
            source_quality=_weakest(device.quality for device in devices),
        )
        flags = flags_of(uses, step_s=step_s, start_source=span.start_source, primary=None if simulated else primary)
        errors = [self.devices[use.device].uncertainty_of(use) for use in known]
        total = (combine(e[0] for e in errors), combine(e[1] for e in errors))
        total_mj = sum(use.energy_mj or 0 for use in known)
        shares = [self._member_shares(use, span.members) for use in known]
        entries = []
        for place, member in enumerate(span.members):
            mine = tuple(share for per_member in shares for share in per_member[place])
            by_device: dict[str, int] = {use.device: 0 for use in known}
            for share in mine:
                by_device[share.device] += share.energy_mj
            energy_mj = sum(by_device.values())
            error = total
            if len(span.members) > 1:
                error = member_uncertainty(energy_mj, total_mj, *total)
            entries.append(
                RequestEntry(
                    request_id=member.request_id,
                    status=Status.FINAL,
                    outcome=span.outcome,
                    work=member.work,
                    started_s=span.started_s + self._origin_s,
                    ended_s=(span.ended_s or span.started_s) + self._origin_s,
                    start_source=span.start_source,
                    energy_mj=energy_mj if known else None,
                    u_measurement_mj=math.ceil(error[0]) if known else None,
                    u_allocation_mj=math.ceil(error[1]) if known else None,
                    method=method if known else None,
                    quality=quality,
                    model=span.model,
                    tier=span.tier,
                    tenant=span.tenant,
                    arrived_s=None if span.arrived_s is None else span.arrived_s + self._origin_s,
                    batch_id=span.batch_id,
                    devices={use.device: self._device_use(use, by_device[use.device]) for use in known},
                    shares=mine,
                    flags=flags,
                )
            )
        return entries

    def _device_use(self, use: SpanUse, energy_mj: int) -> DeviceUse:
        return self.devices[use.device].conditions.during(use.start_s, use.end_s, energy_mj)

    def _member_shares(self, use: SpanUse, members: Sequence[Member]) -> list[list[Share]]:
        """A use's bucket shares, divided over the members: one list a member."""
        divided: list[dict[int, int]] = [{} for _ in members]
        for share in use.shares:
            bucket_s = self.devices[use.device].bucket_start_s(share.key)
            for mine, part in zip(divided, split_members(share.energy_mj, members), strict=True):
                mine[bucket_s] = mine.get(bucket_s, 0) + part
        return [
            [Share(member.request_id, use.device, bucket_s, mj) for bucket_s, mj in mine.items()]
            for member, mine in zip(members, divided, strict=True)
        ]

    def provisional(self, span: Span, now_s: float) -> list[RequestEntry]:
        """What a span's members owe as far as the model can tell: pending figures with a wide U."""
        power_w = 0.0
        qualities = []
        for device in span.devices or tuple(self.devices):
            meter = self.devices.get(device)
            if meter is None:
                continue
            model = meter.learner.model
            busy = max(1, meter.partition.active_spans)
            power_w += (model.idle_w + model.dynamic_of(span.power_class or span.model or "")) / busy
            qualities.append(meter.device)
        if not qualities:
            return []
        until_s = now_s if span.ended_s is None else span.ended_s
        energy_mj = round(1000.0 * power_w * max(0.0, until_s - span.started_s))
        simulated = any(device.method is Method.SIMULATED for device in qualities)
        members = span.members or (Member(span.request_id),)
        return [
            RequestEntry(
                request_id=member.request_id,
                status=Status.PENDING,
                outcome=span.outcome,
                work=member.work,
                started_s=span.started_s + self._origin_s,
                ended_s=until_s + self._origin_s,
                start_source=span.start_source,
                energy_mj=part,
                u_measurement_mj=round(PROVISIONAL_ERROR * part),
                u_allocation_mj=round(PROVISIONAL_ERROR * part),
                method=Method.SIMULATED if simulated else Method.MODEL,
                quality=Quality.SIMULATED if simulated else Quality.MODELLED,
                model=span.model,
                tier=span.tier,
                tenant=span.tenant,
                batch_id=span.batch_id,
            )
            for member, part in zip(members, split_members(energy_mj, members), strict=True)
        ]

    def states(self, now_s: float, errors: Mapping[str, Mapping[str, int]]) -> dict[str, DeviceState]:
        """Every device now, for the snapshot."""
        return {device: meter.state(now_s, errors.get(device, {})) for device, meter in self.devices.items()}


SILENT_S = 30.0
"""A finished request waits this long for a device that gives no readings; then it is final without it."""

_WEAKNESS = (
    Quality.MEASURED,
    Quality.APPORTIONED,
    Quality.MODELLED,
    Quality.DEFAULT,
    Quality.SIMULATED,
    Quality.MISSING,
)


def _weakest(qualities: object) -> Quality | None:
    return max(qualities, key=_WEAKNESS.index, default=None)  # type: ignore[call-overload,no-any-return]

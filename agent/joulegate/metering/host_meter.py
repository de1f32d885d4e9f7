"""The meter of one host, live and pure: readings and span edges in, final entries and accounts out. Time is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from joulegate.metering.apportion import apportion
from joulegate.metering.batch import Restored
from joulegate.metering.device_meter import DeviceMeter
from joulegate.metering.entry import BUCKET_S, Account, DeviceUse, Position, RequestEntry, Share, Status
from joulegate.metering.fifo import FifoServer
from joulegate.metering.figures import (
    FIFO_EDGE_ERROR_S,
    combine,
    flags_of,
    least_trusted,
    member_uncertainty,
    quality_of,
    split_members,
)
from joulegate.metering.open_span import SpanUse
from joulegate.metering.policy import IdlePolicy
from joulegate.metering.reading import Device, Method, Quality, Reading
from joulegate.metering.snapshot import DeviceState, DeviceTotals
from joulegate.metering.span import Member, Outcome, Span, StartSource

_P = ParamSpec("_P")
_T = TypeVar("_T")

PROVISIONAL_ERROR = 0.5
"""Relative expanded uncertainty of a provisional figure: a model's word, not yet the counter's."""


@dataclass(frozen=True, slots=True)
class Options:
    """How this host is metered; the settings of the same names."""

    idle_policy: IdlePolicy = IdlePolicy.SEPARATE
    foreign_tolerance: float = 0.15
    lag_s: float | None = None
    hold_s: float = 2.0
    longest_s: float = 3500.0
    """A span that nobody ended for this long is ended there as cancelled; the ledger can restore an hour."""
    slots: int | None = None
    """How many requests a server works on at once, to infer the starts of those that only tell their arrival."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What became final, and which accounts moved, in one step of time."""

    entries: tuple[RequestEntry, ...] = ()
    accounts: tuple[Account, ...] = ()
    positions: tuple[Position, ...] = ()


SILENT_S = 30.0
"""A finished request waits this long for a device that gives no readings; then it is final without it."""

_INSTANT_S = 1e-3

CHECK_S = 1.0
"""How often spans are looked through for those that run for too long or wait for a silent device."""

STEPPED_S = 1.0
"""A wall clock that is off the first anchor by this much was set, or the machine slept."""


@dataclass(slots=True)
class _Tracked:
    """A span on its way to its final figure."""

    span: Span
    waiting_for: set[str]
    uses: list[SpanUse] = field(default_factory=list)
    partial: bool = False
    queued: bool = False
    """It has arrived and waits for a slot: no device works on it."""


class HostMeter:
    """Meters all devices of a host.

    ``origin_s`` is Unix time minus the monotonic clock at the start. What goes wrong inside one device's meter is
    counted in ``faults`` and stays with that device (law 8).
    """

    def __init__(self, options: Options, *, origin_s: float, boot_id: str = "") -> None:
        self.devices: dict[str, DeviceMeter] = {}
        self.faults: dict[str, int] = {}
        self.last_fault: str | None = None
        self.late_spans = 0
        self.unknown_devices = 0
        self._options = options
        self._origin_s = origin_s
        self._boot_id = boot_id
        self._tracked: dict[str, _Tracked] = {}
        self._owners: dict[str, str] = {}
        self._servers: dict[tuple[str, ...], FifoServer] = {}
        self._done: list[RequestEntry] = []
        self._positions: dict[str, Position] = {}
        self._restored = Restored()
        self._unclaimed: set[str] = set()
        self._unclaimed_from_s: float | None = None
        self._gone: set[str] = set()
        self._checked_s = -math.inf

    @property
    def pending(self) -> int:
        """Spans without a final figure."""
        return len(self._tracked)

    # Devices

    def add_device(self, device: Device) -> None:
        """Meter a device; one that is known already takes over what is new about it."""
        known = self.devices.get(device.id)
        if known is not None:
            if known.device != device:
                known.device = device
            self._gone.discard(device.id)
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
        position = self._restored_position(device.id)
        if position is not None:
            mine = [account for account in self._restored.accounts if account.device == device.id]
            meter.restore(position, mine, same_boot=self._is_this_boot(position))

    def _restored_position(self, device: str) -> Position | None:
        return next((position for position in self._restored.positions if position.device == device), None)

    def _is_this_boot(self, position: Position) -> bool:
        return bool(self._boot_id) and position.boot_id == self._boot_id

    def restore(self, restored: Restored) -> None:
        """What an earlier run left; call before devices are added, then ``reopen`` after."""
        self._restored = restored

    def reopen(self, pending_mj: Mapping[tuple[str, int], int]) -> None:
        """Spans without a final figure go on.

        ``pending_mj`` is what the earlier run had placed on unfinished requests, by device and bucket start; it is
        divided over the restored spans by the time they held the device. A device that is not here any more gives its
        part of them all the same.
        """
        for device in sorted({device for device, _ in pending_mj} - self.devices.keys()):
            self._add_gone(device)
        stopped_s = max((p.t_s for p in self._restored.positions if self._is_this_boot(p)), default=None)
        for span in self._restored.spans:
            opened = span
            if span.ended_s is None and span.request_id in self._restored.earlier_boot:
                ended_s = self._stopped_at_s(span.started_s)
                opened = replace(span, ended_s=max(span.started_s, ended_s), outcome=Outcome.CANCELLED)
            self.begin(opened)
            if opened.ended_s is None:
                self._unclaimed.add(opened.request_id)
        self._unclaimed_from_s = stopped_s
        for (device, bucket_s), energy_mj in sorted(pending_mj.items()):
            self._hand_back(device, bucket_s, energy_mj)

    def _stopped_at_s(self, default_s: float) -> float:
        """When the earlier boot's run was last seen, on this boot's monotonic axis (it may be negative)."""
        return max((p.wall_s - self._origin_s for p in self._restored.positions), default=default_s)

    def _add_gone(self, device: str) -> None:
        """A meter for a device that only the ledger knows: nothing reads it, it only gives back what it had placed."""
        mine = [account for account in self._restored.accounts if account.device == device]
        if mine:
            self.add_device(Device(device, device, mine[-1].method, mine[-1].quality))
            self._gone.add(device)

    def _hand_back(self, device: str, bucket_s: int, energy_mj: int) -> None:
        meter, position = self.devices.get(device), self._restored_position(device)
        if meter is None or position is None or energy_mj <= 0:
            return
        origin_s = position.wall_s - position.t_s if self._is_this_boot(position) else self._origin_s
        from_s, until_s = bucket_s - origin_s, min(bucket_s + BUCKET_S, position.wall_s) - origin_s
        held = self._held_within(device, from_s, until_s) or self._held_within(device, -math.inf, position.t_s)
        parts = apportion(energy_mj, [seconds for _, seconds in held]) if held else []
        for (request_id, seconds), part in zip(held, parts, strict=True):
            meter.adopt(request_id, [(bucket_s, part, min(seconds, BUCKET_S))])

    def _held_within(self, device: str, from_s: float, until_s: float) -> list[tuple[str, float]]:
        """Restored spans of a device and the seconds that each held it within a time.

        Without a start of that time, whoever waits for the device counts: a wall clock that was set, or a lag, may have
        put energy into a bucket in which no span seems to run.
        """
        held = []
        for request_id, tracked in sorted(self._tracked.items()):
            ended_s = math.inf if tracked.span.ended_s is None else tracked.span.ended_s
            seconds = min(ended_s, until_s) - max(tracked.span.started_s, from_s)
            if from_s == -math.inf:
                seconds = max(seconds, _INSTANT_S)
            if device in tracked.waiting_for and not tracked.queued and seconds > 0:
                held.append((request_id, seconds))
        return held

    def reanchor(self, origin_s: float) -> bool:
        """Tell the wall clock (Unix minus monotonic). Where it was set, or the machine slept, accounts follow it."""
        if abs(origin_s - self._origin_s) <= STEPPED_S:
            return False
        self._origin_s = origin_s
        for device, meter in self.devices.items():
            self._guarded(device, meter.reanchor, origin_s)
        return True

    # Spans

    def begin(self, span: Span) -> bool:
        """A span began, or is told whole. False when its id is known and nothing changed."""
        known = self._tracked.get(span.request_id)
        if known is not None:
            self._unclaimed.discard(span.request_id)
            return self.end(span.request_id, span.ended_s, span.outcome) if span.ended_s is not None else False
        billed = span.members or (Member(span.request_id),)
        members = tuple(member for member in billed if member.request_id not in self._owners)
        if not members:
            return False
        devices = span.devices or tuple(device for device in self.devices if device not in self._gone)
        mine = tuple(device for device in devices if device in self.devices)
        self.unknown_devices += len(devices) - len(mine)
        span = replace(span, devices=mine, members=members)
        tracked = _Tracked(span, set(mine), partial=len(mine) < len(devices))
        self._tracked[span.request_id] = tracked
        self._owners.update(dict.fromkeys((member.request_id for member in members), span.request_id))
        if self._options.slots is not None:
            self._arrive(tracked, self._options.slots)
        if not tracked.queued:
            self._open(tracked)
        if not mine and span.ended_s is not None:
            self._finish(span.request_id)
        return True

    def _open(self, tracked: _Tracked) -> None:
        for device in tracked.span.devices:
            self._guarded(device, self.devices[device].open, tracked.span)

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> bool:
        """A span ended. False when it is unknown or had ended already."""
        tracked = self._tracked.get(request_id)
        if tracked is None or tracked.span.ended_s is not None:
            return False
        self._unclaimed.discard(request_id)
        ended_s = max(ended_s, tracked.span.started_s)
        tracked.span = replace(tracked.span, ended_s=ended_s, outcome=outcome)
        if self._options.slots is not None:
            server = self._servers[_set_of(tracked.span)]
            server.leave(request_id, ended_s)
            self._serve(server)
        if not tracked.queued:
            for device in tracked.span.devices:
                self._guarded(device, self.devices[device].end, request_id, ended_s)
        if not tracked.span.devices:
            self._finish(request_id)
        return True

    def _arrive(self, tracked: _Tracked, slots: int) -> None:
        """Take a span into the queue of its devices; only an observed start is believed."""
        span = tracked.span
        server = self._servers.setdefault(_set_of(span), FifoServer(slots))
        inferred = span.start_source in (StartSource.ARRIVAL, StartSource.FIFO)
        arrived_s = span.started_s if span.arrived_s is None else span.arrived_s
        tracked.queued = inferred
        server.add(span.request_id, arrived_s, span.ended_s, None if inferred else span.started_s)
        self._serve(server)

    def _serve(self, server: FifoServer) -> None:
        """Open the spans whose start became known."""
        for request_id, started_s in server.take_starts().items():
            tracked = self._tracked.get(request_id)
            if tracked is None or not tracked.queued:
                continue
            edge_error_s = math.hypot(tracked.span.edge_error_s, FIFO_EDGE_ERROR_S)
            tracked.span = replace(
                tracked.span, started_s=started_s, start_source=StartSource.FIFO, edge_error_s=edge_error_s
            )
            tracked.queued = False
            self._open(tracked)

    def span(self, request_id: str) -> Span | None:
        """A span without a final figure."""
        tracked = self._tracked.get(request_id)
        return None if tracked is None else tracked.span

    def running(self) -> list[Span]:
        """Spans that nobody has ended yet."""
        return [tracked.span for tracked in self._tracked.values() if tracked.span.ended_s is None]

    def claim(self, request_ids: Iterable[str]) -> None:
        """Somebody answers for these requests."""
        for request_id in request_ids:
            self._unclaimed.discard(self._owners.get(request_id, request_id))

    def abandon(self, request_ids: Iterable[str], at_s: float) -> list[Span]:
        """Nobody will end these requests any more: end those that run at ``at_s``, as cancelled."""
        ended = []
        for request_id in dict.fromkeys(self._owners.get(request_id, request_id) for request_id in request_ids):
            if self.end(request_id, at_s, Outcome.CANCELLED):
                span = self.span(request_id)
                if span is not None:
                    ended.append(span)
        return ended

    def abandon_unclaimed(self) -> list[Span]:
        """End the restored spans that nobody answered for, where the earlier run was last seen."""
        unclaimed, self._unclaimed = sorted(self._unclaimed), set()
        at_s = self._unclaimed_from_s
        spans = [span for span in map(self.span, unclaimed) if span is not None]
        return [
            ended
            for span in spans
            for ended in self.abandon([span.request_id], span.started_s if at_s is None else max(span.started_s, at_s))
        ]

    # Time

    def feed(self, readings: Sequence[Reading]) -> None:
        """Readings, in order of time for each device; those of devices that were never added are left out."""
        for reading in readings:
            meter = self.devices.get(reading.device)
            if meter is not None:
                self._guarded(reading.device, meter.feed, reading)

    def advance(self, now_s: float) -> Progress:
        """Let time pass: place what has waited long enough."""
        check = now_s - self._checked_s >= CHECK_S
        if check:
            self._checked_s = now_s
            self._end_the_longest(now_s)
        for device, meter in self.devices.items():
            self._take(self._guarded(device, meter.advance, now_s) or ())
        if check:
            self._give_up_on_the_silent(now_s)
        return self._progress()

    def finish(self) -> Progress:
        """The run ends: settle what readings reach; what they do not stays pending for the next run."""
        for device, meter in self.devices.items():
            self._take(self._guarded(device, meter.finish) or ())
        return self._progress()

    def _guarded(self, device: str, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - law 8: whatever is wrong with one device, the others go on
            self.faults[device] = self.faults.get(device, 0) + 1
            self.last_fault = f"{device}: {type(error).__name__}: {' '.join(str(error).split())}"
            return None

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

    def _end_the_longest(self, now_s: float) -> None:
        longest_s = self._options.longest_s
        late = [
            tracked.span
            for tracked in self._tracked.values()
            if tracked.span.ended_s is None and now_s - tracked.span.started_s > longest_s
        ]
        for span in late:
            self.end(span.request_id, span.started_s + longest_s, Outcome.CANCELLED)

    def _give_up_on_the_silent(self, now_s: float) -> None:
        """A device that gives no readings cannot hold its spans' figures for ever."""
        patience_s = SILENT_S + self._options.hold_s
        for request_id, tracked in list(self._tracked.items()):
            ended_s = tracked.span.ended_s
            if ended_s is None or now_s - ended_s < patience_s:
                continue
            for device in sorted(tracked.waiting_for):
                frontier_s = self.devices[device].partition.frontier_s
                faulty = self.faults.get(device, 0) > 0
                if frontier_s is None or frontier_s < ended_s or faulty:
                    tracked.waiting_for.discard(device)
                    tracked.partial = True
                    self._take(self._guarded(device, self.devices[device].drop, request_id) or ())
            if request_id in self._tracked and not tracked.waiting_for:
                self._finish(request_id)

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
        self._unclaimed.discard(request_id)
        for member in tracked.span.members:
            self._owners.pop(member.request_id, None)
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
        if tracked.partial and "partial" not in flags:
            flags = (*flags, "partial")
            quality = Quality.APPORTIONED if quality is Quality.MEASURED else quality
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
                    ended_s=(span.started_s if span.ended_s is None else span.ended_s) + self._origin_s,
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
        """What a span's members owe as far as can be told now: pending figures with a wide U, none before a reading."""
        power_w = 0.0
        qualities = []
        for device in span.devices or tuple(self.devices):
            meter = self.devices.get(device)
            device_w = None if meter is None else meter.span_power_w(span.power_class or span.model or "")
            if meter is None or device_w is None:
                continue
            power_w += device_w
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
        return {
            device: meter.state(now_s, self._errors_of(device, errors.get(device, {})))
            for device, meter in self.devices.items()
            if device not in self._gone
        }

    def _errors_of(self, device: str, errors: Mapping[str, int]) -> Mapping[str, int]:
        faults = self.faults.get(device)
        return errors if faults is None else {**errors, "meter_fault": faults}


_WEAKNESS = (
    Quality.MEASURED,
    Quality.APPORTIONED,
    Quality.MODELLED,
    Quality.DEFAULT,
    Quality.SIMULATED,
    Quality.MISSING,
)


def _weakest(qualities: Iterable[Quality]) -> Quality | None:
    return max(qualities, key=_WEAKNESS.index, default=None)


def _set_of(span: Span) -> tuple[str, ...]:
    return tuple(sorted(span.devices))

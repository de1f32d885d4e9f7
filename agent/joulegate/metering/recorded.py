"""The meter on recorded data: a log of readings and a log of requests in, the same accounts as live out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from joulegate.metering.calibration import (
    Calibration,
    Changes,
    ModelEnergy,
    calibrate,
    dynamic_energy,
    model_energy,
)
from joulegate.metering.drift import Drift, find_drift
from joulegate.metering.effects import request_effects
from joulegate.metering.figures import (
    FIFO_EDGE_ERROR_S,
    combine,
    flags_of,
    least_trusted,
    member_uncertainty,
    quality_of,
    split_members,
)
from joulegate.metering.interval import GAP_S, EnergyLine, Interval, Kind
from joulegate.metering.partition import BucketKey, Cell, OwnPower, Partition, SpanUse, UseShare
from joulegate.metering.policy import IdlePolicy, spread_idle
from joulegate.metering.queueing import infer_starts
from joulegate.metering.reading import Method, Quality, Reading
from joulegate.metering.sharing import hidden_share_error
from joulegate.metering.span import Member, StartSource, Work
from joulegate.metering.stepping import smoothed
from joulegate.metering.uncertainty import SensorError, expanded
from joulegate.units import S_PER_HOUR

GAIN_ERROR = 0.05
"""Largest relative gain error of an unlisted NVIDIA board (Yang et al., SC'24: typical, not a bound)."""

DISAGREEMENT = 0.15
"""A counter this far from the integral of the power beside it is doubted."""

COARSE_MISFIT = 0.1
"""Beyond this relative misfit, changes that coarse polls bracket are placed by the energy between them."""

_GAP_POLLS = 5.0
_RESOLVED_SHARE = 0.4


class ReadingColumns(Protocol):
    """One device's readings as columns of equal length, ``t_s`` strictly rising; ``None`` is a missing reading."""

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def t_s(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def energy_mj(self) -> Sequence[int | None] | None: ...  # noqa: D102

    @property
    def power_w(self) -> Sequence[float | None] | None: ...  # noqa: D102


class SpanLike(Protocol):
    """One request of the log."""

    @property
    def request_id(self) -> str: ...  # noqa: D102

    @property
    def devices(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def start_s(self) -> float | None: ...  # noqa: D102

    @property
    def end_s(self) -> float: ...  # noqa: D102

    @property
    def power_class(self) -> str: ...  # noqa: D102

    @property
    def images(self) -> int | None: ...  # noqa: D102

    @property
    def steps(self) -> int | None: ...  # noqa: D102

    @property
    def width(self) -> int | None: ...  # noqa: D102

    @property
    def height(self) -> int | None: ...  # noqa: D102

    @property
    def batch_id(self) -> str | None: ...  # noqa: D102

    @property
    def arrived_s(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Options:
    """How to attribute.

    ``lag_s`` None learns it; ``slots`` infers starts that are missing; ``power_method`` says what
    the power readings are.
    """

    idle_policy: IdlePolicy = IdlePolicy.SEPARATE
    lag_s: float | None = None
    slots: int | None = None
    power_method: Method = Method.INSTANT


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """One epoch of a device: between resets, the law closes in each."""

    start_s: float
    end_s: float
    counter_delta_mj: int
    requests_mj: int
    idle_mj: int
    unattributed_mj: int


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device's accounts. ``idle_w`` is ``None`` when the data do not tell it."""

    device: str
    method: Method
    counter_delta_mj: int
    requests_mj: int
    idle_mj: int
    unattributed_mj: int
    estimated_mj: int
    lag_s: float
    lag_known: bool
    step_s: float | None
    idle_w: float | None
    dynamic_w: Mapping[str, float]
    calibrated: bool
    epochs: tuple[EpochFigures, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """One request's energy in whole millijoules; ``None`` with quality ``missing`` when no reading saw it."""

    request_id: str
    energy_mj: int | None
    u_measurement_mj: int | None
    u_allocation_mj: int | None
    method: Method | None
    quality: Quality
    devices: Mapping[str, int]
    start_s: float
    start_source: StartSource
    queue_s: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attribution:
    """The result: every device's accounts and every request's figure, in the order of their request ids."""

    devices: Mapping[str, DeviceFigures]
    requests: tuple[RequestFigures, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """One span: a request, or the members of a batch."""

    span_id: str
    devices: tuple[str, ...]
    start_s: float
    end_s: float
    power_class: str
    members: tuple[Member, ...]
    start_source: StartSource
    arrivals_s: tuple[float | None, ...]


@dataclass(slots=True)
class _Line:
    """One device's readings turned into intervals."""

    device: str
    intervals: list[Interval]
    poll_s: float
    step_s: float | None
    resolved: bool
    method: Method
    otherwise: list[Interval] | None = None
    """The same intervals under the other reading of when the counter changed, where the polls do not tell."""
    disagreement: float = 0.0
    """How far the integrated power is from the counter, relative to the counter, where that is doubtful."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one device saw of one span, reduced to what the sums need."""

    use: SpanUse
    measurement_mj: float
    allocation_mj: float
    step_s: float
    primary: Method


def attribute(
    devices: Mapping[str, ReadingColumns], spans: Sequence[SpanLike], options: Options = Options()
) -> Attribution:
    """Attribute a whole recording. The order of ``spans`` changes nothing; their devices must be keys of ``devices``."""
    groups = _group(spans, options.slots)
    seen: dict[str, list[_Seen]] = {group.span_id: [] for group in groups}
    figures: dict[str, DeviceFigures] = {}
    for device, columns in devices.items():
        mine = [group for group in groups if device in group.devices]
        figures[device] = _one_device(columns, mine, options, seen)
    requests = [request for group in groups for request in _finish_group(group, seen[group.span_id])]
    return Attribution(figures, tuple(sorted(requests, key=lambda request: request.request_id)))


# Spans


def _group(spans: Sequence[SpanLike], slots: int | None) -> list[_Group]:
    """Requests and batches as spans, sorted by start and id, with missing starts inferred."""
    batches: dict[str, list[SpanLike]] = {}
    for span in spans:
        key = f"r{span.request_id}" if span.batch_id is None else f"b{span.batch_id}"
        batches.setdefault(key, []).append(span)
    starts = _starts(batches, slots)
    groups = []
    for key, rows in batches.items():
        ordered = sorted(rows, key=lambda row: row.request_id)
        first = ordered[0]
        members = tuple(Member(row.request_id, Work(row.images, row.steps, row.width, row.height)) for row in ordered)
        source = StartSource.DECLARED if first.start_s is not None else StartSource.FIFO
        arrivals = tuple(row.arrived_s for row in ordered)
        groups.append(
            _Group(key, first.devices, starts[key], first.end_s, first.power_class, members, source, arrivals)
        )
    return sorted(groups, key=lambda group: (group.start_s, group.span_id))


def _starts(batches: Mapping[str, list[SpanLike]], slots: int | None) -> dict[str, float]:
    """Start of each span; where it is missing, a FIFO server with ``slots`` workers behind each set of devices."""
    starts = {key: rows[0].start_s for key, rows in batches.items()}
    servers: dict[tuple[str, ...], list[str]] = {}
    for key, rows in batches.items():
        servers.setdefault(tuple(sorted(rows[0].devices)), []).append(key)
    for keys in servers.values():
        if all(starts[key] is not None for key in keys):
            continue
        keys.sort()
        arrivals = [_arrival(batches[key]) for key in keys]
        ends = [batches[key][0].end_s for key in keys]
        starts |= dict(zip(keys, infer_starts(arrivals, ends, slots or 1, [starts[key] for key in keys]), strict=True))
    return {key: start for key, start in starts.items() if start is not None}


def _arrival(rows: Sequence[SpanLike]) -> float:
    """A batch is complete when its last member has arrived."""
    known = [row.arrived_s for row in rows if row.arrived_s is not None]
    if known:
        return max(known)
    start_s = rows[0].start_s
    return rows[0].end_s if start_s is None else start_s


# Readings


def _line(columns: ReadingColumns, power_method: Method) -> _Line:
    """Intervals of one device: from its counter, or from integrated power where it has none."""
    times = np.asarray(columns.t_s, dtype=np.float64)
    poll_s = float(np.median(np.diff(times))) if len(times) > 1 else GAP_S
    gap_s = max(GAP_S, _GAP_POLLS * poll_s)
    energies = columns.energy_mj or [None] * len(times)
    powers = columns.power_w or [None] * len(times)
    resolved = _is_resolved(energies)
    line = EnergyLine(power_method, hole_s=gap_s, gap_s=gap_s, resolved=resolved)
    intervals: list[Interval] = []
    for t_s, energy_mj, power_w in zip(columns.t_s, energies, powers, strict=True):
        if energy_mj is None and power_w is None:
            continue
        intervals.extend(line.feed(Reading(columns.device, t_s, t_s, energy_mj=energy_mj, power_w=power_w)))
    rhythmic = _retimed(intervals)
    measured = [i.end_s - i.start_s for i in intervals if i.kind is Kind.MEASURED]
    step_s = float(np.median(measured)) if measured else None
    counts = columns.energy_mj is not None and any(value is not None for value in energies)
    method = Method.COUNTER if counts else power_method
    found = _Line(columns.device, rhythmic if resolved else intervals, poll_s, step_s, resolved, method)
    found.otherwise = None if resolved or method is not Method.COUNTER else rhythmic
    _cross_check(found, columns, intervals)
    return found


def _retimed(intervals: Sequence[Interval]) -> list[Interval]:
    """Counter changes at the times that the counter's own rhythm tells, epoch by epoch."""
    retimed: list[Interval] = []
    run: list[Interval] = []
    for interval in [*intervals, None]:
        if interval is not None and interval.after_s is not None:
            run.append(interval)
            continue
        times = smoothed([(i.after_s or i.end_s, i.until_s or i.end_s) for i in run])
        for place, (old, end_s) in enumerate(zip(run, times, strict=True)):
            start_s = min(times[place - 1] if place else old.start_s, end_s)
            retimed.append(replace(old, start_s=start_s, end_s=end_s))
        run = []
        if interval is not None:
            retimed.append(interval)
    return retimed


def _retimed_by_energy(intervals: Sequence[Interval], energy_at: ModelEnergy, lag_s: float) -> list[Interval]:
    """Counter changes where the model says that this much energy was used, within what the polls allow."""
    retimed: list[Interval] = []
    before_s: float | None = None
    for old in intervals:
        if old.after_s is None or old.until_s is None or old.energy_mj is None:
            retimed.append(old)
            before_s = None
            continue
        start_s = old.start_s if before_s is None else before_s
        told_s = energy_at.time_after(start_s - lag_s, old.energy_mj / 1000.0) + lag_s
        before_s = max(start_s, min(max(told_s, old.after_s), old.until_s))
        retimed.append(replace(old, start_s=start_s, end_s=before_s))
    return retimed


def _is_resolved(energies: Sequence[int | None]) -> bool:
    """Whether polls are well denser than the counter's steps: then nearly every second poll shows the old value."""
    known = [energy for energy in energies if energy is not None]
    equal = sum(1 for before, after in pairwise(known) if before == after)
    return len(known) > 2 and equal >= _RESOLVED_SHARE * (len(known) - 1)


def _cross_check(line: _Line, columns: ReadingColumns, intervals: Sequence[Interval]) -> None:
    """Doubt a counter that stood still, or that is far from the integral of the power beside it."""
    if columns.energy_mj is None or columns.power_w is None:
        return
    if any(i.method is not Method.COUNTER for i in intervals):
        line.warnings.append("the counter stood still while power flowed; the power was integrated instead")
        return
    pairs = [(t, p) for t, p in zip(columns.t_s, columns.power_w, strict=True) if p is not None]
    if len(pairs) < 2:
        return
    times, powers = np.array(pairs).T
    covered = [i for i in intervals if i.energy_mj is not None and times[0] <= i.start_s and i.end_s <= times[-1]]
    counter_j = sum(i.energy_mj or 0 for i in covered) / 1000.0
    integral = np.concatenate([[0.0], np.cumsum((powers[1:] + powers[:-1]) / 2 * np.diff(times))])
    bounds = np.interp([[i.start_s, i.end_s] for i in covered], times, integral) if covered else np.zeros((0, 2))
    power_j = float((bounds[:, 1] - bounds[:, 0]).sum())
    if power_j > 0 and counter_j > 0 and abs(counter_j / power_j - 1) > DISAGREEMENT:
        line.disagreement = abs(power_j / counter_j - 1)
        line.warnings.append(
            f"counter and integrated power disagree: {counter_j:.1f} J against {power_j:.1f} J; U holds both"
        )


# One device


def _one_device(
    columns: ReadingColumns, groups: Sequence[_Group], options: Options, seen: dict[str, list[_Seen]]
) -> DeviceFigures:
    line = _line(columns, options.power_method)
    learned = _learn(line, groups, options.lag_s)
    partition = Partition(
        columns.device,
        learned.calibration.model,
        bucket_s=S_PER_HOUR,
        charge_idle=options.idle_policy is not IdlePolicy.MARGINAL,
    )
    poll_s = line.poll_s if line.resolved else 0.0
    gain = GAIN_ERROR + line.disagreement
    sensor = SensorError(gain, learned.calibration.lag.error_s, poll_s, line.step_s or line.poll_s)
    uses: list[_Seen] = []
    for use in _run(partition, line, groups, learned):
        uses.append(_Seen(use, *expanded(use.evidence, sensor), sensor.step_s, line.method))
    cells = partition.take_cells()
    moved = _spread(options.idle_policy, [one.use for one in uses], cells)
    for one in uses:
        extra = moved.by_span.get(one.use.span_id, 0)
        paid = replace(one.use, energy_mj=(one.use.energy_mj or 0) + extra) if extra else one.use
        seen[one.use.span_id].append(replace(one, use=paid))
    return _device_figures(line, learned.calibration, cells, moved.by_bucket)


def _device_figures(
    line: _Line, learned: Calibration, cells: Sequence[Cell], paid_mj: Mapping[BucketKey, int]
) -> DeviceFigures:
    """Sum the buckets into epochs; ``paid_mj`` is idle energy that a policy moved to requests."""
    epochs: dict[int, EpochFigures] = {}
    for cell in sorted(cells, key=lambda c: (c.key.epoch, c.key.bucket)):
        if cell.device_mj == 0 and cell.estimated_mj:
            continue
        more_mj = paid_mj.get(cell.key, 0)
        fresh = EpochFigures(
            cell.first_s + learned.lag.lag_s,
            cell.last_s + learned.lag.lag_s,
            cell.device_mj,
            cell.requests_mj + more_mj,
            cell.idle_mj - more_mj,
            cell.unattributed_mj,
        )
        epochs[cell.key.epoch] = _joined(epochs.get(cell.key.epoch), fresh)
    closed = tuple(epochs.values())
    model = learned.model
    return DeviceFigures(
        device=line.device,
        method=line.method,
        counter_delta_mj=sum(epoch.counter_delta_mj for epoch in closed),
        requests_mj=sum(epoch.requests_mj for epoch in closed),
        idle_mj=sum(epoch.idle_mj for epoch in closed),
        unattributed_mj=sum(epoch.unattributed_mj for epoch in closed),
        estimated_mj=sum(cell.estimated_mj for cell in cells),
        lag_s=learned.lag.lag_s,
        lag_known=learned.lag.known,
        step_s=line.step_s,
        idle_w=model.idle_w if model.idle_known else None,
        dynamic_w=model.dynamic_w,
        calibrated=model.calibrated,
        epochs=closed,
        warnings=tuple(line.warnings),
    )


def _joined(before: EpochFigures | None, after: EpochFigures) -> EpochFigures:
    if before is None:
        return after
    return EpochFigures(
        before.start_s,
        after.end_s,
        before.counter_delta_mj + after.counter_delta_mj,
        before.requests_mj + after.requests_mj,
        before.idle_mj + after.idle_mj,
        before.unattributed_mj + after.unattributed_mj,
    )


@dataclass(frozen=True, slots=True)
class _Learned:
    """What a recording tells of one device: its model and lag, how dynamic power drifted, what single spans draw."""

    calibration: Calibration
    drift: Drift
    own: Mapping[str, OwnPower]

    @property
    def lag_s(self) -> float:
        return self.calibration.lag.lag_s


def _learn(line: _Line, groups: Sequence[_Group], lag_s: float | None) -> _Learned:
    real = [group for group in groups if group.end_s > group.start_s]
    starts, ends = np.array([g.start_s for g in real]), np.array([g.end_s for g in real])
    classes = [g.power_class for g in real]
    changes = _changes(line.intervals)
    learned = calibrate(changes, starts, ends, classes, lag_s=lag_s)
    if line.otherwise is not None:
        other_changes = _changes(line.otherwise)
        other = calibrate(other_changes, starts, ends, classes, lag_s=lag_s)
        if other.misfit < 0.9 * learned.misfit:
            line.intervals, changes, learned = line.otherwise, other_changes, other
    if not real or not len(changes.start_s):
        return _Learned(learned, Drift(np.empty(0), np.empty(0)), {})
    if line.method is Method.COUNTER and not line.resolved and learned.misfit > COARSE_MISFIT:
        energy_at = model_energy(learned.model, starts, ends, classes)
        line.intervals = _retimed_by_energy(line.intervals, energy_at, learned.lag.lag_s)
        changes = _changes(line.intervals)
    drift = find_drift(changes, dynamic_energy(changes, starts, ends, classes, learned), learned.model.idle_w)
    return _Learned(learned, drift, _own_powers(changes, real, learned, drift))


def _own_powers(
    changes: Changes, groups: Sequence[_Group], learned: Calibration, drift: Drift
) -> Mapping[str, OwnPower]:
    """What each span draws itself, and how well its share is known."""
    names = sorted({group.power_class for group in groups})
    places = {name: place for place, name in enumerate(names)}
    shifted = Changes(changes.start_s - learned.lag.lag_s, changes.end_s - learned.lag.lag_s, changes.energy_j)
    starts, ends = np.array([group.start_s for group in groups]), np.array([group.end_s for group in groups])
    owners = np.array([places[group.power_class] for group in groups], dtype=np.int64)
    watts = np.array([learned.model.dynamic_of(name) for name in names])
    idle_w = learned.model.idle_w
    effects = request_effects(shifted, starts, ends, owners, watts, idle_w=idle_w, scale=drift.at(changes.start_s))
    share_error = hidden_share_error(shifted, starts, ends, watts[owners], idle_w)
    dynamic_w = watts[owners] if effects is None else effects.dynamic_w
    error_w = 0.1 * dynamic_w if effects is None else effects.error_w
    return {
        group.span_id: OwnPower(float(w), math.hypot(share_error, min(0.5, float(e) / max(float(w), 1.0))))
        for group, w, e in zip(groups, dynamic_w, error_w, strict=True)
    }


def _changes(intervals: Sequence[Interval]) -> Changes:
    """Measured intervals as arrays. A change time that fell on its neighbour keeps a nanosecond of length."""
    measured = [i for i in intervals if i.kind is Kind.MEASURED and i.energy_mj is not None]
    starts = np.array([i.start_s for i in measured])
    ends = np.array([i.end_s for i in measured])
    energies = np.array([(i.energy_mj or 0) / 1000.0 for i in measured])
    long = ends - starts > 1e-4
    return Changes(starts[long], ends[long], energies[long])


def _run(partition: Partition, line: _Line, groups: Sequence[_Group], learned: _Learned) -> Iterator[SpanUse]:
    """Place the whole line; spans are announced just before time reaches them, so that only open ones are kept."""
    waiting = iter(groups)
    group = next(waiting, None)
    model = learned.calibration.model
    scales = learned.drift.at(np.array([interval.start_s for interval in line.intervals]))
    for interval, scale in zip(line.intervals, scales.tolist(), strict=True):
        while group is not None and group.start_s < interval.end_s - learned.lag_s:
            _announce(partition, group, learned.own)
            group = next(waiting, None)
        if scale != partition.model.dynamic_scale:
            partition.set_model(replace(model, dynamic_scale=scale))
        partition.place(interval, learned.lag_s)
        yield from partition.take_finished()
    while group is not None:
        _announce(partition, group, learned.own)
        group = next(waiting, None)
    partition.finish()
    yield from partition.take_finished()


def _announce(partition: Partition, group: _Group, own: Mapping[str, OwnPower]) -> None:
    partition.add(
        group.span_id,
        group.start_s,
        group.end_s,
        power_class=group.power_class,
        edge_error_s=FIFO_EDGE_ERROR_S if group.start_source is StartSource.FIFO else 0.0,
        own_power=own.get(group.span_id),
    )


@dataclass(frozen=True, slots=True)
class _Moved:
    """Idle energy that a policy moved to spans: in sum by span and in sum by bucket."""

    by_span: Mapping[str, int]
    by_bucket: Mapping[BucketKey, int]


def _spread(policy: IdlePolicy, uses: Sequence[SpanUse], cells: Sequence[Cell]) -> _Moved:
    by_span: dict[str, int] = {}
    by_bucket: dict[BucketKey, int] = {}
    if policy in (IdlePolicy.RESERVED, IdlePolicy.USAGE):
        held: dict[BucketKey, list[tuple[str, UseShare]]] = {}
        for use in sorted(uses, key=lambda u: u.span_id):
            for share in use.shares:
                held.setdefault(share.key, []).append((use.span_id, share))
        for cell in cells:
            shares = held.get(cell.key, [])
            parts = spread_idle(policy, cell.idle_mj, [share for _, share in shares])
            by_bucket[cell.key] = sum(parts)
            for (span_id, _), part in zip(shares, parts, strict=True):
                by_span[span_id] = by_span.get(span_id, 0) + part
    return _Moved(by_span, by_bucket)


# Requests


def _finish_group(group: _Group, seen: Sequence[_Seen]) -> list[RequestFigures]:
    """Figures of a span's members from what each of its devices saw."""
    known = [s for s in seen if s.use.energy_mj is not None]
    uses = [s.use for s in seen]
    step_s = max((s.step_s for s in seen), default=0.0)
    method = least_trusted(m for s in known for m in s.use.methods)
    primary = least_trusted(s.primary for s in seen)
    quality = quality_of(
        uses, method, primary=primary, step_s=step_s, members=len(group.members), start_source=group.start_source
    )
    flags = flags_of(uses, step_s=step_s, start_source=group.start_source, primary=primary)
    split = {s.use.device: split_members(s.use.energy_mj or 0, group.members) for s in known}
    total_mj = sum(s.use.energy_mj or 0 for s in known)
    measurement_mj = combine(s.measurement_mj for s in known)
    allocation_mj = combine(s.allocation_mj for s in known)
    figures = []
    for place, member in enumerate(group.members):
        devices = {device: parts[place] for device, parts in sorted(split.items())}
        energy_mj = sum(devices.values())
        errors = (measurement_mj, allocation_mj)
        if len(group.members) > 1:
            errors = member_uncertainty(energy_mj, total_mj, measurement_mj, allocation_mj)
        arrived_s = group.arrivals_s[place]
        figures.append(
            RequestFigures(
                request_id=member.request_id,
                energy_mj=energy_mj if known else None,
                u_measurement_mj=math.ceil(errors[0]) if known else None,
                u_allocation_mj=math.ceil(errors[1]) if known else None,
                method=method,
                quality=quality,
                devices=devices,
                start_s=group.start_s,
                start_source=group.start_source,
                queue_s=None if arrived_s is None else max(0.0, group.start_s - arrived_s),
                flags=flags,
            )
        )
    return figures

"""The meter on recorded data: a log of readings and a log of requests in, the same accounts as live out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from joulegate.metering.accounts import BucketKey, Cell, UseShare
from joulegate.metering.calibration import Calibration
from joulegate.metering.figures import FIFO_EDGE_ERROR_S
from joulegate.metering.open_span import OwnPower, SpanUse
from joulegate.metering.partition import GUARD_S, Partition
from joulegate.metering.policy import IdlePolicy, spread_idle
from joulegate.metering.reading import Method
from joulegate.metering.recorded_learning import Learned, learn
from joulegate.metering.recorded_lines import Line, ReadingColumns, read_line
from joulegate.metering.recorded_requests import DeviceRun, RequestFigures, Seen, finish_group, seen_of
from joulegate.metering.recorded_spans import Group, SpanLike, group_spans
from joulegate.metering.span import StartSource
from joulegate.metering.uncertainty import SensorError, expanded
from joulegate.units import S_PER_HOUR

__all__ = ["Attribution", "DeviceFigures", "EpochFigures", "Options", "RequestFigures", "attribute"]

GAIN_ERROR = 0.05
"""Largest relative gain error of an unlisted NVIDIA board (Yang et al., SC'24: typical, not a bound)."""

POWER_GUARD_STEPS = 5
"""Foreign load is judged over at least this many power readings: one of them tells little of what happened between."""


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
class Attribution:
    """The result: every device's accounts and every request's figure, in the order of their request ids."""

    devices: Mapping[str, DeviceFigures]
    requests: tuple[RequestFigures, ...]


def attribute(
    devices: Mapping[str, ReadingColumns], spans: Sequence[SpanLike], options: Options = Options()
) -> Attribution:
    """Attribute a whole recording; the spans' devices must be keys of ``devices``, their order changes nothing.

    Memory and time grow with the rows of both logs: about 1.3 kB and 45 microseconds a span (bench_attribution.py).
    """
    groups = group_spans(spans, options.slots)
    seen: dict[str, list[Seen]] = {group.span_id: [] for group in groups}
    mine: dict[str, list[Group]] = {device: [] for device in devices}
    for group in groups:
        for device in group.devices:
            mine[device].append(group)
    figures = {device: _one_device(columns, mine.pop(device), options, seen) for device, columns in devices.items()}
    requests = [request for group in groups for request in finish_group(group, seen.pop(group.span_id))]
    requests.sort(key=lambda request: request.request_id)
    return Attribution(figures, tuple(requests))


def _one_device(
    columns: ReadingColumns, groups: Sequence[Group], options: Options, seen: Mapping[str, list[Seen]]
) -> DeviceFigures:
    """Attribute one device; what it saw of each span is added to ``seen``."""
    line = read_line(columns, options.power_method)
    learned = learn(line, groups, options.lag_s)
    policy = options.idle_policy
    sensor = _sensor_error(line, learned.calibration.lag.error_s)
    partition = Partition(
        columns.device,
        learned.calibration.model,
        bucket_s=S_PER_HOUR,
        charge_idle=policy is not IdlePolicy.MARGINAL,
        guard_s=GUARD_S if line.method is Method.COUNTER else max(GUARD_S, POWER_GUARD_STEPS * sensor.step_s),
    )
    run = DeviceRun(columns.device, line.method, sensor.step_s)
    paying: dict[str, tuple[UseShare, ...]] = {}
    for use in _placed(partition, line, groups, learned):
        seen[use.span_id].append(seen_of(run, use, *expanded(use.evidence, sensor)))
        if policy in (IdlePolicy.RESERVED, IdlePolicy.USAGE):
            paying[use.span_id] = use.shares
    cells = partition.take_cells()
    by_span, by_bucket = _spread(policy, paying, cells)
    for span_id, paid_mj in by_span.items():
        if paid_mj:
            last = seen[span_id][-1]
            last.energy_mj = (last.energy_mj or 0) + paid_mj
    return _device_figures(line, learned.calibration, cells, by_bucket)


def _sensor_error(line: Line, lag_error_s: float) -> SensorError:
    """How well the line is known.

    Power readings put an edge anywhere between two of them, and anywhere in what one of them holds or is the mean of.
    """
    gain, step_s = GAIN_ERROR + line.disagreement, line.step_s or line.poll_s
    if line.method is Method.COUNTER:
        return SensorError(gain, lag_error_s, line.poll_s if line.resolved else 0.0, step_s)
    return SensorError(gain, lag_error_s, math.hypot(step_s, line.resolution_s), line.resolution_s)


def _placed(partition: Partition, line: Line, groups: Sequence[Group], learned: Learned) -> Iterator[SpanUse]:
    """Place the whole line; spans are announced just before time reaches them, so that only open ones are kept."""
    model, lag_s = learned.calibration.model, learned.lag_s
    own_powers = learned.own_powers()
    scales = learned.drift.at(np.array([interval.start_s for interval in line.intervals]))
    place, count = 0, len(groups)
    for interval, scale in zip(line.intervals, scales.tolist(), strict=True):
        until_s = interval.end_s - lag_s
        while place < count and groups[place].start_s < until_s:
            _announce(partition, groups[place], own_powers[place])
            place += 1
        if scale != partition.model.dynamic_scale:
            partition.set_model(replace(model, dynamic_scale=scale))
        partition.place(interval, lag_s)
        yield from partition.take_finished()
    for late in range(place, count):
        _announce(partition, groups[late], own_powers[late])
    partition.finish()
    yield from partition.take_finished()


def _announce(partition: Partition, group: Group, own_power: OwnPower | None) -> None:
    partition.add(
        group.span_id,
        group.start_s,
        group.end_s,
        power_class=group.power_class,
        edge_error_s=FIFO_EDGE_ERROR_S if group.start_source is StartSource.FIFO else 0.0,
        own_power=own_power,
    )


def _spread(
    policy: IdlePolicy, paying: Mapping[str, Sequence[UseShare]], cells: Sequence[Cell]
) -> tuple[Mapping[str, int], Mapping[BucketKey, int]]:
    """Idle energy that a policy moves to spans: in sum by span and in sum by bucket."""
    held: dict[BucketKey, list[tuple[str, UseShare]]] = {}
    for span_id in sorted(paying):
        for share in paying[span_id]:
            held.setdefault(share.key, []).append((span_id, share))
    by_span: dict[str, int] = {}
    by_bucket: dict[BucketKey, int] = {}
    for cell in cells:
        shares = held.get(cell.key, [])
        parts = spread_idle(policy, cell.idle_mj, [share for _, share in shares])
        by_bucket[cell.key] = sum(parts)
        for (span_id, _), part in zip(shares, parts, strict=True):
            by_span[span_id] = by_span.get(span_id, 0) + part
    return by_span, by_bucket


def _device_figures(
    line: Line, learned: Calibration, cells: Sequence[Cell], paid_mj: Mapping[BucketKey, int]
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

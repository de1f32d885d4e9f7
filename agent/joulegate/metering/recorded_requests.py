"""From what each device saw of a recorded span to the figures of its requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from joulegate.metering.figures import (
    combine,
    flags_of,
    least_trusted,
    member_uncertainty,
    quality_of,
    split_members,
)
from joulegate.metering.open_span import SpanUse
from joulegate.metering.reading import Method, Quality
from joulegate.metering.recorded_spans import Group
from joulegate.metering.span import StartSource


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
class DeviceRun:
    """What is true of all spans on one device: the method its source promised and its counter's refresh period."""

    device: str
    method: Method
    step_s: float


@dataclass(slots=True)
class Seen:
    """What one device saw of one span, reduced to what the sums need: a million of them are kept."""

    run: DeviceRun
    start_s: float
    end_s: float
    energy_mj: int | None
    measurement_mj: float
    allocation_mj: float
    methods: frozenset[Method]
    shared: bool
    partial: bool
    gap: bool
    late: bool
    contended: bool


def seen_of(run: DeviceRun, use: SpanUse, measurement_mj: float, allocation_mj: float) -> Seen:
    """Keep of a use what the sums need."""
    return Seen(
        run,
        use.start_s,
        use.end_s,
        use.energy_mj,
        measurement_mj,
        allocation_mj,
        use.methods,
        use.shared,
        use.partial,
        use.gap,
        use.late,
        use.contended,
    )


def finish_group(group: Group, seen: Sequence[Seen]) -> list[RequestFigures]:
    """Figures of a span's members from what each of its devices saw."""
    known = [one for one in seen if one.energy_mj is not None]
    step_s = max([one.run.step_s for one in seen], default=0.0)
    method = least_trusted([method for one in known for method in one.methods])
    primary = least_trusted([one.run.method for one in seen])
    quality = quality_of(
        seen, method, primary=primary, step_s=step_s, members=len(group.members), start_source=group.start_source
    )
    flags = flags_of(seen, step_s=step_s, start_source=group.start_source, primary=primary)
    split = _split_by_device(known, group)
    total_mj = sum([one.energy_mj or 0 for one in known])
    total = (combine([one.measurement_mj for one in known]), combine([one.allocation_mj for one in known]))
    figures = []
    for place, member in enumerate(group.members):
        devices = {device: parts[place] for device, parts in split}
        energy_mj = sum(devices.values())
        errors = total
        if len(group.members) > 1:
            errors = member_uncertainty(energy_mj, total_mj, *total)
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


def _split_by_device(known: Sequence[Seen], group: Group) -> list[tuple[str, list[int]]]:
    split = [(one.run.device, split_members(one.energy_mj or 0, group.members)) for one in known]
    if len(split) > 1:
        split.sort(key=lambda pair: pair[0])
    return split

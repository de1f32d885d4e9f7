"""From what each device saw of a span to one figure: sums, uncertainty, method and quality, and a batch's split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from joulegate.metering.apportion import apportion_whole
from joulegate.metering.partition import SpanUse
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, StartSource
from joulegate.metering.uncertainty import COVERAGE_FACTOR

RESOLVED_STEPS = 2
"""A request shorter than this many steps of the counter is apportioned from a longer interval, never measured."""

FIFO_EDGE_ERROR_S = 0.02
LAUNCH_EDGE_ERROR_S = 0.01
"""Standard error of a start that was inferred, and of one stamped at an asynchronous launch (notes, 6.2)."""

BATCH_SPLIT_ERROR = 0.1
"""Relative standard error of a member's share by images x steps x pixels (notes, 6.7: -2 to +18 % in a batch of four)."""

_TRUST = (Method.COUNTER, Method.RAPL, Method.INSTANT, Method.AVERAGE, Method.MODEL, Method.SIMULATED)


def least_trusted(methods: Iterable[Method]) -> Method | None:
    """The method that a figure made from several must carry: the weakest of them."""
    return max(methods, key=_TRUST.index, default=None)


def quality_of(
    uses: Sequence[SpanUse],
    method: Method | None,
    *,
    primary: Method | None = None,
    step_s: float,
    members: int = 1,
    start_source: StartSource = StartSource.DECLARED,
    source_quality: Quality | None = None,
) -> Quality:
    """``measured`` only for a request alone on its devices, longer than two counter steps and seen whole.

    ``source_quality`` is what the devices' own figures can be at best, ``primary`` the method that the source promised:
    a figure from what stood in for it is not ``measured``.
    """
    if method is None or all(use.energy_mj is None for use in uses):
        return Quality.MISSING
    if method is Method.SIMULATED or source_quality is Quality.SIMULATED:
        return Quality.SIMULATED
    if source_quality is Quality.DEFAULT:
        return Quality.DEFAULT
    if method is Method.MODEL or source_quality is Quality.MODELLED:
        return Quality.MODELLED
    duration_s = min(use.end_s - use.start_s for use in uses)
    observed = start_source in (StartSource.DECLARED, StartSource.ENGINE, StartSource.HISTORY)
    alone = not any(use.shared or use.contended or use.partial or use.gap or use.late for use in uses)
    alone = alone and (primary is None or method is primary)
    if alone and observed and members == 1 and duration_s >= RESOLVED_STEPS * step_s:
        return Quality.MEASURED
    return Quality.APPORTIONED


def flags_of(
    uses: Sequence[SpanUse], *, step_s: float, start_source: StartSource, primary: Method | None = None
) -> tuple[str, ...]:
    """The closed words that say why a figure is less than measured."""
    duration_s = min((use.end_s - use.start_s for use in uses), default=0.0)
    found = {
        "late": any(use.late for use in uses),
        "partial": any(use.partial for use in uses),
        "inferred_start": start_source in (StartSource.FIFO, StartSource.ARRIVAL),
        "below_resolution": duration_s < step_s,
        "gap": any(use.gap for use in uses),
        "contended": any(use.contended for use in uses),
        "source_changed": any(len(use.methods | ({primary} if primary else set())) > 1 for use in uses if use.methods),
    }
    return tuple(word for word, applies in found.items() if applies)


def combine(parts: Iterable[float]) -> float:
    """Root of the sum of squares of independent uncertainties."""
    return math.hypot(*parts)


def split_members(energy_mj: int, members: Sequence[Member]) -> list[int]:
    """A batch's energy over its members by their work, exactly; ties go by request id, not by place.

    Returns one figure a member, in the order given.
    """
    order = sorted(range(len(members)), key=lambda i: members[i].request_id)
    parts = apportion_whole(energy_mj, [members[i].work.units for i in order])
    split = [0] * len(members)
    for place, part in zip(order, parts, strict=True):
        split[place] = part
    return split


def member_uncertainty(
    energy_mj: float, total_mj: float, measurement_mj: float, allocation_mj: float
) -> tuple[float, float]:
    """(measurement, allocation) uncertainty of a member that got ``energy_mj`` of a batch's ``total_mj``, k = 2."""
    part = energy_mj / total_mj if total_mj > 0 else 0.0
    split = COVERAGE_FACTOR * BATCH_SPLIT_ERROR * energy_mj * (1 - part)
    return measurement_mj * part, math.hypot(allocation_mj * part, split)

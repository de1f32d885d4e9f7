"""From what each device saw of a span to one figure: sums, uncertainty, method and quality, and a batch's split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from joulegate.metering.apportion import apportion_whole
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, StartSource
from joulegate.metering.uncertainty import COVERAGE_FACTOR

RESOLVED_STEPS = 2
"""A request shorter than this many steps of the counter is apportioned from a longer interval, never measured."""

FIFO_EDGE_ERROR_S = 0.02
LAUNCH_EDGE_ERROR_S = 0.01
"""Standard error of a start that was inferred, and of one stamped at an asynchronous launch (notes, 6.2)."""

BATCH_SPLIT_ERROR = 0.1
"""Relative standard error of a member's share by images x steps x pixels (notes, 6.7: -2 to +18 % in one of four)."""

_TRUST = (Method.COUNTER, Method.RAPL, Method.INSTANT, Method.AVERAGE, Method.MODEL, Method.SIMULATED)
_OBSERVED_STARTS = frozenset({StartSource.DECLARED, StartSource.ENGINE, StartSource.HISTORY})


class Observed(Protocol):
    """What quality and flags depend on in one device's view of one span."""

    @property
    def start_s(self) -> float: ...  # noqa: D102

    @property
    def end_s(self) -> float: ...  # noqa: D102

    @property
    def energy_mj(self) -> int | None: ...  # noqa: D102

    @property
    def methods(self) -> frozenset[Method]: ...  # noqa: D102

    @property
    def shared(self) -> bool: ...  # noqa: D102

    @property
    def partial(self) -> bool: ...  # noqa: D102

    @property
    def gap(self) -> bool: ...  # noqa: D102

    @property
    def late(self) -> bool: ...  # noqa: D102

    @property
    def contended(self) -> bool: ...  # noqa: D102


def least_trusted(methods: Iterable[Method]) -> Method | None:
    """The method that a figure made from several must carry: the weakest of them."""
    found = tuple(methods)
    if len(found) == 1:
        return found[0]
    return max(found, key=_TRUST.index, default=None)


def quality_of(
    uses: Sequence[Observed],
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
    lower = _unmeasured(method, source_quality)
    if lower is not None:
        return lower
    if members > 1 or start_source not in _OBSERVED_STARTS or (primary is not None and method is not primary):
        return Quality.APPORTIONED
    for use in uses:
        doubtful = use.shared or use.contended or use.partial or use.gap or use.late
        if doubtful or use.end_s - use.start_s < RESOLVED_STEPS * step_s:
            return Quality.APPORTIONED
    return Quality.MEASURED


def _unmeasured(method: Method, source_quality: Quality | None) -> Quality | None:
    """The quality of a figure whose source does not measure; ``None`` when it does."""
    if method is Method.SIMULATED or source_quality is Quality.SIMULATED:
        return Quality.SIMULATED
    if source_quality is Quality.DEFAULT:
        return Quality.DEFAULT
    if method is Method.MODEL or source_quality is Quality.MODELLED:
        return Quality.MODELLED
    return None


def flags_of(
    uses: Sequence[Observed], *, step_s: float, start_source: StartSource, primary: Method | None = None
) -> tuple[str, ...]:
    """The closed words that say why a figure is less than measured."""
    late = partial = gap = contended = changed = False
    short = not uses and step_s > 0
    for use in uses:
        late, partial, gap = late or use.late, partial or use.partial, gap or use.gap
        contended = contended or use.contended
        short = short or use.end_s - use.start_s < step_s
        others = len(use.methods) - (primary in use.methods)
        changed = changed or (bool(use.methods) and others + (primary is not None) > 1)
    inferred = start_source is StartSource.FIFO or start_source is StartSource.ARRIVAL
    words = (
        ("late", late),
        ("partial", partial),
        ("inferred_start", inferred),
        ("below_resolution", short),
        ("gap", gap),
        ("contended", contended),
        ("source_changed", changed),
    )
    return tuple([word for word, applies in words if applies])


def combine(parts: Iterable[float]) -> float:
    """Root of the sum of squares of independent uncertainties."""
    return math.hypot(*parts)


def split_members(energy_mj: int, members: Sequence[Member]) -> list[int]:
    """A batch's energy over its members by their work, exactly; ties go by request id, not by place.

    Returns one figure a member, in the order given.
    """
    if len(members) == 1:
        return [energy_mj]
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

"""A batch: what one ledger transaction writes, what a restart finds, and how finished requests add up to totals."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from joulegate.metering.entry import Account, Position, RequestEntry
from joulegate.metering.reading import Quality
from joulegate.metering.snapshot import ENERGY_BUCKETS_J, DeviceTotals, RequestTotals
from joulegate.metering.span import Span
from joulegate.units import MJ_PER_J


@dataclass(frozen=True, slots=True)
class Batch:
    """What one ledger transaction writes, all or nothing.

    ``opened`` and ``closed`` journal spans whose figures are still pending (a span is acknowledged to its sender only
    after this commit); ``entries`` are final and remove their spans from the journal.
    """

    opened: tuple[Span, ...] = ()
    closed: tuple[Span, ...] = ()
    entries: tuple[RequestEntry, ...] = ()
    accounts: tuple[Account, ...] = ()
    positions: tuple[Position, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restart finds in the ledger: where each device stood, spans without a final figure, totals so far.

    ``spans`` are on this boot's monotonic axis; those journalled before a reboot were carried over by wall time (their
    times may be negative) and are named in ``earlier_boot``. ``accounts`` are the buckets around each position, which
    the next batch may write again. ``pending_mj`` is what they placed on requests without a final figure, by device and
    bucket start. ``totals`` (by device id) and ``requests`` cover the whole ledger.
    """

    positions: tuple[Position, ...] = ()
    spans: tuple[Span, ...] = ()
    accounts: tuple[Account, ...] = ()
    totals: Mapping[str, DeviceTotals] = field(default_factory=dict)
    requests: tuple[RequestTotals, ...] = ()
    earlier_boot: frozenset[str] = frozenset()
    pending_mj: Mapping[tuple[str, int], int] = field(default_factory=dict)


def totals_key(entry: RequestEntry) -> tuple[str, str, Quality]:
    """Model, tier and quality under which an entry is counted; what was not named is ``""``."""
    return entry.model or "", entry.tier or "", entry.quality


def add_entry(totals: RequestTotals | None, entry: RequestEntry) -> RequestTotals:
    """``totals`` (``None`` before the first) with one more finished request of the same ``totals_key``.

    An unknown number of images counts as 1. ``energy_j_buckets[i]`` is how many images took at most
    ``ENERGY_BUCKETS_J[i]``: cumulative, every image being one observation of energy / images, so that the histogram's
    count is ``images`` and its sum ``energy_mj`` wherever the energy is known.
    """
    if totals is None:
        model, tier, quality = totals_key(entry)
        totals = RequestTotals(model, tier, quality, 0, 0, 0, (0,) * len(ENERGY_BUCKETS_J))
    images = 1 if entry.work.images is None else entry.work.images
    counts = list(totals.energy_j_buckets)
    if entry.energy_mj is not None and images > 0:
        first = bisect_left(ENERGY_BUCKETS_J, entry.energy_mj / MJ_PER_J / images)
        counts[first:] = [count + images for count in counts[first:]]
    return replace(
        totals,
        requests=totals.requests + 1,
        images=totals.images + images,
        energy_mj=totals.energy_mj + (entry.energy_mj or 0),
        energy_j_buckets=tuple(counts),
    )

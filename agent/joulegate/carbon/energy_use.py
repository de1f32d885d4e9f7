"""Energy with the time at which it was used: the only thing that a footprint takes from the meter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from joulegate.carbon.figure import Missing, Range
from joulegate.carbon.tier import Tier, weakest
from joulegate.units import kwh_from_mj

BUCKET_S = 10
"""The meter keeps shares per ten seconds."""

KWH = "kWh"
NO_READING = "no reading saw this request"


class EnergyShare(Protocol):
    """A row of the meter's ``Share``."""

    @property
    def bucket_s(self) -> int:
        """Unix second at which the bucket starts."""

    @property
    def energy_mj(self) -> int:
        """Millijoules within the bucket."""


class MeteredRequest(Protocol):
    """What is used of the meter's ``RequestEntry``."""

    @property
    def started_s(self) -> float:
        """Unix seconds."""

    @property
    def ended_s(self) -> float:
        """Unix seconds."""

    @property
    def energy_mj(self) -> int | None:
        """Millijoules, or ``None``."""

    @property
    def u_measurement_mj(self) -> int | None:
        """Expanded (k=2)."""

    @property
    def u_allocation_mj(self) -> int | None:
        """Expanded (k=2)."""

    @property
    def quality(self) -> str:
        """One of the words of ``Tier``."""

    @property
    def devices(self) -> Mapping[str, Any]:
        """What each device gave."""

    @property
    def shares(self) -> Sequence[EnergyShare]:
        """Energy by device and bucket."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Energy spent evenly over [``start_s``, ``end_s``), Unix seconds, with its expanded uncertainty (k=2)."""

    start_s: float
    end_s: float
    energy_mj: float
    u_mj: float = 0.0

    @property
    def low_mj(self) -> float:
        """The least it can be; energy is never negative."""
        return max(0.0, self.energy_mj - self.u_mj)

    @property
    def high_mj(self) -> float:
        """The most it can be."""
        return self.energy_mj + self.u_mj


@dataclass(frozen=True, slots=True)
class EnergyUse:
    """Slices in any order; their uncertainties add up, as those of one sensor do.

    ``u_known`` is False where some are not known, and those widen no range.
    """

    slices: tuple[Slice, ...]
    tier: Tier
    u_known: bool = True

    @property
    def energy_mj(self) -> float:
        """The sum over the slices."""
        return math.fsum(part.energy_mj for part in self.slices)

    @property
    def kwh(self) -> Range:
        """The energy in kWh."""
        low_mj = math.fsum(part.low_mj for part in self.slices)
        high_mj = math.fsum(part.high_mj for part in self.slices)
        return Range(kwh_from_mj(low_mj), kwh_from_mj(self.energy_mj), kwh_from_mj(high_mj), KWH, self.tier)

    def between(self, start_s: float, end_s: float) -> EnergyUse:
        """The part used within [``start_s``, ``end_s``), with its proportion of the uncertainty."""
        parts = (_cut(whole, start_s, end_s) for whole in self.slices)
        return EnergyUse(tuple(part for part in parts if part is not None), self.tier, self.u_known)


def _cut(part: Slice, start_s: float, end_s: float) -> Slice | None:
    if part.end_s <= part.start_s:
        return part if start_s <= part.start_s < end_s else None
    first_s, last_s = max(part.start_s, start_s), min(part.end_s, end_s)
    if last_s <= first_s:
        return None
    share = (last_s - first_s) / (part.end_s - part.start_s)
    return Slice(first_s, last_s, part.energy_mj * share, part.u_mj * share)


def joined(uses: Iterable[EnergyUse]) -> EnergyUse:
    """The sum of several uses."""
    found = list(uses)
    return EnergyUse(
        tuple(part for use in found for part in use.slices),
        weakest(use.tier for use in found),
        all(use.u_known for use in found),
    )


def use_of(request: MeteredRequest) -> EnergyUse | Missing:
    """The energy of a request over time: by its shares, or evenly over its run while it has none yet."""
    if request.energy_mj is None or request.quality == Tier.MISSING:
        return Missing(NO_READING, KWH)
    if request.energy_mj < 0:
        return Missing("the request's energy is negative, which no sensor can mean", KWH)
    known = [part for part in (request.u_measurement_mj, request.u_allocation_mj) if part is not None]
    return _uncertain(_slices(request), math.hypot(*known) if known else None, Tier(request.quality))


def use_of_buckets(energy_mj: Mapping[int, float], u_mj: float | None, tier: Tier) -> EnergyUse:
    """The energy of whole buckets (Unix second -> mJ): a group of requests, an idle account, a device's hour."""
    parts = [Slice(float(start), float(start + BUCKET_S), float(part)) for start, part in sorted(energy_mj.items())]
    return _uncertain(parts, u_mj, tier)


def _uncertain(parts: Sequence[Slice], u_mj: float | None, tier: Tier) -> EnergyUse:
    """The slices with ``u_mj`` spread over them as the energy is."""
    total_mj = math.fsum(part.energy_mj for part in parts)
    shares = (part.energy_mj / total_mj if total_mj else 1 / len(parts) for part in parts)
    if u_mj is not None:
        parts = [replace(part, u_mj=u_mj * share) for part, share in zip(parts, shares, strict=True)]
    return EnergyUse(tuple(parts), tier, u_mj is not None)


def _slices(request: MeteredRequest) -> tuple[Slice, ...]:
    if not request.shares:
        return (Slice(request.started_s, max(request.started_s, request.ended_s), float(request.energy_mj or 0)),)
    by_bucket: dict[int, int] = {}
    for share in request.shares:
        by_bucket[share.bucket_s] = by_bucket.get(share.bucket_s, 0) + share.energy_mj
    return tuple(_within(bucket_s, energy_mj, request) for bucket_s, energy_mj in sorted(by_bucket.items()))


def _within(bucket_s: int, energy_mj: int, request: MeteredRequest) -> Slice:
    start_s, end_s = max(float(bucket_s), request.started_s), min(float(bucket_s + BUCKET_S), request.ended_s)
    if end_s <= start_s:
        # The sensor is late, and a late span is served from older accounts: such a bucket lies beside the run.
        start_s, end_s = float(bucket_s), float(bucket_s + BUCKET_S)
    return Slice(start_s, end_s, float(energy_mj))


def share_host(use: EnergyUse, host_mj: Mapping[int, float], gpus_mj: Mapping[int, float], tier: Tier) -> EnergyUse:
    """The host's energy that goes with ``use``: in each bucket as the GPUs' energy is shared, idle included.

    ``host_mj`` and ``gpus_mj`` are totals by bucket (RAPL or the host model; all GPUs of the host, whatever they did),
    so over all requests and the idle account the host's energy is given out once. Buckets without both give nothing:
    compare ``host_coverage``. The uncertainty of the model is not known.
    """
    parts = []
    for bucket_s, part in _by_bucket(use):
        total_mj = gpus_mj.get(bucket_s, 0.0)
        if bucket_s in host_mj and total_mj > 0:
            parts.append(Slice(part.start_s, part.end_s, host_mj[bucket_s] * part.energy_mj / total_mj))
    return EnergyUse(tuple(parts), tier, u_known=False)


def host_coverage(use: EnergyUse, host_mj: Mapping[int, float], gpus_mj: Mapping[int, float]) -> float:
    """The share of ``use`` whose buckets have the host's energy, 0 to 1."""
    total_mj = use.energy_mj
    seen = (part.energy_mj for b, part in _by_bucket(use) if b in host_mj and gpus_mj.get(b, 0.0) > 0)
    return min(1.0, math.fsum(seen) / total_mj) if total_mj else 0.0


def _by_bucket(use: EnergyUse) -> Iterable[tuple[int, Slice]]:
    for part in use.slices:
        first = int(part.start_s // BUCKET_S) * BUCKET_S
        if part.end_s <= first + BUCKET_S:
            yield first, part
            continue
        for bucket_s in range(first, math.ceil(part.end_s), BUCKET_S):
            cut = _cut(part, bucket_s, bucket_s + BUCKET_S)
            if cut is not None:
                yield bucket_s, cut

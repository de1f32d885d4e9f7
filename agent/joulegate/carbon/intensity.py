"""The grid's intensity over the time in which energy was used: a step function, weighed by the energy in each step."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from joulegate.carbon.checks import FACTOR_MAX_G_PER_KWH
from joulegate.carbon.energy_use import EnergyUse, Slice
from joulegate.carbon.figure import Missing, Range
from joulegate.carbon.tier import Tier, weakest
from joulegate.units import kwh_from_mj

G = "gCO2e"
G_PER_KWH = "gCO2e/kWh"
MARGINAL = "marginal"
SPREAD = 0.10
SPREAD_ESTIMATED = 0.30
"""What the choice of source alone moves an hourly average factor by: a tenth to three tenths (notes/carbon.md, 2.2)."""

_NOTHING = 1e-9


class GridPoint(Protocol):
    """What is used of an intensity that a grid source answered (``sources.grid``)."""

    @property
    def g_per_kwh(self) -> float | None:
        """Grams per kWh; ``None`` is no answer."""

    @property
    def source(self) -> str:
        """Who said so."""

    @property
    def label(self) -> str:
        """``live``, ``cached``, ``static`` or ``missing``."""

    @property
    def start_s(self) -> float | None:
        """Unix seconds, or ``None`` for a factor of no certain period."""

    @property
    def end_s(self) -> float | None:
        """Unix seconds."""

    @property
    def signal(self) -> str | None:
        """``average`` or ``marginal``."""

    @property
    def is_estimated(self) -> bool | None:
        """Whether the provider estimated it."""

    @property
    def age_s(self) -> float | None:
        """Seconds since it was of the present."""

    @property
    def simulated(self) -> bool:
        """Whether a simulator said so."""


@dataclass(frozen=True, slots=True)
class Step:
    """An intensity that holds over [``start_s``, ``end_s``), in g/kWh."""

    start_s: float
    end_s: float
    low: float
    central: float
    high: float
    source: str
    tier: Tier
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Weighted:
    """What an energy use emitted (before any overhead), and the mean intensity that this comes to.

    ``covered`` is the share of the energy that the steps knew; the rest is static. ``age_s`` is of the oldest step.
    """

    grams: Range
    g_per_kwh: Range
    covered: float
    sources: tuple[str, ...]
    age_s: float | None


def steps_of(points: Iterable[GridPoint]) -> tuple[Step, ...]:
    """Steps in order, without overlap (the first of two that overlap rules).

    Left out are answers without a figure, marginal ones (they never enter a location-based figure), static ones (they
    come from the factor set) and what no grid can have.
    """
    found: list[Step] = []
    for point in sorted(points, key=lambda point: (point.start_s or 0.0, point.end_s or 0.0)):
        step = _step(point)
        if step is None or (found and step.start_s < found[-1].end_s):
            continue
        found.append(step)
    return tuple(found)


def _step(point: GridPoint) -> Step | None:
    value = point.g_per_kwh
    if value is None or point.start_s is None or point.end_s is None or point.end_s <= point.start_s:
        return None
    if point.signal == MARGINAL or point.label in {"static", "missing"} or not 0 <= value <= FACTOR_MAX_G_PER_KWH:
        return None
    estimated = point.is_estimated is not False
    spread = SPREAD_ESTIMATED if estimated else SPREAD
    tier = Tier.MODELLED if estimated or point.label != "live" else Tier.MEASURED
    return Step(
        point.start_s,
        point.end_s,
        value * (1 - spread),
        value,
        value * (1 + spread),
        point.source,
        Tier.SIMULATED if point.simulated else tier,
        point.age_s,
    )


@dataclass(slots=True)
class _Sums:
    """Energy times intensity so far; the mean is weighed by energy, or by time where there is none.

    ``open_weight`` is of what nothing covered; ``is_open`` says that this matters.
    """

    by_time: bool
    grams: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    mean: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    weight: float = 0.0
    static_weight: float = 0.0
    open_weight: float = 0.0
    is_open: bool = False

    def add(self, part: Slice, share: float, intensity: tuple[float, float, float]) -> None:
        weight = self.weight_of(part) * share
        self.weight += weight
        energies_mj = (part.low_mj, part.energy_mj, part.high_mj)
        for end, (energy_mj, g_per_kwh) in enumerate(zip(energies_mj, intensity, strict=True)):
            self.grams[end] += kwh_from_mj(energy_mj * share) * g_per_kwh
            self.mean[end] += weight * g_per_kwh

    def add_rest(self, part: Slice, share: float, static: Range | None) -> None:
        """What no step covers."""
        weight = self.weight_of(part) * share
        if static is not None:
            self.add(part, share, (static.low, static.central, static.high))
            self.static_weight += weight
        elif part.high_mj > 0 or self.by_time:
            self.open_weight += weight
            self.is_open = True

    def weight_of(self, part: Slice) -> float:
        return max(part.end_s - part.start_s, _NOTHING) if self.by_time else part.energy_mj

    def known(self) -> float:
        """The share that something covered, 0 to 1."""
        whole = self.weight + self.open_weight
        return self.weight / whole if whole > 0 else 0.0


def weigh(
    use: EnergyUse, steps: Sequence[Step], static: Range | None, static_source: str, why: str
) -> Weighted | Missing:
    """Energy times intensity, in each step that the energy fell in.

    What no step covers takes the ``static`` factor of the same place; without one the figure is missing with ``why``.
    """
    if static is not None and not steps:
        return Weighted(use.kwh.times(static, G), static, 0.0, (static_source,), None)
    sums = _Sums(by_time=use.energy_mj <= 0)
    seen: dict[Step, None] = {}
    starts = [step.start_s for step in steps]
    for part in use.slices:
        left = 1.0
        for step, share in _overlaps(part, steps, starts):
            sums.add(part, share, (step.low, step.central, step.high))
            seen[step] = None
            left -= share
        if left > _NOTHING:
            sums.add_rest(part, left, static)
    if sums.is_open or sums.weight <= 0:
        return Missing(why + (f"; the grid's intensity is known for {sums.known():.0%} of it" if seen else ""), G)
    return _weighted(use, sums, list(seen), None if static is None else (static, static_source))


def _weighted(use: EnergyUse, sums: _Sums, seen: Sequence[Step], static: tuple[Range, str] | None) -> Weighted:
    tiers = [step.tier for step in seen]
    sources = [step.source for step in seen]
    if static is not None and sums.static_weight > 0:
        tiers.append(static[0].tier)
        sources.append(static[1])
    ages_s = [step.age_s for step in seen if step.age_s is not None]
    low, central, high = (value / sums.weight for value in sums.mean)
    return Weighted(
        grams=Range(sums.grams[0], sums.grams[1], sums.grams[2], G, weakest((use.tier, *tiers))),
        g_per_kwh=Range(low, central, high, G_PER_KWH, weakest(tiers)),
        covered=1 - sums.static_weight / sums.weight,
        sources=tuple(dict.fromkeys(sources)),
        age_s=max(ages_s, default=None),
    )


def _overlaps(part: Slice, steps: Sequence[Step], starts: Sequence[float]) -> Iterable[tuple[Step, float]]:
    length_s = part.end_s - part.start_s
    for step in steps[max(0, bisect.bisect_right(starts, part.start_s) - 1) :]:
        if step.start_s > part.end_s or (step.start_s == part.end_s and length_s > 0):
            return
        if length_s <= 0:
            if step.start_s <= part.start_s < step.end_s:
                yield step, 1.0
            continue
        overlap_s = min(part.end_s, step.end_s) - max(part.start_s, step.start_s)
        if overlap_s > 0:
            yield step, overlap_s / length_s

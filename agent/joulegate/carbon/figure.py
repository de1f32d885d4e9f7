"""A figure: low, central and high with a unit and a tier, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from joulegate.carbon.tier import Tier, weakest


@dataclass(frozen=True, slots=True)
class Range:
    """``0 <= low <= central <= high``, all in ``unit``. Raises ``ValueError`` for anything else.

    Ranges are added and multiplied end by end. That treats their errors as fully dependent, as those of one grid factor
    or one sensor are, so a sum's range is never narrower than the truth.
    """

    low: float
    central: float
    high: float
    unit: str
    tier: Tier

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.central <= self.high < math.inf):
            raise ValueError(f"not a range: {self.low} <= {self.central} <= {self.high} {self.unit}")

    def __add__(self, other: Range) -> Range:
        """The sum; raises ``ValueError`` when the units differ."""
        if self.unit != other.unit:
            raise ValueError(f"cannot add {other.unit} to {self.unit}")
        return Range(
            self.low + other.low,
            self.central + other.central,
            self.high + other.high,
            self.unit,
            weakest((self.tier, other.tier)),
        )

    def scaled(self, by: float) -> Range:
        """``by`` times the range, in the same unit and tier; ``by`` is not negative."""
        return Range(self.low * by, self.central * by, self.high * by, self.unit, self.tier)

    def times(self, other: Range, unit: str) -> Range:
        """The product, in ``unit``."""
        return Range(
            self.low * other.low,
            self.central * other.central,
            self.high * other.high,
            unit,
            weakest((self.tier, other.tier)),
        )

    def to_wire(self) -> dict[str, float | str]:
        """The JSON object of a figure."""
        return {
            "low": self.low,
            "central": self.central,
            "high": self.high,
            "unit": self.unit,
            "tier": self.tier.value,
        }


@dataclass(frozen=True, slots=True)
class Missing:
    """No figure, and why: a sentence for the person who can mend it."""

    why: str
    unit: str

    @property
    def tier(self) -> Tier:
        """Always ``missing``."""
        return Tier.MISSING


Figure: TypeAlias = Range | Missing


def known(figure: Figure) -> TypeGuard[Range]:
    """Whether there is a figure."""
    return isinstance(figure, Range)


def exactly(value: float, unit: str, tier: Tier) -> Range:
    """A range without width."""
    return Range(value, value, value, unit, tier)


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over many, with how many of them had no figure: a sum of some is never passed off as a sum of all."""

    figure: Figure
    counted: int
    missing: int

    @property
    def complete(self) -> bool:
        """Whether every part had a figure."""
        return self.missing == 0


def total(figures: Iterable[Figure], unit: str) -> Total:
    """The sum of those figures that are there; of none at all it is missing. Raises ``ValueError`` on mixed units."""
    found: Range | None = None
    counted, missing, why = 0, 0, "nothing to add up"
    for figure in figures:
        if isinstance(figure, Missing):
            missing, why = missing + 1, figure.why
        else:
            found = figure if found is None else found + figure
            counted += 1
    return Total(found if found is not None else Missing(why, unit), counted, missing)

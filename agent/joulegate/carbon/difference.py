"""What moves when one factor set takes the place of another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulegate.carbon.factors import Factor, FactorSet


@dataclass(frozen=True, slots=True)
class Move:
    """One place's factor before and after; ``None`` on the side where there is none. ``changed`` names the fields."""

    old: Factor | None
    new: Factor | None
    changed: tuple[str, ...]

    @property
    def factor(self) -> Factor:
        """The side that is there, the new one first."""
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def relative(self) -> float | None:
        """(new - old) / old; ``None`` where one side is missing or the old one is zero."""
        if self.old is None or self.new is None or not self.old.value:
            return None
        return (self.new.value - self.old.value) / self.old.value

    def to_wire(self) -> dict[str, Any]:
        """The JSON object of one move."""
        factor = self.factor
        return {
            "place": factor.place.code,
            "kind": factor.place.kind.value,
            "unit": factor.unit.value,
            "signal": factor.signal.value,
            "old": _side(self.old),
            "new": _side(self.new),
            "relative": self.relative,
            "changed": list(self.changed),
        }


def _side(factor: Factor | None) -> dict[str, Any] | None:
    if factor is None:
        return None
    return {
        "value": factor.value,
        "period": factor.period,
        "scope": factor.scope.value,
        "basis": factor.basis.value,
        "source": factor.source.name,
        "version": factor.source.version,
    }


def moves(old: FactorSet, new: FactorSet) -> tuple[Move, ...]:
    """Every place whose factor in use differs, the largest relative change first, then what came and went, by place.

    Compared is what ``FactorSet.best`` would use: the same place, unit and signal. A new citation alone is no move.
    """
    before, after = _in_use(old), _in_use(new)
    found = []
    for line in sorted(before.keys() | after.keys()):
        one, two = before.get(line), after.get(line)
        changed = _changed(one, two)
        if changed:
            found.append(Move(one, two, changed))
    return tuple(sorted(found, key=_weight))


def _weight(move: Move) -> tuple[float, str]:
    return (math.inf if move.relative is None else -abs(move.relative), move.factor.place.code)


def _in_use(factors: FactorSet) -> Mapping[tuple[str, ...], Factor]:
    found: dict[tuple[str, ...], Factor] = {}
    for factor in factors.factors:
        for row in factors.at(factor.place.kind, factor.place.code):
            found.setdefault(row.line, row)
    return found


def _changed(old: Factor | None, new: Factor | None) -> tuple[str, ...]:
    if old is None or new is None:
        return ("added",) if old is None else ("removed",)
    names = ("value", "low", "high", "period", "scope", "basis")
    return tuple(name for name in names if getattr(old, name) != getattr(new, name))

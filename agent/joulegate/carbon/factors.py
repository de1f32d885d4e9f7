"""Emission factors, and the immutable set of them that entries and reports refer to by its hash.

The hash is SHA-256 over the canonical form: one JSON array of one object a factor, keys sorted, no spaces, no escapes
of non-ASCII letters, numbers as the shortest decimal that reads back to the same double, factors ordered by
``Factor.key``. Name, date and generator are not in it, so the same data built again is the same set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from joulegate.carbon.place import Place, PlaceKind, folded

SCHEMA = "joulegate.factors/v1"
SHORT_HASH = 12


class Signal(StrEnum):
    """What the factor answers: the mean of all power, or what one more kWh causes (never for scope 2)."""

    AVERAGE = "average"
    MARGINAL = "marginal"


class Scope(StrEnum):
    """What it counts: what leaves the stack, the whole life cycle, or fuels direct and the rest by life cycle."""

    DIRECT = "direct"
    LIFE_CYCLE = "life-cycle"
    MIXED = "mixed"
    NOT_STATED = "not stated"


class Basis(StrEnum):
    """Whose power: what is made in the place, or what is used there with imports."""

    PRODUCTION = "production"
    CONSUMPTION = "consumption"
    NOT_STATED = "not stated"


class Unit(StrEnum):
    """What a factor gives for one kWh. ``gCO2`` leaves the other greenhouse gases out."""

    CO2E = "gCO2e/kWh"
    CO2 = "gCO2/kWh"
    WATER = "L/kWh"


@dataclass(frozen=True, slots=True)
class Source:
    """Who published a figure, under what terms, and how to cite it."""

    name: str
    version: str
    licence: str
    citation: str
    url: str


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor with its convention. ``period`` is the year or month it describes, ``2023`` or ``2023-05``.

    ``low`` and ``high`` bound what other tables of the same convention say. ``entered`` is True for the operator's own.
    """

    place: Place
    period: str
    value: float
    low: float
    high: float
    unit: Unit
    signal: Signal
    scope: Scope
    basis: Basis
    source: Source
    note: str = ""
    entered: bool = False

    @property
    def year(self) -> int:
        """The year of ``period``."""
        return int(self.period[:4])

    @property
    def key(self) -> tuple[str, ...]:
        """What no two factors of a set share."""
        return (*self.line, self.period, self.scope, self.basis)

    @property
    def line(self) -> tuple[str, ...]:
        """What stays the same when a figure is brought up to date."""
        return (self.place.kind, self.place.code, self.unit, self.signal)

    @property
    def convention(self) -> str:
        """``average, life-cycle, production``, for a person."""
        return f"{self.signal}, {self.scope}, {self.basis}"

    def to_wire(self) -> dict[str, Any]:
        """All fields, flat but for ``source``: the object that is hashed, written and shown."""
        return {
            "kind": self.place.kind.value,
            "place": self.place.code,
            "country": self.place.country,
            "name": self.place.name,
            "aliases": list(self.place.aliases),
            "zone": self.place.zone,
            "period": self.period,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit.value,
            "signal": self.signal.value,
            "scope": self.scope.value,
            "basis": self.basis.value,
            "note": self.note,
            "entered": self.entered,
            "source": {
                "name": self.source.name,
                "version": self.source.version,
                "licence": self.source.licence,
                "citation": self.source.citation,
                "url": self.source.url,
            },
        }


def factor_from_wire(row: Mapping[str, Any]) -> Factor:
    """The factor of ``Factor.to_wire``; raises ``KeyError``, ``TypeError`` or ``ValueError`` on anything else."""
    return Factor(
        place=Place(
            PlaceKind(row["kind"]), row["place"], row["country"], row["name"], tuple(row["aliases"]), row["zone"]
        ),
        period=row["period"],
        value=float(row["value"]),
        low=float(row["low"]),
        high=float(row["high"]),
        unit=Unit(row["unit"]),
        signal=Signal(row["signal"]),
        scope=Scope(row["scope"]),
        basis=Basis(row["basis"]),
        source=Source(**row["source"]),
        note=row["note"],
        entered=bool(row["entered"]),
    )


def canonical(factors: Iterable[Factor]) -> bytes:
    """The bytes that are hashed (see the top of this file)."""
    rows = [factor.to_wire() for factor in sorted(factors, key=lambda factor: factor.key)]
    return json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


Index = Mapping[tuple[PlaceKind, str], tuple[Factor, ...]]


@dataclass(frozen=True, slots=True)
class FactorSet:
    """Factors that stay as they are. ``built_at`` is a date; ``left_out`` says what its sources hold and it does not.

    ``factors`` are ordered by key. Built with ``FactorSet.of``.
    """

    name: str
    factors: tuple[Factor, ...]
    hash: str
    built_at: str
    generator: str
    left_out: tuple[str, ...] = ()
    _index: Index = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, name: str, factors: Iterable[Factor], *, built_at: str, generator: str, left_out: Iterable[str] = ()
    ) -> FactorSet:
        """A set of these factors; ``ValueError`` when two share a key."""
        ordered = tuple(sorted(factors, key=lambda factor: factor.key))
        for one, two in pairwise(ordered):
            if one.key == two.key:
                raise ValueError(f"two factors for {one.place.code} {one.period} ({one.convention})")
        digest = hashlib.sha256(canonical(ordered)).hexdigest()
        return cls(name, ordered, digest, built_at, generator, tuple(left_out), _index_of(ordered))

    @property
    def id(self) -> str:
        """A name for people that no two different sets share: ``codecarbon-3.3.2-0123456789ab``."""
        return f"{self.name}-{self.hash[:SHORT_HASH]}"

    def at(self, kind: PlaceKind, name: str) -> tuple[Factor, ...]:
        """Every factor of the place of that kind with that code, or one of its other spellings; the best first.

        The operator's own come first, then the newest; the rest is the order of the key.
        """
        return self._index.get((kind, folded(name)), ())

    def named(self, name: str) -> tuple[Factor, ...]:
        """Every factor of any place with that code or spelling, of whatever kind."""
        found = {factor.key: factor for kind in PlaceKind for factor in self.at(kind, name)}
        return tuple(found.values())

    def best(self, kind: PlaceKind, name: str, *, scope: Scope | None = None, water: bool = False) -> Factor | None:
        """The average factor to use at a place, of that ``scope`` where one is asked for; never a marginal one."""
        for factor in self.at(kind, name):
            wanted = (factor.unit is Unit.WATER) == water and factor.signal is Signal.AVERAGE
            if wanted and scope in (None, factor.scope):
                return factor
        return None

    def places(self, kind: PlaceKind) -> dict[str, str]:
        """Code -> name of every place of that kind."""
        return {factor.place.code: factor.place.name for factor in self.factors if factor.place.kind is kind}


def _index_of(factors: Iterable[Factor]) -> Index:
    found: dict[tuple[PlaceKind, str], list[Factor]] = {}
    newest_first = sorted(
        sorted(factors, key=lambda factor: factor.key), key=lambda factor: factor.period, reverse=True
    )
    for factor in sorted(newest_first, key=lambda factor: not factor.entered):
        place = factor.place
        for name in dict.fromkeys(folded(name) for name in (place.code, *place.aliases)):
            found.setdefault((place.kind, name), []).append(factor)
    return {key: tuple(rows) for key, rows in found.items()}

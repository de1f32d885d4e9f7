"""Factors that an operator enters: tables of a TOML file, checked in full, every fault at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from joulegate.carbon.checks import factor_faults, repeated
from joulegate.carbon.factors import Basis, Factor, Scope, Signal, Source, Unit
from joulegate.carbon.place import Place, PlaceKind, nearest

TABLE = "factors"
TEXTS = {
    "place": "the place's code, such as DEU, USA/virginia, DE-LU or aws/eu-central-1",
    "country": "the ISO 3166 code of three letters that the place lies in",
    "name": "the place's name for people",
    "zone": "the grid zone that a cloud region lies in",
    "period": 'the year or month it describes, "2024" or "2024-05"',
    "note": "what a reader should know of it",
    "source": "who published it",
    "version": "its edition or date of retrieval",
    "licence": "the terms it is published under",
    "citation": "how to cite it",
    "url": "where it is published",
}
WORDS: Mapping[str, type[StrEnum]] = {
    "kind": PlaceKind,
    "unit": Unit,
    "signal": Signal,
    "scope": Scope,
    "basis": Basis,
}
NUMBERS = ("value", "low", "high")
REQUIRED = ("place", "period", "value", "scope", "basis", "source", "licence", "citation")
DEFAULTS = {"kind": PlaceKind.COUNTRY.value, "unit": Unit.CO2E.value, "signal": Signal.AVERAGE.value}
Word = TypeVar("Word", bound=StrEnum)


class EnteredFault(ValueError):
    """The operator's factors cannot be used; ``lines`` holds every fault, each with the table it is in."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(slots=True)
class _Row:
    """One ``[[factors]]`` table and the lines that are wrong with it."""

    values: Mapping[str, Any]
    where: str
    faults: list[str]

    def text(self, name: str) -> str:
        return str(self.values.get(name, ""))

    def word(self, kind: type[Word], name: str) -> Word:
        return kind(self.values.get(name, DEFAULTS.get(name)))


def entered_factors(document: Mapping[str, Any]) -> tuple[Factor, ...]:
    """The factors of a parsed TOML document, ``[[factors]]`` tables; raises ``EnteredFault`` with every fault found.

    A range that is not given is the value itself. A country's code is its own country.
    """
    tables = document.get(TABLE)
    unknown = [f"{name}: unknown table, give [[{TABLE}]]" for name in document if name != TABLE]
    if not isinstance(tables, list) or not tables:
        raise EnteredFault(*unknown, f"no [[{TABLE}]] table; give one for each factor")
    rows = [_checked(table, f"{TABLE}[{number}]") for number, table in enumerate(tables, start=1)]
    lines = unknown + [f"{row.where}{fault}" for row in rows for fault in row.faults]
    if lines:
        raise EnteredFault(*lines)
    factors = [_built(row) for row in rows]
    for row, factor in zip(rows, factors, strict=True):
        lines += [f"{row.where}: {fault}" for fault in factor_faults(factor)]
    lines += [f"{TABLE}: {line}; keep one" for line in repeated(factors)]
    if lines:
        raise EnteredFault(*lines)
    return tuple(factors)


def _checked(table: object, where: str) -> _Row:
    if not isinstance(table, Mapping):
        return _Row({}, where, [f": not a table; write [[{TABLE}]] with its keys below it"])
    row = _Row(table, f"{where} ({table['place']})" if "place" in table else where, [])
    known = [*TEXTS, *WORDS, *NUMBERS, "aliases"]
    row.faults += [f".{name}: unknown key{nearest(name, known)}" for name in table if name not in known]
    row.faults += [f".{name}: missing; give {_wanted(name)}" for name in REQUIRED if name not in table]
    for name, value in table.items():
        if name in TEXTS and not isinstance(value, str):
            row.faults.append(f".{name}: {value!r} is not text in quotes; give {TEXTS[name]}")
        elif name in WORDS and value not in set(WORDS[name]):
            row.faults.append(f".{name}: {value!r} is not one of {', '.join(WORDS[name])}")
        elif name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            row.faults.append(f".{name}: {value!r} is not a number")
        elif name == "aliases" and not _is_texts(value):
            row.faults.append(f".aliases: {value!r} is not a list of texts")
    return row


def _is_texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(item, str) for item in value)


def _wanted(name: str) -> str:
    if name in WORDS:
        return f"one of {', '.join(WORDS[name])}"
    return TEXTS.get(name, "a number in the factor's unit")


def _built(row: _Row) -> Factor:
    code, kind = row.text("place"), row.word(PlaceKind, "kind")
    country = row.text("country") or (code if kind is PlaceKind.COUNTRY else code.partition("/")[0])
    value = float(row.values["value"])
    return Factor(
        place=Place(
            kind, code, country, row.text("name") or code, tuple(row.values.get("aliases", ())), row.text("zone")
        ),
        period=row.text("period"),
        value=value,
        low=float(row.values.get("low", value)),
        high=float(row.values.get("high", value)),
        unit=row.word(Unit, "unit"),
        signal=row.word(Signal, "signal"),
        scope=row.word(Scope, "scope"),
        basis=row.word(Basis, "basis"),
        source=Source(
            row.text("source"), row.text("version"), row.text("licence"), row.text("citation"), row.text("url")
        ),
        note=row.text("note"),
        entered=True,
    )


def with_entered(base: Sequence[Factor], entered: Sequence[Factor]) -> tuple[tuple[Factor, ...], tuple[str, ...]]:
    """``base`` and ``entered`` as one, and a line for each factor of ``base`` that an entered one replaces."""
    own = {factor.key: factor for factor in entered}
    lines = tuple(
        f"{old.place.code} {old.period}: {old.value:g} of {old.source.name} gives way to {own[old.key].value:g} "
        f"of {own[old.key].source.name}"
        for old in base
        if old.key in own
    )
    return (*(factor for factor in base if factor.key not in own), *entered), lines

"""What is wrong with a factor, and what looks wrong in a set: the mistakes that published tables have really had."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from joulegate.carbon.factors import Factor, FactorSet, Scope, Unit
from joulegate.carbon.place import PlaceKind, country_of_zone, is_country

FACTOR_MAX_G_PER_KWH = 3000.0
"""Lignite in an old plant gives about 1,300 g/kWh; three times a coal grid is a wrong unit, not a dirty grid."""

WATER_MAX_L_PER_KWH = 100.0
JUMP = 0.25
"""A change by more than this from one year, or one set, to the next is worth a look."""

JUMP_MIN_G_PER_KWH = 10.0
_PERIOD = re.compile(r"(19|20)\d\d(-(0[1-9]|1[0-2]))?")
_DIRECTIONS = "north|south|east|west|central|northeast|northwest|southeast|southwest"
_CLOUD_REGIONS = {
    "gcp": re.compile(rf"(africa|asia|australia|europe|me|northamerica|southamerica|us)-({_DIRECTIONS})[1-9][0-9]?"),
    "aws": re.compile(rf"(af|ap|ca|cn|eu|il|me|mx|sa|us|us-gov)-({_DIRECTIONS})-[1-9]"),
}


def factor_faults(factor: Factor) -> tuple[str, ...]:
    """Why ``factor`` must not be used; empty when it may be. Each text says what is wrong and what to give."""
    return tuple(_faults(factor))


def _faults(factor: Factor) -> Iterator[str]:
    place = factor.place
    limit = WATER_MAX_L_PER_KWH if factor.unit is Unit.WATER else FACTOR_MAX_G_PER_KWH
    for name, value in (("value", factor.value), ("low", factor.low), ("high", factor.high)):
        if not math.isfinite(value) or not 0 <= value <= limit:
            yield f"{name} {value:g} is outside 0 to {limit:g} {factor.unit}; check its unit"
    if not factor.low <= factor.value <= factor.high:
        yield f"low {factor.low:g}, value {factor.value:g}, high {factor.high:g} are not in order"
    if factor.value == 0 and factor.unit is not Unit.WATER and factor.scope is Scope.LIFE_CYCLE:
        yield "value 0 cannot be a life-cycle factor, no power plant has none; leave it out or give its real scope"
    if not _PERIOD.fullmatch(factor.period):
        yield f"period {factor.period!r} is not a year or month; give it as 2024 or 2024-05"
    if not is_country(place.country):
        yield f"country {place.country!r} is not an ISO 3166 code of three letters"
    yield from _place_faults(factor)
    for name in ("name", "licence", "citation"):
        if not getattr(factor.source, name).strip():
            yield f"source {name} is missing; say who published it, under what licence, and how to cite it"


def _place_faults(factor: Factor) -> Iterator[str]:
    place = factor.place
    if not place.code.strip():
        yield "the place has no code"
        return
    zone = place.code if place.kind is PlaceKind.ZONE else place.zone
    if zone:
        lies_in = country_of_zone(zone)
        if lies_in != place.country:
            yield f"zone {zone} lies in {lies_in or 'no known country'}, the factor's country is {place.country}"
    if place.kind is PlaceKind.COUNTRY and place.code != place.country:
        yield f"place {place.code} is not its country {place.country}"
    if place.kind is PlaceKind.REGION and place.code.partition("/")[0] != place.country:
        yield f"region {place.code} does not begin with its country, {place.country}/"
    if place.kind is PlaceKind.CLOUD_REGION:
        yield from _cloud_faults(place.code)


def _cloud_faults(code: str) -> Iterator[str]:
    provider, slash, region = code.partition("/")
    if not slash or not region:
        yield f"cloud region {code} is not PROVIDER/REGION, such as gcp/europe-west3"
        return
    pattern = _CLOUD_REGIONS.get(provider)
    if pattern is not None and not pattern.fullmatch(region):
        yield f"{region} is not how {provider} spells a region"


def repeated(factors: Iterable[Factor]) -> tuple[str, ...]:
    """A line for each factor whose key another one has already."""
    seen: set[tuple[str, ...]] = set()
    lines = []
    for factor in factors:
        if factor.key in seen:
            lines.append(f"{factor.place.code} {factor.period} ({factor.convention}) is there twice")
        seen.add(factor.key)
    return tuple(lines)


def year_jumps(factors: Sequence[Factor]) -> tuple[str, ...]:
    """A line for each place whose factor jumps between neighbouring periods of the same convention."""
    lines = []
    ordered = sorted(factors, key=lambda factor: (*factor.line, factor.scope, factor.basis, factor.period))
    for old, new in pairwise(ordered):
        same = (old.line, old.scope, old.basis) == (new.line, new.scope, new.basis)
        if same and _jumps(old.value, new.value):
            lines.append(f"{new.place.code}: {old.value:g} in {old.period}, {new.value:g} {new.unit} in {new.period}")
    return tuple(lines)


def set_jumps(old: FactorSet, new: FactorSet) -> tuple[str, ...]:
    """A line for each place whose factor jumps from one set to the next: a restatement to be explained."""
    lines = []
    for kind in PlaceKind:
        for code in new.places(kind):
            before, after = old.best(kind, code), new.best(kind, code)
            if before and after and _jumps(before.value, after.value):
                lines.append(
                    f"{code}: {before.value:g} ({before.period}) becomes {after.value:g} {after.unit} ({after.period})"
                )
    return tuple(lines)


def _jumps(old: float, new: float) -> bool:
    return abs(new - old) > max(JUMP * max(old, new), JUMP_MIN_G_PER_KWH)

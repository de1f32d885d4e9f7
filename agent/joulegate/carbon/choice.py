"""Which factor holds at a site, and what had to be assumed to say so. Unknown stays unknown (law 7)."""

from __future__ import annotations

from dataclasses import dataclass

from joulegate.carbon.factors import Factor, FactorSet, Unit
from joulegate.carbon.place import PlaceKind, alpha3_by_alpha2, country_of_zone
from joulegate.carbon.site import Site, region_code
from joulegate.carbon.tier import Tier

NO_PLACE = "no place is configured: set site.country, such as DEU, or site.cloud_region, such as gcp/europe-west3"
NO_SET = "no factor set is loaded"


@dataclass(frozen=True, slots=True)
class Choice:
    """The factor, or ``None`` and ``why``. ``tier`` is ``default`` when a wider place stands in for the one asked."""

    factor: Factor | None
    why: str
    assumed: tuple[str, ...]
    tier: Tier


def choose(site: Site, factors: FactorSet | None, *, water: bool = False) -> Choice:
    """The average factor of the site's place: its own, never a neighbour's, never the world's.

    A zone that the set does not know is answered by its region or country only if the operator gave that too, or if the
    zone is the whole country; all but the last is listed as assumed.
    """
    if factors is None or not site.placed:
        return _none(NO_PLACE if not site.placed else NO_SET)
    asked: list[tuple[PlaceKind, str | None]] = [(PlaceKind.CLOUD_REGION, site.cloud_region)]
    if site.cloud_region is None:
        asked = [
            (PlaceKind.ZONE, site.zone),
            (PlaceKind.REGION, _region(site, factors)),
            (PlaceKind.COUNTRY, site.country or _whole_country(site.zone)),
        ]
    passed: list[str] = []
    for kind, name in asked:
        if name is None:
            continue
        factor = factors.best(kind, name, scope=site.scope, water=water)
        if factor is not None:
            return _found(factor, passed)
        if kind is PlaceKind.ZONE and _whole_country(name) and site.region is None:
            continue
        passed.append(f"{kind.value.replace('_', ' ')} {name}")
        if kind is PlaceKind.REGION:
            break
    return _none(_why(passed, factors, site))


def _region(site: Site, factors: FactorSet) -> str | None:
    if site.region is None:
        return None
    code = region_code(site.country, site.region, factors) if site.country else None
    return code or site.region


def _whole_country(zone: str | None) -> str | None:
    return None if zone is None else alpha3_by_alpha2().get(zone.strip().upper())


def _found(factor: Factor, passed: list[str]) -> Choice:
    assumed = [f"no factor of {name}; that of {factor.place.code} stands in" for name in passed]
    if factor.unit is Unit.CO2:
        assumed.append(f"the factor of {factor.place.code} counts CO2 only, no other greenhouse gases")
    return Choice(factor, "", tuple(assumed), Tier.DEFAULT if passed else Tier.MODELLED)


def _none(why: str) -> Choice:
    return Choice(None, why, (), Tier.MISSING)


def _why(passed: list[str], factors: FactorSet, site: Site) -> str:
    where = " or ".join(passed) or f"zone {site.zone}"
    scope = f" with scope {site.scope}" if site.scope else ""
    hint = ""
    if site.zone and not site.country and not _whole_country(site.zone):
        country = country_of_zone(site.zone)
        hint = f"; set site.country = {country!r} to let its factor stand in" if country else "; set site.country too"
    return f"the factor set {factors.id} has no factor of {where}{scope}{hint}"

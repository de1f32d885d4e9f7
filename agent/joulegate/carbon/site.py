"""The site: where the hardware stands and what its operator knows of it. Nothing here has a hidden default."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from joulegate.carbon.checks import FACTOR_MAX_G_PER_KWH
from joulegate.carbon.factors import FactorSet, Scope
from joulegate.carbon.place import PlaceKind, alpha3_by_alpha2, country_of_zone, is_country, nearest

Spread = float | tuple[float, float, float]
"""One number, or (low, central, high)."""

PUE_MAX = 5.0
LIFETIME_MAX_YEARS = 30.0
_CURRENCY = re.compile(r"[A-Z]{3}")
_ENOUGH = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Instrument:
    """A contract that the market-based figure may count: a PPA, certificates, a tariff.

    ``share`` is the part of the site's consumption it covers, 0 to 1; ``source`` names the contract or registry.
    """

    kind: str
    share: float
    g_per_kwh: float
    source: str


@dataclass(frozen=True, slots=True)
class Site:
    """What an operator enters; ``None`` is "not known", and every figure that needs it is then missing.

    The most specific place rules: ``cloud_region`` (``gcp/europe-west3``), then ``zone`` where the set knows it, then
    ``region``, then ``country`` (ISO 3166-1 alpha-3). ``scope`` asks for factors of one convention only. ``pue`` is the
    yearly mean; water use is in litres per kWh of IT energy on site, and per kWh from the grid off site.
    ``gpu_embodied_kg`` and ``server_embodied_kg`` are kgCO2e for making one GPU, and one server without its GPUs.
    ``utilization`` is the share of reserved time in which the GPUs work, ``idle_w`` the power of one GPU when idle.
    """

    country: str | None = None
    region: str | None = None
    zone: str | None = None
    cloud_region: str | None = None
    scope: Scope | None = None
    pue: float | None = None
    wue_onsite_l_per_kwh: float | None = None
    wue_offsite_l_per_kwh: float | None = None
    price_per_kwh: float | None = None
    currency: str | None = None
    gpu_embodied_kg: Spread | None = None
    server_embodied_kg: Spread | None = None
    gpus_per_server: int | None = None
    lifetime_years: float | None = None
    utilization: float | None = None
    idle_w: float | None = None
    instruments: tuple[Instrument, ...] = ()
    residual_g_per_kwh: float | None = None

    @property
    def placed(self) -> bool:
        """Whether any place is given."""
        return any((self.country, self.region, self.zone, self.cloud_region))


def spread_of(value: Spread) -> tuple[float, float, float]:
    """(low, central, high) of one number or three."""
    return value if isinstance(value, tuple) else (value, value, value)


def site_faults(site: Site, factors: FactorSet | None = None) -> tuple[str, ...]:
    """Every fault, one line each: ``site.KEY: what is wrong; what to give``. Empty when the site can be used.

    Places are looked up in ``factors``; without a set only what can be said without one is checked.
    """
    return (
        *_place_faults(site, factors),
        *_number_faults(site),
        *_cost_faults(site),
        *_embodied_faults(site),
        *_instrument_faults(site),
    )


def _place_faults(site: Site, factors: FactorSet | None) -> Iterator[str]:
    country = site.country
    if country is not None and not is_country(country):
        yield f"site.country: {country!r} is not an ISO 3166 code of three letters{_country_hint(country, factors)}"
        return
    if site.zone is not None and country is not None:
        lies_in = country_of_zone(site.zone)
        if lies_in not in (None, country):
            yield f"site.zone: {site.zone} lies in {lies_in}, site.country says {country}; correct one of them"
    if site.region is not None:
        yield from _region_faults(site, factors)
    if site.cloud_region is not None:
        yield from _cloud_faults(site, factors)


def _country_hint(country: str, factors: FactorSet | None) -> str:
    short = alpha3_by_alpha2().get(country.upper())
    if short:
        return f"; did you mean {short}?"
    if is_country(country.upper()):
        return f"; did you mean {country.upper()}?"
    hint = nearest(country, factors.places(PlaceKind.COUNTRY)) if factors else ""
    return hint or "; give one such as DEU"


def _region_faults(site: Site, factors: FactorSet | None) -> Iterator[str]:
    if site.country is None:
        yield "site.region: needs site.country; give both"
        return
    if factors is None or region_code(site.country, site.region or "", factors):
        return
    prefix = f"{site.country}/"
    regions = {
        code.removeprefix(prefix): name
        for code, name in factors.places(PlaceKind.REGION).items()
        if code.startswith(prefix)
    }
    if not regions:
        yield f"site.region: the factor set has no regions of {site.country}; leave site.region out"
    else:
        hint = nearest(site.region or "", regions) or f"; known are {', '.join(regions)}"
        yield f"site.region: {site.region!r} is not a region of {site.country} in the factor set{hint}"


def region_code(country: str, region: str, factors: FactorSet) -> str | None:
    """The set's code of a region of ``country`` by its name or ISO 3166-2 code, or ``None``."""
    plain = re.sub(r"\s+(province|municipality|autonomous region)$", "", region.strip(), flags=re.IGNORECASE)
    for name in (f"{country}/{plain}", plain):
        for factor in factors.at(PlaceKind.REGION, name):
            if factor.place.country == country:
                return factor.place.code
    return None


def _cloud_faults(site: Site, factors: FactorSet | None) -> Iterator[str]:
    code = site.cloud_region or ""
    if "/" not in code:
        yield f"site.cloud_region: {code!r} is not PROVIDER/REGION; give it such as gcp/europe-west3"
        return
    if factors is None:
        return
    found = factors.best(PlaceKind.CLOUD_REGION, code)
    if found is None:
        hint = nearest(code, factors.places(PlaceKind.CLOUD_REGION)) if code.startswith("gcp/") else ""
        yield (
            f"site.cloud_region: the factor set has no {code}{hint or '; add a factor with `joulegate factors build`'}"
            f"{'' if hint else ', or give site.country alone'}"
        )
    elif site.country is not None and found.place.country != site.country:
        yield f"site.cloud_region: {code} lies in {found.place.country}, site.country says {site.country}"


def _within(name: str, value: float | None, low: float, high: float, advice: str) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool) or not math.isfinite(value):
        yield f"site.{name}: {value} is not a finite number; give {advice}"
    elif value < low:
        yield f"site.{name}: {value:g} is below {low:g}; give {advice}"
    elif value > high:
        yield f"site.{name}: {value:g} is above {high:g}; give {advice}"


def _number_faults(site: Site) -> Iterator[str]:
    yield from _within("pue", site.pue, 1, PUE_MAX, "the yearly mean power usage effectiveness, 1 or more")
    water = "litres per kWh of IT energy"
    yield from _within("wue_onsite_l_per_kwh", site.wue_onsite_l_per_kwh, 0, 100, water)
    water = "litres per kWh from the grid"
    yield from _within("wue_offsite_l_per_kwh", site.wue_offsite_l_per_kwh, 0, 100, water)
    yield from _within("idle_w", site.idle_w, 0, 10_000, "the idle power of one GPU in W")
    residual = "the residual mix in g/kWh, from 0 to 3000"
    yield from _within("residual_g_per_kwh", site.residual_g_per_kwh, 0, FACTOR_MAX_G_PER_KWH, residual)
    advice = "the share of reserved time in which the GPUs work, above 0 to 1"
    yield from _within("utilization", site.utilization, 0, 1, advice)
    if site.utilization == 0:
        yield f"site.utilization: 0 leaves nobody to carry the idle hardware; give {advice}"
    advice = "the years that the hardware is used, such as 4"
    yield from _within("lifetime_years", site.lifetime_years, 0, LIFETIME_MAX_YEARS, advice)
    if site.lifetime_years == 0:
        yield f"site.lifetime_years: 0 spreads the hardware over no time; give {advice}"


def _cost_faults(site: Site) -> Iterator[str]:
    yield from _within("price_per_kwh", site.price_per_kwh, 0, 1e6, "the price of one kWh in site.currency")
    if site.price_per_kwh is not None and site.currency is None:
        yield "site.currency: missing beside site.price_per_kwh; give an ISO 4217 code such as EUR"
    if site.currency is not None and not _CURRENCY.fullmatch(site.currency):
        yield f"site.currency: {site.currency!r} is not an ISO 4217 code; give one such as EUR"


def _embodied_faults(site: Site) -> Iterator[str]:
    for name in ("gpu_embodied_kg", "server_embodied_kg"):
        value: Spread | None = getattr(site, name)
        if value is not None:
            yield from _spread_faults(name, spread_of(value))
    yield from _within("gpus_per_server", site.gpus_per_server, 1, 1024, "how many GPUs one server holds")
    if site.server_embodied_kg is not None and site.gpus_per_server is None:
        yield "site.gpus_per_server: missing beside site.server_embodied_kg; give how many GPUs share one server"


def _spread_faults(name: str, numbers: Sequence[float]) -> Iterator[str]:
    advice = "kgCO2e as one number or [low, central, high]"
    faults = [line for number in numbers for line in _within(name, number, 0, 1e6, advice)]
    yield from dict.fromkeys(faults)
    if not faults and (len(numbers) != 3 or list(numbers) != sorted(numbers)):
        yield f"site.{name}: {list(numbers)} is not in order; give {advice}"


def _instrument_faults(site: Site) -> Iterator[str]:
    for number, instrument in enumerate(site.instruments, start=1):
        name = f"instruments[{number}]"
        yield from _within(f"{name}.share", instrument.share, 0, 1, "the share of consumption covered, 0 to 1")
        factor = "its factor, from 0 to 3000 g/kWh"
        yield from _within(f"{name}.g_per_kwh", instrument.g_per_kwh, 0, FACTOR_MAX_G_PER_KWH, factor)
        if not instrument.source.strip():
            yield f"site.{name}.source: missing; name the contract or the registry entry"
    if sum(instrument.share for instrument in site.instruments) > _ENOUGH:
        yield "site.instruments: the shares add up to more than 1; give what each covers"

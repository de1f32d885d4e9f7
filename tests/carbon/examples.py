"""Factors, sites and requests that tests share, and strategies that make them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from joulegate.carbon.factors import Basis, Factor, FactorSet, Scope, Signal, Source, Unit
from joulegate.carbon.figure import Figure, Range
from joulegate.carbon.place import Place, PlaceKind
from joulegate.carbon.site import Instrument, Site
from joulegate.carbon.tier import Tier
from joulegate.metering.entry import BUCKET_S, DeviceUse, RequestEntry, Share, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Outcome, StartSource, Work

SOURCE = Source("A publisher", "2024", "CC BY 4.0", "A publisher: a table, 2024", "https://example.org")
H100 = "NVIDIA H100 80GB HBM3"
T0_S = 1_700_000_000
FULL = Site(
    country="DEU",
    pue=1.2,
    wue_onsite_l_per_kwh=0.2,
    wue_offsite_l_per_kwh=1.9,
    price_per_kwh=0.25,
    currency="EUR",
    lifetime_years=4,
    utilization=0.5,
    idle_w=90,
    instruments=(Instrument("ppa", 0.6, 10, "wind farm"),),
    residual_g_per_kwh=700,
)

_WORLD = '{"DEU": {"iso_code": "DEU", "country_name": "Germany", "year": 2023, "carbon_intensity": 380.95}}'
FILES_OF_ONE = {
    "world": _WORLD,
    "usa": '{"_unit": {"emissions": "lbs/MWh"}, "_source": {"name": "EPA eGRID2023, x", "field": "F", "url": "u",'
    ' "year": 2023}, "usa": {"emissions": 1, "regionCode": "usa"}}',
    "canada": "{}",
    "china": '{"data": {}, "metadata": {"announcement": "a", "source": "s", "source_url": "u"}}',
    "nordic": '{"data": {}, "metadata": {"last_updated": "d", "provenance": "p"}}',
    "cloud": "\ufeffprovider,region,countryIsoCode,city,country_name,impact\n",
}
"""Data files of a codecarbon that knows one country."""


def factor(value: float = 381.0, **changes: object) -> Factor:
    """A country's factor that passes every check, with ``changes`` to it."""
    plain = Factor(
        place=Place(PlaceKind.COUNTRY, "DEU", "DEU", "Germany"),
        period="2023",
        value=value,
        low=value * 0.9,
        high=value * 1.1,
        unit=Unit.CO2E,
        signal=Signal.AVERAGE,
        scope=Scope.LIFE_CYCLE,
        basis=Basis.PRODUCTION,
        source=SOURCE,
    )
    return replace(plain, **changes)


def told(figure: Figure) -> tuple[float, float, float, str, Tier]:
    """Everything of a figure that is there."""
    assert isinstance(figure, Range), figure
    return figure.low, figure.central, figure.high, figure.unit, figure.tier


def factor_set(*factors: Factor, name: str = "test") -> FactorSet:
    """A set of these factors."""
    return FactorSet.of(name, factors, built_at="2026-11-24", generator="test")


def place(kind: PlaceKind, code: str, country: str, *aliases: str, zone: str = "") -> Place:
    """A place named after its code."""
    return Place(kind, code, country, code, aliases, zone)


def entry(
    energy_mj: int | None,
    *,
    started_s: float = T0_S + 3.0,
    ended_s: float = T0_S + 27.0,
    u_mj: int = 0,
    quality: Quality = Quality.MEASURED,
    shares: dict[int, int] | None = None,
    images: int = 4,
    name: str = "r",
) -> RequestEntry:
    """A finished request on one GPU; ``shares`` is bucket -> mJ, by default all of it in the bucket of its start."""
    if shares is None and energy_mj is not None:
        shares = {int(started_s) // BUCKET_S * BUCKET_S: energy_mj}
    return RequestEntry(
        request_id=name,
        status=Status.FINAL,
        outcome=Outcome.OK,
        work=Work(images, 30, 1024, 1024),
        started_s=started_s,
        ended_s=ended_s,
        start_source=StartSource.DECLARED,
        energy_mj=energy_mj,
        u_measurement_mj=None if energy_mj is None else u_mj,
        u_allocation_mj=None if energy_mj is None else 0,
        method=Method.COUNTER,
        quality=quality,
        devices={} if energy_mj is None else {"GPU-0": DeviceUse(energy_mj)},
        shares=tuple(Share(name, "GPU-0", bucket_s, mj) for bucket_s, mj in (shares or {}).items()),
    )


@st.composite
def entries(draw: st.DrawFn, name: str = "r") -> RequestEntry:
    """Requests of any length, with energy in every bucket they touch, and any uncertainty."""
    started_s = T0_S + draw(st.floats(0, 3600))
    ended_s = started_s + draw(st.floats(0.05, 90))
    first = int(started_s) // BUCKET_S * BUCKET_S
    shares = {bucket_s: draw(st.integers(0, 10_000_000)) for bucket_s in range(first, int(ended_s) + 1, BUCKET_S)}
    energy_mj = sum(shares.values())
    return entry(
        energy_mj,
        started_s=started_s,
        ended_s=ended_s,
        u_mj=draw(st.integers(0, 2 * energy_mj)),
        quality=draw(st.sampled_from([quality for quality in Quality if quality is not Quality.MISSING])),
        shares=shares,
        name=name,
    )


def _maybe(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | numbers


spreads = st.lists(st.floats(0, 5000), min_size=3, max_size=3).map(sorted).map(tuple)
instruments = st.lists(
    st.builds(Instrument, st.just("ppa"), st.floats(0, 0.5), st.floats(0, 3000), st.just("contract")), max_size=2
).map(tuple)
sites = st.builds(
    Site,
    country=st.sampled_from(["DEU", "FRA", None]),
    pue=_maybe(st.floats(1, 3)),
    wue_onsite_l_per_kwh=_maybe(st.floats(0, 5)),
    wue_offsite_l_per_kwh=_maybe(st.floats(0, 10)),
    price_per_kwh=_maybe(st.floats(0, 2)),
    currency=st.just("EUR"),
    gpu_embodied_kg=st.none() | st.floats(0, 2000) | spreads,
    server_embodied_kg=st.none() | spreads,
    gpus_per_server=st.sampled_from([1, 8]),
    lifetime_years=_maybe(st.floats(0.5, 10)),
    utilization=_maybe(st.floats(0.01, 1)),
    idle_w=_maybe(st.floats(0, 200)),
    instruments=instruments,
    residual_g_per_kwh=_maybe(st.floats(0, 3000)),
)


@st.composite
def factor_sets(draw: st.DrawFn) -> FactorSet:
    """Germany and France with any values."""
    values = st.floats(0, 2000)
    france = place(PlaceKind.COUNTRY, "FRA", "FRA")
    return factor_set(factor(draw(values)), factor(draw(values), place=france))

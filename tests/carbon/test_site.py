"""What an operator enters, and which factor holds where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.carbon.examples import FULL, factor, factor_set

from joulegate.carbon.choice import choose
from joulegate.carbon.factors import Scope
from joulegate.carbon.place import PlaceKind, alpha2_by_alpha3, country_of_zone
from joulegate.carbon.site import Instrument, Site, site_faults
from joulegate.carbon.tier import Tier
from joulegate.stores.factor_sets import shipped_set


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"country": "DE"}, "site.country: 'DE' is not an ISO 3166 code of three letters; did you mean DEU?"),
        ({"country": "deu"}, "site.country: 'deu' is not an ISO 3166 code of three letters; did you mean DEU?"),
        ({"country": "Germny"}, "did you mean DEU (Germany)?"),
        ({"country": "qqqqqq"}, "; give one such as DEU"),
        ({"country": "USA", "region": "virgina"}, "region of USA in the factor set; did you mean virginia (Virginia)?"),
        ({"country": "DEU", "region": "bavaria"}, "site.region: the factor set has no regions of DEU; leave"),
        ({"country": None, "region": "virginia"}, "site.region: needs site.country; give both"),
        ({"zone": "FR"}, "site.zone: FR lies in FRA, site.country says DEU; correct"),
        ({"cloud_region": "gcp/europe-west33"}, "has no gcp/europe-west33; did you mean gcp/europe-west3"),
        ({"cloud_region": "aws/eu-central-1"}, "has no aws/eu-central-1; add a factor with `joulegate factors build`"),
        ({"cloud_region": "europe-west3"}, "'europe-west3' is not PROVIDER/REGION; give it such as gcp/europe-west3"),
        ({"cloud_region": "gcp/europe-west9"}, "gcp/europe-west9 lies in FRA, site.country says DEU"),
        ({"pue": 0.9}, "site.pue: 0.9 is below 1; give the yearly mean power usage effectiveness, 1 or more"),
        ({"pue": float("nan")}, "site.pue: nan is not a finite number; give"),
        (
            {"wue_onsite_l_per_kwh": -0.1},
            "site.wue_onsite_l_per_kwh: -0.1 is below 0; give litres per kWh of IT energy",
        ),
        ({"wue_offsite_l_per_kwh": 1000}, "site.wue_offsite_l_per_kwh: 1000 is above 100; give"),
        ({"lifetime_years": 0}, "site.lifetime_years: 0 spreads the hardware over no time; give the years"),
        ({"lifetime_years": -1}, "site.lifetime_years: -1 is below 0; give the years"),
        ({"utilization": 0}, "site.utilization: 0 leaves nobody to carry the idle hardware; give"),
        ({"utilization": 1.1}, "site.utilization: 1.1 is above 1; give"),
        ({"price_per_kwh": -1}, "site.price_per_kwh: -1 is below 0; give"),
        ({"currency": None}, "site.currency: missing beside site.price_per_kwh; give an ISO 4217 code such as EUR"),
        ({"currency": "euro"}, "site.currency: 'euro' is not an ISO 4217 code; give one such as EUR"),
        ({"gpu_embodied_kg": (3, 2, 1)}, "site.gpu_embodied_kg: [3, 2, 1] is not in order; give kgCO2e as one number"),
        ({"gpu_embodied_kg": -5}, "site.gpu_embodied_kg: -5 is below 0; give kgCO2e"),
        ({"server_embodied_kg": 5700}, "site.gpus_per_server: missing beside site.server_embodied_kg; give how many"),
        ({"gpus_per_server": 0}, "site.gpus_per_server: 0 is below 1; give how many GPUs one server holds"),
        ({"residual_g_per_kwh": 3001}, "site.residual_g_per_kwh: 3001 is above 3000; give the residual mix"),
        ({"instruments": (Instrument("ppa", 0.5, -1, "x"),)}, "site.instruments[1].g_per_kwh: -1 is below 0; give its"),
        ({"instruments": (Instrument("ppa", 0.5, 1, " "),)}, "site.instruments[1].source: missing; name the contract"),
        ({"instruments": (Instrument("ppa", 0.7, 1, "x"),) * 2}, "site.instruments: the shares add up to more than 1"),
    ],
)
def test_faults_of_a_site(changes: dict[str, Any], fault: str):
    """Each wrong input is one line that names the key, says what is wrong and what to give."""
    (line,) = site_faults(replace(FULL, **changes), shipped_set())
    assert fault in line
    assert "\n" not in line


def test_all_faults_at_once():
    """Every fault of a site is told in one go."""
    site = Site(country="XX", pue=0.5, lifetime_years=0, price_per_kwh=1, utilization=2)
    keys = [line.split(":")[0] for line in site_faults(site, shipped_set())]
    assert keys == ["site.country", "site.pue", "site.utilization", "site.lifetime_years", "site.currency"]


@pytest.mark.parametrize(
    ("site", "value", "assumed"),
    [
        (Site(country="DEU"), 380.95, 0),
        (Site(country="USA", region="virginia"), 244.758, 0),
        (Site(country="USA", region="US-VA"), 244.758, 0),
        (Site(country="CAN", region="Quebec"), 3.937, 0),
        (Site(country="CHN", region="Guangdong Province"), None, 1),
        (Site(country="SWE", zone="SE3"), 27.0, 0),
        (Site(country="SWE", zone="SE-SE3"), 27.0, 0),
        (Site(zone="DE"), 380.95, 0),
        (Site(zone="DE", country="DEU"), 380.95, 0),
        (Site(zone="DE-LU", country="DEU"), 380.95, 1),
        (Site(zone="CAISO_NORTH", country="USA", region="california"), 179.064, 1),
        (Site(cloud_region="gcp/me-central1"), 575.0, 0),
        (Site(cloud_region="gcp/europe-west3", country="DEU"), 345.0, 0),
    ],
)
def test_the_most_specific_place_rules(site: Site, value: float | None, assumed: int):
    """A place has its own factor; a wider one stands in only for a zone, only if the operator gave it, and is named."""
    choice = choose(site, shipped_set())
    assert choice.factor is not None
    assert value is None or choice.factor.value == pytest.approx(value, abs=5e-4)
    assert len(choice.assumed) == assumed
    stands_in = any("stands in" in line for line in choice.assumed)
    assert choice.tier is (Tier.DEFAULT if stands_in else Tier.MODELLED)


@pytest.mark.parametrize(
    ("site", "why"),
    [
        (Site(), "no place is configured: set site.country"),
        (Site(zone="DE-LU"), "has no factor of zone DE-LU; set site.country = 'DEU' to let its factor stand in"),
        (Site(zone="CAISO_NORTH"), "has no factor of zone CAISO_NORTH; set site.country too"),
        (Site(country="CAF"), "has no factor of country CAF"),
        (Site(country="USA", region="atlantis"), "has no factor of region atlantis"),
        (Site(country="DEU", cloud_region="aws/eu-central-1"), "has no factor of cloud region aws/eu-central-1"),
        (Site(country="DEU", scope=Scope.DIRECT), "has no factor of country DEU with scope direct"),
    ],
)
def test_an_unknown_place_has_no_factor(site: Site, why: str):
    """Nothing stands in for an unknown region, cloud region or country: not the country, not the world (law 7)."""
    choice = choose(site, shipped_set())
    assert choice.factor is None
    assert why in choice.why


def test_scope_asks_for_one_convention():
    """Where a set has several conventions for a place, the site's scope chooses among them."""
    both = factor_set(factor(381.0), factor(330.0, scope=Scope.DIRECT, period="2024"))
    values = {scope: choose(Site(country="DEU", scope=scope), both).factor for scope in (None, *Scope)}
    assert {scope: found.value if found else None for scope, found in values.items()} == {
        None: 330.0,
        Scope.DIRECT: 330.0,
        Scope.LIFE_CYCLE: 381.0,
        Scope.MIXED: None,
        Scope.NOT_STATED: None,
    }


def test_no_set_is_missing():
    """Without a factor set there is no factor, and the reason says so."""
    assert "no factor set" in choose(Site(country="DEU"), None).why
    assert site_faults(FULL) == ()


@pytest.mark.parametrize(
    ("zone", "country"),
    [
        ("DE", "DEU"),
        ("DE-LU", "DEU"),
        ("SE3", "SWE"),
        ("US-CAL-CISO", "USA"),
        ("DE_50HzT", "DEU"),
        ("CAISO_NORTH", None),
        ("10Y1001A1001A82H", None),
        ("XX", None),
    ],
)
def test_country_of_a_zone(zone: str, country: str | None):
    """A zone's country is what its name begins with, where it begins with one."""
    assert country_of_zone(zone) == country


def test_every_country_of_the_set_has_an_iso_code():
    """The table of ISO 3166 covers every place of the shipped set."""
    codes = alpha2_by_alpha3()
    assert len(codes) == len(set(codes.values())) == 249
    assert {one.place.country for one in shipped_set().factors} <= set(codes)
    assert len(shipped_set().places(PlaceKind.COUNTRY)) == 212

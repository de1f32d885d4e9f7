"""Figures of the footprint against sums done by hand, and what becomes of each when an input is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.carbon.examples import FULL, H100, T0_S, entry, factor, factor_set, place, told

from joulegate.carbon.embodied import find_gpu
from joulegate.carbon.energy_use import EnergyUse, Slice, host_coverage, share_host, use_of, use_of_buckets
from joulegate.carbon.factors import Unit
from joulegate.carbon.figure import Figure, Missing, Range, exactly, total
from joulegate.carbon.footprint import Held, Idle, boundary_of, footprint, footprint_of
from joulegate.carbon.place import PlaceKind
from joulegate.carbon.record import Footprint
from joulegate.carbon.site import Instrument, Site
from joulegate.carbon.tier import Tier
from joulegate.carbon.view import View
from joulegate.metering.reading import Quality

KWH_MJ = 3_600_000_000
GERMANY = factor_set(factor(400.0))
BARE = Site(country="DEU")


def of(site: Site, energy_mj: int | None = KWH_MJ, **more: Any) -> Footprint:
    """The footprint of one kWh, or of what is given, in Germany."""
    return footprint_of(entry(energy_mj), View(site, GERMANY), gpu_name=H100, images=4, **more)


def number(figure: Figure) -> float:
    """The central number of a figure that is there."""
    assert isinstance(figure, Range), figure
    return figure.central


def test_location_based_is_energy_times_factor():
    """One kWh at 400 g is 400 g, from 360 to 440, in gCO2e; without a PUE the overhead is named as left out."""
    made = of(BARE)
    assert told(made.location_based) == (360, 400, pytest.approx(440), "gCO2e", Tier.MODELLED)
    assert made.boundary == "gpu only"
    assert any("site.pue" in line for line in made.excluded)
    assert made.factor is not None
    assert (made.factor.set_hash, made.factor.factor.value) == (GERMANY.hash, 400)


def test_pue_is_applied_once():
    """The PUE raises CO2e, off-site water and cost by its factor, and neither the energy nor on-site water."""
    plain, hot = of(replace(FULL, pue=1.0)), of(replace(FULL, pue=1.5))
    for name in ("location_based", "market_based", "water_offsite", "cost"):
        assert number(getattr(hot, name)) == pytest.approx(1.5 * number(getattr(plain, name))), name
    assert hot.energy == plain.energy
    assert hot.water_onsite == plain.water_onsite
    assert number(hot.water_onsite) == pytest.approx(0.2)
    assert hot.to_wire()["co2e_g"]["pue"] == {"value": 1.5, "applied_to": "gpu only"}
    assert hot.to_wire()["water_l"]["pue"] == {"value": 1.5, "applied_to": "offsite"}


def test_water_and_cost_by_hand():
    """One kWh at PUE 1.2: 0.2 L on site, 1.9 x 1.2 L off site, 0.25 x 1.2 EUR."""
    made = of(FULL)
    assert told(made.water_onsite) == (*[pytest.approx(0.2)] * 3, "L", Tier.MODELLED)
    assert told(made.water_offsite) == (*[pytest.approx(2.28)] * 3, "L", Tier.MODELLED)
    assert told(made.cost) == (*[pytest.approx(0.3)] * 3, "EUR", Tier.MODELLED)


def test_market_based_needs_instruments():
    """Without a contract there is no market-based figure; with one, the rest takes the residual mix."""
    missing = of(replace(FULL, instruments=()))
    assert isinstance(missing.market_based, Missing)
    assert "site.instruments" in missing.market_based.why
    assert number(of(FULL).market_based) == pytest.approx(1.2 * (0.6 * 10 + 0.4 * 700))
    assert number(of(FULL).location_based) == pytest.approx(1.2 * 400)


def test_market_based_without_residual_mix():
    """Where no residual mix is entered, the grid average stands in and is listed as assumed; else missing."""
    site = replace(FULL, residual_g_per_kwh=None)
    made = of(site)
    assert number(made.market_based) == pytest.approx(1.2 * (0.6 * 10 + 0.4 * 400))
    assert any("residual mix" in line for line in made.assumed.co2e)
    nowhere = footprint_of(entry(KWH_MJ), View(replace(site, country=None), GERMANY))
    assert isinstance(nowhere.market_based, Missing)
    whole = replace(site, country=None, instruments=(Instrument("ppa", 1.0, 10, "wind"),))
    assert number(footprint_of(entry(KWH_MJ), View(whole, GERMANY)).market_based) == pytest.approx(12)


def test_embodied_by_hand():
    """An hour of an H100 and an eighth of its server over four years is 28.1 g (18.1 to 35.1 h-weighted ends)."""
    hour = footprint_of(entry(KWH_MJ, ended_s=T0_S + 3603.0), View(FULL, GERMANY), gpu_name=H100)
    hours = 4 * 8766
    assert isinstance(hour.embodied, Range)
    assert hour.embodied.central == pytest.approx((273 + 712.5) * 1000 / hours)
    assert hour.embodied.low == pytest.approx((164 + 3072 / 8) * 1000 / hours)
    assert hour.embodied.high == pytest.approx((575.1 + 12199 / 8) * 1000 / hours)
    assert hour.embodied.tier is Tier.DEFAULT
    assert sum("embodied" in line for line in hour.assumed.co2e) == 2


def test_embodied_of_the_sci_specification():
    """The worked example of the SCI specification: 1000 kg over 4 years, one hour reserved, is about 28 g."""
    site = replace(FULL, gpu_embodied_kg=1000.0)
    made = footprint(Missing("x", "kWh"), View(site, None), held=Held(3600, "unheard of"))
    assert number(made.embodied) == pytest.approx(28.5, abs=0.1)


@pytest.mark.parametrize(
    ("site", "gpu", "why"),
    [
        (replace(FULL, lifetime_years=None), H100, "site.lifetime_years"),
        (FULL, "NVIDIA GeForce RTX 4090", "site.gpu_embodied_kg"),
        (FULL, None, "site.gpu_embodied_kg"),
    ],
)
def test_embodied_has_no_default(site: Site, gpu: str | None, why: str):
    """Without a lifetime, and for a GPU that nobody published, embodied and SCI are missing; CO2e of use is not."""
    made = footprint_of(entry(KWH_MJ), View(site, GERMANY), gpu_name=gpu, images=4)
    for figure in (made.embodied, made.total_sci):
        assert isinstance(figure, Missing)
        assert why in figure.why
    assert isinstance(made.location_based, Range)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80 GB"),
        ("H100", "H100 SXM 80 GB"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("AMD EPYC 7763", None),
    ],
)
def test_gpus_by_name(name: str, known: str | None):
    """Only a GPU of exactly that kind has the published figure."""
    found = find_gpu(name)
    assert (found.name if found else None) == known


def test_own_embodied_figures_rule():
    """The operator's figures replace the table's, for GPU and server, and then nothing of them is assumed."""
    site = replace(FULL, gpu_embodied_kg=(100, 200, 400), server_embodied_kg=800.0, gpus_per_server=4)
    made = footprint_of(entry(KWH_MJ, ended_s=T0_S + 3603.0), View(site, GERMANY), gpu_name=H100)
    assert isinstance(made.embodied, Range)
    assert made.embodied.central == pytest.approx((200 + 200) * 1000 / (4 * 8766))
    assert made.embodied.tier is Tier.MODELLED
    assert not any("embodied" in line for line in made.assumed.co2e)


def test_a_shared_gpu_is_said_to_be_counted_whole():
    """A request that was not alone, and whose share of time is not given, carries the whole time and says so."""
    shared = footprint_of(entry(KWH_MJ, quality=Quality.APPORTIONED), View(FULL, GERMANY), gpu_name=H100)
    assert any("upper bound" in line for line in shared.assumed.co2e)
    told = footprint_of(entry(KWH_MJ, quality=Quality.APPORTIONED), View(FULL, GERMANY), gpu_name=H100, held_s=12.0)
    assert not any("upper bound" in line for line in told.assumed.co2e)
    assert number(told.embodied) == pytest.approx(number(shared.embodied) / 2)


def test_sci_counts_idle_hardware():
    """SCI is energy and hardware of the reserved time, idle included, over the images."""
    idle = Idle(use_of_buckets({T0_S: KWH_MJ // 2}, 0.0, Tier.MEASURED), device_s=3600.0)
    made = footprint_of(entry(KWH_MJ, ended_s=T0_S + 3603.0), View(FULL, GERMANY), gpu_name=H100, images=10, idle=idle)
    hardware = 2 * (273 + 712.5) * 1000 / (4 * 8766)
    assert number(made.total_sci) == pytest.approx((1.5 * 1.2 * 400 + hardware) / 10)
    assert isinstance(made.total_sci, Range)
    assert made.total_sci.unit == "gCO2e/image"


def test_sci_by_utilization():
    """Without the idle account, the operator's utilization and idle power stand in, listed as assumed; else missing."""
    run_s = 24.0
    made = of(replace(FULL, utilization=0.25))
    idle_kwh = 90 * 3 * run_s / 3.6e6
    hardware = 4 * run_s / 3600 * (273 + 712.5) * 1000 / (4 * 8766)
    assert number(made.total_sci) == pytest.approx((1.2 * 400 * (1 + idle_kwh) + hardware) / 4)
    assert any(line.startswith("SCI: GPUs work 25%") for line in made.assumed.co2e)
    lone = of(replace(FULL, utilization=None))
    assert isinstance(lone.total_sci, Missing)
    assert "idle" in lone.total_sci.why


def test_sci_needs_images():
    """A request of unknown images, or of none, has no SCI and every other figure."""
    for images in (None, 0):
        made = footprint_of(entry(KWH_MJ), View(FULL, GERMANY), gpu_name=H100, images=images)
        assert isinstance(made.total_sci, Missing)
        assert isinstance(made.location_based, Range)


def test_unknown_place_is_missing_and_energy_is_not():
    """Without a place every gram is missing with what to set, while energy, water and cost stay (law 7)."""
    made = of(replace(FULL, country=None))
    assert isinstance(made.location_based, Missing)
    assert "site.country" in made.location_based.why
    assert number(made.energy) == 1.0
    assert number(made.cost) == pytest.approx(0.3)
    wire = made.to_wire()["co2e_g"]
    assert wire["location_based"] is None
    assert wire["factor"] is None
    assert "site.country" in wire["why_missing"]["location_based"]


def test_no_reading_is_not_zero():
    """A request that no reading saw has no figure made of energy, and none of them is 0 (law 2)."""
    made = footprint_of(entry(None, quality=Quality.MISSING), View(FULL, GERMANY), gpu_name=H100, images=4)
    wire = made.to_wire()
    assert wire["co2e_g"]["location_based"] is wire["water_l"]["onsite"] is wire["cost"]["electricity"] is None
    assert wire["cost"]["why_missing"] == {"electricity": "no reading saw this request"}


def test_range_of_the_energy_comes_from_its_uncertainty():
    """The measurement's and the allocation's uncertainty, in quadrature, widen the range and never below zero."""
    request = replace(entry(1_000_000), u_measurement_mj=300_000, u_allocation_mj=400_000)
    made = footprint_of(request, View(BARE, GERMANY))
    assert isinstance(made.energy, Range)
    assert (made.energy.low * KWH_MJ, made.energy.high * KWH_MJ) == pytest.approx((500_000, 1_500_000))
    wild = footprint_of(replace(request, u_measurement_mj=9_000_000), View(BARE, GERMANY))
    assert isinstance(wild.energy, Range)
    assert wild.energy.low == 0
    unknown = footprint_of(replace(request, u_measurement_mj=None, u_allocation_mj=None), View(BARE, GERMANY))
    assert any("uncertainty" in line for line in unknown.assumed.energy)


def test_a_simulated_request_stays_simulated():
    """No figure made of simulated energy is shown as anything better (law 3)."""
    made = footprint_of(entry(KWH_MJ, quality=Quality.SIMULATED), View(FULL, GERMANY), gpu_name=H100, images=4)
    for figure in (made.energy, made.location_based, made.market_based, made.water_onsite, made.cost, made.total_sci):
        assert figure.tier is Tier.SIMULATED


def test_host_share_by_hand():
    """Of a bucket's 100 J on the host a request gets its part of the GPUs' energy, and the boundary says so."""
    use = use_of(entry(30_000, started_s=T0_S, ended_s=T0_S + 20, shares={T0_S: 10_000, T0_S + 10: 20_000}))
    assert isinstance(use, EnergyUse)
    host_mj, gpus_mj = {T0_S: 100_000, T0_S + 10: 50_000}, {T0_S: 40_000, T0_S + 10: 20_000}
    host = share_host(use, host_mj, gpus_mj, Tier.MEASURED)
    assert [part.energy_mj for part in host.slices] == [25_000, 50_000]
    assert host_coverage(use, host_mj, gpus_mj) == 1
    made = footprint(use, View(BARE, GERMANY), host=host)
    assert made.boundary == "gpu+host"
    assert number(made.energy) == pytest.approx(105_000 / KWH_MJ)
    assert not any("host's own" in line for line in made.excluded)
    del host_mj[T0_S]
    assert [part.energy_mj for part in share_host(use, host_mj, gpus_mj, Tier.MEASURED).slices] == [50_000]
    assert host_coverage(use, host_mj, gpus_mj) == pytest.approx(2 / 3)


def test_host_energy_is_given_out_once():
    """What requests and the idle account get of the host adds up to the host, also for energy across buckets."""
    host_mj, gpus_mj = {T0_S: 7_000.0, T0_S + 10: 9_000.0}, {T0_S: 100.0, T0_S + 10: 100.0}
    across = EnergyUse((Slice(T0_S, T0_S + 20, 80.0),), Tier.MEASURED)
    rest = use_of_buckets({T0_S: 60.0, T0_S + 10: 60.0}, 0.0, Tier.MEASURED)
    shares = [share_host(use, host_mj, gpus_mj, Tier.MEASURED).energy_mj for use in (across, rest)]
    assert sum(shares) == pytest.approx(16_000)


@pytest.mark.parametrize(
    ("scopes", "host", "words"),
    [
        (("gpu",), False, "gpu only"),
        (("gpu",), True, "gpu+host"),
        (("module",), False, "module only"),
        (("host",), False, "host"),
        (("gpu", "package"), False, "gpu+package"),
    ],
)
def test_boundary(scopes: tuple[str, ...], host: bool, words: str):
    """The boundary is named in words."""
    assert boundary_of(scopes, host=host) == words


def test_co2_only_factor_is_named():
    """A factor that leaves other gases out is listed as assumed wherever it is used."""
    china = factor(555.4, unit=Unit.CO2, place=place(PlaceKind.COUNTRY, "CHN", "CHN"))
    made = footprint_of(entry(KWH_MJ), View(Site(country="CHN"), factor_set(china)))
    assert any("CO2 only" in line for line in made.assumed.co2e)


def test_water_factor_of_the_set():
    """A water factor that the operator put into the set is used where the site gives none, and never as CO2e."""
    water = factor(2.0, unit=Unit.WATER)
    made = footprint_of(entry(KWH_MJ), View(BARE, factor_set(factor(400.0), water)))
    assert number(made.water_offsite) == 2.0
    assert number(made.location_based) == 400
    assert isinstance(footprint_of(entry(KWH_MJ), View(BARE, factor_set(water))).location_based, Missing)


def test_wire_names_every_unit():
    """Each figure on the wire is an object with low, central, high, unit and tier, or null with a reason."""
    wire = of(FULL).to_wire()
    units = {"co2e_g": {"gCO2e", "gCO2e/image"}, "water_l": {"L"}, "cost": {"EUR"}}
    for part, allowed in units.items():
        names = [name for name, value in wire[part].items() if isinstance(value, dict) and "central" in value]
        for name in set(names) - {"intensity"}:
            assert set(wire[part][name]) == {"low", "central", "high", "unit", "tier"}
            assert wire[part][name]["unit"] in allowed
        assert wire[part]["boundary"] == "gpu only"
    assert wire["co2e_g"]["factor"]["id"] == GERMANY.id


def test_sum_over_many_says_how_many_are_missing():
    """A total counts what had no figure, and refuses to add litres to grams."""
    some = total([exactly(1, "g", Tier.MEASURED), Missing("no place", "g"), exactly(2, "g", Tier.MODELLED)], "g")
    assert (some.figure, some.counted, some.missing) == (exactly(3, "g", Tier.MODELLED), 2, 1)
    assert not some.complete
    assert total([], "g").figure.tier is Tier.MISSING
    with pytest.raises(ValueError, match="cannot add L to g"):
        total([exactly(1, "g", Tier.MEASURED), exactly(1, "L", Tier.MEASURED)], "g")


@pytest.mark.parametrize("ends", [(2, 1, 3), (1, 3, 2), (-1, 0, 1), (0, 0, float("inf")), (0, float("nan"), 1)])
def test_a_range_is_in_order(ends: tuple[float, float, float]):
    """Ends out of order, below zero or not finite are no range."""
    with pytest.raises(ValueError, match="not a range"):
        Range(*ends, "g", Tier.MEASURED)

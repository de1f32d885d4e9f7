"""Laws of the footprint that random requests, sites, factor sets and grids try to break."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.carbon.examples import H100, T0_S, entries, factor_sets, sites

from joulegate.carbon import energy_use
from joulegate.carbon.energy_use import EnergyUse, joined, use_of
from joulegate.carbon.factors import FactorSet
from joulegate.carbon.figure import Figure, Missing, Range, exactly, total
from joulegate.carbon.footprint import Held, footprint, footprint_of
from joulegate.carbon.intensity import Step
from joulegate.carbon.record import Footprint
from joulegate.carbon.site import Site, site_faults
from joulegate.carbon.tier import Tier, weakest
from joulegate.carbon.view import View
from joulegate.metering.entry import BUCKET_S, RequestEntry
from joulegate.metering.reading import Quality

FIGURES = (
    "energy",
    "location_based",
    "market_based",
    "embodied",
    "total_sci",
    "water_onsite",
    "water_offsite",
    "cost",
)
ADDITIVE = tuple(name for name in FIGURES if name != "total_sci")


@st.composite
def grids(draw: st.DrawFn) -> tuple[Step, ...]:
    """Steps of half an hour or less with holes between them; often none at all."""
    steps = []
    start_s = T0_S - 600.0
    for _ in range(draw(st.integers(0, 6))):
        start_s += draw(st.sampled_from([0.0, 7.5, 300.0]))
        end_s = start_s + draw(st.sampled_from([5.0, 60.0, 1800.0]))
        low, central, high = sorted(draw(st.tuples(*[st.floats(0, 3000)] * 3)))
        steps.append(Step(start_s, end_s, low, central, high, "grid", Tier.MEASURED, 60.0))
        start_s = end_s
    return tuple(steps)


views = st.builds(View, sites, factor_sets(), grids())


def figures(made: Footprint) -> Iterator[tuple[str, Figure]]:
    """Every figure of a footprint by name."""
    return ((name, getattr(made, name)) for name in FIGURES)


def of(request: RequestEntry, view: View) -> Footprint:
    """The footprint of a request on an H100."""
    return footprint_of(request, view, gpu_name=H100, images=request.work.images)


def assert_equal(parts: Sequence[Figure], whole: Figure) -> None:
    """The parts add up to the whole, end by end; where the whole is missing, so is a part of it."""
    if isinstance(whole, Missing):
        assert not parts or any(isinstance(part, Missing) for part in parts)
        return
    added = total(parts, whole.unit).figure if parts else exactly(0, whole.unit, Tier.MEASURED)
    assert isinstance(added, Range)
    for name in ("low", "central", "high"):
        assert math.isclose(getattr(added, name), getattr(whole, name), rel_tol=1e-9, abs_tol=1e-12), name


@given(entries(), views)
def test_ends_are_in_order_and_units_are_there(request: RequestEntry, view: View):
    """Every figure has 0 <= low <= central <= high, a unit and a tier, or no number and a reason."""
    for name, figure in figures(of(request, view)):
        assert figure.unit
        if isinstance(figure, Missing):
            assert figure.why, name
        else:
            assert 0 <= figure.low <= figure.central <= figure.high < math.inf, name
            assert figure.tier is not Tier.MISSING


@given(st.lists(entries(), min_size=1, max_size=5), views)
def test_additive_over_requests(requests: list[RequestEntry], view: View):
    """The footprints of requests add up to the footprint of their energy taken together."""
    uses = [use for use in map(use_of, requests) if isinstance(use, EnergyUse)]
    runs_s = [request.ended_s - request.started_s for request in requests]
    parts = [footprint(use, view, held=Held(run_s, H100)) for use, run_s in zip(uses, runs_s, strict=True)]
    whole = footprint(joined(uses), view, held=Held(sum(runs_s), H100))
    for name in ADDITIVE:
        # Of no energy at all there is no intensity: its grams may be missing beside a sum that is known.
        told = [part for part, use in zip(parts, uses, strict=True) if use.kwh.high or name == "embodied"]
        assert_equal([getattr(part, name) for part in told], getattr(whole, name))


@given(entries(), views, st.floats(0, 1))
def test_additive_over_time(request: RequestEntry, view: View, cut: float):
    """A request cut in two at any moment has the footprint of its two parts, ranges included."""
    use = use_of(request)
    assert isinstance(use, EnergyUse)
    first_s, last_s = min(part.start_s for part in use.slices), max(part.end_s for part in use.slices)
    cut_s = first_s + cut * (last_s - first_s)
    parts = [use.between(-math.inf, cut_s), use.between(cut_s, math.inf)]
    halves = [footprint(part, view) for part in parts if part.kwh.high]
    whole = footprint(use, view)
    for name in ADDITIVE:
        assert_equal([getattr(half, name) for half in halves], getattr(whole, name))


@given(entries(), sites, factor_sets(), factor_sets(), grids())
def test_a_factor_set_changes_no_joule(
    request: RequestEntry, site: Site, old: FactorSet, new: FactorSet, grid: tuple[Step, ...]
):
    """Under another factor set only what is made of grams differs: energy, water, cost and hardware stay."""
    before, after = of(request, View(site, old, grid)), of(request, View(site, new, grid))
    none = of(request, View(site, None))
    for name in ("energy", "embodied", "water_onsite", "water_offsite", "cost"):
        assert getattr(before, name) == getattr(after, name) == getattr(none, name)
    assert isinstance(before.energy, Range)
    assert before.energy.central * 3.6e9 == pytest.approx(request.energy_mj, rel=1e-12)


@given(entries(), views)
def test_no_figure_is_better_than_its_energy(request: RequestEntry, view: View):
    """Nothing that is made of energy is trusted more than the energy (law 3): simulated stays simulated."""
    for name, figure in figures(of(request, view)):
        if isinstance(figure, Range) and name != "embodied":
            assert weakest([figure.tier, Tier(request.quality)]) is figure.tier, name


@given(sites, factor_sets())
def test_sites_of_these_tests_are_fit_to_be_used(site: Site, factors: FactorSet):
    """What the strategies make passes the checks an operator's site has to pass."""
    assert site_faults(site, factors) == ()


def test_words_are_the_meters():
    """Tiers are the meter's qualities, and buckets have the meter's length."""
    assert {tier.value for tier in Tier} == {quality.value for quality in Quality}
    assert energy_use.BUCKET_S == BUCKET_S

"""The grid's intensity over the time in which a request ran."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.carbon.examples import T0_S, entry, factor, factor_set, told

from joulegate.carbon.choice import NO_PLACE
from joulegate.carbon.energy_use import EnergyUse, Slice
from joulegate.carbon.figure import Missing, Range
from joulegate.carbon.footprint import footprint, footprint_of
from joulegate.carbon.intensity import Step, Weighted, steps_of, weigh
from joulegate.carbon.site import Site
from joulegate.carbon.tier import Tier
from joulegate.carbon.view import View
from joulegate.sources.grid.intensity import Intensity, Label, Signal

HOUR_S = 3600.0
KWH_MJ = 3.6e9
GERMANY = factor_set(factor(400.0))


def step(start_s: float, end_s: float, g_per_kwh: float, tier: Tier = Tier.MEASURED) -> Step:
    """A step without a range."""
    return Step(start_s, end_s, g_per_kwh, g_per_kwh, g_per_kwh, "grid", tier, 60.0)


def use(*slices: Slice) -> EnergyUse:
    """Measured energy."""
    return EnergyUse(slices, Tier.MEASURED)


def weighed(energy: EnergyUse, *steps: Step, static: Range | None = None) -> Weighted:
    """The mean, which has to be there."""
    found = weigh(energy, steps, static, "static", "no factor")
    assert isinstance(found, Weighted)
    return found


def test_energy_is_weighed_by_the_intensity_of_its_own_time():
    """Three quarters of a run in a 100 g hour and a quarter in a 500 g hour: 200 g/kWh."""
    found = weighed(use(Slice(900, HOUR_S + 900, KWH_MJ)), step(0, HOUR_S, 100), step(HOUR_S, 2 * HOUR_S, 500))
    assert found.g_per_kwh.central == pytest.approx(0.75 * 100 + 0.25 * 500)
    assert told(found.grams) == (*[pytest.approx(200)] * 3, "gCO2e", Tier.MEASURED)
    assert (found.covered, found.age_s) == (1, 60)


def test_buckets_weigh_by_their_energy():
    """A bucket with three times the energy counts three times, wherever it lies."""
    energy = use(Slice(0, 10, 3 * KWH_MJ), Slice(HOUR_S, HOUR_S + 10, KWH_MJ))
    found = weighed(energy, step(0, HOUR_S, 100), step(HOUR_S, 2 * HOUR_S, 500))
    assert found.grams.central == pytest.approx(3 * 100 + 500)


def test_a_hole_takes_the_static_factor_of_the_same_place():
    """Where the series has a hole the site's own factor stands in, said with its share; the tier is the worse one."""
    steps = (step(T0_S, T0_S + 15, 100),)
    request = entry(3_600_000, started_s=T0_S, ended_s=T0_S + 20, shares={T0_S: 1_800_000, T0_S + 10: 1_800_000})
    made = footprint_of(request, View(Site(country="DEU"), GERMANY, steps))
    assert made.intensity is not None
    assert made.intensity.covered == pytest.approx(0.75)
    assert made.intensity.g_per_kwh.central == pytest.approx(0.75 * 100 + 0.25 * 400)
    assert made.location_based.tier is Tier.MODELLED
    assert any("no grid intensity for 25%" in line for line in made.assumed.co2e)
    assert made.factor is not None


def test_a_series_alone_needs_no_factor():
    """With the whole run covered no factor is named and a live, metered grid keeps the energy's tier."""
    made = footprint_of(entry(3_600_000), View(Site(zone="XX"), None, (step(T0_S, T0_S + HOUR_S, 100),)))
    assert told(made.location_based) == (*[pytest.approx(0.1)] * 3, "gCO2e", Tier.MEASURED)
    assert made.factor is None


def test_a_hole_without_a_factor_is_missing():
    """A hole that nothing of this place fills makes the figure missing, with how much is known."""
    steps = (step(T0_S, T0_S + 15, 100),)
    energy = use(Slice(T0_S, T0_S + 20, 1000.0))
    found = footprint(energy, View(Site(), None, steps)).location_based
    assert found == Missing(f"{NO_PLACE}; the grid's intensity is known for 75% of it", "gCO2e")


def test_an_instant_is_looked_up():
    """Energy without a duration takes the intensity of its moment."""
    assert weighed(use(Slice(5, 5, 1.0)), step(0, 5, 1), step(5, 10, 2)).g_per_kwh.central == 2


def test_no_energy_is_weighed_by_time():
    """Of no energy the intensity is that of its time, so the figure is zero and not missing."""
    found = weighed(use(Slice(0, 10, 0.0)), step(0, 5, 100), step(5, 10, 300))
    assert found.g_per_kwh.central == pytest.approx(200)
    assert found.grams.central == 0


def point(g_per_kwh: float | None = 100.0, **changes: object) -> Intensity:
    """What a grid source answers for an hour."""
    live = Intensity(
        g_per_kwh=g_per_kwh,
        place="DE",
        source="electricity_maps",
        label=Label.LIVE,
        start_s=0.0,
        end_s=HOUR_S,
        signal=Signal.AVERAGE,
        is_estimated=False,
    )
    return replace(live, **changes)


def test_answers_of_the_grid_become_steps():
    """A live answer is taken with a tenth either way; an estimated or old one is modelled and wider."""
    (live,) = steps_of([point()])
    assert (live.low, live.central, live.high, live.tier) == (90, 100, pytest.approx(110), Tier.MEASURED)
    (guess,) = steps_of([point(is_estimated=True)])
    assert (guess.low, guess.high, guess.tier) == (70, 130, Tier.MODELLED)
    assert steps_of([point(label=Label.CACHED)])[0].tier is Tier.MODELLED
    assert steps_of([point(simulated=True)])[0].tier is Tier.SIMULATED


@pytest.mark.parametrize(
    "answer",
    [
        point(None, label=Label.MISSING, why="no network"),
        point(signal=Signal.MARGINAL),
        point(label=Label.STATIC),
        point(start_s=None, end_s=None),
        point(5000.0),
        point(end_s=0.0),
    ],
)
def test_answers_that_are_no_step(answer: Intensity):
    """Missing, marginal, static, timeless and impossible answers never enter a location-based figure."""
    assert steps_of([answer]) == ()


def test_overlapping_answers_count_once():
    """Of two answers for the same time the first rules; order in the list does not matter."""
    later = point(200.0, start_s=HOUR_S, end_s=2 * HOUR_S)
    overlapping = point(300.0, start_s=HOUR_S / 2, end_s=HOUR_S)
    steps = steps_of([later, overlapping, point()])
    assert [(one.start_s, one.central) for one in steps] == [(0, 100), (HOUR_S, 200)]

"""The whole loop: the oracle's promise, what happens without control, equal chances, the real adviser."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.throttle.controller import Advise, ControllerFault, configuration
from benchmarks.throttle.families import FAMILIES, HELD_OUT
from benchmarks.throttle.figures import figures
from benchmarks.throttle.loop import Case, Host, Recording, run
from benchmarks.throttle.scenarios import SCENARIOS

SECONDS = {"devices72": 800, "device_returns": 1600, "fanfail": 1300, "ambient": 1300, "workshift": 1300}


def play(scenario: str, controller: str, *, family: str = "h100", seconds: int | None = None, **more) -> Recording:
    """One run, cut short."""
    length_s = seconds or SECONDS.get(scenario, 1000)
    made = replace(SCENARIOS[scenario], duration_s=length_s)
    return run(Case(made, FAMILIES[family], more.get("governor", "none"), more.get("seed", 11), controller))


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_oracle_never_reaches_the_limit(scenario: str):
    """The oracle keeps every core 0.4 K and every memory under its limit, and the driver never slows down."""
    recording = play(scenario, "oracle")
    assert recording.die_max_c <= 86.6 + 1e-9
    assert (sum(recording.hot_s), recording.soft_s, recording.hard_s) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("family", [family.name for family in HELD_OUT])
def test_oracle_keeps_its_promise_on_other_plants(family: str):
    """A fan failure at full load stays under the limit of every family, and the limit is used up to half a kelvin."""
    recording = play("fanfail", "oracle", family=family, seconds=1200)
    limit_c = FAMILIES[family].max_operating_c
    assert limit_c - 1.0 < recording.die_max_c <= limit_c - 0.4 + 1e-9
    assert recording.hard_s == 0.0


def test_without_control_a_flash_is_hot_and_late():
    """``none`` heats boards over the limit, makes the hardware halve clocks, and serves almost nobody in time."""
    none, oracle = (play("flash10", name, seconds=1400) for name in ("none", "oracle"))
    assert sum(none.hot_s) > 100
    assert none.die_max_c > 88.0
    assert none.hard_s > 0
    assert figures(none)["good"] < 0.4 * figures(oracle)["good"]


def test_driver_slowdown_holds_the_limit_where_it_exists():
    """The same flash with the driver's slowdown stays near the limit, at the price of throttle seconds."""
    recording = play("flash10", "none", governor="normal", seconds=1400)
    assert recording.die_max_c < 88.0
    assert recording.soft_s > 100
    assert recording.hard_s == 0.0


def test_budgets_are_met_by_the_oracle_to_the_end():
    """The oracle lands on an energy budget and on a CO2e budget, and without one they are overrun."""
    for scenario in ("budget", "co2"):
        assert figures(play(scenario, "oracle", seconds=1200))["overshoot"] == pytest.approx(0.0, abs=0.001)
    assert figures(play("budget", "queue_only", seconds=600))["overshoot"] > 0.3


def test_every_controller_of_a_seed_gets_the_same_world():
    """Arrivals, boards and sensor noise follow from scenario, family and seed alone."""
    cases = [Case(SCENARIOS["stale"], FAMILIES["h100"], "none", 3, name) for name in ("oracle", "none")]
    hosts = [Host(case) for case in cases]
    for name in ("t_s", "tier", "work_s"):
        first, second = (getattr(host.arrivals, name) for host in hosts)
        assert np.array_equal(first, second)
    assert np.array_equal(hosts[0].plant.die_k_per_w, hosts[1].plant.die_k_per_w)
    assert [hosts[0].second(t_s) for t_s in range(1, 30)] == [hosts[1].second(t_s) for t_s in range(1, 30)]
    other = Host(replace(cases[0], seed=4))
    assert len(other.arrivals.t_s) != len(hosts[0].arrivals.t_s)
    assert not np.array_equal(other.plant.die_k_per_w, hosts[0].plant.die_k_per_w)


def test_load_is_what_the_scenario_says():
    """A flash asks for ten times the base, a tenth to a quarter of the base is paid, and bursts keep the mean."""
    host = Host(Case(SCENARIOS["flash10"], FAMILIES["h100"], "none", 5, "none"))
    t_s, tier = host.arrivals.t_s, host.arrivals.tier
    base, flash = t_s < 600, (t_s > 700) & (t_s < 2600)
    assert base.sum() / 600 / host.nominal_per_s == pytest.approx(0.35, rel=0.1)
    assert flash.sum() / 1900 / host.nominal_per_s == pytest.approx(3.5, rel=0.05)
    assert (tier[base] < 2).mean() == pytest.approx(0.35, abs=0.06)
    assert (tier[flash] < 2).sum() / 1900 / host.nominal_per_s == pytest.approx(0.35 * 0.35 * 4, rel=0.1)
    bursts = Host(Case(SCENARIOS["diurnal"], FAMILIES["h100"], "none", 5, "none")).arrivals
    assert len(bursts.t_s) / 3600 / host.nominal_per_s == pytest.approx(0.9, rel=0.15)
    assert np.unique(bursts.t_s, return_counts=True)[1].max() > 20


class Ramp:
    """A controller whose cap says when it was published: 700 W less a tenth of the second."""

    def __init__(self, **wrong: object) -> None:
        self._wrong = wrong

    def advise(self, observation):
        """One cap for the first board, one limit for the free tier."""
        tiers = {name: {"max_images_per_minute": None, "burst": 1} for name in ("pro", "plus", "free")}
        caps_w = {"GPU-0": 700.0 - observation["t"] / 10}
        return {"max_images_per_minute": None, "tiers": tiers, "power_cap_w": caps_w, **self._wrong}

    def close(self):
        """Nothing to do."""


def ramp_case(actuators: tuple[str, ...] = ("rate", "power_cap")) -> Case:
    """A short hour for it."""
    return Case(replace(SCENARIOS["steady"], duration_s=60), FAMILIES["h100"], "none", 11, "ramp", actuators)


def test_a_recommendation_acts_three_seconds_after_it_is_read():
    """The newest recommendation is read every 5 s and acts 3 s later, on the boards it names and on no other."""
    recording = run(ramp_case(), Ramp())
    cap_w = {t_s: caps_w[0] for t_s, caps_w in zip(recording.t_s, recording.cap_w, strict=True)}
    changed = [t_s for t_s in range(2, 61) if cap_w[t_s] != cap_w[t_s - 1]]
    assert len(changed) >= 10
    assert {later - t_s for t_s, later in itertools.pairwise(changed)} == {5}
    # A cap that acts at the end of a second is in force, and recorded, in the one after it.
    assert [700.0 - cap_w[t_s] for t_s in changed] == pytest.approx([(t_s - 1 - 3) / 10 for t_s in changed])
    assert {caps_w[1] for caps_w in recording.cap_w} == {700.0}


def test_without_the_actuator_caps_are_published_and_not_applied():
    """With rate as the only actuator the boards keep their greatest limit whatever is published."""
    recording = run(ramp_case(("rate",)), Ramp())
    assert np.min(recording.cap_w) == 700.0
    assert np.min(recording.published_cap_w) < 700.0
    assert replace(ramp_case(("rate",)), controller="oracle").caps_act()


@pytest.mark.parametrize(
    "wrong", [{"tiers": {}}, {"power_cap_w": {"GPU-3": "much"}}, {"power_cap_w": {"GPU-3": np.nan}}]
)
def test_a_broken_contract_is_named(wrong: dict[str, object]):
    """A recommendation without a tier, or with a cap that is no number, ends the run with the second it came in."""
    with pytest.raises(ControllerFault, match=r"ramp, t=1: no usable recommendation"):
        run(ramp_case(), Ramp(**wrong))


def test_observations_carry_the_contract_and_nothing_else():
    """An observation has the contract's fields, the loop's counts, and a budget where there is one."""
    host = Host(Case(SCENARIOS["budget"], FAMILIES["h100"], "none", 3, "none"))
    seen = [host.second(t_s) for t_s in range(1, 31)]
    assert set(seen[0]) == {
        "t", "devices", "images_done", "arrivals", "queue", "grid_g_per_kwh", "grid_forecast", "budget",
    }  # fmt: skip
    assert set(seen[0]["devices"][0]) == {
        "id", "up", "temperature_c", "memory_temperature_c", "memory_max_operating_c", "power_w", "energy_j",
        "utilization", "power_limit_w", "power_limit_min_w", "power_limit_max_w", "max_operating_c", "slowdown_c",
        "clock_events",
    }  # fmt: skip
    assert sum(sum(one["arrivals"].values()) for one in seen) == int((host.arrivals.t_s < 30).sum())
    assert sum(one["images_done"] for one in seen) == host.service.done > 0
    assert seen[-1]["budget"]["energy_j_left"] < seen[0]["budget"]["energy_j_left"]


def test_the_real_adviser_keeps_hot_boards_under_the_limit():
    """``joulegate advise`` takes every observation of a hot, overloaded ten minutes and keeps boards cool."""
    recording = play("hot_steady", "joulegate", seconds=600)
    assert (recording.die_max_c, recording.hard_s) < (88.0, 0.1)
    assert np.array(recording.published_cap_w).min() < 700
    assert {"constrained", "critical"} & set(recording.state)
    assert "thermal" in recording.binding
    assert figures(recording)["good"] > 0.9 * figures(play("hot_steady", "oracle", seconds=600))["good"]


def test_an_adviser_that_cannot_start_is_one_line():
    """A child that ends at once becomes a fault that says how it ended, not a hang and not a broken pipe."""
    adviser = Advise(("flux_capacitor",))
    try:
        with pytest.raises(ControllerFault, match=r"no line for t=1.0: exit 2: \S"):
            adviser.advise({"t": 1.0, "devices": [{"id": "GPU-0"}]})
    finally:
        adviser.close()


def test_the_adviser_gets_the_tiers_of_the_gateway():
    """The configuration names the tiers in the order of their priority, with a floor for the free one."""
    settings = tomllib.loads(configuration(("rate",)))["throttle"]
    assert settings["actuators"] == ["rate"]
    assert [(tier["name"], tier["floor"]) for tier in settings["tiers"]] == [
        ("pro", 0.0),
        ("plus", 0.0),
        ("free", 0.02),
    ]

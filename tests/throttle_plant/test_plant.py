"""The host's physics: energy balance, the driver's slowdowns, power caps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from benchmarks.throttle.families import FAMILIES, Family
from benchmarks.throttle.plant import Governor, Plant

DT_S = 0.25
NEVER_SLOWED = {"max_operating_c": 87.0, "slowdown_c": 500.0, "memory_k_per_w": None}
FROZEN = dataclasses.replace(FAMILIES["h100"], die_j_per_k=1e12, sink_j_per_k=1e12, memory_k_per_w=None)


def plant(family: Family, devices: int = 4, governor: Governor = "none", inlet_c: float = 30.0) -> Plant:
    """A plant of a fixed seed."""
    return Plant(family, devices, governor, inlet_c, np.random.default_rng(5))


def run(host: Plant, seconds: float, inlet_c: float = 30.0, busy: float = 1.0) -> None:
    """Let it work at whatever clock is in force."""
    ones = np.ones(host.devices)
    for _ in range(int(seconds / DT_S)):
        host.advance(DT_S, host.clock(), busy * ones, inlet_c, ones)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_steady_temperature_is_the_closed_form(name: str):
    """A busy board settles where its resistances put it, at its power limit and, uncapped, with its leakage."""
    for cooled in (FAMILIES[name], FAMILIES[name].liquid()):
        family = dataclasses.replace(cooled, preheat_k=0.0, **NEVER_SLOWED)
        inlet_c = 87.0 - 0.95 * family.max_w * (family.die_k_per_w + family.sink_k_per_w[0])
        host = plant(family, inlet_c=inlet_c)
        k_per_w = host.die_k_per_w + family.sink_k_per_w[0] * host.sink_spread
        run(host, 2000.0, inlet_c)
        assert host.die_c == pytest.approx(inlet_c + k_per_w * family.max_w, abs=0.02)
        host.cap_w[:] = 2 * family.max_w
        run(host, 2000.0, inlet_c)
        leak_w_per_k = 0.004 * family.idle_w
        expected_c = (inlet_c + k_per_w * (family.max_w - leak_w_per_k * 50)) / (1 - leak_w_per_k * k_per_w)
        assert host.die_c == pytest.approx(expected_c, abs=0.02)


def test_energy_is_conserved():
    """What the boards drew is what their masses hold and what left through the sinks, at any load."""
    host = plant(dataclasses.replace(FAMILIES["h100"], preheat_k=0.0, **NEVER_SLOWED))
    rng, ones, left_j = np.random.default_rng(1), np.ones(4), np.zeros(4)
    die_c, sink_c = host.die_c, host.sink_c
    for _ in range(2000):
        before_c = host.sink_c
        host.advance(DT_S, rng.uniform(0.3, 1.0, 4), rng.random(4), 30.0, ones)
        left_j += (before_c - 30.0) / host.sink_k_per_w * DT_S
    held_j = host.die_j_per_k * (host.die_c - die_c) + host.sink_j_per_k * (host.sink_c - sink_c)
    assert host.energy_j == pytest.approx(held_j + left_j, rel=1e-9)
    assert (host.energy_j > 10_000).all()


def test_lags_are_those_of_the_family():
    """A cold-plate board, lags 3 s and 6 s, is two thirds of its way nine seconds after a step of power."""
    family = dataclasses.replace(FAMILIES["h100"].liquid(), spread=0.0, preheat_k=0.0, **NEVER_SLOWED)
    host = plant(family)
    start_c = host.die_c.copy()
    run(host, 9.0)
    after_c = host.die_c.copy()
    run(host, 300.0)
    assert (after_c - start_c) / (host.die_c - start_c) == pytest.approx(0.68, abs=0.08)


def test_cap_gives_the_clock_that_draws_it():
    """A busy board under a cap draws the cap, leakage included, and full power where the cap is no limit."""
    host = plant(FAMILIES["h100"], devices=6)
    host.die_c = np.full(6, 80.0)
    cap_w = np.array([200.0, 300.0, 450.0, 600.0, 699.0, 900.0])
    clock = host.capped_clock(cap_w)
    drawn_w = 90.0 * (1 + 0.004 * 30.0) + 610.0 * clock**2.2
    assert drawn_w[:5] == pytest.approx(cap_w[:5], rel=1e-9)
    assert clock[5] == 1.0
    host.cap_w = cap_w
    host.advance(DT_S, host.clock(), np.ones(6), 30.0, np.ones(6))
    assert host.power_w[:5] == pytest.approx(cap_w[:5], rel=1e-9)


def test_hardware_slowdown_holds_until_cool_for_two_seconds():
    """The clock is halved at 89 C in both governors, and whole again only after 2 s in a row under 86 C."""
    for governor in ("normal", "none"):
        host = plant(FROZEN, devices=1, governor=governor)
        host.cap_w[:] = 2000.0
        host.die_c[:] = 88.99
        run(host, 1.0)
        assert not host.hard[0]
        host.die_c[:] = 89.01
        run(host, DT_S)
        assert host.hard[0]
        host.soft_clock[:] = 1.0
        assert host.clock()[0] == pytest.approx(0.5)
        for temperature_c, seconds in ((86.01, 10.0), (85.99, 1.75), (86.01, DT_S), (85.99, 1.75)):
            host.die_c[:] = temperature_c
            run(host, seconds)
            assert host.hard[0], temperature_c
        run(host, DT_S)
        assert not host.hard[0]


def test_soft_slowdown_steps_the_clock_only_where_the_driver_has_it():
    """From 87 C on the normal governor lowers the clock step by step and raises it again below; ``none`` does not."""
    host, none = plant(FROZEN, governor="normal"), plant(FROZEN, governor="none")
    for one in (host, none):
        one.cap_w[:] = 2000.0
        one.die_c[:] = 87.01
        run(one, 5.0)
    assert host.soft_clock == pytest.approx(1 - 20 * 0.0076)
    assert host.clock() == pytest.approx(host.soft_clock)
    assert host.soft.all()
    assert (none.soft_clock == 1.0).all()
    host.die_c[:] = 86.99
    run(host, 5.0)
    assert host.soft_clock == pytest.approx(1 - 20 * 0.0076 + 20 * 0.0038)


def test_memory_has_a_limit_of_its_own():
    """A memory over its limit makes a board hot and slow, and halves its clock from 3 K over until it is under."""
    host = plant(dataclasses.replace(FROZEN, memory_k_per_w=0.0), governor="normal")
    host.die_c[:], host.sink_c[:] = 60.0, 95.5
    run(host, 120.0)
    assert host.hot().all()
    assert (host.soft_clock < 0.9).all()
    assert not host.hard.any()
    host.sink_c[:] = 98.5
    run(host, 120.0)
    assert host.hard.all()
    host.sink_c[:] = 95.2
    run(host, 120.0)
    assert host.hard.all()
    host.sink_c[:] = 94.0
    run(host, 120.0)
    assert not host.hard.any()


def test_a_board_that_is_gone_draws_nothing():
    """A board that is not up has no clock and no power."""
    host = plant(FAMILIES["h100"])
    host.up[1] = False
    run(host, 1.0)
    assert host.power_w[1] == 0.0
    assert host.clock()[1] == 0.0
    assert host.energy_j[1] < host.energy_j[0] / 10

"""The sensors: late, whole degrees, wrong gain, lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.throttle.families import FAMILIES
from benchmarks.throttle.plant import Plant
from benchmarks.throttle.telemetry import Telemetry

LISTED: frozenset[int] = frozenset()
BUSY = np.ones(2)


class Quiet(np.random.Generator):
    """A generator whose noise is nothing."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def normal(self, loc=0.0, scale=1.0, size=None):
        """Zeros."""
        return np.zeros(size)

    def uniform(self, low=0.0, high=1.0, size=None):
        """The middle."""
        return np.full(size, (low + high) / 2)


@pytest.fixture
def make() -> Callable[..., tuple[Plant, Telemetry]]:
    """A plant of two boards and its sensors."""

    def made(rng: np.random.Generator | None = None, **changes: object) -> tuple[Plant, Telemetry]:
        family = dataclasses.replace(FAMILIES["h100"], **changes)
        plant = Plant(family, 2, "normal", 30.0, np.random.default_rng(1))
        return plant, Telemetry(plant, rng or Quiet())

    return made


@pytest.mark.parametrize(("lag_s", "seen"), [(1, [41, 41, 51, 61]), (2, [41, 41, 41, 51])])
def test_temperature_is_late(make, lag_s: int, seen: list[int]):
    """A temperature is shown one or two seconds after it was there."""
    plant, sensors = make(sensor_lag_s=lag_s)
    shown = []
    for true_c in (41.0, 51.0, 61.0, 71.0):
        plant.die_c = np.full(2, true_c)
        shown.append(sensors.read(BUSY, LISTED, None)[0]["temperature_c"])
    assert shown == seen


@pytest.mark.parametrize(("rounding", "seen"), [("nearest", 71), ("down", 70)])
def test_temperature_is_whole_degrees(make, rounding: str, seen: int):
    """70.6 C is 71 where the sensor rounds and 70 where it cuts."""
    plant, sensors = make(rounding=rounding, sensor_lag_s=0)
    plant.die_c = np.full(2, 70.6)
    row = sensors.read(BUSY, LISTED, None)[0]
    assert row["temperature_c"] == seen
    assert isinstance(row["temperature_c"], int)


def test_noise_and_gain_have_their_size(make):
    """Temperature noise is a quarter of a kelvin; a board's energy and power share one constant gain within 2 %."""
    plant, sensors = make(np.random.default_rng(4), sensor_lag_s=0)
    plant.die_c = np.array([70.5, 70.5])
    seen_c, power_w, gains = [], [], []
    for second in range(1, 2001):
        plant.energy_j = np.full(2, 500.0 * second)
        row = sensors.read(BUSY, LISTED, None)[0]
        seen_c.append(row["temperature_c"])
        power_w.append(row["power_w"])
        gains.append(row["energy_j"] / (500.0 * second))
    assert np.std(power_w) / np.mean(power_w) == pytest.approx(0.01, rel=0.1)
    assert np.mean(power_w) / 500.0 == pytest.approx(gains[-1], rel=0.002)
    assert np.ptp(gains[100:]) < 1e-5
    assert 0.001 < abs(gains[-1] - 1.0) <= 0.02
    assert {*seen_c} <= {69, 70, 71, 72}
    assert np.mean(np.abs(np.array(seen_c) - 70.5) > 0.9) == pytest.approx(2 * 0.0000317, abs=0.003)


def test_lost_telemetry_is_null_or_repeats_itself(make):
    """Lost readings are null but for what the board is, or are the last ones again, energy included."""
    plant, sensors = make()
    before = sensors.read(BUSY, LISTED, None)
    plant.energy_j = plant.energy_j + 600.0
    frozen = sensors.read(BUSY, LISTED, "frozen")
    null = sensors.read(BUSY, LISTED, "null")[0]
    assert frozen == before
    assert [null[name] for name in ("temperature_c", "power_w", "energy_j", "clock_events")] == [None] * 4
    assert (null["up"], null["max_operating_c"]) == (True, 87.0)
    plant.energy_j = plant.energy_j + 600.0
    assert sensors.read(BUSY, LISTED, None)[0]["power_w"] == pytest.approx(600.0)


def test_gone_boards_are_not_up_or_not_listed(make):
    """A board that is gone is listed as not up without readings, or not listed; one that returns may count from 0."""
    plant, sensors = make()
    plant.energy_j = np.full(2, 900.0)
    plant.up[0] = False
    first, second = sensors.read(BUSY, LISTED, None)
    assert (first["up"], first["temperature_c"], second["up"]) == (False, None, True)
    assert [row["id"] for row in sensors.read(BUSY, frozenset({0}), None)] == ["GPU-1"]
    plant.up[0] = True
    sensors.restart_counter(0)
    assert [row["energy_j"] for row in sensors.read(BUSY, LISTED, None)] == [0.0, 900.0]


def test_clock_events_say_what_limits(make):
    """Idle, capped, softly slowed and halved boards name it."""
    plant, sensors = make()
    assert sensors.read(np.zeros(2), LISTED, None)[0]["clock_events"] == ["gpu_idle"]
    assert sensors.read(BUSY, LISTED, None)[0]["clock_events"] == []
    plant.cap_w = np.array([400.0, 700.0])
    plant.soft_clock = np.array([1.0, 0.9])
    plant.hard = np.array([False, True])
    plant.clock()
    events = [row["clock_events"] for row in sensors.read(BUSY, LISTED, None)]
    assert events == [["sw_power_cap"], ["hw_slowdown", "hw_thermal", "sw_thermal"]]

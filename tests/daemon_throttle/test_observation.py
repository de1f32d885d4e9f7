"""The observation of the daemon: what the snapshot and the feeds say, and nothing that they do not."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from tests.daemon_throttle.scenes import BOARD, reading, snapshot, state

from joulegate.daemon.throttle_demand import Counts
from joulegate.daemon.throttle_observation import BudgetNow, GoneWatch, GridNow, blind, observe
from joulegate.metering.reading import Device, Method, Quality
from joulegate.throttle.observation import read_observation

COUNTS = Counts(arrivals={"free": 2.0}, images_done=3.0, queue={"free": 4.0}, work=())
GRID = GridNow(381.0, 240.0, "live", [(3600.0, 240.0)])
LIVE_FIGURES = ("temperature_c", "memory_temperature_c", "power_w", "energy_j", "utilization", "power_limit_w")


def seen(*states, now_s: float = 10.0, **more):
    """The observation of a snapshot published at 10 s."""
    options = {"counts": COUNTS, "grid": GRID, "budget": None, "gone": ()} | more
    return observe(snapshot(10.0, *states), now_s, 12.0, **options)


def test_every_field_of_the_contract_is_there():
    """Each figure of a fresh reading, the device's limits, the feeds, and times on the axis of ``t``."""
    observation = seen(state(reading(9.9, energy_mj=91_231_400)), budget=BudgetNow(5.4e6, None, 3588.0))
    (device,) = observation.pop("devices")
    assert device == {
        "id": "GPU-0",
        "up": True,
        "temperature_c": 60.0,
        "memory_temperature_c": 70.0,
        "power_w": 500.0,
        "energy_j": 91231.4,
        "utilization": 0.9,
        "power_limit_w": 700.0,
        "power_limit_min_w": 200.0,
        "power_limit_max_w": 700.0,
        "max_operating_c": 87.0,
        "slowdown_c": 89.0,
        "memory_max_operating_c": 95.0,
        "clock_events": ["gpu_idle", "sw_thermal"],
        "quality": "measured",
        "age_s": 0.1,
    }
    assert observation == {
        "t": 12.0,
        "images_done": 3.0,
        "arrivals": {"free": 2.0},
        "queue": {"free": 4.0},
        "grid_g_per_kwh": 381.0,
        "grid_age_s": 240.0,
        "grid_label": "live",
        "grid_forecast": [{"t": 3612.0, "g_per_kwh": 240.0}],
        "source": "scripted",
        "budget": {"energy_j_left": 5.4e6, "co2e_g_left": None, "until_t": 3600.0},
    }


def test_the_recommender_understands_all_of_it():
    """Nothing of it is noted as unusable."""
    assert read_observation(seen(state(reading(9.9)), budget=BudgetNow(1.0, 2.0, 3.0)), None).notes == ()


@pytest.mark.parametrize(("age_s", "now_s", "is_fresh"), [(2.9, 10.0, True), (3.1, 10.0, False), (0.1, 13.0, False)])
def test_an_old_reading_says_nothing(age_s: float, now_s: float, is_fresh: bool):
    """Figures older than three seconds are null, whether the device or the whole loop stands still."""
    (device,) = seen(state(reading(9.9), age_s), now_s=now_s)["devices"]
    assert {device[name] is not None for name in LIVE_FIGURES} == {is_fresh}
    assert device["up"] is True
    assert device["power_limit_max_w"] == 700.0


def test_a_device_without_any_reading():
    """One that never answered is up with null figures, until it is known to be gone."""
    silent = state(None, None, up=False)
    (device,) = seen(silent)["devices"]
    assert device["up"] is True
    assert {device[name] for name in LIVE_FIGURES} == {None}
    assert seen(silent, gone={"GPU-0"})["devices"][0]["up"] is False


def test_what_is_no_number_is_null():
    """NaN and infinity from a sensor leave as null, and the whole is strict JSON."""
    bad = replace(reading(9.9), temperature_c=math.nan, power_w=math.inf, utilization=-math.inf)
    observation = seen(state(bad), grid=GridNow(math.nan), budget=BudgetNow(math.nan, math.inf, 5.0))
    assert json.loads(json.dumps(observation, allow_nan=False)) == observation
    assert observation["devices"][0]["temperature_c"] is None
    assert observation["grid_g_per_kwh"] is None


def test_quality_is_passed_on():
    """A simulated board is never shown as a measured one."""
    twin = Device("twin-0", "twin", Method.SIMULATED, Quality.SIMULATED)
    (device,) = seen(state(reading(9.9, device="twin-0"), device=twin))["devices"]
    assert device["quality"] == "simulated"


def test_average_power_stands_in():
    """Where only the driver's mean is known, that is the power."""
    (device,) = seen(state(replace(reading(9.9), power_w=None, power_average_w=480.0)))["devices"]
    assert device["power_w"] == 480.0


def test_gone_is_told_by_its_error():
    """A board that does not answer and says that it is lost is gone, a mere timeout is not; an answer ends it."""
    watch = GoneWatch()
    fine = state(reading(9.9))
    silent = state(reading(9.9), 5.0, up=False)
    assert watch.look({"GPU-0": fine}) == set()
    assert watch.look({"GPU-0": replace(silent, errors={"TIMEOUT": 4})}) == set()
    assert watch.look({"GPU-0": replace(silent, errors={"TIMEOUT": 4, "GPU_IS_LOST": 1})}) == {"GPU-0"}
    assert watch.look({"GPU-0": replace(silent, errors={"TIMEOUT": 5, "GPU_IS_LOST": 1})}) == {"GPU-0"}
    assert watch.look({"GPU-0": replace(fine, errors={"TIMEOUT": 5, "GPU_IS_LOST": 1})}) == set()
    assert watch.look({"GPU-0": replace(silent, errors={"TIMEOUT": 6, "GPU_IS_LOST": 1})}) == set()
    assert watch.look({"GPU-0": replace(silent, errors={"GPU_IS_LOST": 2})}) == {"GPU-0"}
    assert watch.look({}) == set()


def test_blind_is_a_line_that_the_recommender_takes():
    """What nobody saw: the devices a little earlier, without a figure."""
    line = blind(seen(state(reading(9.9))), 1.0)
    assert line == {"t": 11.0, "devices": [{"id": "GPU-0", "up": True, "quality": "measured"}]}
    assert read_observation(line, None).devices[0].temperature_c is None
    assert BOARD.id == "GPU-0"

"""Tests of ``GET /v1/devices``."""

import math
from dataclasses import replace

import httpx
import pytest
from tests.http.stand_ins import H100, World, reading, snapshot, state

from joulegate.metering.reading import GpuProcess, Method, Quality
from joulegate.metering.snapshot import DeviceTotals

CONTRACT = {
    "id", "name", "up", "method", "quality", "scope", "power_w", "energy_j", "temperature_c", "memory_temperature_c",
    "utilization", "power_limit_w", "max_operating_c", "slowdown_c", "headroom_c", "clock_events", "age_s", "errors",
}  # fmt: skip


async def devices(client: httpx.AsyncClient) -> list[dict]:
    """What the path answers."""
    answer = await client.get("/v1/devices")
    assert answer.status_code == 200, answer.text
    return answer.json()["devices"]


async def test_device_has_every_field_of_the_contract(world: World, client: httpx.AsyncClient) -> None:
    """A device that works shows each figure of its newest reading, and energy as our own total."""
    world.shelf.newest = snapshot(state(processes=(GpuProcess(H100.id, 7, "blender"),), warnings=("drifts",)))
    (device,) = await devices(client)
    assert device.keys() >= CONTRACT
    expected = {
        "id": "GPU-h100", "up": True, "method": "counter", "quality": "measured", "scope": "gpu", "power_w": 652.1,
        "power_method": "instant", "energy_j": 10.0, "temperature_c": 71, "memory_temperature_c": 80,
        "utilization": 0.97, "power_limit_w": 700, "headroom_c": 16, "memory_headroom_c": 15, "age_s": 0.4,
        "clock_events": ["sw_power_cap", "sw_thermal"], "errors": {"NVML_ERROR_TIMEOUT": 3}, "idle_w": 95,
        "lag_s": 0.1, "warnings": ["drifts"],
        "totals": {
            "device_mj": 10_000, "requests_mj": 7_000, "idle_mj": 2_500, "unattributed_mj": 500, "estimated_mj": 40
        },
    }  # fmt: skip
    assert {name: device[name] for name in expected} == expected
    assert device["processes"] == [{"pid": 7, "name": "blender", "memory_bytes": None, "sm_share": None}]


async def test_age_is_that_of_the_answer(world: World, client: httpx.AsyncClient) -> None:
    """The age grows with the clock while no new snapshot comes."""
    world.shelf.newest = snapshot(state())
    world.clock.advance(2.5)
    (device,) = await devices(client)
    assert device["age_s"] == pytest.approx(2.9)
    assert device["up"]


@pytest.mark.parametrize("silence", ["lost", "stale"])
async def test_silent_device_has_no_present(world: World, client: httpx.AsyncClient, silence: str) -> None:
    """A device that is lost, or whose reading is too old, shows null for now and keeps its total."""
    world.shelf.newest = snapshot(state(up=silence != "lost"))
    world.clock.advance(10.0 if silence == "stale" else 0.0)
    (device,) = await devices(client)
    now = ("power_w", "power_method", "temperature_c", "utilization", "power_limit_w", "headroom_c", "clock_events")
    assert not device["up"]
    assert {device[name] for name in now} == {None}
    assert device["energy_j"] == 10.0


async def test_no_reading_is_not_zero(world: World, client: httpx.AsyncClient) -> None:
    """A device that never gave energy has null energy and null totals."""
    totals = DeviceTotals()
    never = state(reading=None, age_s=None, quality=Quality.MISSING, totals=totals)
    blind = state(replace(H100, id="GPU-blind"), quality=Quality.MISSING, totals=totals)
    fresh = state(replace(H100, id="GPU-fresh"), totals=totals)
    world.shelf.newest = snapshot(never, blind, fresh)
    answered = await devices(client)
    assert [(device["energy_j"], device["totals"] is None) for device in answered] == [
        (None, True), (None, True), (0.0, False),
    ]  # fmt: skip
    assert [device["up"] for device in answered] == [False, True, True]


async def test_absent_figures_are_null(world: World, client: httpx.AsyncClient) -> None:
    """What a device does not say, and what is no number, is null; a mask of no events is an empty list."""
    bare = reading(
        power_w=None, temperature_c=math.nan, memory_temperature_c=None, clock_events=0, utilization=math.inf
    )
    world.shelf.newest = snapshot(state(replace(H100, max_operating_c=None), reading=bare, idle_w=math.nan))
    (device,) = await devices(client)
    assert (device["power_w"], device["power_method"]) == (640.0, "average")
    for name in ("temperature_c", "memory_temperature_c", "headroom_c", "utilization", "idle_w", "max_operating_c"):
        assert device[name] is None, name
    assert device["clock_events"] == []


async def test_headroom_falls_back_to_the_slowdown(world: World, client: httpx.AsyncClient) -> None:
    """Without a highest operating temperature the headroom is that to the slowdown."""
    world.shelf.newest = snapshot(state(replace(H100, max_operating_c=None)))
    (device,) = await devices(client)
    assert device["headroom_c"] == 18


@pytest.mark.parametrize("method", [Method.RAPL, Method.MODEL, Method.SIMULATED])
async def test_power_of_a_stand_in_says_so(world: World, client: httpx.AsyncClient, method: Method) -> None:
    """Power of a modelled, simulated or RAPL device never calls itself instant."""
    world.shelf.newest = snapshot(state(replace(H100, method=method, quality=Quality.SIMULATED)))
    (device,) = await devices(client)
    assert (device["power_method"], device["quality"]) == (method, "simulated")


async def test_one_broken_device_stays_one(world: World, client: httpx.AsyncClient) -> None:
    """A device whose record cannot be shown is reported down with a warning beside the others, and is counted."""
    broken = state(replace(H100, id="GPU-broken"), reading=reading(temperature_c="hot"))
    world.shelf.newest = snapshot(broken, state())
    bad, good = await devices(client)
    assert (bad["id"], bad["up"], bad["power_w"]) == ("GPU-broken", False, None)
    assert "cannot be shown" in bad["warnings"][0]
    assert good["power_w"] == 652.1
    assert world.parts.faults.total == 1


async def test_before_the_first_snapshot(client: httpx.AsyncClient) -> None:
    """Before the first reading the answer is a 503 that says when to come back."""
    answer = await client.get("/v1/devices")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:joulegate:problem:no-snapshot"

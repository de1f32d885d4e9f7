"""Tests of ``GET /healthz`` and ``/readyz``."""

from dataclasses import replace

import httpx
from tests.http.stand_ins import H100, NOON_S, FixedStatus, World, snapshot, state

from joulegate.metering.reading import Sensor, SensorStatus
from joulegate.metering.snapshot import AgentState


def parts_of(answer: httpx.Response) -> dict[str, dict]:
    """Readiness by name of the part."""
    return {part["name"]: part for part in answer.json()["parts"]}


async def test_loop_that_publishes_is_alive(world: World, client: httpx.AsyncClient) -> None:
    """A snapshot of just now is 200 and ok, also when nothing is ready."""
    world.shelf.newest = snapshot()
    world.clock.advance(3.0)
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "snapshot_age_s": 3.0})


async def test_loop_that_is_stuck(world: World, client: httpx.AsyncClient) -> None:
    """A snapshot that has not been followed for ten seconds is a 503 problem that says how long."""
    world.shelf.newest = snapshot(state())
    world.clock.advance(10.5)
    answer = await client.get("/healthz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "10.5 s" in answer.json()["detail"]


async def test_start_is_given_time(world: World, client: httpx.AsyncClient) -> None:
    """Before the first snapshot the agent is starting; after too long it is stuck."""
    assert (await client.get("/healthz")).json() == {"status": "starting", "snapshot_age_s": None}
    world.clock.advance(10.5)
    assert (await client.get("/healthz")).status_code == 503


async def test_ready_with_a_line_a_part(world: World, client: httpx.AsyncClient) -> None:
    """With a device and a ledger the agent is ready; sinks and grid that are not configured are fine."""
    world.shelf.newest = snapshot(state())
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["ready"] is True
    parts = parts_of(answer)
    assert list(parts) == ["sensors", "ledger", "sinks", "grid"]
    assert parts["sensors"]["detail"] == "1 of 1 devices answer (nvml)"
    assert parts["sinks"] == {"name": "sinks", "ok": True, "detail": "not configured", "required": False}


async def test_one_lost_device_leaves_the_agent_ready(world: World, client: httpx.AsyncClient) -> None:
    """A lost device is named; as long as another answers the agent is ready."""
    world.shelf.newest = snapshot(state(), state(replace(H100, id="GPU-lost"), up=False))
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert parts_of(answer)["sensors"]["detail"] == "1 of 2 devices answer (nvml); silent: GPU-lost"


async def test_no_device_answers(world: World, client: httpx.AsyncClient) -> None:
    """When every device is silent the agent is not ready, and the problem has the same lines."""
    world.shelf.newest = snapshot(state(up=False))
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["ready"] is False
    assert answer.json()["detail"] == "not ready: sensors"
    assert not parts_of(answer)["sensors"]["ok"]


async def test_no_device_at_all(world: World, client: httpx.AsyncClient) -> None:
    """Without any device the line says why and what to do."""
    sensor = Sensor("host", SensorStatus.MISSING, None, "no NVIDIA driver", "install it")
    world.shelf.newest = replace(snapshot(), sensors=(sensor,))
    answer = await client.get("/readyz")
    assert parts_of(answer)["sensors"]["detail"] == "host: no NVIDIA driver (install it)"


async def test_ledger_that_fails(world: World, client: httpx.AsyncClient) -> None:
    """A ledger that could not be written makes the agent not ready, with the ledger's line."""
    world.shelf.newest = snapshot(state(), agent=AgentState(NOON_S, ledger_error="the disk is full; free space"))
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert parts_of(answer)["ledger"]["detail"] == "the disk is full; free space"


async def test_dead_sink_is_shown_and_does_not_decide(world: World) -> None:
    """A sink that fails is told, and the agent stays ready."""
    world.shelf.newest = snapshot(state())
    async with world.client(
        sinks=FixedStatus(False, "InfluxDB refuses"), grid=FixedStatus(True, "DE, 4 min old")
    ) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    parts = parts_of(answer)
    assert (parts["sinks"]["ok"], parts["sinks"]["detail"]) == (False, "InfluxDB refuses")
    assert parts["grid"]["detail"] == "DE, 4 min old"


async def test_before_the_first_snapshot_nothing_is_ready(client: httpx.AsyncClient) -> None:
    """Before the first reading sensors and ledger are not ready."""
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "not ready: sensors, ledger"

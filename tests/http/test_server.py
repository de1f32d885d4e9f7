"""Tests of the real server on loopback."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.http.stand_ins import World, snapshot, state

from joulegate.http.ports import Receipt
from joulegate.http.server import ListenFault, PortInUse, bind, new_event_loop, serve
from joulegate.metering.span import Span

POST = b"POST /v1/spans HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

pytestmark = pytest.mark.server


@asynccontextmanager
async def running(world: World, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """The application on a free port until the end of the block."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve(world.app(), host, 0, stop=stop, ready=ready.set_result))
    try:
        yield f"http://{host}:{await asyncio.wait_for(ready, 10)}"
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def raw(base: str, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of a request written byte by byte by the test."""
    host, _, port = base.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


async def test_server_answers_as_the_application_does(world: World) -> None:
    """Over a real connection devices, metrics, spans and problems come back; the server does not name itself."""
    world.shelf.newest = snapshot(state())
    span = {"request_id": "s1", "started": "2025-03-30T11:59:52Z", "ended": "2025-03-30T11:59:58Z"}
    async with running(world) as base, httpx.AsyncClient(base_url=base) as client:
        devices = await client.get("/v1/devices")
        assert devices.json()["devices"][0]["power_w"] == 652.1
        assert "server" not in devices.headers
        assert "date" in devices.headers
        assert (await client.get("/metrics")).text.count("joulegate_gpu_watts{") == 1
        assert (await client.post("/v1/spans", json={"spans": [span]})).status_code == 202
        assert (await client.get("/v1/requests/s1")).json()["status"] == "pending"
        assert (await client.get("/nowhere")).headers["content-type"] == "application/problem+json"


async def test_head_over_a_kept_connection(world: World) -> None:
    """After HEAD the same connection carries the next answer, so no body byte was sent."""
    async with running(world) as base:
        status, headers, rest = await raw(
            base,
            b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
    assert status == "HTTP/1.1 200 OK"
    assert int(headers["content-length"]) > 500
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_too_large_body_is_refused_before_it_is_sent(world: World) -> None:
    """A post that announces too much is answered at once, and the connection is closed."""
    async with running(world) as base:
        status, headers, body = await raw(
            base,
            POST + b"Content-Length: 99999999\r\n\r\n{",
        )
    assert status.startswith("HTTP/1.1 413")
    assert headers["connection"] == "close"
    assert json.loads(body)["status"] == 413


async def test_client_that_leaves_is_no_fault(world: World) -> None:
    """A client that closes in the middle of its body costs nothing, and the next one is served."""
    async with running(world) as base:
        host, _, port = base.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/spans HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with httpx.AsyncClient(base_url=base) as client:
            assert (await client.get("/healthz")).status_code == 200
    assert world.parts.faults.total == 0


async def test_taken_port_is_one_line(world: World) -> None:
    """A port that another program has is one line that says what to do, and nothing is left open."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUse) as fault:
            await serve(world.app(), "127.0.0.1", port)
    text = str(fault.value)
    assert text == f"cannot listen on 127.0.0.1 port {port}: another program does; stop it or choose another --port"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 300])
def test_address_of_another_machine_is_one_line(host: str) -> None:
    """An address that is not of this machine, or no address, is one line that says what to do."""
    with pytest.raises(ListenFault, match="give an address of this machine with --host"):
        bind(host, 0)


def test_port_can_be_taken_again_at_once() -> None:
    """A port that was listened on before is free again for the next start."""
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    first.close()
    second = bind("127.0.0.1", port)
    assert second.getsockname()[1] == port
    second.close()


async def test_cancelling_closes_the_port(world: World, free_port: Callable[[], int]) -> None:
    """A cancelled server frees its port and leaves signals to the process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    port = free_port()
    task = asyncio.create_task(serve(world.app(), "127.0.0.1", port, ready=ready.set_result))
    assert await asyncio.wait_for(ready, 10) == port
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    bind("127.0.0.1", port).close()


async def test_cancelling_waits_for_no_request(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A request that hangs does not hold a cancelled server, however long its grace, and costs one line of log."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    reached = asyncio.Event()
    app = world.app(spans=Hanging(reached))
    task = asyncio.create_task(serve(app, "127.0.0.1", 0, ready=ready.set_result, grace_s=600))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await ready}") as client:
        span = {"request_id": "h", "started_s": 1.0}
        post = asyncio.create_task(client.post("/v1/spans", json={"spans": [span]}))
        await asyncio.wait_for(reached.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        post.cancel()
        await asyncio.gather(post, return_exceptions=True)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.partition(":")[0] for line in lines if "request" in line] == ["a request was given up"]
    assert "Traceback" not in caplog.text


class Hanging:
    """An ingest whose commit never comes."""

    def __init__(self, reached: asyncio.Event) -> None:
        self.reached = reached

    async def submit(self, spans: Sequence[Span]) -> Receipt:
        """Say that it was called, and hang."""
        self.reached.set()
        await asyncio.Event().wait()
        return Receipt(len(spans), 0)


def test_event_loop_of_choice_serves(world: World) -> None:
    """The loop that the daemon is given (uvloop where it is installed) runs the server."""

    async def once() -> int:
        async with running(world) as base, httpx.AsyncClient(base_url=base) as client:
            return (await client.get("/healthz")).status_code

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert type(runner.get_loop()).__module__.startswith(("uvloop", "asyncio"))
        assert runner.run(once()) == 200

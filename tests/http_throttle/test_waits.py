"""Tests of what takes its time: the long-poll and the stream of server-sent events, over the real server."""

import asyncio
import re
import time

import httpx
import pytest
from tests.http_throttle.stand_ins import KEPT, PROBLEM, Events, ThrottleWorld, client_of, connect, raw

pytestmark = pytest.mark.server

STREAM = "/v1/throttle/stream"
SAME = {"If-None-Match": '"d1"'}


async def test_poll_wakes_on_publish(world: ThrottleWorld, served: httpx.AsyncClient) -> None:
    """A poll with the newest tag is answered by the next recommendation, not by its end."""
    poll = asyncio.create_task(served.get("/v1/throttle?wait=30", headers=SAME))
    await world.board.until_waiting(1)
    assert not poll.done()
    world.board.publish("d2")
    answer = await asyncio.wait_for(poll, 10)
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"d2"'
    assert answer.json()["decision_id"] == "d2"
    assert world.board.waiting == 0


async def test_poll_without_a_change_is_304(served: httpx.AsyncClient) -> None:
    """After its time a poll says that nothing changed, with the tag and without a body."""
    answer = await served.get("/v1/throttle?wait=0.05", headers=SAME)
    assert answer.status_code == 304
    assert answer.headers["etag"] == '"d1"'
    assert answer.content == b""


@pytest.mark.parametrize("headers", [{}, {"If-None-Match": '"d0"'}, {"If-None-Match": "junk"}])
async def test_poll_answers_at_once_what_is_not_known(served: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Without the newest tag there is nothing to wait for."""
    answer = await asyncio.wait_for(served.get("/v1/throttle?wait=30", headers=headers), 10)
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"d1"'


async def test_head_polls_too(world: ThrottleWorld, served: httpx.AsyncClient) -> None:
    """HEAD waits like GET and gets the head of the next recommendation."""
    poll = asyncio.create_task(served.head("/v1/throttle?wait=30", headers=SAME))
    await world.board.until_waiting(1)
    world.board.publish("d2")
    answer = await asyncio.wait_for(poll, 10)
    assert (answer.status_code, answer.headers["etag"], answer.content) == (200, '"d2"', b"")


async def test_two_hundred_polls_wake_together(world: ThrottleWorld) -> None:
    """Two hundred clients wait at once, all wake on one publish, and the plain path is answered meanwhile."""
    async with world.running() as base, client_of(base, connections=220) as client:
        polls = [asyncio.create_task(client.get("/v1/throttle?wait=30", headers=SAME)) for _ in range(200)]
        await world.board.until_waiting(200)
        assert (await client.get("/v1/throttle")).headers["etag"] == '"d1"'
        world.board.publish("d2")
        answers = await asyncio.wait_for(asyncio.gather(*polls), 20)
    assert {(answer.status_code, answer.headers["etag"]) for answer in answers} == {(200, '"d2"')}


async def test_polls_beyond_the_bound_do_not_wait(world: ThrottleWorld) -> None:
    """Once so many wait, one more is told at once that nothing changed."""
    async with world.running(max_polls=1) as base, client_of(base) as client:
        first = asyncio.create_task(client.get("/v1/throttle?wait=30", headers=SAME))
        await world.board.until_waiting(1)
        assert (await client.get("/v1/throttle?wait=30", headers=SAME)).status_code == 304
        world.board.publish("d2")
        assert (await first).status_code == 200


@pytest.mark.parametrize("path", ["/v1/throttle?wait=30", STREAM])
async def test_client_that_leaves_is_forgotten(
    world: ThrottleWorld, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """A client that goes while it waits leaves nothing behind and is no fault."""
    async with world.running() as base:
        _, writer = await connect(base)
        writer.write(f'GET {path} HTTP/1.1\r\nHost: x\r\nIf-None-Match: "d1"\r\n\r\n'.encode())
        await world.board.until_waiting(1)
        writer.close()
        await writer.wait_closed()
        await world.board.until_waiting(0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_shutdown_waits_for_nobody(world: ThrottleWorld) -> None:
    """With polls and streams open, a server whose grace is half a minute ends at once and ends them cleanly."""
    async with world.running() as base, client_of(base) as client:
        polls = [asyncio.create_task(client.get("/v1/throttle?wait=30", headers=SAME)) for _ in range(5)]
        streams = [asyncio.create_task(client.get(STREAM)) for _ in range(5)]
        await world.board.until_waiting(10)
        began_s = time.monotonic()
        world.stop.set()
        answers = await asyncio.wait_for(asyncio.gather(*polls, *streams), 10)
    assert time.monotonic() - began_s < 10
    assert [answer.status_code for answer in answers] == [304] * 5 + [200] * 5
    assert all("id: d1\n" in answer.text for answer in answers[5:])


async def test_stream_sends_each_change(world: ThrottleWorld, served: httpx.AsyncClient) -> None:
    """A stream begins with how to come back and the newest, and goes on with every change, as JSON of its own."""
    async with served.stream("GET", STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        events = Events(answer)
        assert await events.frame() == "retry: 5000"
        assert (await events.event())[0] == "d1"
        for name in ("d2", "d3"):
            await world.board.until_waiting(1)
            world.board.publish(name)
            event_id, data = await events.event()
            assert event_id == data["decision_id"] == name
            assert data == (await served.get("/v1/throttle")).json()


async def test_stream_waits_for_the_first(empty: ThrottleWorld) -> None:
    """A stream that is opened before the first recommendation stays open and gets it."""
    async with empty.running() as base, client_of(base) as client, client.stream("GET", STREAM) as answer:
        assert answer.status_code == 200
        await empty.board.until_waiting(1)
        empty.board.publish("d1")
        assert (await Events(answer).event())[0] == "d1"


@pytest.mark.parametrize(
    ("last", "then"),
    [("d2", ["d3", "d4"]), ("d1", ["d2", "d3", "d4"]), ("gone", ["d4"]), ("", ["d4"]), ("d4", []), ('"d2"', ["d4"])],
)
async def test_stream_resumes(world: ThrottleWorld, served: httpx.AsyncClient, last: str, then: list[str]) -> None:
    """A client that returns gets what it missed in order; one whose last event is not kept gets the newest."""
    for name in ("d2", "d3", "d4"):
        world.board.publish(name)
    async with served.stream("GET", STREAM, headers={"Last-Event-ID": last}) as answer:
        events = Events(answer)
        await world.board.until_waiting(1)
        world.board.publish("d5")
        assert [(await events.event())[0] for _ in range(len(then) + 1)] == [*then, "d5"]


async def test_what_is_no_longer_kept_is_not_replayed(world: ThrottleWorld, served: httpx.AsyncClient) -> None:
    """After more changes than are kept, the client gets the newest alone."""
    for number in range(KEPT):
        world.board.publish(f"e{number}")
    async with served.stream("GET", STREAM, headers={"Last-Event-ID": "d1"}) as answer:
        assert (await Events(answer).event())[0] == f"e{KEPT - 1}"


async def test_silence_is_broken_by_a_heartbeat(world: ThrottleWorld) -> None:
    """While nothing changes, comments tell that the stream lives, and an event still comes after them."""
    async with (
        world.running(heartbeat_s=0.02) as base,
        client_of(base) as client,
        client.stream("GET", STREAM) as answer,
    ):
        events = Events(answer)
        frames = [await events.frame() for _ in range(5)]
        assert frames[0].startswith("retry:")
        assert frames[1].startswith("id: d1\n")
        assert frames[2:] == [":", ":", ":"]
        world.board.publish("d2")
        assert (await events.event())[0] == "d2"


async def test_slow_reader_skips_to_the_newest(world: ThrottleWorld) -> None:
    """A client that does not read misses what it could not take: nothing is kept for it but the connection's buffer."""
    big = {"explain": "x" * 200_000}
    async with world.running() as base:
        reader, writer = await connect(base)
        writer.write(f"GET {STREAM} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await world.board.until_waiting(1)
        for number in range(300):
            world.board.publish(f"e{number}", **big)
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        received = b""
        while b"id: e299\n" not in received:
            received += await asyncio.wait_for(reader.read(1 << 20), 10)
        writer.close()
        await writer.wait_closed()
    ids = [int(name) for name in re.findall(rb"\nid: e(\d+)\n", received)]
    assert len(ids) < 150
    assert ids == sorted(ids)


async def test_streams_beyond_the_bound_are_503(world: ThrottleWorld) -> None:
    """One stream too many is a 503 problem that says what to do; when one closes, another may come."""
    async with world.running(max_streams=2) as base, client_of(base) as client:
        async with client.stream("GET", STREAM) as first, client.stream("GET", STREAM) as second:
            assert first.status_code == second.status_code == 200
            refused = await client.get(STREAM)
            assert refused.status_code == 503
            assert refused.headers["content-type"] == PROBLEM
            assert int(refused.headers["retry-after"]) >= 1
        await world.board.until_waiting(0)
        async with client.stream("GET", STREAM) as third:
            assert third.status_code == 200


async def test_head_of_a_stream_ends(world: ThrottleWorld) -> None:
    """HEAD on the stream gives its head and ends, so the connection carries the next answer."""
    async with world.running() as base:
        status, headers, rest = await raw(
            base,
            f"HEAD {STREAM} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            + b"GET /v1/throttle HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
    assert status == "HTTP/1.1 200 OK"
    assert headers["content-type"].startswith("text/event-stream")
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("query", ["since=1", "wait=3"])
async def test_stream_takes_no_query(served: httpx.AsyncClient, query: str) -> None:
    """An unknown parameter of the stream is a 422 problem."""
    answer = await served.get(f"{STREAM}?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM

"""How edges reach the loop: from this process, over the socket, over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.daemon.parts import House, check_books, span

from joulegate.daemon.ingest import HttpIngest, LocalSink, SocketIngest
from joulegate.daemon.loop import INBOX_MESSAGES, ORPHAN_GRACE_S, Claimed, Delivery
from joulegate.http.ports import IngestBusy, Receipt, SpansRefused
from joulegate.metering.entry import Status
from joulegate.metering.span import Outcome
from joulegate.pipelines.socket_server import MessagesDropped, SpanBegan, SpanEnded, Ticket


async def posted(house: House, *spans: object) -> Receipt:
    """Post, and let the loop take one turn meanwhile."""
    post = asyncio.create_task(HttpIngest(house.loop).submit(spans))
    await asyncio.sleep(0)
    await asyncio.to_thread(house.turn, 0.2)
    return await post


async def test_http_is_answered_after_the_commit(tmp_path: Path) -> None:
    """A post is answered with what was new and what was known, and what it answered for is in the journal."""
    house = House(tmp_path)
    house.turn(3.0)
    first = span("a", house.clock.t_s - 1, house.clock.t_s)
    assert await posted(house, first, span("b", house.clock.t_s)) == Receipt(2, 0)
    assert house.reader().request("a").status is Status.PENDING
    assert await posted(house, first, span("b", house.clock.t_s - 0.2, house.clock.t_s)) == Receipt(1, 1)
    house.turn(4.0)
    assert set(check_books(tmp_path)[1]) == {"a", "b"}
    house.kill()


async def test_http_takes_all_or_none(tmp_path: Path) -> None:
    """A post that names an unknown device, or does not fit into the inbox, takes nothing."""
    house = House(tmp_path)
    good = span("good", house.clock.t_s, house.clock.t_s)
    with pytest.raises(SpansRefused) as refused:
        await HttpIngest(house.loop).submit([good, span("bad", 1.0, 2.0, devices=("GPU-z", "GPU-a"))])
    assert refused.value.faults == ((1, "devices", "GPU-z: not a metered device; GET /v1/devices lists them"),)
    room = 1
    house.loop.submit(*[Delivery(Claimed(()))] * (INBOX_MESSAGES - room))
    with pytest.raises(IngestBusy):
        await HttpIngest(house.loop).submit([good, span("other", 1.0, 2.0)])
    for _ in range(12):
        house.turn(0.2)
    assert house.loop.meter.span("good") is None
    house.kill()


async def test_an_answer_to_nobody(tmp_path: Path) -> None:
    """A client that gave up before the commit costs nothing: its span is kept and the loop turns on."""
    house = House(tmp_path)
    house.turn(2.0)
    post = asyncio.create_task(HttpIngest(house.loop).submit([span("a", house.clock.t_s - 1, house.clock.t_s)]))
    await asyncio.sleep(0)
    post.cancel()
    await asyncio.to_thread(house.turn, 4.0)
    await asyncio.sleep(0)
    assert house.loop.faults == 0
    assert set(check_books(tmp_path)[1]) == {"a"}
    house.kill()


def test_tickets_of_a_commit_are_acknowledged_together(tmp_path: Path) -> None:
    """All tickets of one commit come in one call, in order, and only after it; dropped messages are counted."""
    house = House(tmp_path)
    ingest, calls = SocketIngest(house.loop), []
    ingest.acknowledge = calls.append
    now_s = house.clock.t_s
    assert ingest.submit(SpanBegan(span("a", now_s)), Ticket(1, 1))
    assert ingest.submit(SpanEnded("a", now_s, Outcome.OK), Ticket(1, 2))
    assert calls == []
    house.turn(0.2)
    assert calls == [[Ticket(1, 1), Ticket(1, 2)]]
    assert ingest.submit(MessagesDropped(7), Ticket(1, 3))
    assert calls[-1] == [Ticket(1, 3)]
    assert house.loop.dropped == 7
    assert [device.id for device in ingest.devices()] == ["GPU-a"]
    house.kill()


def test_who_asks_for_a_request_answers_for_it(tmp_path: Path) -> None:
    """A client that comes back and watches its requests keeps them; those it does not ask for are ended."""
    house = House(tmp_path)
    ingest = SocketIngest(house.loop)
    house.turn(2.0)
    house.begin("kept")
    house.begin("left")
    house.turn(1.0)
    house.submit(Claimed(()), "nothing")
    ingest.lost(["kept", "left"])
    house.loop._inbox[-1] = Delivery(type(house.loop._inbox[-1].edge)(("kept", "left"), house.clock.t_s))
    house.turn(1.0)
    assert ingest.lookup("kept") is None
    house.turn(ORPHAN_GRACE_S + 4)
    assert house.reader().request("left").outcome is Outcome.CANCELLED
    assert house.reader().request("kept") is None
    house.kill()


def test_the_sink_in_this_process(tmp_path: Path) -> None:
    """Begin, end, provisional and final figures; after a fork or a close nothing is known and all is counted."""
    house = House(tmp_path)
    house.turn(3.0)
    closed: list[bool] = []
    sink = LocalSink(house.loop, {}, lambda: closed.append(True))
    assert sink.visible_devices() == ("GPU-a",)
    begun_s = house.clock.t_s
    sink.begin(span("a", begun_s))
    house.turn(2.0)
    sink.end("a", house.clock.t_s, Outcome.FAILED)
    draft = sink.lookup("a")
    assert draft.status is Status.PENDING
    assert draft.outcome is Outcome.FAILED
    assert draft.energy_mj > 0
    house.turn(3.0)
    final = sink.wait("a", 0.0)
    assert final.status is Status.FINAL
    assert final.outcome is Outcome.FAILED
    assert sink.lookup("a") == final
    assert sink.lookup("nobody") is None
    sink.close()
    sink.close()
    assert closed == [True]
    sink.after_fork()
    sink.begin(span("b", begun_s))
    sink.end("b", begun_s, Outcome.OK)
    assert (sink.dropped, sink.lookup("b"), sink.wait("b", 9.0), sink.visible_devices()) == (2, None, None, ())
    house.kill()

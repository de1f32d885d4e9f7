"""Tests of ``POST /v1/spans`` into a real ledger."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from tests.http.stand_ins import H100, World

from joulegate.http.ports import IngestBusy, Receipt, SpansRefused
from joulegate.metering.span import Outcome, Span, StartSource

JSON = {"content-type": "application/json"}
FINISHED = {
    "request_id": "a1",
    "devices": [H100.id],
    "arrived": "2025-03-30T11:59:50Z",
    "started": "2025-03-30T11:59:52Z",
    "ended": "2025-03-30T13:59:58+02:00",
    "model": "sdxl",
    "images": 4,
}


class Refusing:
    """An ingest that answers every submit in one way."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault

    async def submit(self, spans: Sequence[Span]) -> Receipt:
        """Raise, or never come back."""
        if self.fault is not None:
            raise self.fault
        await asyncio.sleep(60)
        return Receipt(len(spans), 0)


async def post(client: httpx.AsyncClient, *spans: Any) -> httpx.Response:
    """Post spans as they should be."""
    return await client.post("/v1/spans", json={"spans": spans})


async def test_finished_span_is_acknowledged_after_the_commit(world: World, client: httpx.AsyncClient) -> None:
    """202 means that the span is in the ledger; its wall times are on the agent's monotonic axis."""
    answer = await post(client, FINISHED)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    assert (await client.get("/v1/requests/a1")).json()["status"] == "pending"
    (span,) = world.ingest.taken
    assert (span.arrived_s, span.started_s, span.ended_s) == (990.0, 992.0, 998.0)
    assert (span.devices, span.model, span.work.images, span.outcome) == ((H100.id,), "sdxl", 4, Outcome.OK)


async def test_posting_again_changes_nothing(world: World, client: httpx.AsyncClient) -> None:
    """The same post again is all duplicates."""
    await post(client, FINISHED, FINISHED | {"request_id": "a2"})
    answer = await post(client, FINISHED, FINISHED | {"request_id": "a2"}, FINISHED | {"request_id": "a3"})
    assert answer.json() == {"accepted": 1, "duplicates": 2}
    assert len(world.ingest.taken) == 3


async def test_span_repeated_within_a_post(world: World, client: httpx.AsyncClient) -> None:
    """The same span twice in one post counts once; its start and then its end are both taken."""
    running = {name: value for name, value in FINISHED.items() if name != "ended"}
    answer = await post(client, running, running, FINISHED, FINISHED)
    assert answer.json() == {"accepted": 2, "duplicates": 2}
    assert [span.ended_s for span in world.ingest.taken] == [None, 998.0]


async def test_contradiction_within_a_post(world: World, client: httpx.AsyncClient) -> None:
    """One request id with two ends in one post is a fault, and nothing is taken."""
    answer = await post(client, FINISHED, FINISHED | {"ended": "2025-03-30T11:59:59Z"})
    assert answer.status_code == 422
    (fault,) = answer.json()["faults"]
    assert (fault["index"], fault["field"]) == (1, "request_id")
    assert world.ingest.taken == []


async def test_monotonic_times_and_other_fields(world: World, client: httpx.AsyncClient) -> None:
    """Processes of the same machine may send monotonic seconds; a missing start is the arrival and says so."""
    await post(
        client,
        {"request_id": "m1", "started_s": 900.5, "ended_s": 901.5, "outcome": "failed", "start_source": "engine"},
        {"request_id": "m2", "arrived_s": 900.5, "ended_s": 901.5, "class": "big"},
    )
    first, second = world.ingest.taken
    assert (first.started_s, first.ended_s, first.outcome, first.devices) == (900.5, 901.5, Outcome.FAILED, ())
    assert first.start_source is StartSource.ENGINE
    assert (second.started_s, second.start_source, second.power_class) == (900.5, StartSource.ARRIVAL, "big")


async def test_all_or_nothing_with_every_fault_in_its_place(world: World, client: httpx.AsyncClient) -> None:
    """One bad span refuses the whole post; each fault says which span, which field and what is wrong."""
    bad = [
        FINISHED | {"request_id": ""}, FINISHED | {"images": 0}, FINISHED | {"started": "noon"},
        FINISHED | {"ended": "2025-03-30T11:00:00Z"}, FINISHED | {"ended": "2025-03-30T12:00:06Z"}, 5,
        {"request_id": "x"}, FINISHED | {"outcome": "lost"}, FINISHED | {"devices": [H100.id, H100.id]},
    ]  # fmt: skip
    answer = await post(client, FINISHED, *bad)
    assert answer.status_code == 422
    body = answer.json()
    assert [(fault["place"], fault["index"], fault["field"]) for fault in body["faults"]] == [
        ("body", 1, "request_id"), ("body", 2, "images"), ("body", 3, "started"), ("body", 4, "ended"),
        ("body", 5, "ended"), ("body", 6, "span"), ("body", 7, "started"), ("body", 8, "outcome"),
        ("body", 9, "devices"),
    ]  # fmt: skip
    assert "ahead of the agent's clock" in body["faults"][4]["fault"]
    assert all(fault["fault"] for fault in body["faults"])
    assert world.ingest.taken == []


async def test_fault_list_is_bounded(client: httpx.AsyncClient) -> None:
    """A thousand bad spans list a hundred faults and the number of all."""
    body = (await post(client, *[{}] * 1000)).json()
    assert (len(body["faults"]), body["faults_total"]) == (100, 1000)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"\xff{}", 400, "not-utf8"), (b"{", 400, "not-json"), (b"", 400, "not-json"),
        (b'{"spans": [NaN]}', 400, "not-json"), (b"[" * 100_000, 400, "not-json"), (b"1" * 5_000, 400, "not-json"),
        (b"[]", 422, "invalid"), (b'{"spans": {}}', 422, "invalid"), (b"{}", 422, "invalid"), (b"null", 422, "invalid"),
        (json.dumps({"spans": [{}] * 1_001}).encode(), 422, "invalid"),
        (b'{"spans": [{"request_id": "\\ud800", "started": "2025-03-30T11:00:00Z"}]}', 422, "invalid"),
        (b'{"spans": [{"request_id": "a", "started_s": 1e999}]}', 422, "invalid"),
        (b" " * (1 << 20) + b"{}", 413, "too-large"),
    ],
)  # fmt: skip
async def test_bodies_that_cannot_be_used(client: httpx.AsyncClient, content: bytes, status: int, code: str) -> None:
    """A body that is no UTF-8, no JSON, of another shape or too large is a problem in one line."""
    answer = await client.post("/v1/spans", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:joulegate:problem:{code}"
    assert "\n" not in answer.json()["detail"]


async def test_body_that_grows_too_large(client: httpx.AsyncClient) -> None:
    """A body without a length is refused where it grows past the limit, before it has all been read."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 65_536

    answer = await client.post("/v1/spans", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert sent <= 18


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"}, {}, {"content-type": "application/json; charset=latin-1"},
        JSON | {"content-encoding": "gzip"},
    ],
)  # fmt: skip
async def test_bodies_of_another_type(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """What is not plain JSON in UTF-8 is a 415 problem."""
    answer = await client.post("/v1/spans", content=b'{"spans": []}', headers=headers)
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=UTF-8"])
async def test_nothing_to_take(client: httpx.AsyncClient, content_type: str) -> None:
    """An empty post is taken."""
    answer = await client.post("/v1/spans", content=b'{"spans": []}', headers={"content-type": content_type})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "duplicates": 0})


async def test_back_pressure(world: World) -> None:
    """An ingest that is full is a 503 that says when to come back."""
    async with world.client(spans=Refusing(IngestBusy("the queue is full", 2.6))) as client:
        answer = await post(client, FINISHED)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["detail"] == "the queue is full"


async def test_refusal_by_the_ingest(world: World) -> None:
    """Spans that the ingest refuses are faults at their index and field."""
    async with world.client(spans=Refusing(SpansRefused([(1, "devices", "no device 'GPU-x'")]))) as client:
        answer = await post(client, FINISHED, FINISHED | {"request_id": "a2"})
    assert answer.status_code == 422
    (fault,) = answer.json()["faults"]
    assert fault == {"place": "body", "index": 1, "field": "devices", "fault": "no device 'GPU-x'"}


async def test_commit_that_does_not_come(world: World) -> None:
    """Without a commit in time the answer is a 503, never a 202."""
    async with world.client(spans=Refusing(None), commit_timeout_s=0.02) as client:
        answer = await post(client, FINISHED)
    assert answer.status_code == 503
    assert "none counts twice" in answer.json()["detail"]

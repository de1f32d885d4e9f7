"""Tests of ``GET /v1/requests`` and ``/v1/requests/{id}`` over a real ledger."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.http.stand_ins import H100, World, entry

from joulegate.metering.batch import Batch
from joulegate.metering.reading import Quality
from joulegate.metering.span import Member, Span
from joulegate.stores import LedgerFault, LedgerReader

CONTRACT = {
    "request_id", "status", "model", "tier", "tenant", "images", "steps", "width", "height", "arrived", "started",
    "ended", "start_source", "queue_s", "energy_j", "uncertainty_j", "method", "quality", "outcome", "devices",
    "co2e_g",
}  # fmt: skip


def write(world: World, numbers: Sequence[int], **fields: object) -> None:
    """Commit a final entry for each number."""
    world.ledger.commit(Batch(entries=tuple(entry(number, **fields) for number in numbers)))


async def test_request_has_every_field_of_the_contract(world: World, client: httpx.AsyncClient) -> None:
    """A final request shows joules, both parts of U, times in RFC 3339 and what its device went through."""
    write(world, [10])
    answer = await client.get("/v1/requests/r10")
    assert answer.status_code == 200
    request = answer.json()
    assert request.keys() >= CONTRACT
    expected = {
        "status": "final", "arrived": "2025-03-30T11:00:03.500000Z", "started": "2025-03-30T11:00:06.000000Z",
        "ended": "2025-03-30T11:00:10.000000Z", "queue_s": 2.5, "energy_j": 6.0, "images": 2,
        "uncertainty_j": {"measurement": 0.3, "allocation": None}, "outcome": "ok", "co2e_g": None,
    }  # fmt: skip
    assert {name: request[name] for name in expected} == expected
    use = request["devices"][H100.id]
    assert (use["energy_j"], use["power_max_w"], use["clock_event_s"]) == (6.0, 690.0, {"sw_thermal": 0.5})


async def test_pending_request_has_null_energy(world: World, client: httpx.AsyncClient) -> None:
    """A request whose counter has not passed its end is pending, without a figure, and first in the list."""
    write(world, [10])
    span = Span("p1", (H100.id,), started_s=990.0, ended_s=999.0, members=(Member("p1"),), model="sdxl")
    world.ledger.commit(Batch(closed=(span,)))
    request = (await client.get("/v1/requests/p1")).json()
    assert (request["status"], request["energy_j"], request["uncertainty_j"]) == ("pending", None, None)
    page = (await client.get("/v1/requests")).json()
    assert [item["request_id"] for item in page["items"]] == ["p1", "r10"]
    page = (await client.get("/v1/requests?status=pending")).json()
    assert [item["request_id"] for item in page["items"]] == ["p1"]


async def test_pages_hold_each_request_once(world: World, client: httpx.AsyncClient) -> None:
    """Following ``next`` gives every request once, newest first, and ends in null."""
    write(world, range(25))
    seen, cursor = [], ""
    while cursor is not None:
        page = (await client.get(f"/v1/requests?limit=10{cursor and '&cursor=' + cursor}")).json()
        assert len(page["items"]) <= 10
        seen += [item["request_id"] for item in page["items"]]
        cursor = page["next"]
    assert seen == [f"r{number}" for number in reversed(range(25))]


async def test_filters_narrow_the_list(world: World, client: httpx.AsyncClient) -> None:
    """Model, tier and tenant each select."""
    write(world, [1])
    write(world, [2], model="flux")
    write(world, [3], tier="pro")
    write(world, [4], tenant="zen")
    for query, expected in (("model=flux", ["r2"]), ("tier=pro", ["r3"]), ("tenant=zen", ["r4"]), ("model=none", [])):
        page = (await client.get("/v1/requests?" + query)).json()
        assert [item["request_id"] for item in page["items"]] == expected, query


async def test_request_without_a_reading(world: World, client: httpx.AsyncClient) -> None:
    """A request that no reading saw has null energy and quality missing, not 0 J."""
    fields = {"energy_mj": None, "u_measurement_mj": None, "method": None, "quality": Quality.MISSING}
    write(world, [5], **fields, devices={}, shares=())
    request = (await client.get("/v1/requests/r5")).json()
    assert (request["energy_j"], request["quality"], request["method"]) == (None, "missing", None)


@pytest.mark.parametrize("request_id", ["a/b c?d", "ünï", "100%", "a%2Fb"])
async def test_any_request_id_can_be_asked_for(world: World, client: httpx.AsyncClient, request_id: str) -> None:
    """An id with slashes, spaces or other letters is found when it is escaped."""
    write(world, [6], request_id=request_id, shares=tuple(replace(s, request_id=request_id) for s in entry(6).shares))
    url = httpx.URL("http://127.0.0.1:9288/v1/requests/").copy_with(
        raw_path=b"/v1/requests/" + b"".join(b"%%%02X" % byte for byte in request_id.encode())
    )
    answer = await client.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.json()["request_id"] == request_id


async def test_unknown_request(client: httpx.AsyncClient) -> None:
    """An id that the ledger does not know is a 404 problem that names it."""
    answer = await client.get("/v1/requests/nobody")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "'nobody'" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=many", "limit"), ("status=done", "status"),
        ("cursor=%ff", "cursor"), ("cursor=abc", "cursor"), ("modl=sdxl", "modl"), ("model=" + "x" * 300, "model"),
    ],
)  # fmt: skip
async def test_bad_parameters_are_named(client: httpx.AsyncClient, query: str, field: str) -> None:
    """Each parameter that cannot be used, or is not known, is a fault with its place."""
    answer = await client.get("/v1/requests?" + query)
    assert answer.status_code == 422, answer.text
    (fault,) = answer.json()["faults"]
    assert (fault["place"], fault["field"]) == ("query", field)


async def test_all_faults_are_listed_at_once(client: httpx.AsyncClient) -> None:
    """Two bad parameters give two faults."""
    body = (await client.get("/v1/requests?limit=0&status=done")).json()
    assert {fault["field"] for fault in body["faults"]} == {"limit", "status"}
    assert body["faults_total"] == 2


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/requests/a", "/v1/energy"])
async def test_ledger_that_cannot_be_read(world: World, tmp_path: Path, path: str) -> None:
    """A ledger that cannot be read is a 503 with the ledger's own line, and not a fault of the agent."""
    reader = LedgerReader(tmp_path / "elsewhere")
    async with world.client(ledger=reader, ledger_fault=LedgerFault) as client:
        answer = await client.get(path)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "there is none yet" in answer.json()["detail"]
    assert world.parts.faults.total == 0

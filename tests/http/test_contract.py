"""Tests of what holds for every path: problems, HEAD, headers, hosts, faults of the agent, and the OpenAPI document."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest
from tests.http.stand_ins import World, account, entry, snapshot, state

from joulegate.metering.batch import Batch

PATHS = ("/", "/healthz", "/readyz", "/metrics", "/v1/devices", "/v1/requests", "/v1/requests/r1", "/v1/energy")
PROBLEM = "application/problem+json"
GENERATED = {
    "seed": 1,
    "generation": {"max-examples": 5, "database": "none"},
    "phases": {"stateful": {"enabled": False}},
    # What a schema cannot say (a cursor of this ledger, from before to, a start) makes some well-formed requests a 422.
    "checks": {"positive_data_acceptance": {"enabled": False}},
}


@pytest.fixture
def filled(world: World) -> World:
    """A device that works and one request."""
    world.shelf.newest = snapshot(state())
    world.ledger.commit(Batch(entries=(entry(1),), accounts=(account(1_743_332_390, 2_000, 10),)))
    return world


class Broken:
    """A ledger and an ingest that fail in a way nobody thought of."""

    def request(self, request_id: str) -> None:
        """Fail with what must not reach the user."""
        raise RuntimeError(f"secret\nof {request_id}")


@pytest.mark.parametrize("path", [*PATHS, "/openapi.json"])
async def test_head_is_get_without_the_body(filled: World, client: httpx.AsyncClient, path: str) -> None:
    """HEAD answers every GET path with the same status, type and length, and no body."""
    got, head = await client.get(path), await client.head(path)
    assert got.status_code == head.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert abs(int(head.headers["content-length"]) - len(got.content)) < 10


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
async def test_every_answer_has_sane_headers(filled: World, client: httpx.AsyncClient, path: str) -> None:
    """No answer is sniffed or stored, and no other origin is let in."""
    headers = (await client.get(path, headers={"origin": "https://evil.example"})).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nowhere", 404, None), ("GET", "/v1/requests/", 404, None), ("GET", "/v1/devices/", 404, None),
        ("GET", "/docs", 404, None), ("PUT", "/v1/devices", 405, "GET, HEAD"), ("GET", "/v1/spans", 405, "POST"),
        ("HEAD", "/v1/spans", 405, "POST"), ("OPTIONS", "/v1/requests", 405, "GET, HEAD"),
        ("BREW", "/metrics", 405, "GET, HEAD"), ("POST", "/openapi.json", 405, "GET, HEAD"),
    ],
)  # fmt: skip
async def test_refusals_are_problems(
    client: httpx.AsyncClient, method: str, path: str, status: int, allow: str | None
) -> None:
    """A path or method that is not served is a problem document; 405 names the methods that are."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers.get("allow") == allow
    if method != "HEAD":
        body = answer.json()
        assert body["status"] == status
        assert body["type"].startswith("urn:joulegate:problem:")
        assert body["title"]
        assert body["detail"]


async def test_fault_of_the_agent_shows_no_trace(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An unforeseen fault is a 500 problem that names its line in the log, shows nothing of it, and is counted."""
    caplog.set_level(logging.INFO, "joulegate.http")
    async with world.client(ledger=Broken()) as client:
        answer = await client.get("/v1/requests/r1")
        scrape = (await client.get("/metrics")).text
    assert answer.status_code == 500
    assert answer.headers["content-type"] == PROBLEM
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    (record,) = [record for record in caplog.records if record.name == "joulegate.http"]
    assert answer.json()["instance"] in record.getMessage()
    assert "secret of r1" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
    assert "joulegate_agent_http_faults_total 1.0" in scrape


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9288", 200), ("LOCALHOST", 200), ("[::1]:9288", 200), ("evil.example:9288", 421), ("", 421),
        ("localhost.evil.example", 421),
    ],
)  # fmt: skip
async def test_only_own_hosts_are_served(filled: World, host: str, status: int) -> None:
    """With a list of hosts, a page that rebinds its name to the loopback address gets a 421 problem."""
    async with filled.client(hosts=("localhost", "127.0.0.1", "::1")) as client:
        answer = await client.get("/healthz", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or answer.headers["content-type"] == PROBLEM


async def test_index_lists_what_is_served(filled: World, client: httpx.AsyncClient) -> None:
    """The page links to paths that answer, and says what is metered and how well."""
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "1 device(s) from source nvml: measured." in page.text
    links = [part.partition('"')[0] for part in page.text.split('href="')[1:]]
    assert len(links) >= 7
    for link in links:
        assert (await client.get(link)).status_code == 200, link


async def test_index_escapes_names(world: World) -> None:
    """A version or source with markup is shown as text."""
    async with world.client(version="<b>") as client:
        assert "<b>" not in (await client.get("/")).text


async def test_openapi_documents_every_answer(client: httpx.AsyncClient) -> None:
    """Each path lists its success and its problems, problems have their own media type, and all references hold."""
    document = (await client.get("/openapi.json")).json()
    operations = {
        (path, verb): operation for path, item in document["paths"].items() for verb, operation in item.items()
    }
    statuses = {
        "/": set(), "/metrics": set(), "/healthz": {"503"}, "/readyz": {"503"}, "/v1/devices": {"503"},
        "/v1/requests": {"422", "503"}, "/v1/requests/{request_id}": {"404", "422", "503"},
        "/v1/energy": {"422", "503"}, "/v1/spans": {"400", "413", "415", "422", "503"},
    }  # fmt: skip
    assert {path for path, _ in operations} == statuses.keys()
    for (path, verb), operation in operations.items():
        good = "202" if verb == "post" else "200"
        assert operation["responses"].keys() == statuses[path] | {good, "421", "500"}, path
        for status, answer in operation["responses"].items():
            if status != good:
                assert answer["content"].keys() == {PROBLEM}, (path, status)
    schemas = document["components"]["schemas"]
    names = {reference.rpartition("/")[2] for reference in references(document)}
    assert names <= schemas.keys()
    assert {"ProblemBody", "SpanPostBody", "DeviceBody", "RequestBody", "EnergyBody"} <= schemas.keys()
    assert "HTTPValidationError" not in names


def references(node: object) -> Iterator[str]:
    """Every ``$ref`` below ``node``."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def test_generated_requests_find_no_undocumented_answer(
    filled: World, require_module: Callable[[str, str], ModuleType]
) -> None:
    """Hundreds of generated requests, good and bad, get no 5xx and nothing that the document does not tell."""
    schemathesis = require_module("schemathesis", "test")
    engine, events = require_module("schemathesis.engine", "test"), require_module("schemathesis.engine.events", "test")
    config = schemathesis.Config.from_dict(GENERATED)
    schema = schemathesis.openapi.from_asgi("/openapi.json", filled.app(), config=config)
    statuses: Counter[int] = Counter()
    tested, found = set(), []
    for event in engine.from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            record = event.recorder
            tested.add(record.label)
            statuses.update(call.response.status_code for call in record.interactions.values() if call.response)
            found += [str(check.failure_info.failure) for check in failed_checks(record)]
    print(f"{statuses.total()} generated requests: {dict(statuses)}")
    assert found == []
    assert len(tested) == 9
    assert statuses.total() > 300
    assert {200, 202, 404, 405, 415, 422} <= statuses.keys()


def failed_checks(record: Any) -> list[Any]:
    """Checks of a scenario that found something."""
    return [check for checks in record.checks.values() for check in checks if check.failure_info is not None]

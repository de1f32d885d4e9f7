"""Tests of what the OpenAPI document says of the throttle endpoints, and that it is so."""

from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from tests.http_throttle.stand_ins import PROBLEM, REFUSED, ThrottleWorld

from joulegate.http.throttle_schemas import RecommendationBody, ScaleBody, TierBody

ROOT = "/v1/throttle"
ANY = {"421", "500"}
STATUSES = {
    ("get", ROOT): {"200", "304", "422", "503"},
    ("get", f"{ROOT}/tiers/{{tier}}"): {"200", "304", "404", "422", "503"},
    ("get", f"{ROOT}/scale"): {"200", "304", "422", "503"},
    ("get", f"{ROOT}/stream"): {"200", "422", "503"},
    ("get", f"{ROOT}/authz"): {"200", "400", "403", "429", "503"},
    ("post", f"{ROOT}/authz"): {"200", "400", "403", "429", "503"},
    ("post", f"{ROOT}/decide"): {"200", "400", "413", "415", "422"},
    ("get", f"{ROOT}/decisions"): {"200", "422", "503"},
    ("get", f"{ROOT}/decisions/{{decision_id}}"): {"200", "404", "422", "503"},
    ("put", f"{ROOT}/queue"): {"204", "400", "413", "415", "422"},
}
GENERATED = {
    "seed": 1,
    "generation": {"max-examples": 5, "database": "none"},
    "phases": {"stateful": {"enabled": False}},
    # A tier or a decision that is not there makes some well-formed requests a 404.
    "checks": {"positive_data_acceptance": {"enabled": False}},
    # Gateways send the client's own method, and so authz answers methods that the document need not list; with
    # deny_status=503 that is how it refuses.
    "operations": [
        {
            "include-path": f"{ROOT}/authz",
            "checks": {
                "unsupported_method": {"enabled": False},
                "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]},
            },
        },
        {"include-path-regex": "^(?!/v1/throttle).*|.*/stream$", "enabled": False},
    ],
}


async def _document(client: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


async def test_document_lists_every_answer(client: httpx.AsyncClient) -> None:
    """Every throttle path lists its success and its problems, and problems have their own media type and an example."""
    document = await _document(client)
    operations = {
        (verb, path): operation
        for path, item in document["paths"].items()
        if path.startswith(ROOT)
        for verb, operation in item.items()
    }
    assert operations.keys() == STATUSES.keys()
    for key, operation in operations.items():
        assert operation["responses"].keys() == STATUSES[key] | ANY, key
        assert operation["description"]
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert answer["content"].keys() == {PROBLEM}
                assert answer["content"][PROBLEM]["example"]["detail"]
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)


async def test_document_has_headers_bodies_and_examples(client: httpx.AsyncClient) -> None:
    """Tags, limits and waits are documented where they are sent, and what is taken has a shape with an example."""
    document = await _document(client)
    paths, schemas = document["paths"], document["components"]["schemas"]
    page, authz = paths[ROOT]["get"], paths[f"{ROOT}/authz"]["get"]
    assert {"ETag", "Cache-Control"} <= page["responses"]["200"]["headers"].keys()
    assert {"ETag", "Cache-Control"} <= page["responses"]["304"]["headers"].keys()
    assert {parameter["name"] for parameter in page["parameters"]} == {"wait", "If-None-Match"}
    assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= authz["responses"]["429"]["headers"].keys()
    assert {"X-Tier", "X-Tenant", "X-Cost", "deny_status", "mode"} == {each["name"] for each in authz["parameters"]}
    for shape in ("RecommendationBody", "TierBody", "DecideBody", "QueueReportBody"):
        assert schemas[shape]["examples"], shape


async def test_examples_and_answers_fit_their_shapes(client: httpx.AsyncClient) -> None:
    """The document's examples and the real answers are what the documented shapes say."""
    for shape, path in ((RecommendationBody, ROOT), (TierBody, f"{ROOT}/tiers/free"), (ScaleBody, f"{ROOT}/scale")):
        adapter = TypeAdapter(shape)
        answer = (await client.get(path)).json()
        adapter.validate_python(answer)
        for example in shape.model_json_schema().get("examples", []):
            adapter.validate_python(example)
            assert example.keys() == answer.keys()


@pytest.mark.parametrize("refuse", [False, True])
def test_generated_requests_find_no_undocumented_answer(
    world: ThrottleWorld, require_module: Callable[[str, str], ModuleType], *, refuse: bool
) -> None:
    """Generated requests, good and bad, get no 5xx of the agent and nothing that the document does not tell."""
    schemathesis = require_module("schemathesis", "test")
    engine, events = require_module("schemathesis.engine", "test"), require_module("schemathesis.engine.events", "test")
    world.trail.items.append({"decision_id": "5c0f6d2e9b7a41d3"})
    if refuse:
        world.table.free = REFUSED
    world.stop.set()
    config = schemathesis.Config.from_dict(GENERATED)
    schema = schemathesis.openapi.from_asgi("/openapi.json", world.app(), config=config)
    statuses: Counter[int] = Counter()
    tested, found = set(), []
    for event in engine.from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            record = event.recorder
            tested.add(record.label)
            statuses.update(call.response.status_code for call in record.interactions.values() if call.response)
            checks = [check for each in record.checks.values() for check in each if check.failure_info is not None]
            found += [str(check.failure_info.failure) for check in checks]
    print(f"{statuses.total()} generated requests: {dict(statuses)}")
    assert found == []
    assert len(tested) == len(STATUSES) - 1
    assert statuses.total() > 150
    assert {200, 204, 404, 415, 422} | ({429, 403} if refuse else set()) <= statuses.keys()

"""Configurations for gateways that are not run here: shape, addresses, headers, time limits, failure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.e2e.service import Service
from tests.policies.support.nginx import POLICIES

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("policies")]

FILES = sorted(path for kind in ("yaml", "conf", "rego", "py", "toml", "md") for path in POLICIES.rglob(f"*.{kind}"))
AUTHZ = "/v1/throttle/authz"
LONGEST_WAIT_MS = 200
"""Envoy's own default for ext_authz; an agent that is well answers in about one."""


def load(name: str) -> Any:
    """A YAML sample."""
    return yaml.safe_load((POLICIES / name).read_text())


def values(tree: Any, name: str) -> Iterator[Any]:
    """Every value of a key of that name, however deep."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if key == name:
            yield value
        yield from values(value, name)


@pytest.fixture(scope="module")
def openapi(daemon: Service) -> dict[str, Any]:
    """The contract that the real daemon publishes."""
    return daemon.get("/openapi.json")


def asked_headers(openapi: dict[str, Any]) -> set[str]:
    """Headers that authz reads."""
    parameters = openapi["paths"][AUTHZ]["get"]["parameters"]
    return {parameter["name"].lower() for parameter in parameters if parameter["in"] == "header"}


def answered_headers(openapi: dict[str, Any], status: str) -> set[str]:
    """Headers that authz answers with, beside those of every answer."""
    return {name.lower() for name in openapi["paths"][AUTHZ]["get"]["responses"][status]["headers"]}


EVERY_ANSWER = {"content-type", "cache-control"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(POLICIES)))
def test_addresses_exist(path: Path, openapi: dict[str, Any]):
    """Every /v1 path of the agent that a sample names is in the daemon's OpenAPI document."""
    named = set(re.findall(r"/v1/throttle[a-z/]*", path.read_text()))
    assert {name.rstrip("/") for name in named} <= set(openapi["paths"]), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(POLICIES)))
def test_headers_exist(path: Path, openapi: dict[str, Any]):
    """Every X-Throttle, RateLimit, X-Tier, X-Tenant and X-Cost name is one that authz reads or answers with."""
    named = set(re.findall(r"(?i)\bx[-_](?:throttle[-_][a-z]+|tier\b|tenant\b|cost\b)", path.read_text()))
    known = asked_headers(openapi) | answered_headers(openapi, "429")
    assert {name.lower().replace("_", "-") for name in named} <= known, path


def test_samples_say_what_was_not_run():
    """A sample that no test runs says so in its header."""
    for name in ("envoy/envoy.yaml", "apisix/apisix.yaml", "keda/scaledobject.yaml"):
        head = (POLICIES / name).read_text().split("\n\n", 2)
        assert "Not run for real" in "".join(head[:2]), name


def filters(envoy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Envoy's HTTP filters by name, in order."""
    (manager,) = values(envoy, "http_filters")
    return {entry["name"]: entry["typed_config"] for entry in manager}


def test_envoy_asks_before_it_routes(openapi: dict[str, Any]):
    """header_mutation, ext_authz, local_ratelimit, router, in this order; the agent gets our headers and no others."""
    chain = filters(load("envoy/envoy.yaml"))
    kinds = ["header_mutation", "ext_authz", "local_ratelimit", "router"]
    assert list(chain) == [f"envoy.filters.http.{kind}" for kind in kinds]
    for kind, config in zip(kinds, chain.values(), strict=True):
        assert config["@type"].startswith(f"type.googleapis.com/envoy.extensions.filters.http.{kind}.v3.")
    authz = chain["envoy.filters.http.ext_authz"]
    assert {pattern["exact"] for pattern in authz["allowed_headers"]["patterns"]} == asked_headers(openapi)
    service = authz["http_service"]
    assert service["path_prefix"] == AUTHZ
    answer = service["authorization_response"]
    denied = {pattern["exact"] for pattern in answer["allowed_client_headers"]["patterns"]}
    admitted = {pattern["exact"] for pattern in answer["allowed_client_headers_on_success"]["patterns"]}
    assert {"retry-after", "ratelimit", "ratelimit-policy", "content-type"} <= denied
    assert denied <= answered_headers(openapi, "429") | EVERY_ANSWER
    assert admitted <= answered_headers(openapi, "200")


def test_envoy_takes_the_tier_from_the_key():
    """Each route overwrites tier and tenant, the chain overwrites the cost; nothing of the client's gets through."""
    envoy = load("envoy/envoy.yaml")
    (routes,) = values(envoy, "routes")
    tiers = []
    for route in routes:
        (mutations,) = values(route, "request_mutations")
        assert {entry["append"]["append_action"] for entry in mutations} == {"OVERWRITE_IF_EXISTS_OR_ADD"}
        written = {entry["append"]["header"]["key"]: entry["append"]["header"]["value"] for entry in mutations}
        assert set(written) == {"x-tier", "x-tenant"}
        tiers.append(written["x-tier"])
    assert tiers == ["pro", "free"], "the route without a key comes last"
    assert "headers" not in routes[-1]["match"]
    (mutation,) = values(filters(envoy)["envoy.filters.http.header_mutation"], "request_mutations")
    assert mutation[0]["append"]["header"] == {"key": "x-cost", "value": "1"}


def test_envoy_waits_briefly_and_fails_by_tier():
    """The agent gets at most 200 ms; without an answer paid goes on and free is held to a bucket of its own."""
    envoy = load("envoy/envoy.yaml")
    chain = filters(envoy)
    authz = chain["envoy.filters.http.ext_authz"]
    clusters = {cluster["name"]: cluster for cluster in envoy["static_resources"]["clusters"]}
    waits = (authz["http_service"]["server_uri"]["timeout"], clusters["joulegate_agent"]["connect_timeout"])
    assert all(0 < float(wait.removesuffix("s")) * 1000 <= LONGEST_WAIT_MS for wait in waits)
    assert authz["http_service"]["server_uri"]["cluster"] in clusters
    assert authz["failure_mode_allow"] is True
    assert authz["failure_mode_allow_header_add"] is True
    assert authz["status_on_error"] == {"code": "TooManyRequests"}
    (routes,) = values(envoy, "routes")
    assert [list(values(route, "rate_limits")) != [] for route in routes] == [False, True]
    (action,) = values(routes[1], "header_value_match")
    assert action["headers"] == [{"name": "x-envoy-auth-failure-mode-allowed", "string_match": {"exact": "true"}}]
    limit = chain["envoy.filters.http.local_ratelimit"]
    (floor,) = limit["descriptors"]
    assert floor["entries"] == [{"key": "header_match", "value": action["descriptor_value"]}]
    assert floor["token_bucket"] == {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "10s"}
    for share in (limit["filter_enabled"], limit["filter_enforced"]):
        assert share == {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}


FORWARD_AUTH = {
    "uri": str,
    "ssl_verify": bool,
    "request_method": str,
    "request_headers": list,
    "upstream_headers": list,
    "client_headers": list,
    "extra_headers": dict,
    "timeout": int,
    "keepalive": bool,
    "keepalive_timeout": int,
    "keepalive_pool": int,
    "allow_degradation": bool,
    "status_on_error": int,
}


def test_apisix(openapi: dict[str, Any]):
    """forward-auth by consumer group: documented attributes, our headers, a short wait, and what holds in a failure."""
    apisix = load("apisix/apisix.yaml")
    assert (POLICIES / "apisix" / "apisix.yaml").read_text().rstrip().endswith("#END"), "standalone mode wants it"
    groups = {group["id"]: group["plugins"]["forward-auth"] for group in apisix["consumer_groups"]}
    for tier, plugin in groups.items():
        for name, value in plugin.items():
            assert isinstance(value, FORWARD_AUTH[name]), name
        assert plugin["uri"].endswith(f":9288{AUTHZ}"), "no query that a client could add to"
        assert {name.lower() for name in plugin["extra_headers"]} == asked_headers(openapi)
        assert plugin["extra_headers"]["X-Tier"] == tier
        assert "request_headers" not in plugin, "no header of the client reaches the agent"
        assert {name.lower() for name in plugin["client_headers"]} <= answered_headers(openapi, "429") | EVERY_ANSWER
        assert 0 < plugin["timeout"] <= LONGEST_WAIT_MS
        assert plugin["status_on_error"] == 429
    assert (groups["pro"]["allow_degradation"], groups["free"]["allow_degradation"]) == (True, False)
    assert {consumer["group_id"] for consumer in apisix["consumers"]} <= set(groups)
    assert "key-auth" in apisix["routes"][0]["plugins"]


METRICS_API = {
    "url",
    "format",
    "valueLocation",
    "targetValue",
    "activationTargetValue",
    "unsafeSsl",
    "aggregateFromKubeServiceEndpoints",
    "aggregationType",
    "authMode",
}
SCALED_OBJECT = {
    "scaleTargetRef",
    "pollingInterval",
    "cooldownPeriod",
    "idleReplicaCount",
    "minReplicaCount",
    "maxReplicaCount",
    "fallback",
    "advanced",
    "triggers",
}


def test_keda(daemon: Service):
    """A ScaledObject of documented fields, whose value is a number in a real answer, summed over hosts."""
    keda = load("keda/scaledobject.yaml")
    assert (keda["apiVersion"], keda["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = keda["spec"]
    assert set(spec) <= SCALED_OBJECT
    assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    metadata = trigger["metadata"]
    assert trigger["type"] == "metrics-api"
    assert set(metadata) <= METRICS_API
    assert all(isinstance(value, str) for value in metadata.values()), "KEDA takes text alone"
    assert metadata["aggregationType"] == "sum"
    path = httpx.URL(metadata["url"]).path
    value = daemon.get(path)[metadata["valueLocation"]]
    assert isinstance(value, int | float)
    assert value >= 0
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    up, down = (behavior[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown"))
    assert 0 <= up < down <= 3600

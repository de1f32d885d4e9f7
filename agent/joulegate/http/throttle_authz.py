"""May this request run: the answers of ``/v1/throttle/authz`` to gateways and of ``/v1/throttle/decide`` to engines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from pydantic import TypeAdapter
from starlette.responses import Response
from starlette.types import Receive, Scope

from joulegate.http.answers import json_answer
from joulegate.http.problems import MEDIA_TYPE, Problem
from joulegate.http.throttle_bodies import read_as
from joulegate.http.throttle_pages import ROOT
from joulegate.http.throttle_ports import Ask, Decider
from joulegate.http.throttle_schemas import COST_PATTERN, MAX_NAME, DecideBody
from joulegate.throttle.decision import MAX_COST, Decision, Verdict
from joulegate.throttle.rate_headers import problem_members, rate_headers

AUTHZ = f"{ROOT}/authz"
DECIDE = f"{ROOT}/decide"
DENY_STATUSES = (403, 429, 503)

_BELOW = f"{AUTHZ}/"
_ASKED = {b"x-tier": "X-Tier", b"x-tenant": "X-Tenant", b"x-cost": "X-Cost"}
_COST = re.compile(COST_PATTERN)
_MAX_QUERY_BYTES = 256
_MAX_DRAINED_BYTES = 1 << 20
_DECIDE = TypeAdapter(DecideBody)


class AskFault(Exception):
    """A question that cannot be understood, so it is refused; the text is one line."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How to refuse. In ``shadow`` nothing is refused or counted; ``fault`` is what is wrong with the query."""

    deny_status: int
    shadow: bool = False
    fault: str | None = None

    @property
    def bad_status(self) -> int:
        """What a question that cannot be understood gets; nginx takes anything but 401 and 403 for an error."""
        return 403 if self.deny_status == 403 else 400


class Gatekeeper:
    """Answers for one ``decider``; ``deny_status`` is what it refuses with where the query does not say."""

    def __init__(self, decider: Decider, deny_status: int) -> None:
        self._decider = decider
        self._deny_status = deny_status

    async def authz(self, scope: Scope) -> Response:
        """200 without a body, or the refusal; whatever the method and whatever stands behind the path.

        Gateways append the client's own path and query (Envoy's ``path_prefix``): there the query is not the operator's
        and is not looked at. The body is never read.
        """
        query = scope["query_string"] if scope["path"] == AUTHZ else b""
        manner = manner_of(query, self._deny_status)
        closing = _closing(scope["headers"])
        try:
            ask = ask_of(scope["headers"], manner)
        except AskFault as fault:
            return _misunderstood(manner, str(fault), closing)
        decision = await self._decider.decide(ask)
        if decision.reason == Verdict.BAD_REQUEST and not decision.allow:
            return _misunderstood(manner, decision.detail, closing)
        return _authz_answer(decision, ask.tenant, manner, closing)

    async def decide(self, scope: Scope, receive: Receive) -> Response:
        """200 with the decision as JSON, whether it allows or not; raises ``Problem`` for a body that has no sense."""
        body = await read_as(_DECIDE, scope, receive)
        return json_answer(decision_members(await self._decider.decide(Ask(body.tier, body.tenant, body.cost))))


def is_authz(path: str) -> bool:
    """Whether ``path`` is that of the gateways, with or without the client's own path behind it."""
    return path == AUTHZ or path.startswith(_BELOW)


def decision_members(decision: Decision) -> dict[str, object]:
    """The JSON object of a decision."""
    return {
        "allow": decision.allow,
        "tier": decision.tier,
        "reason": str(decision.reason),
        "detail": decision.detail,
        "retry_after_s": decision.retry_after_s,
        "remaining": decision.remaining,
        "decision_id": decision.decision_id,
        "unknown_tier": decision.unknown_tier,
    }


def manner_of(query: bytes, deny_status: int) -> Manner:
    """What the operator's query asks for; a query that cannot be understood refuses everything."""
    if not query:
        return Manner(deny_status)
    if len(query) > _MAX_QUERY_BYTES:
        return Manner(deny_status, fault=f"the query has more than {_MAX_QUERY_BYTES} bytes")
    return _read_manner(query, deny_status)


@lru_cache(maxsize=64)
def _read_manner(query: bytes, deny_status: int) -> Manner:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    known = {"deny_status": [str(status) for status in DENY_STATUSES], "mode": ["enforce", "shadow"]}
    given: dict[str, str] = {}
    fault = None
    for name, value in pairs:
        if name not in known:
            fault = fault or f"unknown parameter {name[:100]!r}; known are deny_status and mode"
        elif value not in known[name]:
            fault = fault or f"{name} must be one of {', '.join(known[name])}"
        elif given.setdefault(name, value) != value:
            fault = fault or f"{name} is given twice with different values"
    shadow = fault is None and given.get("mode") == "shadow"
    return Manner(int(given.get("deny_status", deny_status)), shadow, fault)


def ask_of(headers: Iterable[tuple[bytes, bytes]], manner: Manner) -> Ask:
    """The question in the headers; raises ``AskFault``. An empty header is an absent one."""
    if manner.fault is not None:
        raise AskFault(manner.fault)
    given: dict[bytes, bytes] = {}
    for name, raw in headers:
        if name in _ASKED and (value := raw.strip()) and given.setdefault(name, value) != value:
            raise AskFault(f"{_ASKED[name]} is sent twice with different values; the gateway must set it once")
    return Ask(
        tier=_name(given, b"x-tier"),
        tenant=_name(given, b"x-tenant"),
        cost=_cost(given.get(b"x-cost")),
        count=not manner.shadow,
    )


def _name(given: Mapping[bytes, bytes], header: bytes) -> str | None:
    value = given.get(header)
    if value is None:
        return None
    try:
        name = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AskFault(f"{_ASKED[header]} is not UTF-8") from error
    if len(name) > MAX_NAME:
        raise AskFault(f"{_ASKED[header]} has {len(name)} characters; at most {MAX_NAME} are taken")
    return name


def _cost(value: bytes | None) -> float:
    if value is None:
        return 1.0
    text = value.decode("latin-1")
    cost = float(text) if _COST.fullmatch(text) else 0.0
    if not 0.0 < cost <= MAX_COST:
        raise AskFault(f"X-Cost must be a decimal number over 0 and at most {MAX_COST:g}, not {text[:40]!r}")
    return cost


def _closing(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """An unread body is skipped by the server, but one that is huge or was only announced ends the connection."""
    for name, value in headers:
        if name == b"expect" or (
            name == b"content-length" and value.isdigit() and int(value[:20]) > _MAX_DRAINED_BYTES
        ):
            return {"Connection": "close"}
    return {}


def _authz_answer(decision: Decision, tenant: str | None, manner: Manner, closing: Mapping[str, str]) -> Response:
    headers = {**dict(rate_headers(decision, tenant)), "X-Throttle-Reason": str(decision.reason), **closing}
    if decision.decision_id:
        headers["X-Throttle-Decision"] = decision.decision_id
    if decision.allow:
        return _judged(manner, headers, None)
    return _judged(manner, headers, problem_members(decision, manner.deny_status))


def _misunderstood(manner: Manner, detail: str, closing: Mapping[str, str]) -> Response:
    headers = {"X-Throttle-Reason": Verdict.BAD_REQUEST.value, **closing}
    return _judged(manner, headers, Problem(manner.bad_status, "bad-ask", detail).body())


def _judged(manner: Manner, headers: dict[str, str], refusal: Mapping[str, object] | None) -> Response:
    """200, or the problem whose members are ``refusal``; in shadow mode 200 that says what it would have been."""
    if manner.shadow:
        headers["X-Throttle-Would"] = "allow" if refusal is None else "deny"
    if refusal is None or manner.shadow:
        return Response(b"", 200, headers)
    content = json.dumps(refusal, allow_nan=False).encode("ascii")
    return Response(content, int(str(refusal["status"])), headers, MEDIA_TYPE)

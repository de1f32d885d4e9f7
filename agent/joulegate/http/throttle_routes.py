"""The throttle endpoints in the framework: the document of all, and those that the fast lane leaves to it."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from joulegate.http.answers import json_answer
from joulegate.http.parts import ThrottleParts
from joulegate.http.problems import Fault, Problem, documented, invalid, unavailable
from joulegate.http.throttle_authz import AUTHZ, DECIDE, Gatekeeper
from joulegate.http.throttle_bodies import read_as
from joulegate.http.throttle_pages import MAX_SHOWN, ROOT, SCALE, TIERS, Desk, matches, tags_of
from joulegate.http.throttle_schemas import (
    ASKED,
    IF_NONE_MATCH,
    MAX_NAME,
    MAX_RECORDS,
    RATE_HEADERS,
    DecideBody,
    DecisionBody,
    QueueReportBody,
    RecommendationBody,
    RecordPageBody,
    ScaleBody,
    TierBody,
    cached,
    header,
    parameter,
    refused,
)
from joulegate.http.throttle_waits import STREAM, Waits

MAX_WAIT_S = 30.0
_QUEUE = TypeAdapter(QueueReportBody)
_RETRY_AFTER = {"Retry-After": header("Whole seconds.", "integer")}
_EVENT = "id: 5c0f6d2e9b7a41d3\nevent: recommendation\ndata: {...}\n\n"


class NoQuery(BaseModel):
    """Nothing may be asked beside the path."""

    model_config = ConfigDict(extra="forbid")


class WaitQuery(NoQuery):
    """How long to wait for something newer than what If-None-Match names."""

    wait: float = Field(0.0, ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="seconds")


class RecordsQuery(NoQuery):
    """Which records, and how many at once."""

    since: str | None = Field(None, max_length=512, description="`next` of the page before, or a decision id")
    limit: int = Field(100, ge=1, le=MAX_RECORDS)


def throttle_routes(parts: ThrottleParts, desk: Desk, gatekeeper: Gatekeeper) -> APIRouter:
    """The routes over ``parts``; ``desk`` and ``gatekeeper`` are those of the fast lane."""
    router = APIRouter(tags=["throttle"])
    _add_pages(router, desk, Waits(parts, desk))
    _add_decisions(router, gatekeeper)
    _add_trail(router, parts)
    _add_queue(router, parts)
    return router


def _add_pages(router: APIRouter, desk: Desk, waits: Waits) -> None:
    @router.get(ROOT, response_model=RecommendationBody, responses=cached(422), openapi_extra=IF_NONE_MATCH)
    async def recommendation(request: Request, query: Annotated[WaitQuery, Query()]) -> Response:
        """The newest recommendation: 200 in every operational state, 503 only before the first.

        `wait` holds the answer back as long as If-None-Match names the newest, then it is 304; without such a tag the
        answer comes at once.
        """
        pages, tags = desk.present(), tags_of(request.scope["headers"])
        page = pages.by_path[ROOT]
        if query.wait > 0.0 and tags is not None and matches(page.etag, tags):
            return waits.poll(pages.prepared.sequence, tags, query.wait)
        return page.answer(tags)

    @router.get(TIERS + "{tier:path}", response_model=TierBody, responses=cached(404, 422), openapi_extra=IF_NONE_MATCH)
    async def tier_limit(
        request: Request,
        tier: Annotated[str, PathParameter(examples=["free"])],
        _query: Annotated[NoQuery, Query()],
    ) -> Response:
        """One tier's part of the newest recommendation."""
        return desk.present().tier(tier).answer(tags_of(request.scope["headers"]))

    @router.get(SCALE, response_model=ScaleBody, responses=cached(422), openapi_extra=IF_NONE_MATCH)
    async def scale(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
        """Flat numbers for KEDA's `metrics-api` and HPAs: scale on the sum of `replicas_wanted` over the hosts."""
        return desk.present().by_path[SCALE].answer(tags_of(request.scope["headers"]))

    @router.get(
        STREAM,
        response_class=Response,
        responses=documented(422, 503) | {200: _events()},
        openapi_extra={"parameters": [parameter("header", "Last-Event-ID", "resume after this decision")]},
    )
    async def stream(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
        """Every change as a server-sent event `recommendation`, its id the decision's, with a heartbeat comment.

        A client that is slow gets the newest and misses those between; one that returns with `Last-Event-ID` gets what
        is still kept of what it missed.
        """
        return waits.stream(request.headers.get("last-event-id"))


def _events() -> dict[str, Any]:
    return {
        "headers": {"Cache-Control": header("`no-store`")},
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EVENT}},
    }


def _add_decisions(router: APIRouter, gatekeeper: Gatekeeper) -> None:
    authz_responses: dict[int | str, dict[str, Any]] = documented() | refused(400, 403, 429)
    authz_responses[200] = {"description": "Go on; there is no body.", "headers": RATE_HEADERS, "content": {}}
    for status in (403, 429):
        authz_responses[status]["headers"] = RATE_HEADERS | _RETRY_AFTER
    authz_responses[503] = {**authz_responses[429], "description": "As 429, where `deny_status=503`."}

    async def authz(request: Request) -> Response:
        """May this request run? For Envoy `ext_authz`, nginx `auth_request`, APISIX `forward-auth`.

        Every method is answered alike, the body is never read, and so is every path below this one, where gateways
        append the client's own. `deny_status` (403, 429, 503) is for gateways that know no 429; `mode=shadow` always
        lets through, counts nothing and says in `X-Throttle-Would` what it would have done.
        """
        return await gatekeeper.authz(request.scope)

    for method in ("GET", "POST"):
        router.add_api_route(
            AUTHZ,
            authz,
            methods=[method],
            operation_id=f"authz_{method.lower()}",
            response_class=Response,
            responses=authz_responses,
            openapi_extra={"parameters": ASKED},
        )

    @router.post(
        DECIDE,
        response_model=DecisionBody,
        responses=documented(400, 413, 415, 422),
        openapi_extra=_body_of(DecideBody.__name__),
    )
    async def decide(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
        """The same decision as JSON, always 200, for engines that prefer a body."""
        return await gatekeeper.decide(request.scope, request.receive)


def _add_trail(router: APIRouter, parts: ThrottleParts) -> None:
    @router.get(f"{ROOT}/decisions", response_model=RecordPageBody, responses=documented(422, 503))
    async def list_decisions(query: Annotated[RecordsQuery, Query()]) -> Response:
        """The audit trail, oldest first: inputs, model, reasons, hash chain; `joulegate advise --verify` checks it."""
        try:
            page = await parts.trail.decisions(query.since, query.limit)
        except ValueError as fault:
            if query.since is None:
                raise
            raise invalid([Fault("query", "since", str(fault))]) from fault
        except parts.trail_fault as fault:
            raise unavailable("trail-unreadable", str(fault), 5.0) from fault
        return json_answer({"items": list(page.items), "next": page.next})

    @router.get(f"{ROOT}/decisions/{{decision_id}}", response_model=dict[str, Any], responses=documented(404, 422, 503))
    async def show_decision(
        decision_id: Annotated[str, PathParameter(max_length=MAX_NAME, examples=["5c0f6d2e9b7a41d3"])],
        _query: Annotated[NoQuery, Query()],
    ) -> Response:
        """One record of the audit trail."""
        try:
            record = await parts.trail.decision(decision_id)
        except parts.trail_fault as fault:
            raise unavailable("trail-unreadable", str(fault), 5.0) from fault
        if record is None:
            raise Problem(404, "unknown-decision", f"no decision {decision_id[:MAX_SHOWN]!r} in the audit trail")
        return json_answer(dict(record))


def _add_queue(router: APIRouter, parts: ThrottleParts) -> None:
    responses = documented(400, 413, 415, 422) | ({} if parts.control_token is None else refused(401))

    @router.put(
        f"{ROOT}/queue",
        status_code=204,
        response_class=Response,
        responses=responses,
        openapi_extra=_body_of(QueueReportBody.__name__),
    )
    async def report_queue(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
        """What a gateway or image server has admitted and not started, in units by tier; forgotten after 15 s."""
        _check_token(parts.control_token, request.headers.get("authorization", ""))
        queue = await read_as(_QUEUE, request.scope, request.receive)
        parts.queue.report(queue.root)
        return Response(status_code=204)


def _check_token(token: str | None, authorization: str) -> None:
    scheme, _, given = authorization.partition(" ")
    if token is None:
        return
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        detail = "send Authorization: Bearer with the agent's control token"
        raise Problem(401, "no-token", detail, headers={"WWW-Authenticate": "Bearer"})


def _body_of(shape: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {"requestBody": {"content": content, "required": True}}

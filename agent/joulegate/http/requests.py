"""``GET /v1/requests`` and ``/v1/requests/{id}``: the ledger's entries, newest first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from joulegate.http.answers import json_answer
from joulegate.http.parts import Parts
from joulegate.http.problems import Fault, Problem, documented, invalid, unavailable
from joulegate.http.schemas import RequestBody, RequestPageBody
from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.wire import MAX_TEXT, entry_to_wire

MAX_LIMIT = 1000


class RequestsQuery(BaseModel):
    """Which entries, and how many at once."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=MAX_LIMIT)
    cursor: str | None = Field(None, max_length=512, description="`next` of the page before, with the same filters")
    model: str | None = Field(None, max_length=MAX_TEXT)
    tier: str | None = Field(None, max_length=MAX_TEXT)
    tenant: str | None = Field(None, max_length=MAX_TEXT)
    status: Status | None = None


def request_routes(parts: Parts) -> APIRouter:
    """The routes over ``parts``; they read the ledger in the thread pool."""
    router = APIRouter(tags=["ledger"])

    @router.get("/v1/requests", response_model=RequestPageBody, responses=documented(422, 503))
    def list_requests(query: Annotated[RequestsQuery, Query()]) -> Response:
        """Entries, newest first, `pending` ones among them; `next` leads to the older ones."""
        try:
            page = parts.ledger.requests(
                limit=query.limit,
                cursor=query.cursor,
                model=query.model,
                tier=query.tier,
                tenant=query.tenant,
                status=query.status,
            )
        except ValueError as fault:
            if query.cursor is None:
                raise
            raise invalid([Fault("query", "cursor", str(fault))]) from fault
        except parts.ledger_fault as fault:
            raise unavailable("ledger-unreadable", str(fault), 5.0) from fault
        return json_answer({"items": [request_to_wire(entry, parts) for entry in page.items], "next": page.next})

    @router.get("/v1/requests/{request_id:path}", response_model=RequestBody, responses=documented(404, 422, 503))
    def show_request(request_id: Annotated[str, Path(max_length=MAX_TEXT, examples=["a1b2c3"])]) -> Response:
        """One request, `pending` until every counter has passed its end."""
        try:
            entry = parts.ledger.request(request_id)
        except parts.ledger_fault as fault:
            raise unavailable("ledger-unreadable", str(fault), 5.0) from fault
        if entry is None:
            raise Problem(404, "unknown-request", f"no request {request_id!r} in the ledger")
        return json_answer(request_to_wire(entry, parts))

    return router


def request_to_wire(entry: RequestEntry, parts: Parts) -> dict[str, object]:
    """An entry with the views on its energy, where there are any."""
    views = {} if parts.carbon is None else parts.carbon.of_request(entry)
    return {**entry_to_wire(entry), **views}

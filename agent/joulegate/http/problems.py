"""Problems: every answer that is not the thing asked for, as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 100
"""Faults listed in one problem; ``faults_total`` says how many there were."""

_DETAILS = {
    404: "nothing is served at this path; GET / lists what is",
    405: "this path does not know this method; Allow lists those it knows",
}
_LOG = logging.getLogger("joulegate.http")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request: ``place`` is query, path or body; ``index`` counts the items of a list from 0."""

    place: str
    field: str
    fault: str
    index: int | None = None


class Problem(Exception):
    """An answer that says what is wrong, where, and what to do. ``code`` is stable; ``detail`` is one line."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def body(self) -> dict[str, object]:
        """Members of the problem document."""
        members: dict[str, object] = {
            "type": f"urn:joulegate:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.faults:
            members["faults"] = [asdict(fault) for fault in self.faults[:MAX_FAULTS]]
            members["faults_total"] = len(self.faults)
        return members | self.extra

    def response(self) -> Response:
        """The answer. Escaped to ASCII, so that text from outside can never spoil it."""
        content = json.dumps(self.body(), allow_nan=False).encode("ascii")
        return Response(content, self.status, self.headers, MEDIA_TYPE)


def unavailable(code: str, detail: str, retry_after_s: float, extra: Mapping[str, object] | None = None) -> Problem:
    """A 503 that says when to come back (whole seconds, at least 1)."""
    return Problem(503, code, detail, headers={"Retry-After": str(max(1, round(retry_after_s)))}, extra=extra)


class FaultBody(BaseModel):
    """One thing wrong with a request."""

    place: str = Field(description="query, path or body")
    field: str
    fault: str
    index: int | None = Field(None, description="position in a list, from 0")


class ProblemBody(BaseModel):
    """An RFC 9457 problem. ``type`` ends in a stable code; ``detail`` is one line for a person."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = Field(None, description="names this occurrence in the agent's log")
    faults: list[FaultBody] = Field(default=[], description=f"each fault with its place, at most {MAX_FAULTS}")
    faults_total: int = 0


_DESCRIPTIONS = {
    400: "The body is not what its media type says.",
    404: "There is no such thing.",
    413: "The body is too large.",
    415: "The body's media type or encoding is not understood.",
    421: "The Host header names a host that is not served here.",
    422: "Parameters or fields that cannot be used; `faults` lists each with its place.",
    500: "A fault of the agent; `instance` names it in the agent's log.",
    503: "Not now; `Retry-After` says when to come back.",
}
_EXAMPLE_CODES = {
    400: ("not-json", "the body is not JSON: Expecting value at line 1 column 1"),
    404: ("unknown-request", "no request 'a1' in the ledger"),
    413: ("too-large", "the body has more than 1048576 bytes; post fewer spans at once"),
    415: ("not-json-type", "send Content-Type: application/json"),
    421: ("wrong-host", "this agent does not serve the host 'example.org'"),
    422: ("invalid", "1 fault in the request"),
    500: ("agent-fault", "the agent failed to answer; its log has the reason"),
    503: ("no-snapshot", "no reading has been taken yet"),
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the problems a route can answer with; 421 and 500 belong to every route."""
    return {status: _documented(status) for status in sorted({*statuses, 421, 500})}


def _documented(status: int) -> dict[str, Any]:
    code, detail = _EXAMPLE_CODES[status]
    faults = (Fault("query", "limit", "Input should be less than or equal to 1000"),) if status == 422 else ()
    entry: dict[str, Any] = {
        "description": _DESCRIPTIONS[status],
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/ProblemBody"},
                "example": Problem(status, code, detail, faults=faults).body(),
            }
        },
    }
    if status == 503:
        entry["headers"] = {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer"}}}
    return entry


def install(app: FastAPI) -> None:
    """Turn every refusal of the framework and every ``Problem`` into a problem document."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(RequestValidationError, _validation)


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        known = {method.strip() for method in headers.get("Allow", "").split(",") if method.strip()}
        headers["Allow"] = ", ".join(sorted(known | ({"HEAD"} if "GET" in known else set())))
    phrase = HTTPStatus(error.status_code).phrase
    detail = _DETAILS.get(error.status_code, error.detail or phrase)
    return Problem(error.status_code, phrase.lower().replace(" ", "-"), detail, headers=headers).response()


async def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid([_fault(item) for item in error.errors()]).response()


def invalid(faults: Sequence[Fault]) -> Problem:
    """The 422 that lists ``faults``."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    first = faults[0]
    where = first.field if first.index is None else f"item {first.index}, {first.field}"
    return Problem(422, "invalid", f"{count} in the request, the first in {where}: {first.fault}", faults=faults)


def _fault(item: Mapping[str, Any]) -> Fault:
    place, *path = [str(part) for part in item["loc"]]
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        text = "unknown parameter"
    return Fault(place, ".".join(path)[:100], text)

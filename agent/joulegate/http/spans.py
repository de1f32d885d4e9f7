"""``POST /v1/spans``: spans from pipelines in other languages, taken all or none and acknowledged after the commit."""

from __future__ import annotations

import asyncio
import json

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from joulegate.http.parts import Parts
from joulegate.http.ports import IngestBusy, SpansRefused
from joulegate.http.problems import Fault, Problem, documented, invalid, unavailable
from joulegate.http.schemas import MAX_SPANS, ReceiptBody
from joulegate.metering.span import Span
from joulegate.metering.wire import WireFault, span_from_wire

MAX_BODY_BYTES = 1 << 20
MAX_AHEAD_S = 5.0
"""How far a span's times may lie ahead of the agent's clock: clocks of one machine, read a little apart."""

_WANTED = {"Accept": "application/json"}
_BODY = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/SpanPostBody"}}}, "required": True}


def span_routes(parts: Parts) -> APIRouter:
    """The route over ``parts``."""
    router = APIRouter(tags=["spans"])

    @router.post(
        "/v1/spans",
        status_code=202,
        responses=documented(400, 413, 415, 422, 503),
        openapi_extra={"requestBody": _BODY},
    )
    async def post_spans(request: Request) -> ReceiptBody:
        """Take spans, all or none. 202 comes after the durable commit; the same post again changes nothing."""
        _check_type(request)
        body = await _read(request)
        now_s, wall_s = parts.clock.monotonic_s(), parts.clock.wall_s()
        spans, repeated = await run_in_threadpool(read_spans, body, now_s=now_s, wall_s=wall_s)
        if not spans:
            return ReceiptBody(accepted=0, duplicates=repeated)
        try:
            async with asyncio.timeout(parts.commit_timeout_s):
                receipt = await parts.spans.submit(spans)
        except SpansRefused as refused:
            raise invalid([Fault("body", field, fault, index) for index, field, fault in refused.faults]) from refused
        except IngestBusy as busy:
            raise unavailable("busy", str(busy), busy.retry_after_s) from busy
        except TimeoutError as late:
            detail = f"no commit within {parts.commit_timeout_s:g} s; post the same spans again, none counts twice"
            raise unavailable("commit-late", detail, 1.0) from late
        return ReceiptBody(accepted=receipt.accepted, duplicates=receipt.duplicates + repeated)

    return router


def read_spans(body: bytes, *, now_s: float, wall_s: float) -> tuple[list[Span], int]:
    """The spans in a body and how many of its items repeat an earlier one; raises ``Problem``.

    A request id may come twice as the running span and the same span with its end. ``now_s`` and ``wall_s`` are one
    moment on the monotonic and the Unix clock.
    """
    spans: list[Span] = []
    latest: dict[str, Span] = {}
    faults: list[Fault] = []
    repeated = 0
    for index, item in enumerate(_items(body)):
        try:
            span = _span(item, now_s, wall_s)
        except WireFault as fault:
            field, _, text = str(fault).partition(": ")
            faults.append(Fault("body", field, text, index))
            continue
        before = latest.get(span.request_id)
        if before == span:
            repeated += 1
        elif before is not None and (before.ended_s is not None or span.ended_s is None):
            faults.append(Fault("body", "request_id", "is in this post before, with other figures", index))
        else:
            latest[span.request_id] = span
            spans.append(span)
    if faults:
        raise invalid(faults)
    return spans, repeated


def _span(item: object, now_s: float, wall_s: float) -> Span:
    if not isinstance(item, dict):
        raise WireFault("span: must be an object")
    span = span_from_wire(item, now_s=now_s, wall_s=wall_s)
    for field, moment_s in (("started", span.started_s), ("ended", span.ended_s)):
        if moment_s is not None and moment_s > now_s + MAX_AHEAD_S:
            raise WireFault(f"{field}: is {moment_s - now_s:.6g} s ahead of the agent's clock")
    return span


def _items(body: bytes) -> list[object]:
    document = _decode(body)
    items = document.get("spans") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise invalid([Fault("body", "spans", 'must be a list, as in {"spans": [...]}')])
    if len(items) > MAX_SPANS:
        raise invalid([Fault("body", "spans", f"has {len(items)} items; post at most {MAX_SPANS} at once")])
    return items


def _decode(body: bytes) -> object:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(400, "not-utf8", f"the body is not UTF-8: byte {error.start} does not belong there") from error
    try:
        document: object = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Problem(
            400, "not-json", f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not-json", f"the body cannot be read: {_reason(error)}") from error
    return document


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _check_type(request: Request) -> None:
    media_type, *parameters = (part.strip().lower() for part in request.headers.get("content-type", "").split(";"))
    if media_type != "application/json":
        raise Problem(415, "not-json-type", "send Content-Type: application/json", headers=_WANTED)
    charsets = {part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")}
    if charsets - {"utf-8", "utf8"}:
        raise Problem(415, "not-utf8-type", "send the body as UTF-8; no other charset is understood")
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise Problem(415, "encoded", "send the body without Content-Encoding", headers={"Accept-Encoding": "identity"})


async def _read(request: Request) -> bytes:
    """The whole body; stops reading where it grows too large, whatever Content-Length said."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> Problem:
    detail = f"the body has more than {MAX_BODY_BYTES} bytes; post fewer spans at once"
    return Problem(413, "too-large", detail, headers={"Connection": "close"})

"""Bodies of requests: read whole but bounded, and judged by a model; everything wrong with one is a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from joulegate.http.problems import Fault, Problem, invalid

MAX_BODY_BYTES = 1 << 16

_WANTED = {"Accept": "application/json"}
_Body = TypeVar("_Body")


async def read_as(model: TypeAdapter[_Body], scope: Scope, receive: Receive) -> _Body:
    """The JSON body of a request as ``model`` has it; raises ``Problem`` (400, 413, 415 or 422)."""
    headers = {name: value.decode("latin-1").strip().lower() for name, value in scope["headers"]}
    _check_type(headers)
    body = await _read(headers.get(b"content-length", ""), receive)
    try:
        return model.validate_json(body)
    except ValidationError as error:
        raise _problem(error) from error


def _check_type(headers: Mapping[bytes, str]) -> None:
    media_type, *parameters = (part.strip() for part in headers.get(b"content-type", "").split(";"))
    if media_type != "application/json":
        raise Problem(415, "not-json-type", "send Content-Type: application/json", headers=_WANTED)
    charsets = {part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")}
    if charsets - {"utf-8", "utf8"}:
        raise Problem(415, "not-utf8-type", "send the body as UTF-8; no other charset is understood")
    if headers.get(b"content-encoding", "identity") not in {"", "identity"}:
        raise Problem(415, "encoded", "send the body without Content-Encoding", headers={"Accept-Encoding": "identity"})


async def _read(announced: str, receive: Receive) -> bytes:
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(body)


def _too_large() -> Problem:
    return Problem(
        413, "too-large", f"the body has more than {MAX_BODY_BYTES} bytes; send less", headers={"Connection": "close"}
    )


def _problem(error: ValidationError) -> Problem:
    items = error.errors(include_url=False, include_context=False, include_input=False)
    if items[0]["type"] == "json_invalid":
        return Problem(400, "not-json", f"the body is not JSON: {items[0]['msg'].removeprefix('Invalid JSON: ')}")
    return invalid([_fault(item["loc"], item["type"], item["msg"]) for item in items])


def _fault(place: tuple[int | str, ...], kind: str, text: str) -> Fault:
    field = ".".join(str(part) for part in place)[:100] or "body"
    return Fault("body", field, "unknown member" if kind == "extra_forbidden" else text)

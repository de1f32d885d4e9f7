"""The fast lane: throttle queries answered from prepared bytes, before the framework sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from joulegate.http.envelope import Envelope
from joulegate.http.parts import Parts
from joulegate.http.throttle_authz import DECIDE, Gatekeeper, is_authz
from joulegate.http.throttle_pages import ROOT, SCALE, TIERS, Desk, tags_of
from joulegate.http.throttle_waits import STREAM, stream_head

_READS = frozenset({"GET", "HEAD"})
_MAX_HOSTS = 64

Handler = Callable[[Scope, Receive], Awaitable[Response]]


class Lane:
    """Serves what needs no framework, in two ways with one meaning.

    A page of the newest recommendation goes out as it lies on the desk, to a client whose Host the envelope has let in
    before. Everything else of the lane (a new Host, no recommendation yet, an unknown tier, a decision) goes through an
    envelope of its own, which checks, counts and tells faults as for every other path.
    """

    def __init__(self, desk: Desk, gatekeeper: Gatekeeper, parts: Parts) -> None:
        self._desk = desk
        self._gatekeeper = gatekeeper
        self._known_hosts: set[bytes | None] = set()
        self._enveloped = Envelope(self._inside, hosts=parts.hosts, faults=parts.faults)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer one HTTP request, or say that it is not one for the lane."""
        page = self._at_once(scope)
        if page is not None:
            await page(scope, receive, send)
            return True
        handler = self._handler(scope)
        if handler is None:
            return False
        await self._enveloped({**scope, "joulegate.handler": handler}, receive, send)
        return True

    def _at_once(self, scope: Scope) -> Response | None:
        if scope["query_string"] or scope["method"] not in _READS:
            return None
        try:
            pages = self._desk.newest()
        except Exception:  # noqa: BLE001 - the long way meets the same fault, counts it and tells it
            return None
        page = None if pages is None else pages.by_path.get(scope["path"])
        if page is None:
            return None
        host = tags = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value if host is None else host
            elif name == b"if-none-match":
                tags = value if tags is None else tags + b", " + value
        return page.answer(tags) if host in self._known_hosts else None

    def _handler(self, scope: Scope) -> Handler | None:
        path, method = scope["path"], scope["method"]
        if is_authz(path):
            return self._authz
        if scope["query_string"]:
            return None
        if path == STREAM and method == "HEAD":
            return _head_of_stream
        if path == DECIDE and method == "POST":
            return self._gatekeeper.decide
        if method in _READS and (path in {ROOT, SCALE} or path.startswith(TIERS)):
            return self._page
        return None

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the envelope lets in."""
        if len(self._known_hosts) < _MAX_HOSTS:
            self._known_hosts.add(next((value for name, value in scope["headers"] if name == b"host"), None))
        response = await scope["joulegate.handler"](scope, receive)
        await response(scope, receive, send)

    async def _page(self, scope: Scope, _receive: Receive) -> Response:
        pages, path, tags = self._desk.present(), scope["path"], tags_of(scope["headers"])
        page = pages.tier(path.removeprefix(TIERS)) if path.startswith(TIERS) else pages.by_path[path]
        return page.answer(tags)

    async def _authz(self, scope: Scope, _receive: Receive) -> Response:
        return await self._gatekeeper.authz(scope)


async def _head_of_stream(_scope: Scope, _receive: Receive) -> Response:
    return stream_head()

"""The envelope around every answer: which hosts are served, HEAD, headers, and what happens when the agent fails."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from joulegate.http.problems import Problem

_LOG = logging.getLogger("joulegate.http")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
}


@dataclass(slots=True)
class FaultCount:
    """How often the agent failed to answer."""

    total: int = 0


class Envelope:
    """ASGI middleware outside of everything else.

    ``hosts`` are the names the agent answers to, in lower case and without port; an empty collection answers to any.
    A name list keeps a web page from reading a loopback agent through a rebound DNS name.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], faults: FaultCount) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other scopes pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        if scope["method"] == "HEAD":
            # The server, which has the original scope, sends the head of this answer alone.
            scope = dict(scope, method="GET")
        try:
            self._check_host(_host_name(Headers(scope=scope).get("host", "")))
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            _LOG.debug("client left during %s %r", scope["method"], scope["path"])
        except Problem as problem:
            await problem.response()(scope, receive, answer.send)
        except Exception as error:
            if answer.started:
                raise
            await self._agent_fault(scope, error).response()(scope, receive, answer.send)

    def _check_host(self, host: str) -> None:
        if self._hosts and host not in self._hosts:
            raise Problem(421, "wrong-host", f"this agent does not serve the host '{host[:100]}'")

    def _agent_fault(self, scope: Scope, error: Exception) -> Problem:
        self._faults.total += 1
        name = f"urn:uuid:{uuid.uuid4()}"
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _LOG.error("%s %r failed (%s): %s", scope["method"], scope["path"], name, line)
        _LOG.debug("trace of %s", name, exc_info=error)
        detail = "the agent failed to answer; its log has the reason"
        return Problem(500, "agent-fault", detail, extra={"instance": name})


class _Answer:
    """Adds the headers that are not there, and remembers whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def _host_name(host: str) -> str:
    """``[::1]:9288`` -> ``::1``, ``Localhost:9288`` -> ``localhost``."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()

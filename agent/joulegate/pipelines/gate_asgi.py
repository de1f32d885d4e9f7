"""The gate in front of an ASGI app."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from joulegate.pipelines.gate_decision import GateDecision

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
OfScope = Callable[[Mapping[str, Any]], str | None]
Decide = Callable[[str | None, str | None, float], Awaitable[GateDecision]]


class GatedApp:
    """``app`` behind ``decide``: a denied HTTP request below one of ``paths`` gets a problem; all else passes."""

    def __init__(
        self,
        decide: Decide,
        app: AsgiApp,
        *,
        tier_of: OfScope | None,
        tenant_of: OfScope | None,
        cost_of: Callable[[Mapping[str, Any]], float] | None,
        paths: tuple[str, ...],
    ) -> None:
        self._decide, self._app, self._paths = decide, app, paths
        self._tier_of, self._tenant_of, self._cost_of = tier_of, tenant_of, cost_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and str(scope["path"]).startswith(self._paths):
            tier = None if self._tier_of is None else self._tier_of(scope)
            tenant = None if self._tenant_of is None else self._tenant_of(scope)
            cost = 1.0 if self._cost_of is None else self._cost_of(scope)
            decision = await self._decide(tier, tenant, cost)
            if not decision.allow:
                await _deny(decision, send)
                return
        await self._app(scope, receive, send)


async def _deny(decision: GateDecision, send: Send) -> None:
    body = json.dumps(decision.problem()).encode("ascii")
    headers = {
        **decision.headers,
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
    }
    pairs = [(name.lower().encode("ascii"), value.encode("ascii", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": decision.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})

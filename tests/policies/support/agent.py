"""A small agent on loopback that follows a script: the throttle endpoints of the contract, and ways to be broken."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl

import uvicorn

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

NOMINAL: dict[str, Any] = {
    "schema": "joulegate.throttle/v1",
    "decision_id": "d1",
    "t": 12.0,
    "ttl_s": 10.0,
    "poll_after_s": 5.0,
    "state": "constrained",
    "binding": "thermal",
    "confidence": 0.9,
    "reasons": [{"code": "THERMAL_HEADROOM_LOW", "device": "GPU-3", "observed": 84, "limit": 85.5, "unit": "C"}],
    "max_images_per_minute": 174.0,
    "admit_fraction": 0.28,
    "max_concurrency": 24,
    "power_cap_w": {"GPU-3": 565.0},
    "host_power_cap_w": 4520.0,
    "tiers": {
        "pro": {"action": "admit", "max_images_per_minute": None, "admit_fraction": 1.0, "burst": 15.0},
        "plus": {"action": "limit", "max_images_per_minute": 60.0, "admit_fraction": 1.0, "burst": 4.0},
        "free": {"action": "limit", "max_images_per_minute": 30.0, "admit_fraction": 0.4, "burst": 2.0},
    },
    "fail_safe": {"after_s": 10.0, "policy": "decay", "floor": {"admit_fraction": 0.25, "power_cap_w": 400.0}},
    "inputs": {"telemetry_age_s": 0.6, "grid_age_s": None},
    "advice": [],
    "explain": "free held to 30 a minute",
}
for _tier in NOMINAL["tiers"].values():
    _tier |= {"retry_after_s": 20.0, "images_per_tenant_day": 3, "defer_until_t": None}


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    client: tuple[str, int]


@dataclass
class ScriptedAgent:
    """An agent in a thread. ``denied`` names the tiers that are denied; ``trouble`` is a way of being broken, or none.

    Ways: hang (no answer), drip (a byte now and then), fault (500), gone (404), refuse (422), text (not JSON), wrong
    (``allow`` is no truth value), huge (more than a client should read), cut (the connection ends within the body).
    """

    port: int = 0
    recommendation: dict[str, Any] | None = field(default_factory=lambda: json.loads(json.dumps(NOMINAL)))
    denied: set[str] = field(default_factory=set)
    retry_after_s: float = 7.2
    reason: str = "rate"
    trouble: str | None = None
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        # With the protocol named, asyncio turns off Nagle's delay of 40 ms, as it does on the real agent's socket.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self._socket.listen()
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-agent", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(5.0)
        self._socket.close()

    def paths(self) -> list[str]:
        """Paths asked for so far."""
        return [asked.path for asked in self.asked]

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    async def _app(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode()))
        asked = Asked(scope["method"], scope["path"], query, headers, body, scope["client"])
        self.asked.append(asked)
        if headers.get("host", "").partition(":")[0] not in {"127.0.0.1", "localhost"}:
            await reply(send, 421, {"type": "urn:joulegate:problem:wrong-host", "status": 421})
        elif self.trouble is not None:
            await self._misbehave(self.trouble, send)
        elif asked.path == "/v1/throttle":
            await self._recommend(send)
        elif asked.path == "/v1/throttle/decide" and asked.method == "POST":
            await self._decide(asked, send)
        elif asked.path == "/v1/throttle/authz" or asked.path.startswith("/v1/throttle/authz/"):
            await self._authorize(asked, send)
        else:
            await reply(send, 404, {"type": "about:blank", "status": 404})

    async def _recommend(self, send: Send) -> None:
        if self.recommendation is None:
            await reply(send, 503, {"type": "urn:joulegate:problem:no-recommendation", "status": 503})
        else:
            await reply(send, 200, self.recommendation)

    async def _decide(self, asked: Asked, send: Send) -> None:
        tier = json.loads(asked.body)["tier"]
        allow = tier not in self.denied
        answer = {
            "allow": allow,
            "tier": tier or "free",
            "reason": "admitted" if allow else self.reason,
            "detail": f"tier {tier} has room" if allow else f"tier {tier} may start 30 units a minute",
            "retry_after_s": 0.0 if allow else self.retry_after_s,
            "remaining": 3.0 if allow else 0.0,
            "decision_id": "d1",
        }
        await reply(send, 200, answer)

    async def _authorize(self, asked: Asked, send: Send) -> None:
        tier = asked.headers.get("x-tier", "free")
        headers = {
            "Cache-Control": "no-store",
            "RateLimit-Policy": f'"{tier}";q=30;w=60',
            "RateLimit": f'"{tier}";r=5;t=10',
            "X-Throttle-Decision": "d1",
            "X-Throttle-Reason": self.reason if tier in self.denied else "admitted",
        }
        if tier not in self.denied:
            await reply(send, 200, {"allow": True}, headers)
            return
        below = asked.path != "/v1/throttle/authz"
        status = 429 if below else int(asked.query.get("deny_status", "429"))
        problem = {"type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"}
        await reply(send, status, problem, headers | {"Retry-After": "8"}, "application/problem+json")

    async def _misbehave(self, trouble: str, send: Send) -> None:
        if trouble in {"hang", "drip"}:
            if trouble == "drip":
                await send({"type": "http.response.start", "status": 200, "headers": []})
            while not self._released.is_set():
                await asyncio.sleep(0.02)
                if trouble == "drip":
                    await send({"type": "http.response.body", "body": b" ", "more_body": True})
        elif trouble == "cut":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b'{"allow"', "more_body": True})
            raise ConnectionError
        elif trouble == "huge":
            await reply(send, 200, {"allow": True, "detail": "x" * (3 << 20)})
        elif trouble == "text":
            await reply(send, 200, "certainly")
        elif trouble == "wrong":
            await reply(send, 200, {"allow": "yes"})
        else:
            await reply(send, {"fault": 500, "gone": 404, "refuse": 422}[trouble], {"status": 0})


async def reply(
    send: Send, status: int, body: Any, headers: dict[str, str] | None = None, kind: str = "application/json"
) -> None:
    """Send one whole answer."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    pairs = {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})

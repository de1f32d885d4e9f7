"""Calls from a gate to the agent, in a thread of their own: no caller ever waits on a socket, a name or a drip."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import httpx

from joulegate.pipelines.gate_wire import AnswerFault

MAX_BYTES = 1 << 20
KEPT_ALIVE_S = 2.0
"""Below the 5 s after which common servers close an idle connection, so that none is used while it is being closed."""
LIMITS = httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=KEPT_ALIVE_S)
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "joulegate-gate"}
CLOSING_S = 0.5
STALE_CONNECTION = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer."""

    status: int
    body: bytes


class AgentCaller:
    """A thread with an event loop and one pool of connections; it starts at the first call.

    Every call ends within ``timeout_s`` from its first byte to its last. Proxies of the environment and redirects are
    not followed. At most ``MAX_BYTES`` of an answer are read.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        _import_early()
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=HEADERS,
            limits=LIMITS,
            timeout=timeout_s,
            trust_env=False,
            verify=url.startswith("https:"),
        )

    def start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run ``work`` in this thread's loop; raises ``AnswerFault`` once closed."""
        with self._lock:
            if self._closed or (self._loop is None and not self._begin()):
                work.close()
                raise AnswerFault("this gate is closed, or no thread can be had")
            assert self._loop is not None
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _begin(self) -> bool:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name="joulegate-gate", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            loop.close()
            return False
        self._loop, self._thread = loop, thread
        return True

    async def exchange(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One call within the time limit; a connection that the agent had closed is replaced once."""
        async with asyncio.timeout(self._timeout_s):
            try:
                return await self._once(method, path, content, headers or {})
            except STALE_CONNECTION:
                return await self._once(method, path, content, headers or {})

    async def _once(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        async with self._client.stream(method, path, content=content, headers=headers) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise AnswerFault(f"the answer has more than {MAX_BYTES} bytes")
            return Reply(response.status_code, bytes(body))

    def close(self) -> None:
        """End the thread and its connections within half a second; safe to call twice."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(CLOSING_S)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(_settled(left))
            loop.run_until_complete(self._client.aclose())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


def _import_early() -> None:
    """Import now what httpx imports at its first call, where 30 ms would count against the time limit."""
    with suppress(ImportError):
        import_module("anyio._backends._asyncio")


async def _settled(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)

"""The way from a gate to the agent: it keeps the newest recommendation, and leaves a failing agent alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Lock
from typing import Any

from joulegate.pipelines.gate_caller import AgentCaller, Reply
from joulegate.pipelines.gate_fallback import Fallback
from joulegate.pipelines.gate_wire import AnswerFault, read_recommendation

DECIDE = "/v1/throttle/decide"
RECOMMENDATION = "/v1/throttle"
QUIET_S = 1.0
"""After a failure nobody calls the agent for this long; then one call is tried, and nobody waits for it."""
FIRST_POLL_S = 5.0
SOONEST_POLL_S = 1.0
ALIVE = (200, 503)
"""A 503 of ``GET /v1/throttle`` says that there is no reading yet."""

_LOG = logging.getLogger("joulegate.gate")


class AgentLink:
    """Questions to the agent at ``url``, each ended after ``timeout_s``; ``fallback`` is told of recommendations.

    ``clock`` gives monotonic seconds. Threads may share it.
    """

    def __init__(self, url: str, timeout_s: float, fallback: Fallback, clock: Callable[[], float]) -> None:
        self._url, self._timeout_s, self._fallback, self._clock = url, timeout_s, fallback, clock
        self._caller = AgentCaller(url, timeout_s)
        self._lock = Lock()
        self._quiet_until_s: float | None = None
        self._refreshed_s = -math.inf
        self._closed = False

    def ask(self, content: bytes) -> Future[Reply] | None:
        """A question on its way, or ``None`` while the agent is left alone or after the end."""
        if self._closed:
            return None
        if self._quiet_until_s is not None:
            self._probe()
            return None
        return self._start(self._caller.exchange("POST", DECIDE, content, {"Content-Type": "application/json"}))

    def failed(self, error: Exception) -> None:
        """The agent gave no answer, or none that can be used."""
        with self._lock:
            first, self._quiet_until_s = self._quiet_until_s is None, self._clock() + QUIET_S
        if first:
            why = " ".join(str(error).split()) or type(error).__name__
            _LOG.warning("no decision from %s%s: %s; this process decides by itself", self._url, DECIDE, why)

    def answered(self) -> None:
        """The agent is well: fetch the recommendation that would hold if it fell silent, where one is due."""
        heard, now_s = self._fallback.heard, self._clock()
        every_s = FIRST_POLL_S if heard is None else max(SOONEST_POLL_S, heard.poll_after_s)
        with self._lock:
            if now_s - self._refreshed_s < every_s:
                return
            self._refreshed_s = now_s
        self._start(self._refresh())

    def close(self) -> None:
        """End the thread and its connections."""
        self._closed = True
        self._caller.close()

    def after_fork(self) -> None:
        """In a forked child: begin anew, with none of the parent's threads, connections or locks."""
        _abandoned.append(self._caller)
        self._lock = Lock()
        self._fallback.after_fork()
        self._caller = AgentCaller(self._url, self._timeout_s)

    def _probe(self) -> None:
        now_s = self._clock()
        with self._lock:
            if self._quiet_until_s is None or now_s < self._quiet_until_s:
                return
            self._quiet_until_s = now_s + QUIET_S
        self._start(self._look_again())

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any] | None:
        try:
            return self._caller.start(work)
        except AnswerFault as error:
            _LOG.debug("nothing more is asked of %s: %s", self._url, error)
            return None

    async def _look_again(self) -> None:
        if not await self._refresh():
            return
        with self._lock:
            self._quiet_until_s = None
        _LOG.warning("%s answers again", self._url)

    async def _refresh(self) -> bool:
        """Whether the agent answered."""
        try:
            reply = await self._caller.exchange("GET", RECOMMENDATION)
            if reply.status == 200:
                self._fallback.hear(read_recommendation(reply.body, self._clock()))
        except Exception as error:  # noqa: BLE001 - nobody waits for this; the next question finds out for itself
            _LOG.debug("no recommendation from %s: %s", self._url, error)
            return False
        return reply.status in ALIVE


_abandoned: list[AgentCaller] = []
"""Callers of a parent process. To close one would take the parent's loop its wake-ups, so a child keeps them unused."""

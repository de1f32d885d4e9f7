"""The gate in front of a Python service: may this request run now? It asks the agent and never waits long for it."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Lock
from time import monotonic
from typing import Any, Self
from urllib.parse import urlsplit
from weakref import WeakSet

from joulegate.pipelines.gate_asgi import AsgiApp, GatedApp, OfScope
from joulegate.pipelines.gate_caller import Reply
from joulegate.pipelines.gate_decision import GateDecision, Source, Throttled
from joulegate.pipelines.gate_fallback import Fallback
from joulegate.pipelines.gate_limit import CostOf, Function, NameOf, limited
from joulegate.pipelines.gate_link import AgentLink
from joulegate.pipelines.gate_wire import AnswerFault, read_decision
from joulegate.throttle.decision import MAX_TENANT_CHARS, Verdict, request_fault

URL_VARIABLE = "JOULEGATE_URL"
DEFAULT_URL = "http://127.0.0.1:9288"
MODES = ("enforce", "shadow")
REFUSED = (400, 413, 422)
"""The agent is well and cannot use this request; everything else but 200 is a failing agent."""


@dataclass(slots=True)
class GateCounts:
    """What a gate did since its start. ``shadow_denied`` were let through and would have been denied."""

    asked: int = 0
    denied: int = 0
    shadow_denied: int = 0
    by_agent: int = 0
    by_recommendation: int = 0
    by_fail_safe: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Ask:
    tier: str | None
    tenant: str | None
    cost: float

    def body(self) -> bytes:
        return json.dumps({"tier": self.tier, "tenant": self.tenant, "cost": self.cost}).encode("ascii")


class Gate:
    """Asks the agent at ``url`` whether a request may run, for at most ``timeout_s`` seconds.

    It never raises because the agent is absent, slow or broken. Without an answer the last recommendation holds until
    its time to live has passed, counted from when it was received; then the tiers in ``paid_open`` (default: every
    tier but the last) stay open and the others are held to the recommendation's floor, or to
    ``floor_images_per_minute`` where there never was one. Each process counts for itself then, so ``share`` says which
    part of the host's limits is its own. After a failure the agent is left alone for a second.

    ``tier`` and ``tenant`` are the defaults of every question. With ``mode="shadow"`` it asks and counts in earnest and
    lets everything through. Threads may share a gate; a forked child gets connections of its own. Raises ``ValueError``
    with one line for options that cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        tier: str | None = None,
        tenant: str | None = None,
        timeout_s: float = 0.15,
        mode: str = "enforce",
        paid_open: Collection[str] | None = None,
        floor_images_per_minute: float = 6.0,
        share: float = 1.0,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.url = _checked_url(url, environ)
        if mode not in MODES:
            raise ValueError(f"joulegate.gate: mode is {mode!r}; give one of {', '.join(MODES)}")
        _check("timeout_s", timeout_s, 0.001, 60.0)
        _check("floor_images_per_minute", floor_images_per_minute, 0.0, 1e9)
        _check("share", share, 1e-6, 1.0)
        self.counts = GateCounts()
        self._tier, self._tenant, self._mode = tier, tenant, mode
        self._timeout_s, self._clock = timeout_s, clock
        kept_open = (paid_open,) if isinstance(paid_open, str) else paid_open
        self._fallback = Fallback(kept_open, floor_images_per_minute, share)
        self._link = AgentLink(self.url, timeout_s, self._fallback, clock)
        self._lock = Lock()
        _gates.add(self)

    def decide(self, tier: str | None = None, tenant: str | None = None, cost: float = 1.0) -> GateDecision:
        """May a request of ``cost`` units (1 is a reference image) run now? Blocks for at most ``timeout_s``."""
        ask = self._ask(tier, tenant, cost)
        call = self._link.ask(ask.body()) if isinstance(ask, _Ask) else None
        if isinstance(ask, GateDecision) or call is None:
            return self._alone(ask)
        try:
            reply = call.result(self._timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the agent, the service runs on (law 4)
            call.cancel()
            return self._failed(ask, error)
        return self._answered(ask, reply)

    async def adecide(self, tier: str | None = None, tenant: str | None = None, cost: float = 1.0) -> GateDecision:
        """The same for asyncio; nothing blocks the event loop."""
        ask = self._ask(tier, tenant, cost)
        call = self._link.ask(ask.body()) if isinstance(ask, _Ask) else None
        if isinstance(ask, GateDecision) or call is None:
            return self._alone(ask)
        try:
            reply = await _within(call, self._timeout_s)
        except Exception as error:  # noqa: BLE001 - as in decide
            return self._failed(ask, error)
        return self._answered(ask, reply)

    def check(self, tier: str | None = None, tenant: str | None = None, cost: float = 1.0) -> GateDecision:
        """The same as ``decide``, but a denial raises ``Throttled``."""
        return _admitted(self.decide(tier, tenant, cost))

    async def acheck(self, tier: str | None = None, tenant: str | None = None, cost: float = 1.0) -> GateDecision:
        """The same as ``adecide``, but a denial raises ``Throttled``."""
        return _admitted(await self.adecide(tier, tenant, cost))

    def limit(self, tier: NameOf = None, tenant: NameOf = None, cost: CostOf = 1.0) -> Callable[[Function], Function]:
        """Decorate a function (plain, async or generator) so that a denied call raises ``Throttled`` and does not run.

        ``tier``, ``tenant`` and ``cost`` may be functions of the call's own arguments.
        """
        return lambda function: limited(self, function, tier, tenant, cost)

    def asgi(
        self,
        app: AsgiApp,
        *,
        tier_of: OfScope | None = None,
        tenant_of: OfScope | None = None,
        cost_of: Callable[[Mapping[str, Any]], float] | None = None,
        paths: Iterable[str] = ("/",),
    ) -> AsgiApp:
        """ASGI middleware: a denied request below one of ``paths`` gets a 429 problem and never reaches ``app``.

        Each function is given the ASGI scope. Take the tier from who the caller *is* (an API key), never from a header
        in which callers could name their own tier.
        """
        given = (paths,) if isinstance(paths, str) else tuple(paths)
        return GatedApp(self.adecide, app, tier_of=tier_of, tenant_of=tenant_of, cost_of=cost_of, paths=given)

    def close(self) -> None:
        """End the background thread and its connections; from then on this gate decides by itself."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def after_fork(self) -> None:
        """In a forked child: begin anew, with none of the parent's threads, connections or locks."""
        self._lock = Lock()
        self._link.after_fork()

    def _ask(self, tier: str | None, tenant: str | None, cost: float) -> _Ask | GateDecision:
        tier = self._tier if tier is None else tier
        tenant = self._tenant if tenant is None else tenant
        fault = _fault(tier, tenant, cost)
        return _Ask(tier, tenant, cost) if fault is None else _refusal(str(tier)[:MAX_TENANT_CHARS], fault, Source.GATE)

    def _alone(self, ask: _Ask | GateDecision) -> GateDecision:
        if isinstance(ask, _Ask):
            ask = self._fallback.decide(ask.tier, ask.cost, self._clock())
        return self._counted(ask)

    def _answered(self, ask: _Ask, reply: Reply) -> GateDecision:
        if reply.status in REFUSED:
            fault = f"the agent cannot use this request: it answered {reply.status}"
            return self._counted(_refusal(ask.tier or "", fault, Source.AGENT))
        try:
            decision = _read(reply, ask.cost)
        except AnswerFault as fault_of_agent:
            return self._failed(ask, fault_of_agent)
        self._link.answered()
        return self._counted(decision)

    def _failed(self, ask: _Ask, error: Exception) -> GateDecision:
        self._link.failed(error)
        with self._lock:
            self.counts.failures += 1
        return self._alone(ask)

    def _counted(self, decision: GateDecision) -> GateDecision:
        shadowed = self._mode == "shadow" and not decision.allow
        with self._lock:
            counts = self.counts
            counts.asked += 1
            counts.denied += not decision.allow and not shadowed
            counts.shadow_denied += shadowed
            counts.by_agent += decision.source is Source.AGENT
            counts.by_recommendation += decision.source is Source.RECOMMENDATION
            counts.by_fail_safe += decision.source is Source.FAIL_SAFE
        return replace(decision, allow=True) if shadowed else decision


async def _within(call: Future[Reply], timeout_s: float) -> Reply:
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(call)


def _read(reply: Reply, cost: float) -> GateDecision:
    if reply.status != 200:
        raise AnswerFault(f"it answered {reply.status}")
    return read_decision(reply.body, cost)


def _admitted(decision: GateDecision) -> GateDecision:
    if not decision.allow:
        raise Throttled(decision)
    return decision


def _refusal(tier: str, detail: str, source: Source) -> GateDecision:
    return GateDecision(
        allow=False,
        tier=tier,
        reason=Verdict.BAD_REQUEST.value,
        detail=detail,
        retry_after_s=0.0,
        remaining=None,
        decision_id=None,
        source=source,
        would_allow=False,
        cost=0.0,
    )


def _fault(tier: object, tenant: object, cost: object) -> str | None:
    """What is wrong with a question, in one sentence."""
    if tier is not None and not isinstance(tier, str):
        return f"the tier is a {type(tier).__name__} where a name belongs"
    if tier is not None and len(tier) > MAX_TENANT_CHARS:
        return f"the tier has {len(tier)} characters, at most {MAX_TENANT_CHARS} are taken"
    return request_fault(tenant, cost)


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"joulegate.gate: {name} is {value!r}; give a number from {low:g} to {high:g}")


def _checked_url(url: str | None, environ: Mapping[str, str]) -> str:
    given = (url or environ.get(URL_VARIABLE) or DEFAULT_URL).strip().rstrip("/")
    try:
        parts = urlsplit(given)
        named = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = named and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        where = "url" if url else f"${URL_VARIABLE}"
        raise ValueError(f"joulegate.gate: {where} is {given[:100]!r}; give an address such as {DEFAULT_URL}")
    return given


_gates: WeakSet[Gate] = WeakSet()


@atexit.register
def _close_all() -> None:
    for gate in tuple(_gates):
        gate.close()


def _after_fork_in_child() -> None:
    for gate in tuple(_gates):
        gate.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

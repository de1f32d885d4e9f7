"""Functions that run only when the gate lets them: plain, async and generators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar, cast

from joulegate.pipelines.gate_decision import GateDecision

Function = TypeVar("Function", bound=Callable[..., Any])
NameOf = str | Callable[..., str | None] | None
"""A tier or tenant: the name itself, or a function of the call's arguments that gives it."""
CostOf = float | Callable[..., float]


class Checks(Protocol):
    """What a limited function asks before it runs; both raise ``Throttled``."""

    def check(self, tier: str | None = None, tenant: str | None = None, cost: float = 1.0) -> GateDecision:
        """The admitting decision."""

    async def acheck(self, tier: str | None = None, tenant: str | None = None, cost: float = 1.0) -> GateDecision:
        """The same for asyncio."""


def limited(gate: Checks, function: Function, tier: NameOf, tenant: NameOf, cost: CostOf) -> Function:
    """``function``, asked for at each call: a generator when it is made, an async generator at its first item."""

    def ask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        return tuple(of(*args, **kwargs) if callable(of) else of for of in (tier, tenant, cost))  # type: ignore[return-value]

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            await gate.acheck(*ask(args, kwargs))
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

        return cast("Function", stream)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*args: Any, **kwargs: Any) -> Any:
            await gate.acheck(*ask(args, kwargs))
            return await function(*args, **kwargs)

        return cast("Function", later)

    @functools.wraps(function)
    def now(*args: Any, **kwargs: Any) -> Any:
        gate.check(*ask(args, kwargs))
        return function(*args, **kwargs)

    return cast("Function", now)

"""``wrap``: a pipeline that looks and answers as before, and has each of its calls metered."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

from joulegate.metering.span import Outcome
from joulegate.pipelines.call_reading import CallReader
from joulegate.pipelines.meter import Meter, NoSink
from joulegate.pipelines.request import Request, ending, inside, open_request, outcome_of
from joulegate.pipelines.socket_client import SocketSink, find_socket

P = TypeVar("P")

_CHAINING = frozenset({"to", "cuda", "cpu", "half", "float", "double", "bfloat16", "eval", "train", "requires_grad_"})
"""Methods that return the object they are called on: the proxy answers with itself, so that it is not lost."""


def wrap(pipe: P, meter: Meter | None = None, **labels: Any) -> P:
    """``pipe`` as a proxy: every call is a request of ``meter``, and everything else is ``pipe``'s own.

    ``pipe`` is any callable: function, coroutine function, generator, async generator, or an object with ``__call__``
    such as a diffusers pipeline, of which images, steps, size and model are read from the call. ``labels`` are those of
    ``Meter.request`` and win over what is read. A call inside a ``with meter.request(...)`` belongs to that request and
    opens none of its own. Without ``meter`` it reports to the running daemon, if there is one.
    """
    if not callable(pipe):
        raise TypeError(f"wrap: {type(pipe).__name__} cannot be called")
    meter = _meter_of_the_daemon() if meter is None else meter
    meter.request(**labels)  # a label that there is not is told here, and not by the first call
    proxy: Any = Wrapped(pipe, meter, labels)
    return proxy  # type: ignore[no-any-return]


def last_request(pipe: object) -> Request | None:
    """The newest request of a wrapped pipeline, for its figures and step times; ``None`` before the first call."""
    request: Request | None = object.__getattribute__(pipe, "_joulegate_last")
    return request


class Wrapped:
    """Calls are metered; reading, writing and deleting attributes is done on the wrapped object."""

    __slots__ = ("__wrapped__", "_joulegate_last", "_joulegate_reader", "_joulegate_start")

    def __init__(self, wrapped: Any, meter: Meter, labels: dict[str, Any]) -> None:
        _set = partial(object.__setattr__, self)
        _set("__wrapped__", wrapped)
        _set("_joulegate_last", None)
        _set("_joulegate_reader", CallReader(wrapped))
        _set("_joulegate_start", (meter, labels))

    @property  # type: ignore[misc] # the one way to be an instance of what is wrapped
    def __class__(self) -> Any:
        """The wrapped object's class, so that ``isinstance`` answers as before."""
        return self.__wrapped__.__class__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped object within a request."""
        request, kwargs = _prepare(self, args, kwargs)
        return _call(self.__wrapped__, request, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A wrapped function in a class body becomes a wrapped method."""
        descriptor = getattr(type(self.__wrapped__), "__get__", None)
        if descriptor is None:
            return self
        meter, labels = object.__getattribute__(self, "_joulegate_start")
        return Wrapped(descriptor(self.__wrapped__, instance, owner), meter, labels)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__wrapped__, name)
        return partial(_chain, self, value) if name in _CHAINING and callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__wrapped__, name)

    def __dir__(self) -> list[str]:
        return dir(self.__wrapped__)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


def _chain(proxy: Wrapped, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    return proxy if result is proxy.__wrapped__ else result


def _prepare(proxy: Wrapped, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Request | None, dict[str, Any]]:
    """The request of this call, not yet begun, and the call's arguments with step marks; ``None`` inside another's."""
    meter, labels = object.__getattribute__(proxy, "_joulegate_start")
    reader: CallReader = object.__getattribute__(proxy, "_joulegate_reader")
    outer = open_request(meter.sink)
    try:
        read, kwargs_marked = reader.read(args, kwargs)
    except Exception:  # noqa: BLE001 - a call that cannot be read is metered without labels (law 4)
        meter.faults.unlabelled += 1
        read, kwargs_marked = {}, None
    request = meter.request(**{**read, **labels}) if outer is None else outer
    object.__setattr__(proxy, "_joulegate_last", request)
    if kwargs_marked is not None:
        kwargs = kwargs_marked(request.step)
    return (request if outer is None else None), kwargs


def _call(function: Any, request: Request | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if request is None:
        return function(*args, **kwargs)
    target = function if inspect.isroutine(function) or isinstance(function, partial) else type(function).__call__
    if _is_lazy(target):
        return _follow(request, function(*args, **kwargs))
    request.begin()
    try:
        with inside(request):
            result = function(*args, **kwargs)
    except BaseException as error:
        request.stop(outcome_of(type(error)))
        raise
    return _follow(request, result)


def _is_lazy(target: Any) -> bool:
    """Whether a call only makes the thing that will do the work."""
    return (
        inspect.iscoroutinefunction(target) or inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)
    )


def _follow(request: Request, result: Any) -> Any:
    """``result``, with the request ended when the work behind it is: now, or when it is exhausted or awaited."""
    if inspect.iscoroutine(result):
        return _await(request, result)
    if inspect.isgenerator(result):
        return _generate(request, result)
    if inspect.isasyncgen(result):
        return _generate_async(request, result)
    if hasattr(result, "add_done_callback"):
        result.add_done_callback(partial(_stop_with, request))
        return result
    request.stop()
    return result


async def _await(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    with request:
        return await work


def _generate(request: Request, work: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    with ending(request):
        return (yield from work)


async def _generate_async(request: Request, work: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    """As ``yield from`` would: what is sent, thrown or closed reaches the wrapped generator."""
    with ending(request):
        step = work.__anext__()
        while True:
            try:
                item = await step
            except StopAsyncIteration:
                return
            try:
                step = work.asend((yield item))
            except GeneratorExit:
                await work.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 - it is the wrapped generator's to handle
                step = work.athrow(error)


def _stop_with(request: Request, future: Any) -> None:
    if future.cancelled():
        request.stop(Outcome.CANCELLED)
    else:
        error = future.exception()
        request.stop(Outcome.OK if error is None else outcome_of(type(error)))


def _meter_of_the_daemon() -> Meter:
    path = find_socket(os.environ)
    return Meter(NoSink() if path is None else SocketSink(path))

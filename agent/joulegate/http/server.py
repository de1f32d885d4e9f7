"""Listening: a socket bound by ourselves, so that a taken port is one clear line, and a server in the caller's loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Generator, Iterable

import uvicorn
from uvicorn.config import Config

BACKLOG = 512

_SERVER_LOG = logging.getLogger("uvicorn.error")
_OTHER_HOST = "give an address of this machine with --host"


class ListenFault(Exception):
    """The address cannot be listened on; the text is one line: what, where and what to do."""


class PortInUse(ListenFault):
    """Another program listens there."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop of uvloop where it is installed, else of asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on ``host`` (a name or address) and ``port`` (0 takes a free one); raises ``ListenFault``."""
    where = f"{host} port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ListenFault(f"cannot listen on {where}: {_why(error)}; {_OTHER_HOST}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _listen_fault(error, where) from error
    return sock


def _listen_fault(error: OSError, where: str) -> ListenFault:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"cannot listen on {where}: another program does; stop it or choose another --port")
    advice = {
        errno.EACCES: "ports below 1024 need a privilege; choose another --port",
        errno.EADDRNOTAVAIL: _OTHER_HOST,
    }.get(error.errno or 0, "choose another --host or --port")
    return ListenFault(f"cannot listen on {where}: {_why(error)}; {advice}")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever owns the process and says when it answers."""

    def __init__(self, config: Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


async def serve(
    app: Callable[..., object],
    host: str = "127.0.0.1",
    port: int = 9288,
    *,
    stop: asyncio.Event | None = None,
    ready: Callable[[int], None] | None = None,
    grace_s: float = 5.0,
) -> None:
    """Serve ``app`` in the running loop until ``stop`` is set or the task is cancelled; raises ``ListenFault`` at once.

    ``ready`` gets the port once connections are answered. At the end, requests in flight get ``grace_s`` (whole
    seconds, at least 1) to finish.
    """
    sock = bind(host, port)
    bound_port = sock.getsockname()[1]
    server = _Server(_config(app, grace_s), lambda: None if ready is None else ready(bound_port))
    stopper = asyncio.create_task(_stop(server, stop)) if stop is not None else None
    _SERVER_LOG.addFilter(_one_line)
    try:
        await server.serve(sockets=[sock])
    except asyncio.CancelledError:
        server.force_exit = True
        await server.shutdown(sockets=[sock])
        raise
    finally:
        if stopper is not None:
            stopper.cancel()
        await _give_up(server.server_state.tasks)
        sock.close()
        _SERVER_LOG.removeFilter(_one_line)


async def _give_up(requests: Iterable[asyncio.Task[None]]) -> None:
    """End what is still in flight, so that nothing runs on after the server."""
    left = list(requests)
    for request in left:
        request.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _one_line(record: logging.LogRecord) -> bool:
    """A log filter that says in one line what the server would follow with a trace."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg = f"a request was given up: {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        record.args, record.exc_info = None, None
    return True


async def _stop(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True


def _config(app: Callable[..., object], grace_s: float) -> Config:
    return Config(
        app,
        loop="none",
        http="auto",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )

"""Asking an HTTP API: bounded in time, size and tries, and unable to spill a token."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import tenacity

from joulegate.sources.grid.fault import PASSING, FaultKind, GridFault

SIMULATED_HEADER = "X-Joulegate-Simulated"
"""A simulator of an API says with this header that its figures are made up."""

_TALKATIVE = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")
_MAX_BODY_BYTES = 8 * 1024 * 1024
_MAX_RETRY_AFTER_S = 86_400.0
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a call may take and how often it is tried.

    ``total_s`` bounds one try from the first byte to the last; all tries and the waits between them end before
    ``attempts`` x ``total_s`` + waits, and a wait is at most ``wait_most_s``, whatever the provider asks for.
    The look-up of the host's name is the resolver's, and no timeout of ours bounds it.
    """

    connect_s: float = 3.0
    read_s: float = 5.0
    total_s: float = 15.0
    attempts: int = 3
    wait_first_s: float = 0.5
    wait_most_s: float = 8.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a 200 and whether its sender is a simulator."""

    body: bytes
    simulated: bool
    who: str

    def json(self) -> Any:
        """The body as JSON; raises ``GridFault``."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise GridFault(FaultKind.MALFORMED, f"{self.who}: the answer is not JSON; not used") from None


class ApiClient:
    """One API behind one base address.

    ``headers`` and ``query_secret`` are added below httpx, which logs the address of every request: what carries a
    token is known to the connection alone. ``secrets`` are struck out of whatever the provider says.
    """

    def __init__(
        self,
        who: str,
        base_url: str,
        limits: Limits,
        *,
        headers: Mapping[str, str] | None = None,
        query_secret: tuple[str, str] | None = None,
        secrets: Iterable[str] = (),
    ) -> None:
        self.who = who
        self._limits = limits
        given = [secret for secret in secrets if secret]
        self._secrets = tuple(dict.fromkeys([*given, *(quote(secret, safe="") for secret in given)]))
        self._redaction = _Redaction(self._struck_out)
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(self._redaction)
        self._closed = threading.Event()
        self._client = httpx.Client(
            base_url=base_url,
            transport=_SecretTransport(_transport(base_url), dict(headers or {}), query_secret),
            timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s),
            headers={"User-Agent": f"joulegate/{_version()}", "Accept": "*/*"},
            follow_redirects=False,
        )

    def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        auth: tuple[str, str] | None = None,
        bearer: str | None = None,
    ) -> Answer:
        """The answer to ``GET path``, tried again where that can help; raises ``GridFault``."""
        limits = self._limits
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._worth_another_try),
            stop=tenacity.stop_after_attempt(limits.attempts) | tenacity.stop_when_event_set(self._closed),
            wait=self._wait_s,
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        return retrying(self._once, path, dict(params or {}), headers, auth)

    def scrubbed(self, text: str) -> str:
        """``text`` of the provider in one short line, without our secrets."""
        return " ".join(self._struck_out(text).split())[:_SHOWN_CHARACTERS]

    def _struck_out(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def close(self) -> None:
        """End waits between tries and close the connections."""
        self._closed.set()
        self._client.close()
        for name in _TALKATIVE:
            logging.getLogger(name).removeFilter(self._redaction)

    def _worth_another_try(self, error: BaseException) -> bool:
        if not isinstance(error, GridFault) or error.kind not in PASSING:
            return False
        return error.retry_after_s is None or error.retry_after_s <= self._limits.wait_most_s

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, GridFault) else None
        limits = self._limits
        doubled = tenacity.wait_exponential(limits.wait_first_s, limits.wait_most_s)
        spread = tenacity.wait_random(0.0, limits.wait_first_s)
        return max(asked_s or 0.0, doubled(state) + spread(state))

    def _once(self, path: str, params: dict[str, str], headers: dict[str, str], auth: tuple[str, str] | None) -> Answer:
        if self._closed.is_set():
            raise GridFault(FaultKind.CLOSED, f"{self.who}: closed")
        with self._naming_faults(), self._client.stream("GET", path, params=params, headers=headers, auth=auth) as got:
            body = self._read(got)
            if got.status_code != httpx.codes.OK:
                raise self._refusal(got)
            return Answer(body, SIMULATED_HEADER in got.headers, self.who)

    def _read(self, response: httpx.Response) -> bytes:
        until_s = time.monotonic() + self._limits.total_s
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > _MAX_BODY_BYTES:
                raise GridFault(
                    FaultKind.MALFORMED, f"{self.who}: the answer is over {_MAX_BODY_BYTES} bytes; not used"
                )
            # A server that sends a byte now and then never meets the read timeout.
            if time.monotonic() > until_s:
                raise GridFault(FaultKind.TIMEOUT, f"{self.who}: no whole answer within {self._limits.total_s:g} s")
        return bytes(body)

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        """Turn what httpx raises into ``GridFault``; its texts are not used, since some quote a header's value."""
        try:
            yield
        except httpx.ConnectTimeout:
            raise self._fault(FaultKind.TIMEOUT, f"no connection within {self._limits.connect_s:g} s") from None
        except httpx.TimeoutException:
            raise self._fault(FaultKind.TIMEOUT, f"no answer within {self._limits.read_s:g} s") from None
        except httpx.ConnectError as error:
            raise self._no_connection(error) from None
        except httpx.DecodingError:
            raise self._fault(FaultKind.MALFORMED, "the answer cannot be decompressed; not used") from None
        except httpx.TransportError:
            raise self._fault(FaultKind.NETWORK, "the connection broke off") from None
        except (httpx.InvalidURL, ValueError, RuntimeError) as error:
            # A client that was closed under a call in flight raises RuntimeError or a bare ValueError of the socket's.
            kind = FaultKind.CLOSED if self._closed.is_set() else FaultKind.INTERNAL
            raise self._fault(kind, f"the request could not be sent ({type(error).__name__})") from None

    def _no_connection(self, error: httpx.ConnectError) -> GridFault:
        causes = list(_causes(error))
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            return self._fault(FaultKind.DNS, "the host's name cannot be resolved; check the network and grid.base_url")
        if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            return self._fault(FaultKind.REFUSED, "the connection was refused; check grid.base_url and the firewall")
        return self._fault(
            FaultKind.NETWORK, "no connection can be made; check the network, its proxy and certificates"
        )

    def _refusal(self, response: httpx.Response) -> GridFault:
        status = response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            return self._fault(FaultKind.UNAUTHORIZED, "the token is refused (401); check grid.token")
        if status == httpx.codes.FORBIDDEN:
            return self._fault(FaultKind.FORBIDDEN, "the token's plan does not cover this (403); check plan and zone")
        if status in {httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND, httpx.codes.UNPROCESSABLE_ENTITY}:
            return self._fault(FaultKind.REJECTED, f"the zone is not known there ({status}); check grid.zone")
        if status == httpx.codes.TOO_MANY_REQUESTS:
            retry_after_s = _retry_after_s(response)
            said = "" if retry_after_s is None else f", asked to wait {retry_after_s:.0f} s"
            return GridFault(FaultKind.RATE_LIMITED, f"{self.who}: too many requests (429){said}", retry_after_s)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return GridFault(FaultKind.SERVER, f"{self.who}: the server fails ({status})", _retry_after_s(response))
        return self._fault(FaultKind.MALFORMED, f"an unexpected status ({status}); check grid.base_url")

    def _fault(self, kind: FaultKind, text: str) -> GridFault:
        return GridFault(kind, f"{self.who}: {text}")


class _Redaction(logging.Filter):
    """Strikes secrets out of what httpcore logs of answers, where a redirection may quote the address of a request."""

    def __init__(self, strike_out: Callable[[str], str]) -> None:
        super().__init__()
        self._strike_out = strike_out

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record, without secrets."""
        said = record.getMessage()
        kept = self._strike_out(said)
        if kept != said:
            record.msg, record.args = kept, ()
        return True


class _SecretTransport(httpx.BaseTransport):
    """Adds what is secret to a copy of each request: the one that httpx logs and raises about has none of it."""

    def __init__(
        self, inner: httpx.BaseTransport, headers: dict[str, str], query_secret: tuple[str, str] | None
    ) -> None:
        self._inner = inner
        self._headers = headers
        self._query_secret = query_secret

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` with the secrets."""
        url = request.url
        if self._query_secret is not None:
            url = url.copy_add_param(*self._query_secret)
        headers = [*request.headers.raw, *((name.encode(), value.encode()) for name, value in self._headers.items())]
        sent = httpx.Request(request.method, url, headers=headers, extensions=request.extensions)
        return self._inner.handle_request(sent)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def _transport(base_url: str) -> httpx.HTTPTransport:
    """A connection through the proxy that the environment names for this address, if it names one."""
    address = urlsplit(base_url)
    host = address.hostname or ""
    proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get(address.scheme)
    return httpx.HTTPTransport(proxy=proxy)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds of ``Retry-After``, which is a number or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):
            return None
    return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S) if math.isfinite(wait_s) else None


def _version() -> str:
    try:
        return metadata.version("joulegate")
    except metadata.PackageNotFoundError:
        return "unknown"

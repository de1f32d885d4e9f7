"""The one exception of the grid sources, with what the monitor needs to know of it."""

from __future__ import annotations

from enum import StrEnum


class FaultKind(StrEnum):
    """What went wrong; these words are also the names under which faults are counted."""

    DNS = "dns"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    NETWORK = "network"
    SERVER = "server"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    REJECTED = "rejected"
    WRONG_ZONE = "wrong_zone"
    MALFORMED = "malformed"
    OUT_OF_RANGE = "out_of_range"
    NO_DATA = "no_data"
    UNSUPPORTED = "unsupported"
    CLOSED = "closed"
    INTERNAL = "internal"


PASSING = frozenset({FaultKind.REFUSED, FaultKind.TIMEOUT, FaultKind.NETWORK, FaultKind.SERVER, FaultKind.RATE_LIMITED})
"""Worth asking again within the same call. A name that does not resolve is not: the resolver has tried already."""

HOST_WIDE = PASSING | {FaultKind.DNS, FaultKind.UNAUTHORIZED}
"""What one call has met, the next call to the same host will meet as well."""

MENDABLE = frozenset({FaultKind.UNAUTHORIZED, FaultKind.REJECTED, FaultKind.WRONG_ZONE})
"""A wrong token or an unknown zone: the configuration is at fault, and waiting does not help."""


class GridFault(Exception):
    """An intensity cannot be had; the text is one line: who, what, what to do. It never holds a token.

    ``retry_after_s`` is how long the provider wants to be left alone, where it said so.
    """

    def __init__(self, kind: FaultKind, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after_s = retry_after_s

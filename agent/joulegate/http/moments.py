"""Moments in a query: RFC 3339 or Unix seconds."""

from __future__ import annotations

import re

from joulegate.metering.wire import WireFault, wall_s_from_rfc3339

LAST_S = 253_402_300_799.0
"""End of the year 9999, the last that RFC 3339 can write."""

_SECONDS = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)
_UNESCAPED_PLUS = re.compile(r" (?=\d\d:\d\d$)", re.ASCII)


def wall_s_from_query(text: str) -> float:
    """Unix seconds of ``text``; raises ``ValueError`` with one line for a person.

    A ``+`` of an offset that was not escaped reaches the server as a space and is read as what was meant.
    """
    if _SECONDS.fullmatch(text):
        wall_s = float(text)
        if wall_s > LAST_S:
            raise ValueError("is after the year 9999")
        return wall_s
    try:
        return wall_s_from_rfc3339(_UNESCAPED_PLUS.sub("+", text) if len(text) > 19 else text, "time")
    except WireFault as fault:
        raise ValueError(str(fault).removeprefix("time: ") + ", or Unix seconds") from None

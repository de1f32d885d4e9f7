"""When service began, where only arrivals and ends are known: a first-in-first-out server with k slots."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def infer_starts(
    arrivals_s: Sequence[float], ends_s: Sequence[float], slots: int, starts_s: Sequence[float | None] | None = None
) -> list[float]:
    """Start of service of each request, in seconds, for requests in any order.

    Served in order of arrival by ``slots`` workers: a request starts at its arrival, or when the earlier requests have
    left a slot free. Starts that are known (``starts_s``) are kept and occupy their slot. A server that is not FIFO
    would give a start after the end; such a start is cut to the end, and the caller sees an empty span.
    """
    order = sorted(range(len(arrivals_s)), key=lambda i: (arrivals_s[i], ends_s[i], i))
    busy_until_s: list[float] = []
    starts = [0.0] * len(arrivals_s)
    for index in order:
        known_s = None if starts_s is None else starts_s[index]
        free_s = busy_until_s[0] if len(busy_until_s) == slots else arrivals_s[index]
        start_s = max(arrivals_s[index], free_s) if known_s is None else known_s
        starts[index] = min(start_s, ends_s[index])
        if len(busy_until_s) == slots:
            heapq.heappushpop(busy_until_s, ends_s[index])
        else:
            heapq.heappush(busy_until_s, ends_s[index])
    return starts

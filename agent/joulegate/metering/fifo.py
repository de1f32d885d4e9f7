"""A first-in-first-out server seen live: when does service begin, where only arrivals and ends are told?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulegate.metering.queueing import infer_starts

KEPT_VISITS = 128
"""So many ended visits are remembered: one that is told late is placed between them."""


@dataclass(slots=True)
class _Visit:
    arrived_s: float
    ended_s: float
    started_s: float | None


class FifoServer:
    """``slots`` workers behind one set of devices. Visits may be told at their arrival, or whole after their end.

    A start is given once and never changes. With one slot it is exact; with more, a visit told whole is placed among
    those that are known by then.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._visits: dict[str, _Visit] = {}
        self._open = 0

    def add(self, visit_id: str, arrived_s: float, ended_s: float | None, started_s: float | None) -> None:
        """A visit came; one with a known start occupies its slot from then on. A known id changes nothing."""
        if visit_id in self._visits:
            return
        self._visits[visit_id] = _Visit(arrived_s, math.inf if ended_s is None else ended_s, started_s)
        self._open += ended_s is None

    def leave(self, visit_id: str, ended_s: float) -> None:
        """A visit ended."""
        visit = self._visits.get(visit_id)
        if visit is not None and visit.ended_s == math.inf:
            visit.ended_s = ended_s
            self._open -= 1

    def take_starts(self) -> dict[str, float]:
        """Starts that became known since the last call."""
        visits = list(self._visits.values())
        if all(visit.started_s is not None for visit in visits):
            self._forget()
            return {}
        starts = infer_starts(
            [v.arrived_s for v in visits],
            [v.ended_s for v in visits],
            self._slots,
            [v.started_s for v in visits],
        )
        found = {}
        for (visit_id, visit), start_s in zip(self._visits.items(), starts, strict=True):
            if visit.started_s is None and start_s < math.inf:
                visit.started_s = found[visit_id] = start_s
        self._forget()
        return found

    def _forget(self) -> None:
        if len(self._visits) - self._open > KEPT_VISITS:
            ended = sorted((v.ended_s, visit_id) for visit_id, v in self._visits.items() if v.ended_s < math.inf)
            for _, visit_id in ended[: len(ended) - KEPT_VISITS // 2]:
                del self._visits[visit_id]

"""A span: one request's use of one or more devices, and the batch members that share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class StartSource(StrEnum):
    """Where the start of service is known from; only ``engine`` and ``declared`` observe the start itself."""

    ENGINE = "engine"
    HISTORY = "history"
    DECLARED = "declared"
    FIFO = "fifo"
    ARRIVAL = "arrival"


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asked for. ``units`` is its weight inside a batch; an unknown column counts as 1."""

    images: int | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None

    @property
    def units(self) -> int:
        """Images x steps x width x height."""
        units = 1
        for factor in (self.images, self.steps, self.width, self.height):
            units *= 1 if factor is None else factor
        return units


@dataclass(frozen=True, slots=True)
class Member:
    """One request of a batch with the work that decides its share."""

    request_id: str
    work: Work = Work()


@dataclass(frozen=True, slots=True)
class Span:
    """One use of devices. Times are CLOCK_MONOTONIC seconds; ``ended_s`` is ``None`` while it runs.

    ``power_class`` groups requests that draw alike (by default the model). A batch is one span with several members; a
    single request is a span with one. ``edge_error_s`` is the standard uncertainty of its edges beyond the sensor's own
    (asynchronous launches 5 to 20 ms, an inferred start more; notes/measurement.md, 6.2).
    """

    request_id: str
    devices: tuple[str, ...]
    started_s: float
    ended_s: float | None = None
    arrived_s: float | None = None
    start_source: StartSource = StartSource.DECLARED
    power_class: str = ""
    members: tuple[Member, ...] = ()
    batch_id: str | None = None
    model: str | None = None
    tier: str | None = None
    tenant: str | None = None
    outcome: Outcome = Outcome.OK
    edge_error_s: float = 0.0

    @property
    def work(self) -> Work:
        """Work of the only member; of a batch, the sum of its images with the first member's other figures."""
        if not self.members:
            return Work()
        first = self.members[0].work
        if len(self.members) == 1:
            return first
        return replace(first, images=sum(member.work.images or 1 for member in self.members))

    @property
    def queue_s(self) -> float | None:
        """Seconds between arrival and start; waiting costs no joules, it is only reported."""
        return None if self.arrived_s is None else max(0.0, self.started_s - self.arrived_s)

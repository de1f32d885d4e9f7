"""What the HTTP application needs of the parts behind it, and how those parts say no."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.snapshot import Snapshot
from joulegate.metering.span import Span

DIMENSIONS = ("model", "tier", "tenant", "device", "hour")
"""What energy can be divided by."""


class LedgerUnreadable(Exception):
    """The ledger cannot be read now; the text is one line: what, where and what to do. Answered with 503."""


class IngestBusy(Exception):
    """Spans cannot be taken now (queue full, ledger failing) and none was. Answered with 503 and ``Retry-After``."""

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class SpansRefused(Exception):
    """Spans that can be read but not used, for example for an unknown device; nothing was taken. Answered with 422.

    ``faults`` are (index within the call, field, what is wrong with it).
    """

    def __init__(self, faults: Sequence[tuple[int, str, str]]) -> None:
        super().__init__(f"{len(faults)} fault(s)")
        self.faults = tuple(faults)


class CarbonReader(Protocol):
    """Views on energy: CO2e, water, money, the grid, and what a request would take. Pure and quick, never a network.

    Every view is made of what is known at the moment; what is not known is null with its reason (law 7).
    """

    def of_request(self, entry: RequestEntry) -> Mapping[str, object]:
        """Members ``co2e_g``, ``water_l``, ``cost`` and ``efficiency_regression`` of one request."""

    def of_energy(self, energy_mj: Mapping[int, int], bucket_s: int, qualities: Iterable[str]) -> Mapping[str, object]:
        """``co2e_g``, ``water_l`` and ``cost`` of energy by bucket start (Unix seconds), ``bucket_s`` seconds each.

        ``qualities`` are those of the energy itself: the weakest is what the figures carry (law 3).
        """

    def grid(self, duration_s: float) -> Mapping[str, object]:
        """The body of ``GET /v1/grid``."""

    def estimate(self, model: str, gpu: str, work: Mapping[str, int | float | None]) -> Mapping[str, object]:
        """The body of ``GET /v1/estimate``; raises ``ValueError`` with one line for what cannot be used."""

    def series(self) -> Sequence[tuple[str, str, Mapping[str, str], float]]:
        """Samples for ``/metrics``: family, kind (gauge or counter), labels, value; what is missing has none."""


class Clock(Protocol):
    """The time, as the snapshot's writer counts it."""

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC seconds."""

    def wall_s(self) -> float:
        """Unix seconds."""


class SnapshotReader(Protocol):
    """Holds the newest snapshot. Reading it must be one load of a reference: no lock, no SQL, no device."""

    def snapshot(self) -> Snapshot | None:
        """The newest snapshot, or ``None`` before the first."""


class EntryPage(Protocol):
    """A page of entries and the cursor of the next, ``None`` at the end."""

    @property
    def items(self) -> Sequence[RequestEntry]:
        """Entries, newest first."""

    @property
    def next(self) -> str | None:
        """Opaque cursor."""


class EnergyTotals(Protocol):
    """Accounts of a range in whole millijoules: ``device_mj == requests_mj + idle_mj + unattributed_mj`` (law 1)."""

    @property
    def device_mj(self) -> int:
        """What the devices' counters rose by."""

    @property
    def requests_mj(self) -> int:
        """Part of the requests."""

    @property
    def idle_mj(self) -> int:
        """Part of nobody."""

    @property
    def unattributed_mj(self) -> int:
        """Part that no request explains."""

    @property
    def estimated_mj(self) -> int:
        """Guessed across resets and gaps; outside the law."""

    @property
    def pending_mj(self) -> int:
        """What of ``requests_mj`` is on requests that are not final yet."""


class EnergyGroup(Protocol):
    """What agrees in ``keys``. Whole millijoules; accounts are ``None`` where the keys do not divide them.

    ``requests`` and ``qualities_mj`` are of final requests. ``pending_mj`` is what of ``requests_mj`` is on requests
    that are not final yet; grouped by model, tier or tenant it stands in groups of its own, marked ``pending``.
    """

    @property
    def keys(self) -> Mapping[str, str | int | None]:
        """Dimension -> value; ``hour`` is the Unix second at which it starts."""

    @property
    def requests(self) -> int:
        """How many final requests used energy here."""

    @property
    def requests_mj(self) -> int:
        """Energy of the requests."""

    @property
    def pending_mj(self) -> int:
        """What of it may still move between requests."""

    @property
    def qualities_mj(self) -> Mapping[str, int]:
        """Energy of the final requests by the quality of their figures."""

    @property
    def device_mj(self) -> int | None:
        """What the devices' counters rose by."""

    @property
    def idle_mj(self) -> int | None:
        """Part of nobody."""

    @property
    def unattributed_mj(self) -> int | None:
        """Part that no request explains."""

    @property
    def estimated_mj(self) -> int | None:
        """Guessed across resets and gaps."""

    @property
    def pending(self) -> bool:
        """Whether this group is pending energy alone."""


class EnergyTable(Protocol):
    """Energy of the whole buckets that a range touches; ``from_s`` and ``to_s`` (Unix seconds) are their edges."""

    @property
    def from_s(self) -> int:
        """Start, inclusive."""

    @property
    def to_s(self) -> int:
        """End, exclusive."""

    @property
    def totals(self) -> EnergyTotals:
        """Accounts of all devices."""

    @property
    def qualities_mj(self) -> Mapping[str, int]:
        """``device_mj`` by the quality of the reading."""

    @property
    def request_qualities_mj(self) -> Mapping[str, int]:
        """What is final of ``requests_mj``, by the quality of the request's figure."""

    @property
    def groups(self) -> Sequence[EnergyGroup]:
        """They add up to ``totals.requests_mj``; none when nothing was asked for."""


class LedgerReader(Protocol):
    """The reading side of the ledger; called from several threads at once, and may block.

    Where the ledger cannot be read it raises what ``Parts.ledger_fault`` names. Requests that have ended and whose
    figures are pending are there too, with a null energy.
    """

    def request(self, request_id: str) -> RequestEntry | None:
        """One request, or ``None`` when the ledger does not know it."""

    def requests(
        self,
        limit: int,
        cursor: str | None = None,
        *,
        model: str | None = None,
        tier: str | None = None,
        tenant: str | None = None,
        status: Status | None = None,
    ) -> EntryPage:
        """At most ``limit`` entries, newest first, from ``cursor`` on.

        Raises ``ValueError`` for a cursor that it never gave out.
        """

    def energy(self, from_s: float, to_s: float, by: Sequence[str]) -> EnergyTable:
        """Energy of [``from_s``, ``to_s``), Unix seconds, grouped ``by``."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a post: spans taken now and spans that were known already."""

    accepted: int
    duplicates: int


class SpanIngest(Protocol):
    """Takes spans from other processes, idempotently by request id.

    A span without an end is running; the same id with an end closes it. What is known already, running or ended, is a
    duplicate and changes nothing.
    """

    async def submit(self, spans: Sequence[Span]) -> Receipt:
        """Take all or none, and return only after the durable commit; raises ``IngestBusy`` or ``SpansRefused``."""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of ``/readyz``."""

    ok: bool
    detail: str


class StatusReader(Protocol):
    """A part that can say how it does without blocking."""

    def status(self) -> PartStatus:
        """How it does now."""

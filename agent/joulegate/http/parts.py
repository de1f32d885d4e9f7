"""The parts behind the application, wired once."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulegate.http.clock import SystemClock
from joulegate.http.envelope import FaultCount
from joulegate.http.ports import (
    CarbonReader,
    Clock,
    LedgerReader,
    LedgerUnreadable,
    SnapshotReader,
    SpanIngest,
    StatusReader,
)
from joulegate.http.problems import unavailable
from joulegate.metering.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Parts:
    """What ``create_app`` wires.

    ``ledger_fault`` is what ``ledger`` raises when it cannot be read (its text is shown). ``sinks`` and ``grid`` are
    ``None`` when none is configured. ``hosts`` are the names the agent answers to, none for any. A reading older than
    ``stale_after_s`` no longer speaks for the present; a snapshot older than ``stuck_after_s`` means that the loop is
    stuck; a post is answered within ``commit_timeout_s``.
    """

    snapshots: SnapshotReader
    ledger: LedgerReader
    spans: SpanIngest
    clock: Clock = field(default_factory=SystemClock)
    sinks: StatusReader | None = None
    grid: StatusReader | None = None
    carbon: CarbonReader | None = None
    ledger_fault: type[Exception] = LedgerUnreadable
    hosts: tuple[str, ...] = ()
    version: str = "unknown"
    stale_after_s: float = 10.0
    stuck_after_s: float = 10.0
    commit_timeout_s: float = 10.0
    faults: FaultCount = field(default_factory=FaultCount)

    def present(self) -> Snapshot:
        """The newest snapshot; raises a 503 problem before the first."""
        snapshot = self.snapshots.snapshot()
        if snapshot is None:
            raise unavailable("no-snapshot", "no reading has been taken yet; the agent is starting", 1.0)
        return snapshot

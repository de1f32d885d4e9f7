"""The parts behind the application, wired once."""

from __future__ import annotations

import asyncio
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
from joulegate.http.throttle_ports import Decider, QueueSink, ThrottleReader, Trail, TrailUnreadable
from joulegate.metering.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ThrottleParts:
    """What stands behind ``/v1/throttle``.

    ``trail_fault`` is what ``trail`` raises when it cannot be read (its text is shown). ``status`` says how the adviser
    does. ``stop`` is the event that also ends the server: streams and long-polls end with it instead of holding the
    shutdown. ``deny_status`` is what ``authz`` refuses with where its query does not say. ``control_token`` guards what
    changes the adviser's input;
    ``None`` lets everybody that reaches the agent report queues. Beyond ``max_streams`` a stream is a 503, beyond
    ``max_polls`` a long-poll is answered at once.
    """

    reader: ThrottleReader
    decider: Decider
    trail: Trail
    queue: QueueSink
    trail_fault: type[Exception] = TrailUnreadable
    status: StatusReader | None = None
    stop: asyncio.Event | None = None
    deny_status: int = 429
    control_token: str | None = None
    heartbeat_s: float = 15.0
    max_streams: int = 256
    max_polls: int = 1024


@dataclass(frozen=True, slots=True)
class Parts:
    """What ``create_app`` wires.

    ``ledger_fault`` is what ``ledger`` raises when it cannot be read (its text is shown). ``sinks`` and ``grid`` are
    ``None`` when none is configured, ``throttle`` where nothing is advised: then none of its routes exists. ``hosts``
    are the names the agent answers to, none for any. A reading older than ``stale_after_s`` no longer speaks for the
    present; a snapshot older than ``stuck_after_s`` means that the loop is stuck; a post is answered within
    ``commit_timeout_s``.
    """

    snapshots: SnapshotReader
    ledger: LedgerReader
    spans: SpanIngest
    clock: Clock = field(default_factory=SystemClock)
    sinks: StatusReader | None = None
    grid: StatusReader | None = None
    carbon: CarbonReader | None = None
    throttle: ThrottleParts | None = None
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

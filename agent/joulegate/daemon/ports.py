"""What the loop needs of the parts it wires: the ports that sources and stores implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from joulegate.metering.batch import Batch, Restored
from joulegate.metering.reading import Device, GpuProcess, Reading, Sensor
from joulegate.metering.span import Span


class SourceUnavailable(Exception):
    """This source cannot be used here; the text is one line for a person: what is missing and what to do."""


class Source(Protocol):
    """Where readings come from. Implementations never raise from ``drain`` and never block it."""

    name: str

    def open(self) -> None:
        """Probe the hardware and start sampling; raises ``SourceUnavailable``."""

    def devices(self) -> Sequence[Device]:
        """The devices found, also those that do not answer now; may grow or change after a driver reset."""

    def sensors(self) -> Sequence[Sensor]:
        """One line a device (or one for the whole source) for ``joulegate doctor``."""

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """Readings taken since the last call, oldest first per device; may be empty."""

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Failed calls so far: device id -> error name -> count."""

    def processes(self) -> Sequence[GpuProcess]:
        """Processes seen on the devices lately, for the foreign-load guard's evidence; may be empty."""

    def close(self) -> None:
        """Stop sampling and let the hardware go; safe to call twice."""


@runtime_checkable
class LoadAware(Protocol):
    """A simulated source: it is told which spans run, and burns simulated power for them."""

    def span_started(self, span: Span, now_s: float) -> None:
        """``span`` began to use its devices."""

    def span_ended(self, span: Span, now_s: float) -> None:
        """``span`` let its devices go."""


class LedgerWriter(Protocol):
    """The writing side of the ledger; used by one thread only."""

    def restore(self) -> Restored:
        """State to go on from."""

    def commit(self, batch: Batch) -> None:
        """Write ``batch`` in one durable transaction; raises ``stores.LedgerFault`` with nothing written."""

    def final_ids(self, ids: set[str]) -> set[str]:
        """Which of these requests have a final entry."""

    def close(self) -> None:
        """Checkpoint and close."""

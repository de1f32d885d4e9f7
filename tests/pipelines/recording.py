"""A sink that meters nothing and remembers everything, with figures that a test sets."""

from __future__ import annotations

import threading

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Outcome, Span, StartSource, Work


class RecordingSink:
    """Implements ``SpanSink`` in memory."""

    def __init__(self, devices: tuple[str, ...] = ("GPU-aaaa", "GPU-bbbb")) -> None:
        self.begun: list[Span] = []
        self.ended: list[tuple[str, float, Outcome]] = []
        self.closed = 0
        self.told = threading.Event()
        self._entries: dict[str, RequestEntry] = {}
        self._devices = devices

    @property
    def span(self) -> Span:
        """The only span that began."""
        (span,) = self.begun
        return span

    @property
    def outcome(self) -> Outcome:
        """How the only span ended."""
        ((_, _, outcome),) = self.ended
        return outcome

    def begin(self, span: Span) -> None:
        """Remember."""
        self.begun.append(span)

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """Remember."""
        self.ended.append((request_id, ended_s, outcome))
        self.told.set()

    def lookup(self, request_id: str) -> RequestEntry | None:
        """What the test put in."""
        return self._entries.get(request_id)

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Final figures that are there already; this sink has no future."""
        entry = self._entries.get(request_id)
        return entry if entry is not None and entry.status is Status.FINAL else None

    def visible_devices(self) -> tuple[str, ...]:
        """The devices given."""
        return self._devices

    def close(self) -> None:
        """Count."""
        self.closed += 1

    def know(self, entry: RequestEntry) -> None:
        """Have figures from now on."""
        self._entries[entry.request_id] = entry


class BrokenSink(RecordingSink):
    """Implements ``SpanSink`` against its contract: it raises."""

    def begin(self, span: Span) -> None:
        """Fail."""
        raise RuntimeError("the meter is broken")

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """Fail."""
        raise RuntimeError("the meter is broken")

    def lookup(self, request_id: str) -> RequestEntry | None:
        """Fail."""
        raise RuntimeError("the meter is broken")

    def visible_devices(self) -> tuple[str, ...]:
        """Fail."""
        raise RuntimeError("the meter is broken")


def entry(
    request_id: str,
    energy_mj: int | None,
    status: Status = Status.FINAL,
    quality: Quality = Quality.MEASURED,
    *,
    u_measurement_mj: int | None = 300,
    u_allocation_mj: int | None = 400,
) -> RequestEntry:
    """An entry with these figures."""
    return RequestEntry(
        request_id, status, Outcome.OK, Work(), 1.0, 2.0, StartSource.DECLARED, energy_mj, u_measurement_mj,
        u_allocation_mj, Method.COUNTER, quality, arrived_s=0.5,
    )  # fmt: skip

"""What a wrapped pipeline needs of whatever meters it: the loop in this process, or the daemon behind its socket."""

from __future__ import annotations

from typing import Protocol

from joulegate.metering.entry import RequestEntry
from joulegate.metering.span import Outcome, Span


class SpanSink(Protocol):
    """Takes span edges and gives figures back. No method but ``wait`` may block, and none may raise into a pipeline.

    All times are CLOCK_MONOTONIC seconds, which processes of one machine share.
    """

    def begin(self, span: Span) -> None:
        """``span`` started (``ended_s`` is ``None``); a request id that is already open replaces nothing."""

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """The span ended; an unknown request id is counted as dropped and otherwise ignored."""

    def lookup(self, request_id: str) -> RequestEntry | None:
        """The newest figures: provisional (``pending``) or ``final``; ``None`` until anything is known."""

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:
        """Block until the entry is final and return it, or ``None`` after ``timeout_s``."""

    def visible_devices(self) -> tuple[str, ...]:
        """Device ids that this process uses when a request names none."""

    def close(self) -> None:
        """Flush what can be flushed within a short bounded time; safe to call twice."""

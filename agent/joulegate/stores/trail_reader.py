"""The audit trail's reading side: pages of records and single decisions, for whoever asks over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulegate.stores.trail_files import Segment, lines_of, record_of, segments_of, sequence_of
from joulegate.stores.trail_verify import model_before

PAGE_MOST = 1000
_SEQUENCE_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Page:
    """Records oldest first, and the cursor of those after them; ``None`` at the end."""

    items: Sequence[Mapping[str, Any]]
    next: str | None


class TrailReader:
    """Reads the segments in ``folder`` while another thread writes them; raises ``TrailFault``.

    Files are read in a thread and one question at a time, so that questions cost neither the event loop a wait nor the
    machine more than one core.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._one = threading.Lock()

    async def decisions(self, since: str | None, limit: int) -> Page:
        """At most ``limit`` decisions and their bases after ``since``: a cursor, a decision's sequence, or its id.

        Without it from the oldest on. Raises ``ValueError`` for an id that the trail does not have (any more).
        """
        return await asyncio.to_thread(self._page, since, max(1, min(limit, PAGE_MOST)))

    async def decision(self, decision_id: str) -> Mapping[str, Any] | None:
        """The record of one decision with ``model``, what the adviser knew before it; ``None`` for an unknown id."""
        return await asyncio.to_thread(self._decision, decision_id)

    def _page(self, since: str | None, limit: int) -> Page:
        with self._one:
            after = 0 if since is None else self._sequence_of(since)
            items: list[Mapping[str, Any]] = []
            decisions = 0
            for record in self._records_after(after):
                if decisions == limit:
                    return Page(items, str(record["sequence"] - 1))
                items.append(record)
                decisions += record["kind"] == "decision"
            return Page(items, None)

    def _sequence_of(self, since: str) -> int:
        if since.isascii() and since.isdigit() and len(since) <= _SEQUENCE_DIGITS:
            return int(since)
        found = self._find(since)
        if found is None:
            raise ValueError(f"since: no decision {since[:80]!r} is kept; begin without it, or with a newer one")
        return int(found[-1]["sequence"])

    def _records_after(self, after: int) -> Iterator[Mapping[str, Any]]:
        segments = segments_of(self._folder)
        while len(segments) > 1 and segments[1].first <= after + 1:
            segments.pop(0)
        for segment in segments:
            for line in lines_of(segment):
                sequence = sequence_of(line)
                record = None if sequence is None or sequence <= after else record_of(line)
                if record is not None:
                    yield record

    def _find(self, decision_id: str) -> list[Mapping[str, Any]] | None:
        """The newest base before a decision, what follows it, and the decision itself, which is the last."""
        wanted = json.dumps(decision_id).encode("ascii")
        for segment in reversed(segments_of(self._folder)):
            found = _find_in(segment, decision_id, wanted)
            if found:
                return found
        return None

    def _decision(self, decision_id: str) -> Mapping[str, Any] | None:
        with self._one:
            found = self._find(decision_id)
            return None if found is None else {**found[-1], "model": model_before(found)}


def _find_in(segment: Segment, decision_id: str, wanted: bytes) -> list[Mapping[str, Any]]:
    since_base: list[bytes] = []
    for line in lines_of(segment):
        if b'"kind":"base"' in line[:64]:
            since_base.clear()
        since_base.append(line)
        if wanted in line:
            record = record_of(line)
            if record is not None and _id_of(record) == decision_id:
                records = [record_of(earlier) for earlier in since_base]
                return [one for one in records if one is not None]
    return []


def _id_of(record: Mapping[str, Any]) -> object:
    recommendation = record.get("recommendation")
    return recommendation.get("decision_id") if isinstance(recommendation, Mapping) else None

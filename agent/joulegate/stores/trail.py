"""The audit trail of recommendations on disk: appended by a thread of its own, so that no adviser waits for a disk.

A full or broken disk, or a queue that overflows because the disk hangs, costs records, which are counted; the next base
(see ``trail_records``) that can be written begins a new segment and names what is missing. Nothing is synced on each
record: the operating system keeps what a killed process wrote, and a power cut costs the newest seconds of the trail.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from joulegate.stores.trail_files import (
    Mended,
    Segment,
    TrailFault,
    lines_of,
    mend,
    pack,
    record_of,
    segment_path,
    segments_of,
    tidy,
)
from joulegate.stores.trail_records import Base, Chain, Decided, Why, hash_of

FOLDER = "decisions"
SEGMENT_BYTES = 4 * 1024 * 1024
SEGMENT_S = 3600.0
QUEUE_RECORDS = 600
"""Ten minutes of a disk that hangs, at one decision a second."""

SHARE_OF_BOUND = 8
"""A segment is at most this part of the bound, so that dropping the oldest loses little."""

LEAST_SEGMENT_BYTES = 64 * 1024
STOP_WAIT_S = 5.0
_LOG = logging.getLogger("joulegate.trail")


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier run left: the newest sequence, and the newest base with the decisions after it, if whole."""

    sequence: int = 0
    base: Mapping[str, Any] | None = None
    decisions: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class TrailState:
    """How the trail does: records written and decisions lost by this run, and what it removed.

    ``cut_bytes`` were a half written end, ``dropped_segments`` the oldest ones beyond the bound. ``error`` is ``None``
    while all is well.
    """

    written: int = 0
    lost: int = 0
    cut_bytes: int = 0
    dropped_segments: int = 0
    error: str | None = None


class DecisionTrail:
    """Appends to ``folder``; one process at a time (the ledger's lock sees to that).

    ``kept`` is what was found there. ``append`` may be called from any one thread and never blocks.
    """

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        segment_s: float = SEGMENT_S,
        queue_records: int = QUEUE_RECORDS,
    ) -> None:
        """Look at what is there and mend its end. What cannot be read or written is told in ``state``, not raised."""
        self.folder = folder
        self.state = TrailState()
        self.kept = Kept()
        self._most_bytes = most_bytes
        self._segment_bytes = max(LEAST_SEGMENT_BYTES, min(segment_bytes, most_bytes // SHARE_OF_BOUND))
        self._segment_s = segment_s
        self._queue: queue.Queue[Base | Decided | None] = queue.Queue(queue_records)
        self._chain = Chain()
        self._file: int | None = None
        self._segment: Segment | None = None
        self._bytes = 0
        self._opened_s = time.monotonic()
        self._expected: int | None = None
        self._thread: threading.Thread | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tidy(folder)
            self._find()
        except (OSError, TrailFault) as error:
            self._failed(error)

    def _find(self) -> None:
        """Go on behind the newest record: in its segment where that is plain, else in a new one."""
        for segment in reversed(segments_of(self.folder)):
            found = _records(segment)
            self.state = replace(self.state, cut_bytes=self.state.cut_bytes + found.cut_bytes)
            if found.records:
                self._chain.last = str(found.records[-1]["hash"])
                self.kept = _kept(found.records)
                if not segment.packed:
                    self._file = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                    self._segment, self._bytes = segment, os.fstat(self._file).st_size
                return
            segment.path.unlink()

    # The adviser's thread

    def append(self, record: Base | Decided) -> bool:
        """Take a record to be written; ``False`` when too many wait. Sequences rise by one from a base on."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            return False
        return True

    def start(self) -> None:
        """Write in a thread until ``close``."""
        self._thread = threading.Thread(target=self._run, name="joulegate-trail", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = STOP_WAIT_S) -> bool:
        """Write what waits and stop; ``False`` when that takes longer. Safe to call twice."""
        if self._thread is None:
            return True
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return False
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._thread = None
        return True

    # The trail's thread

    def _run(self) -> None:
        self._pack_left()
        while (record := self._queue.get()) is not None:
            try:
                self._take(record)
            except (OSError, TrailFault, ValueError) as error:
                self._failed(error)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take(self, record: Base | Decided) -> None:
        if isinstance(record, Base):
            self._take_base(record)
        elif record.sequence == self._expected and self._file is not None:
            self._write(self._file, record)
            self._expected = record.sequence + 1

    def _take_base(self, base: Base) -> None:
        """Only here a segment begins, and only here the trail goes on after a loss, which the base then names."""
        lost = 0 if self._expected is None else base.sequence - self._expected
        if lost > 0:
            why = self.state.error or "more waited than are kept in memory"
            base = replace(base, why=Why.GAP, gap=f"{lost} decisions were not written: {why}")
        if self._file is None or self._is_full():
            self._begin(base)
        else:
            self._write(self._file, base)
        self._expected = base.sequence
        self.state = replace(self.state, lost=self.state.lost + max(0, lost), error=None)

    def _is_full(self) -> bool:
        return self._bytes >= self._segment_bytes or time.monotonic() - self._opened_s >= self._segment_s

    def _begin(self, base: Base) -> None:
        """A new segment; only once its base is on disk is the one before let go and compressed."""
        segment = Segment(segment_path(self.folder, base.sequence), base.sequence)
        bytes_before, self._bytes = self._bytes, 0
        file = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._write(file, base)
        except BaseException:
            self._bytes = bytes_before
            os.close(file)
            segment.path.unlink(missing_ok=True)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._segment, self._opened_s = file, segment, time.monotonic()
        self._pack_left()

    def _write(self, file: int, record: Base | Decided) -> None:
        """Append one record whole, or leave file and chain as they were and raise."""
        last = self._chain.last
        try:
            content = memoryview(self._chain.line(record).encode("ascii"))
            written = 0
            while written < len(content):
                written += os.write(file, content[written:])
        except BaseException:
            self._chain.last = last
            os.ftruncate(file, self._bytes)
            raise
        self._bytes += written
        self.state = replace(self.state, written=self.state.written + 1)

    def _failed(self, error: Exception) -> None:
        """Count on nothing until the next base: the records between are lost, and it says so."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        if self.state.error != reason:
            _LOG.warning(
                "%s: the audit trail of recommendations cannot be written (%s); recommendations go on without it, free "
                "space or check the folder's owner and mode",
                self.folder,
                reason,
            )
        self.state = replace(self.state, error=reason)

    def _pack_left(self) -> None:
        """Compress finished segments and drop the oldest beyond the bound; what fails is tried again with the next."""
        try:
            others = [s for s in segments_of(self.folder) if self._segment is None or s.first != self._segment.first]
            finished = [segment if segment.packed else pack(segment) for segment in others]
            sizes = {segment: segment.path.stat().st_size for segment in finished}
            room = self._most_bytes - self._segment_bytes
            while sizes and sum(sizes.values()) > room:
                oldest = finished.pop(0)
                oldest.path.unlink()
                del sizes[oldest]
                self.state = replace(self.state, dropped_segments=self.state.dropped_segments + 1)
        except (OSError, TrailFault) as error:
            _LOG.warning("%s: a finished segment of the audit trail cannot be tidied: %s", self.folder, error)


def _records(segment: Segment) -> Mended:
    if not segment.packed:
        return mend(segment)
    records = (record_of(line) for line in lines_of(segment))
    return Mended(tuple(record for record in records if record is not None), 0)


def _kept(records: Sequence[Mapping[str, Any]]) -> Kept:
    newest = records[-1]
    sequence = newest["sequence"] if newest["kind"] == "decision" else newest["sequence"] - 1
    at = max((i for i, record in enumerate(records) if record["kind"] == "base"), default=None)
    if at is None or any(hash_of(record) != record["hash"] for record in records[at:]):
        return Kept(sequence)
    return Kept(sequence, records[at], tuple(records[at + 1 :]))

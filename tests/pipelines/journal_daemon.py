"""A small real daemon for the socket tests: it journals spans durably, then acknowledges and publishes figures.

``python journal_daemon.py SOCKET JOURNAL`` serves until it is killed; started again, it goes on from its journal.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from joulegate.metering.entry import DeviceUse, RequestEntry, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Outcome, Span
from joulegate.metering.wire import span_from_wire, span_to_wire
from joulegate.pipelines.socket_server import (
    Limits,
    Message,
    MessagesDropped,
    SocketServer,
    SpanBegan,
    SpanEnded,
    Ticket,
)
from joulegate.pipelines.visible import KnownDevice

COMMIT_S = 0.005
ENERGY_MJ_AN_IMAGE = 1_500
TWO_GPUS = (KnownDevice("GPU-aaaa", 0, "gpu"), KnownDevice("GPU-bbbb", 1, "gpu"))


class JournalIngest:
    """Spans by request id, each kept once; a thread commits them to ``journal`` and reports to ``server``."""

    def __init__(self, journal: Path, room: int = 100_000) -> None:
        self.spans: dict[str, Span] = {}
        self.ends: dict[str, SpanEnded] = {}
        self.repeated = 0
        self.dropped = 0
        self.server: SocketServer | None = None
        self.room = room
        self._waiting: list[tuple[Message, Ticket]] = []
        self._journal = journal
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        if journal.exists():
            whole, _, torn = journal.read_text().rpartition("\n")
            if torn:  # killed in the middle of a line, which was never acknowledged
                journal.write_text(whole + "\n" if whole else "")
            self._restore(whole)

    def start(self, server: SocketServer) -> None:
        """Begin to commit."""
        self.server = server
        self._thread.start()

    def close(self) -> None:
        """Stop committing."""
        self._stop.set()
        self._thread.join()

    def submit(self, message: Message, ticket: Ticket) -> bool:
        """Take a message, if there is room."""
        if len(self._waiting) >= self.room:
            return False
        self._waiting.append((message, ticket))
        return True

    def lookup(self, request_id: str) -> RequestEntry | None:
        """Pending once begun, final once ended."""
        span = self.spans.get(request_id)
        return None if span is None else entry_of(span, request_id, self.ends.get(span.request_id))

    def devices(self) -> Sequence[KnownDevice]:
        """Two GPUs."""
        return TWO_GPUS

    def _run(self) -> None:
        with self._journal.open("a") as journal:
            while not self._stop.wait(COMMIT_S):
                count = len(self._waiting)
                batch, self._waiting[:count] = self._waiting[:count], []
                touched = [request_id for message, _ in batch for request_id in self._apply(message, journal)]
                journal.flush()
                os.fsync(journal.fileno())
                self.server.acknowledge(ticket for _, ticket in batch)
                entries = (self.lookup(request_id) for request_id in touched)
                self.server.publish(entry for entry in entries if entry is not None)

    def _apply(self, message: Message, journal) -> tuple[str, ...]:
        if isinstance(message, MessagesDropped):
            self.dropped += message.count
            return ()
        if isinstance(message, SpanBegan):
            request_id = message.span.request_id
            self.repeated += request_id in self.spans
            if request_id not in self.spans:
                self.spans[request_id] = message.span
                self.spans.update((member.request_id, message.span) for member in message.span.members)
                journal.write(json.dumps({"begin": span_to_wire(message.span)}) + "\n")
            return tuple(member.request_id for member in message.span.members)
        self.repeated += message.request_id in self.ends
        if message.request_id not in self.ends:
            self.ends[message.request_id] = message
            journal.write(json.dumps({"end": [message.request_id, message.ended_s, message.outcome]}) + "\n")
        span = self.spans.get(message.request_id)
        return () if span is None else tuple(member.request_id for member in span.members)

    def _restore(self, text: str) -> None:
        for line in text.splitlines():
            record = json.loads(line)
            if "begin" in record:
                span = span_from_wire(record["begin"], now_s=0.0, wall_s=0.0)
                self.spans.update((member.request_id, span) for member in span.members)
                self.spans[span.request_id] = span
            else:
                request_id, ended_s, outcome = record["end"]
                self.ends[request_id] = SpanEnded(request_id, ended_s, Outcome(outcome))


def entry_of(span: Span, request_id: str, end: SpanEnded | None) -> RequestEntry:
    """Figures that a test can foretell: ``ENERGY_MJ_AN_IMAGE`` for each image."""
    work = next(member.work for member in span.members if member.request_id == request_id)
    energy_mj = ENERGY_MJ_AN_IMAGE * (work.images or 1)
    return RequestEntry(
        request_id=request_id,
        status=Status.PENDING if end is None else Status.FINAL,
        outcome=Outcome.OK if end is None else end.outcome,
        work=work,
        started_s=span.started_s,
        ended_s=span.started_s if end is None else end.ended_s,
        start_source=span.start_source,
        energy_mj=energy_mj,
        u_measurement_mj=300,
        u_allocation_mj=400,
        method=Method.SIMULATED,
        quality=Quality.SIMULATED,
        model=span.model,
        tier=span.tier,
        tenant=span.tenant,
        devices={device: DeviceUse(energy_mj // len(span.devices)) for device in span.devices},
    )


class DaemonThread:
    """``SocketServer`` and ``JournalIngest`` on an event loop of their own, in this process."""

    def __init__(self, socket_path: Path, journal: Path, limits: Limits | None = None, room: int = 100_000) -> None:
        self.ingest = JournalIngest(journal, room)
        self.server = SocketServer(socket_path, self.ingest, limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self._loop).result(5)
        self.ingest.start(self.server)
        return self

    def __exit__(self, *_error: object) -> None:
        self.ingest.close()
        asyncio.run_coroutine_threadsafe(self.server.close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _serve(socket_path: Path, journal: Path) -> None:
    ingest = JournalIngest(journal)
    server = SocketServer(socket_path, ingest)
    await server.start()
    ingest.start(server)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2])))

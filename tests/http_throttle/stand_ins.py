"""Implementations of the throttle ports: a board to publish on, a decider with a table, a trail in memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
from fastapi import FastAPI
from tests.http.stand_ins import JournalIngest, SetClock, Shelf

from joulegate.http.app import create_app
from joulegate.http.parts import Parts, ThrottleParts
from joulegate.http.ports import LedgerReader
from joulegate.http.server import serve
from joulegate.http.throttle_bytes import prepare
from joulegate.http.throttle_ports import Ask, Prepared, TrailPage
from joulegate.throttle.decision import Decision, RateWindow
from joulegate.throttle.recommendation import (
    Action,
    Binding,
    Code,
    FailSafe,
    Reason,
    Recommendation,
    State,
    TierLimit,
)

KEPT = 64
PROBLEM = "application/problem+json"
FREE = TierLimit(Action.LIMIT, 34.0, 0.09, 3.0, 20.0, images_per_tenant_day=3)
PRO = TierLimit(Action.ADMIT, 140.0, 1.0, 15.0, 0.0)


def recommendation(decision_id: str = "d1", **fields: object) -> Recommendation:
    """A recommendation of a hot host, but for what is given."""
    whole = Recommendation(
        decision_id=decision_id,
        t=12.0,
        state=State.CONSTRAINED,
        binding=Binding.THERMAL,
        confidence=0.93,
        reasons=(
            Reason(Code.THERMAL_HEADROOM_LOW, 84.0, 85.5, "C", "GPU-3", 85.4, 25.0),
            Reason(Code.DEMAND_EXCEEDS_CAPACITY, 609.0, 174.0, "images/min"),
        ),
        max_images_per_minute=174.0,
        admit_fraction=0.28,
        max_concurrency=24,
        power_cap_w={"GPU-3": 565.0},
        host_power_cap_w=4520.0,
        tiers={"pro": PRO, "free": FREE},
        fail_safe=FailSafe(10.0, 0.25, 400.0),
        inputs={"telemetry_age_s": 0.6, "grid_age_s": None},
        ttl_s=10.0,
        poll_after_s=5.0,
        explain="Free tier held to 34 a minute: GPU-3 would pass 85.5 °C in 25 s.",
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


class Board:
    """Recommendations as they are published, the last ``KEPT`` of them, and who waits for the next."""

    def __init__(self) -> None:
        self.kept: deque[Prepared] = deque(maxlen=KEPT)
        self.waiting = 0
        self._change = asyncio.Event()
        self._moved = asyncio.Event()

    def publish(self, decision_id: str, **fields: object) -> Prepared:
        """Make it the newest and wake everybody."""
        sequence = self.kept[-1].sequence + 1 if self.kept else 0
        prepared = prepare(recommendation(decision_id, **fields), sequence, time.monotonic())
        self.kept.append(prepared)
        self._change.set()
        self._change = asyncio.Event()
        return prepared

    def newest(self) -> Prepared | None:
        """The last one."""
        return self.kept[-1] if self.kept else None

    def after(self, sequence: int) -> Sequence[Prepared]:
        """Those later than ``sequence``."""
        return [prepared for prepared in self.kept if prepared.sequence > sequence]

    async def changed(self, sequence: int, timeout_s: float) -> Prepared | None:
        """Wait."""
        self._count(1)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    newest, change = self.newest(), self._change
                    if newest is not None and newest.sequence > sequence:
                        return newest
                    await change.wait()
        except TimeoutError:
            return None
        finally:
            self._count(-1)

    async def until_waiting(self, *counts: int) -> None:
        """Give way until so many wait for a change."""
        async with asyncio.timeout(10):
            while self.waiting not in counts:
                await self._moved.wait()

    def _count(self, step: int) -> None:
        self.waiting += step
        self._moved.set()
        self._moved = asyncio.Event()


def decision(**fields: object) -> Decision:
    """A yes for the free tier, but for what is given."""
    whole = Decision(
        allow=True,
        tier="free",
        reason="admitted",
        detail="1 admitted in tier free: 2 left in the bucket",
        retry_after_s=0.0,
        remaining=2.0,
        decision_id="d1",
        window=RateWindow("free", 34, 60, 2, 4),
        quota=RateWindow("free-day", 3, 86_400, 2, 3_600),
        unknown_tier=False,
        cost=1.0,
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


REFUSED = decision(
    allow=False,
    reason="rate",
    detail="tier free may start 34 units a minute and holds 0.2 of the 1 asked for",
    retry_after_s=2.4,
    remaining=0.2,
    window=RateWindow("free", 34, 60, 0, 2),
)


@dataclass
class Table:
    """Answers by tier: pro gets a yes, free what is set, any other tier what the last gets."""

    free: Decision = field(default_factory=decision)
    asks: list[Ask] = field(default_factory=list)
    fault: Exception | None = None

    async def decide(self, ask: Ask) -> Decision:
        """Look it up and remember the question."""
        if self.fault is not None:
            raise self.fault
        self.asks.append(ask)
        if ask.tier == "pro":
            return decision(tier="pro", window=RateWindow("pro", 140, 60, 15, 6), quota=None, cost=ask.cost)
        return replace(self.free, unknown_tier=ask.tier != "free", cost=ask.cost)


@dataclass
class Records:
    """A trail of numbered records; ``since`` is a decision id."""

    items: list[Mapping[str, object]] = field(default_factory=list)
    fault: Exception | None = None

    async def decisions(self, since: str | None, limit: int) -> TrailPage:
        """A page."""
        if self.fault is not None:
            raise self.fault
        ids = [item["decision_id"] for item in self.items]
        if since is not None and since not in ids:
            raise ValueError("is not a decision of this trail")
        start = 0 if since is None else ids.index(since) + 1
        page = self.items[start : start + limit]
        more = start + limit < len(self.items)
        return TrailPage(page, str(page[-1]["decision_id"]) if more else None)

    async def decision(self, decision_id: str) -> Mapping[str, object] | None:
        """One."""
        if self.fault is not None:
            raise self.fault
        return next((item for item in self.items if item["decision_id"] == decision_id), None)


@dataclass
class Queues:
    """Remembers reports."""

    reports: list[dict[str, float]] = field(default_factory=list)

    def report(self, queue: Mapping[str, float]) -> None:
        """Remember."""
        self.reports.append(dict(queue))


@dataclass
class ThrottleWorld:
    """The application's parts and what the test holds of them."""

    ledger: LedgerReader
    ingest: JournalIngest
    board: Board = field(default_factory=Board)
    table: Table = field(default_factory=Table)
    trail: Records = field(default_factory=Records)
    queues: Queues = field(default_factory=Queues)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def parts(self, *, hosts: tuple[str, ...] = (), **changed: object) -> Parts:
        """The parts, with some of the throttle's changed."""
        throttle = ThrottleParts(self.board, self.table, self.trail, self.queues, stop=self.stop)
        return Parts(
            Shelf(),
            self.ledger,
            self.ingest,
            clock=SetClock(),
            throttle=replace(throttle, **changed),  # type: ignore[arg-type]
            hosts=hosts,
        )

    def app(self, *, hosts: tuple[str, ...] = (), **changed: object) -> FastAPI:
        """The application over them."""
        return create_app(self.parts(hosts=hosts, **changed))

    def client(self, *, hosts: tuple[str, ...] = (), **changed: object) -> httpx.AsyncClient:
        """A client without a network."""
        transport = httpx.ASGITransport(self.app(hosts=hosts, **changed), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9288")

    @asynccontextmanager
    async def running(self, *, hosts: tuple[str, ...] = (), **changed: object) -> AsyncIterator[str]:
        """The real server on a free port until the end of the block or until ``stop`` is set."""
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        app = self.app(hosts=hosts, **changed)
        task = asyncio.create_task(serve(app, "127.0.0.1", 0, stop=self.stop, ready=ready.set_result, grace_s=30))
        try:
            yield f"http://127.0.0.1:{await asyncio.wait_for(ready, 10)}"
        finally:
            self.stop.set()
            await asyncio.wait_for(task, 10)


def client_of(base: str, connections: int = 40) -> httpx.AsyncClient:
    """A client of the server at ``base``; plain HTTP needs none of the certificates, whose loading takes its time."""
    limits = httpx.Limits(max_connections=connections)
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(verify=False, limits=limits), base_url=base, timeout=20)


async def connect(base: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection to the server."""
    host, _, port = base.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def raw(base: str, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and the rest of what comes back for bytes that the test wrote itself."""
    reader, writer = await connect(base)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


class Events:
    """Reads a stream of server-sent events frame by frame."""

    def __init__(self, answer: httpx.Response) -> None:
        self._chunks = answer.aiter_text()
        self._text = ""

    async def frame(self) -> str:
        """The next frame, comments too; raises ``StopAsyncIteration`` at the end."""
        async with asyncio.timeout(10):
            while "\n\n" not in self._text:
                self._text += await anext(self._chunks)
        frame, _, self._text = self._text.partition("\n\n")
        return frame

    async def event(self) -> tuple[str, dict[str, object]]:
        """Id and data of the next event; what is no event is passed over."""
        while not (frame := await self.frame()).startswith("id:"):
            pass
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        assert fields["event"] == "recommendation"
        return fields["id"], json.loads(fields["data"])

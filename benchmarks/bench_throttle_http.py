"""Throttle queries a second against a bare ASGI app that returns the same bytes, on the same server, in one run.

    python benchmarks/bench_throttle_http.py [--seconds 1] [--rounds 7] [--connections 16] [--json]

Two processes with the agent's own server (uvicorn, uvloop, httptools): one answers every request with the same bytes
from ten lines of ASGI, the other is the whole application over the real decider with in-memory quotas. wrk loads one
path after the other, in interleaved rounds, so that a machine that slows down slows all of them. Medians are shown with
the lowest and highest round; ``of bare`` is the median of the rounds' own ratios. ``bare, body`` sends the body with
two headers, which is the harder rival; ``bare, answer`` sends every header too. The bars are at least 70 % of ``bare,
body`` for ``GET /v1/throttle`` and its p99 under 5 ms plus that of the bare app. ``refused`` counts the answers of
``authz`` that were no 2xx: under such a load the buckets and quotas are empty. ``cpu us`` is what one request costs the
server's process, which other work on the machine disturbs least; it is for information.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

RATIO_BAR, P99_BAR_MS = 0.70, 5.0
RIVAL, JUDGED = "bare, body", "throttle"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_DECIDE = """
wrk.method = "POST"
wrk.body = '{"tier": "free", "tenant": "acme", "cost": 1}'
wrk.headers["Content-Type"] = "application/json"
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request: which server answers it, its path, and what wrk is told beside."""

    name: str
    server: str
    path: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: its process, its port and the tag of what it serves."""

    pid: int
    port: int
    tag: str

    @property
    def cpu_s(self) -> float:
        """CPU time of the process since its start."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Round:
    """One stretch: requests a second, percentiles, answers that were no 2xx or 3xx, the server's CPU time a request."""

    rps: float
    p50_ms: float
    p99_ms: float
    others: int
    cpu_us: float


def cases(script: Path, etag: str) -> list[Case]:
    return [
        Case("bare, answer", "bare", "/answer"),
        Case(RIVAL, "bare", "/body"),
        Case(JUDGED, "full", "/v1/throttle"),
        Case("throttle, 304", "full", "/v1/throttle", ("-H", f"If-None-Match: {etag}")),
        Case("tiers/free", "full", "/v1/throttle/tiers/free"),
        Case("scale", "full", "/v1/throttle/scale"),
        Case("authz, pro", "full", "/v1/throttle/authz/v1/images", ("-H", "X-Tier: pro", "-H", "X-Cost: 0.5")),
        Case("authz, free", "full", "/v1/throttle/authz", ("-H", "X-Tier: free", "-H", "X-Tenant: acme")),
        Case("decide", "full", "/v1/throttle/decide", ("-s", str(script))),
    ]


def newest() -> Any:
    """What eight busy boards would get: made by the real adviser."""
    from joulegate.http.throttle_bytes import prepare
    from joulegate.throttle.adviser import Adviser
    from joulegate.throttle.settings import ThrottleSettings

    adviser = Adviser(ThrottleSettings())
    for step in range(1, 121):
        devices = [
            {"id": f"GPU-{n}", "up": True, "temperature_c": 70 + min(step, 12), "power_w": 650.0, "utilization": 1.0,
             "energy_j": 650.0 * step, "power_limit_w": 700, "power_limit_min_w": 200, "power_limit_max_w": 700,
             "max_operating_c": 87, "slowdown_c": 89, "clock_events": []}
            for n in range(8)
        ]  # fmt: skip
        arrivals = {"free": 6, "plus": 2, "pro": 1}
        made = adviser.advise({"t": float(step), "devices": devices, "images_done": 3.0, "arrivals": arrivals})
    # Never old: while the load runs nothing publishes, and the decider would rightly call the newest stale.
    return prepare(made, 0, time.monotonic() + 3600.0)


class OneReader:
    """Holds one recommendation."""

    def __init__(self) -> None:
        self._newest = newest()

    def newest(self) -> Any:
        """That one."""
        return self._newest

    def after(self, _sequence: int) -> list[Any]:
        """None."""
        return []

    async def changed(self, _sequence: int, timeout_s: float) -> None:
        """Never."""
        await asyncio.sleep(timeout_s)


def full_app(reader: OneReader) -> Any:
    """The application with the real decider; of the parts that throttle queries do not reach there is none."""
    from joulegate.daemon.deciding import Deciding
    from joulegate.http.app import create_app
    from joulegate.http.parts import Parts, ThrottleParts
    from joulegate.stores.quota import Quotas
    from joulegate.throttle.settings import ThrottleSettings, Tier

    settings = ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, "3/day")))
    nothing = cast("Any", None)
    throttle = ThrottleParts(reader, Deciding(settings, reader, Quotas()), nothing, nothing)
    return create_app(Parts(nothing, nothing, nothing, throttle=throttle, hosts=("127.0.0.1", "localhost")))


def bare_app(reader: OneReader) -> Any:
    """The same bytes from as little ASGI as there can be."""
    from joulegate.http.throttle_pages import ROOT, pages_of

    page = pages_of(reader.newest()).by_path[ROOT].whole
    body = bytes(page.body)
    few = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    heads = {"/body": few, "/answer": page.raw_headers}

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": heads[scope["path"]]})
        await send({"type": "http.response.body", "body": body})

    return app


def serve_one(name: str) -> None:
    """One of the two servers, until stdin closes; its first line is its port and the newest tag."""
    from joulegate.http.server import new_event_loop, serve

    reader = OneReader()
    app = full_app(reader) if name == "full" else bare_app(reader)

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), stop.set)
        tag = reader.newest().etag.decode()
        await serve(app, "127.0.0.1", 0, stop=stop, ready=lambda port: print(port, tag, flush=True))

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())


@contextmanager
def running(name: str) -> Iterator[Server]:
    """A server in a process of its own."""
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port, _, tag = process.stdout.readline().strip().partition(" ")
            yield Server(process.pid, int(port), tag)
        finally:
            process.stdin.close()
            process.wait(20)


def load(case: Case, server: Server, seconds: int, connections: int) -> Round:
    """One stretch of wrk."""
    began_s = server.cpu_s
    url = f"http://127.0.0.1:{server.port}{case.path}"
    shape = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    done = subprocess.run(["wrk", *shape, *case.options, url], capture_output=True, text=True, check=True)
    cpu_s = server.cpu_s - began_s
    found = re.search(r"(\d+) requests in .*Requests/sec:\s*([\d.]+)", done.stdout, re.DOTALL)
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    assert found is not None, done.stdout
    percentiles = [_percentile_ms(done.stdout, percent) for percent in (50, 99)]
    refused = 0 if others is None else int(others[1])
    return Round(float(found[2]), *percentiles, refused, 1e6 * cpu_s / int(found[1]))


def _percentile_ms(text: str, percent: int) -> float:
    found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found[1]) * _MS[found[2]]


def measure(seconds: int, rounds: int, connections: int) -> list[dict[str, object]]:
    with running("bare") as bare, running("full") as full, tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "decide.lua"
        script.write_text(_DECIDE)
        kinds = cases(script, full.tag)
        servers = {"bare": bare, "full": full}
        for case in kinds:
            load(case, servers[case.server], 1, connections)
        seen: dict[str, list[Round]] = {case.name: [] for case in kinds}
        for number in range(rounds):
            for case in kinds if number % 2 else reversed(kinds):
                seen[case.name].append(load(case, servers[case.server], seconds, connections))
    return [_row(name, stretches, seen[RIVAL]) for name, stretches in seen.items()]


def _row(name: str, stretches: list[Round], rival: list[Round]) -> dict[str, object]:
    rps = [stretch.rps for stretch in stretches]
    of_bare = statistics.median(one.rps / other.rps for one, other in zip(stretches, rival, strict=True))
    bare_p99_ms = statistics.median(stretch.p99_ms for stretch in rival)
    p99_ms = statistics.median(stretch.p99_ms for stretch in stretches)
    row: dict[str, object] = {
        "what": name, "rps": statistics.median(rps), "rps_min": min(rps), "rps_max": max(rps),
        "of_bare": of_bare, "p50_ms": statistics.median(s.p50_ms for s in stretches),
        "p99_ms": p99_ms, "refused": sum(stretch.others for stretch in stretches),
        "cpu_us": statistics.median(stretch.cpu_us for stretch in stretches),
    }  # fmt: skip
    if name == JUDGED:
        met = of_bare >= RATIO_BAR and p99_ms <= P99_BAR_MS + bare_p99_ms
        row |= {"ratio_bar": RATIO_BAR, "p99_bar_ms": P99_BAR_MS + bare_p99_ms, "met": met}
    return row


def show(rows: list[Mapping[str, Any]]) -> None:
    print(
        f"{'':<20}{'req/s':>9}{'min':>9}{'max':>9}{'of bare':>9}{'p50 ms':>9}{'p99 ms':>9}{'cpu us':>9}{'refused':>10}"
    )
    for row in rows:
        line = f"{row['what']:<20}{row['rps']:>9.0f}{row['rps_min']:>9.0f}{row['rps_max']:>9.0f}{row['of_bare']:>9.0%}"
        line += f"{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['cpu_us']:>9.1f}{row['refused']:>10}"
        if "met" in row:
            bars = f">= {row['ratio_bar']:.0%}, p99 <= {row['p99_bar_ms']:.2f} ms"
            line += f"  {bars}: {'met' if row['met'] else 'MISSED'}"
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=("bare", "full"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve_one(options.serve)
        return 0
    if shutil.which("wrk") is None:
        print("no program wrk here: apt-get install wrk", file=sys.stderr)
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = measure(options.seconds, options.rounds, options.connections)
    if options.json:
        print(json.dumps(rows))
    else:
        show(rows)
    return 0 if all(row.get("met", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""SIGKILL at any instant, under load from the socket and from HTTP: nothing acknowledged is lost or counted twice."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from tests.daemon.parts import check_books
from tests.e2e.service import Service

from joulegate.metering.entry import Status
from joulegate.pipelines.courier import Pace
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.socket_client import SocketSink
from joulegate.stores import Ledger, LedgerReader

LIVES = 12
KILLED_AT_START = (3, 7, 11)
KILLS = LIVES + len(KILLED_AT_START)
CONTINUED_KILLS = 8
ALL_TIME = "/v1/energy?from=2020-01-01T00:00:00Z&to=2035-01-01T00:00:00Z"
QUICK = Pace(first_retry_s=0.02, slowest_retry_s=0.2)


def rfc3339(wall_s: float) -> str:
    """Unix seconds as the API takes them."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat().replace("+00:00", "Z")


class Load:
    """Requests through the socket and posts over HTTP, until it is stopped; remembers what was acknowledged."""

    def __init__(self, socket: Path) -> None:
        self.url = ""
        self.posted: list[str] = []
        self.made: list[str] = []
        self.sink = SocketSink(socket, {}, QUICK)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._generate), threading.Thread(target=self._post)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and leave no request open."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _generate(self) -> None:
        meter, number = Meter(self.sink), 0
        while not self._stop.is_set():
            number += 1
            with meter.request("sdxl", images=1, request_id=f"socket-{number}"):
                self._stop.wait(0.03)
            self.made.append(f"socket-{number}")

    def _post(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            request_id, now_s = f"post-{number}", time.time()
            body = {"spans": [{"request_id": request_id, "started": rfc3339(now_s - 0.2), "ended": rfc3339(now_s)}]}
            try:
                answer = httpx.post(self.url + "/v1/spans", json=body, timeout=3)
            except httpx.HTTPError:
                self._stop.wait(0.02)
                continue
            if answer.status_code == 202:
                self.posted.append(request_id)


def test_kill_9_under_load(tmp_path: Path) -> None:
    """After fifteen kills every acknowledged span is final exactly once, every account closes, no total ever fell."""
    chance = random.Random(7)
    state_dir = tmp_path / "state"
    load = Load(state_dir / "joulegate.sock")
    last: dict[str, int] = {}
    service = Service(state_dir, "--source", "twin", JOULEGATE_TWIN__GPUS="2", JOULEGATE_METERING__HOLD_S="0.3").ready()
    load.url = service.url
    load.start()
    try:
        for life in range(LIVES):
            totals = service.get(ALL_TIME)["totals"]
            for name in ("device_mj", "requests_mj"):
                assert totals[name] >= last.get(name, 0), (life, name)
            last = totals
            time.sleep(chance.uniform(0.0, 0.4))
            last = service.get(ALL_TIME)["totals"] if life % 3 == 0 else last
            service.kill()
            service = Service(state_dir, "--source", "twin", JOULEGATE_TWIN__GPUS="2", JOULEGATE_METERING__HOLD_S="0.3")
            if life in KILLED_AT_START:
                time.sleep(chance.uniform(0.2, 0.6))
                service.kill()
                service = Service(
                    state_dir, "--source", "twin", JOULEGATE_TWIN__GPUS="2", JOULEGATE_METERING__HOLD_S="0.3"
                )
            load.url = service.ready().url
        load.stop()
        wanted = set(load.made) | set(load.posted)
        until_s = time.monotonic() + 30
        while True:
            found = service.requests()
            missing = {i for i in wanted if i not in found or found[i]["status"] != "final"}
            if not missing or time.monotonic() > until_s:
                break
            time.sleep(0.2)
        assert not missing, f"{len(missing)} of {len(wanted)} are not final: {sorted(missing)[:5]}"
        assert load.sink.dropped == 0
        assert all(found[i]["quality"] in ("simulated", "missing") for i in wanted)
        assert service.get("/v1/devices")["devices"][0]["epoch"] >= 3
    finally:
        load.stop()
        load.sink.close()
        service.kill()
    pending_mj, energies = check_books(state_dir)
    assert wanted <= set(energies)
    assert pending_mj == 0
    print(f"{KILLS} kills: {len(load.made)} spans by socket, {len(load.posted)} by HTTP, none lost")
    assert len(wanted) > 50


def test_kill_9_on_a_counter_that_goes_on(tmp_path: Path) -> None:
    """Where the counter outlives the daemon, the total after all kills is exactly what the counter rose by."""
    chance = random.Random(11)
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    command = ("-m", "tests.e2e.counter_daemon", str(state_dir))
    sink = SocketSink(state_dir / "joulegate.sock", {}, QUICK)
    meter, ids = Meter(sink), []
    service = Service(state_dir, command=command).ready()
    through = meter.start("video", request_id="through")
    first = None
    try:
        for life in range(CONTINUED_KILLS):
            for number in range(3):
                with meter.request("sdxl", request_id=f"r{life}-{number}"):
                    time.sleep(chance.uniform(0.01, 0.1))
                ids.append(f"r{life}-{number}")
            time.sleep(chance.uniform(0.05, 0.4))
            service.kill()
            if first is None:
                with Ledger(state_dir) as ledger:
                    first = ledger.restore().positions[0]
                first_mj = first.counter_mj - first.total_mj
            time.sleep(chance.uniform(0.0, 0.2))
            service = Service(state_dir, command=command).ready()
        through.stop()
        for request_id in [*ids, "through"]:
            entry = sink.wait(request_id, 10.0)
            assert entry is not None, request_id
            assert entry.status is Status.FINAL
        service.kill()
    finally:
        sink.close()
        service.kill()
    with Ledger(state_dir) as ledger:
        position = ledger.restore().positions[0]
    reader = LedgerReader(state_dir)
    totals = reader.energy(0, 4e9, ()).totals
    entry = reader.request("through")
    reader.close()
    assert position.epoch == 0
    assert totals.device_mj == position.counter_mj - first_mj == position.total_mj
    assert totals.estimated_mj == 0
    pending_mj, energies = check_books(state_dir)
    assert pending_mj == 0
    assert set(energies) == {*ids, "through"}
    assert "gap" in entry.flags or entry.ended_s - entry.started_s < 8
    shared_mj = sum(energies[i] for i in ids)
    assert entry.energy_mj == pytest.approx(100_000 * (entry.ended_s - entry.started_s) - shared_mj, rel=0.25)

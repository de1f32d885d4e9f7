"""A running daemon on the twin: every way in, every way out, faults on command, a graceful end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.daemon.parts import check_books
from tests.e2e.service import Service
from tests.e2e.test_kill import ALL_TIME, QUICK, rfc3339

from joulegate.pipelines.meter import Meter
from joulegate.pipelines.socket_client import SocketSink


@pytest.mark.usefixtures("no_leaks")
def test_from_socket_and_http_to_the_ledger(tmp_path: Path) -> None:
    """Spans by socket and HTTP, a batch, a running span that is closed later, an inferred start: all become final."""
    env = {"JOULEGATE_METERING__HOLD_S": "0.3", "JOULEGATE_TWIN__GPUS": "2", "JOULEGATE_METERING__SLOTS": "1"}
    with Service(tmp_path / "state", "--source", "twin", **env) as service:
        service.ready()
        sink = SocketSink(service.socket, {}, QUICK)
        meter = Meter(sink)
        now_s = time.time()
        assert service.post({"request_id": "open", "started": rfc3339(now_s), "devices": ["twin-1"]}).json() == {
            "accepted": 1,
            "duplicates": 0,
        }
        with meter.batch([{"request_id": "b1", "images": 1}, {"request_id": "b2", "images": 3}], "sdxl") as batch:
            time.sleep(0.6)
        now_s = time.time()
        first = {"request_id": "first", "arrived": rfc3339(now_s - 0.6), "ended": rfc3339(now_s - 0.3)}
        second = {"request_id": "second", "arrived": rfc3339(now_s - 0.6), "ended": rfc3339(now_s)}
        bodies = [{**body, "devices": ["twin-0"], "model": "sd"} for body in (first, second)]
        assert service.post(*bodies).json()["accepted"] == 2
        closing = {
            "request_id": "open",
            "started": rfc3339(now_s - 0.5),
            "ended": rfc3339(now_s),
            "devices": ["twin-1"],
        }
        assert service.post(closing, *bodies).json() == {"accepted": 1, "duplicates": 2}
        ids = {"open", "b1", "b2", "first", "second"}
        service.until("/v1/requests?status=final", lambda body: ids <= {item["request_id"] for item in body["items"]})
        found = service.requests()
        assert found["second"]["start_source"] == "fifo"
        assert found["second"]["started_wall_s"] == pytest.approx(found["first"]["ended_wall_s"], abs=1e-3)
        assert "inferred_start" in found["second"]["flags"]
        assert set(found["b1"]["devices"]) == {"twin-0", "twin-1"}
        assert found["b2"]["energy_mj"] == pytest.approx(3 * found["b1"]["energy_mj"], abs=6)
        assert batch.result(timeout=5).energy_j == pytest.approx(found["b1"]["energy_j"] + found["b2"]["energy_j"])
        assert all(item["quality"] == "simulated" for item in found.values())
        answer = service.get(ALL_TIME + "&by=device")
        totals = answer["totals"]
        assert totals["device_mj"] == totals["requests_mj"] + totals["idle_mj"] + totals["unattributed_mj"]
        sink.close()
        assert service.stop() == 0
    assert check_books(tmp_path / "state")[0] == 0


def test_faults_of_the_twin_by_command(tmp_path: Path) -> None:
    """A twin told to lose a board loses that board only, says so, and finds it again in a new epoch."""
    env = {
        "JOULEGATE_TWIN__GPUS": "2",
        "JOULEGATE_TWIN__FAULTS": "lost@1.5+2:twin-0",
        "JOULEGATE_METERING__HOLD_S": "0",
    }
    with Service(tmp_path / "state", "--source", "twin", **env) as service:
        service.ready()

        def boards(body: dict) -> dict[str, dict]:
            return {device["id"]: device for device in body["devices"]}

        lost = boards(service.until("/v1/devices", lambda body: not boards(body)["twin-0"]["up"]))
        assert lost["twin-1"]["up"]
        assert lost["twin-0"]["errors"]["GPU_IS_LOST"] > 0
        assert service.get("/readyz")["ready"]
        back = service.until("/v1/devices", lambda body: boards(body)["twin-0"]["epoch"] == 1)
        assert boards(back)["twin-0"]["up"]
        assert boards(back)["twin-1"]["epoch"] == 0
        assert service.stop() == 0


def test_sigterm_keeps_what_is_in_flight(tmp_path: Path) -> None:
    """A daemon that is told to stop has journalled what ended a moment ago, and the next one makes it final."""
    state = tmp_path / "state"
    with Service(state, "--source", "twin") as service:
        service.ready()
        time.sleep(1.0)
        now_s = time.time()
        assert service.post({"request_id": "last", "started": rfc3339(now_s - 0.4), "ended": rfc3339(now_s)}).is_success
        assert service.stop() == 0
    with Service(state, "--source", "twin") as service:
        service.ready()
        body = service.until("/v1/requests/last", lambda body: body.get("status") == "final")
        assert body["outcome"] == "ok"
        assert service.stop() == 0
    assert check_books(state)[0] == 0


def test_the_poll_rate_is_the_settings(tmp_path: Path) -> None:
    """``metering.poll_s`` is how often the source is read."""
    with Service(tmp_path / "state", "--source", "twin", JOULEGATE_METERING__POLL_S="0.5") as service:
        service.ready()
        time.sleep(2.0)
        text = service.until("/metrics", lambda text: "joulegate_agent_readings_total" in text)
        line = next(line for line in text.splitlines() if line.startswith("joulegate_agent_readings_total"))
        assert 2 <= float(line.split()[-1]) <= 8
        assert service.stop() == 0

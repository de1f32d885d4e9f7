"""A real daemon on the twin: it advises, decides, keeps its trail, survives kills, and its trail verifies."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.service import Service, run_command

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("daemon_throttle")]

CONFIG = """
[throttle]
budget_kwh = 1.0
[[throttle.tiers]]
name = "pro"
[[throttle.tiers]]
name = "free"
floor = 0.02
quota = "3/day"
"""


def started(folder: Path, config: str = CONFIG, **env: str) -> Service:
    """A daemon on the twin that has recommended something."""
    file = folder / "joulegate.toml"
    file.write_text(config)
    service = Service(folder / "state", "--source", "twin", "--config", str(file), **env)
    try:
        service.ready().until("/v1/throttle", lambda body: "state" in body)
        return service
    except BaseException:
        service.kill()
        raise


def verified(folder: Path) -> dict[str, Any]:
    """What ``joulegate advise --verify`` says of the trail, as JSON."""
    done = run_command("advise", "--verify", str(folder / "state"), "--json")
    assert done.stderr == ""
    return json.loads(done.stdout)


def later(service: Service, decision_id: str) -> Any:
    """The first recommendation that is another one."""
    return service.until("/v1/throttle", lambda body: body["decision_id"] != decision_id)


def rfc3339(wall_s: float) -> str:
    """Unix seconds as the wire has them."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat()


def span(name: str, **more: object) -> dict[str, object]:
    """A request that ran for a moment and has ended."""
    now_s = time.time()
    times = {"started": rfc3339(now_s - 0.3), "ended": rfc3339(now_s)}
    return {"request_id": name, "model": "sdxl", "images": 2, "steps": 30, "tier": "free", **times, **more}


def test_it_advises_decides_and_keeps_a_trail(tmp_path: Path) -> None:
    """Recommendation, authz, quota, queue, budget and trail on one daemon; after SIGTERM the whole trail verifies."""
    with started(tmp_path) as service:
        body = service.get("/v1/throttle")
        assert body["schema"] == "joulegate.throttle/v1"
        assert body["inputs"]["devices_simulated"] == 1.0
        assert 3.5e6 < body["inputs"]["energy_j_left"] <= 3.6e6
        headers = {"X-Tier": "free", "X-Tenant": "acme"}
        asked = [httpx.get(service.url + "/v1/throttle/authz", headers=headers, timeout=20) for _ in range(4)]
        assert [answer.status_code for answer in asked] == [200, 200, 200, 429]
        decided = httpx.post(service.url + "/v1/throttle/decide", json={"tier": "pro", "tenant": "acme"}, timeout=20)
        assert decided.json()["allow"] is True
        assert httpx.put(service.url + "/v1/throttle/queue", json={"free": 4}, timeout=20).status_code < 300
        later(service, body["decision_id"])
        page = service.until(
            "/v1/throttle/decisions?limit=1000",
            lambda page: any((item.get("observation") or {}).get("queue") for item in page["items"]),
        )
        decisions = [item for item in page["items"] if item["kind"] == "decision"]
        assert sum(item["observation"]["arrivals"]["free"] for item in decisions) == 4.0
        assert {item["observation"]["devices"][0]["quality"] for item in decisions} == {"simulated"}
        one = service.get(f"/v1/throttle/decisions/{body['decision_id']}")
        assert one["recommendation"] == body
        download = tmp_path / "download.json"
        download.write_text(json.dumps(page))
        assert service.stop() == 0
    assert run_command("advise", "--verify", str(download)).returncode == 0
    found = verified(tmp_path)
    assert found["ok"]
    assert found["notes"] == found["gaps"] == []
    assert found["decisions"] >= len(decisions)


def test_images_of_spans_are_demand_and_done(tmp_path: Path) -> None:
    """Where no gateway asks, spans told to the daemon are its arrivals and its finished images, each once."""
    with started(tmp_path, JOULEGATE_METERING__HOLD_S="0.3") as service:
        time.sleep(0.5)
        assert service.post(span("a"), span("b", tier="pro", images=1)).status_code < 300
        service.until("/v1/requests", lambda body: {item["status"] for item in body["items"]} == {"final"})

        def observed(page: dict[str, Any]) -> list[dict[str, Any]]:
            return [item["observation"] for item in page["items"] if item["kind"] == "decision"]

        page = service.until(
            "/v1/throttle/decisions?limit=1000", lambda page: any("work" in one for one in observed(page))
        )
        time.sleep(1.1)
        page = service.get("/v1/throttle/decisions?limit=1000")
        seen = observed(page)
        assert sum(one["arrivals"]["free"] for one in seen) == 2.0
        assert sum(one["arrivals"]["pro"] for one in seen) == 1.0
        assert sum(one["images_done"] for one in seen) == 3.0
        assert {one["model"] for one in seen[-1]["work"]} == {"sdxl"}


def test_kill_9_and_again(tmp_path: Path) -> None:
    """After SIGKILL the next run goes on with the model, the budget and the chain, and all of the trail verifies."""
    with started(tmp_path) as service:
        service.until("/v1/throttle/decisions?limit=1000", lambda page: len(page["items"]) > 2)
        service.kill()
    assert verified(tmp_path)["ok"]
    with started(tmp_path) as service:
        service.until("/v1/throttle/decisions?limit=1000", lambda page: len(page["items"]) > 5)
        whys = [i["why"] for i in service.get("/v1/throttle/decisions?limit=1000")["items"] if i["kind"] == "base"]
        assert whys == ["start", "restored"]
        assert service.stop() == 0
    found = verified(tmp_path)
    assert found["ok"]
    assert found["differences"] == []


def test_sensors_that_fail_make_it_stale(tmp_path: Path) -> None:
    """Within fifteen seconds of the faults the state says that nothing is seen; every answer on the way is a 200."""
    faults = ["hung@2:twin-0", "stuck@2:twin-1", "lost@2:twin-2"]
    with started(tmp_path, CONFIG + f"[twin]\ngpus = 3\nfaults = {json.dumps(faults)}\n") as service:
        began_s = time.monotonic()
        while True:
            answer = httpx.get(service.url + "/v1/throttle", timeout=20)
            assert answer.status_code == 200
            body = answer.json()
            if body["state"] == "stale":
                break
            assert time.monotonic() - began_s < 17.0, answer.text
            time.sleep(0.25)
        assert body["binding"] == "telemetry"
        named = {reason.get("device") for reason in body["reasons"] if reason["code"] == "TELEMETRY_STALE"}
        assert named >= {"twin-0", "twin-1"}
        assert body["inputs"]["devices_up"] == 2.0
        assert service.stop() == 0
    assert verified(tmp_path)["ok"]


def test_a_quota_storage_that_cannot_be_used(tmp_path: Path) -> None:
    """A storage that is no storage: one line that names the key, exit 2."""
    file = tmp_path / "joulegate.toml"
    file.write_text('[throttle]\nquota_storage = "redis://:no port"\n')
    done = run_command("run", "--source", "twin", "--port", "0", "--state-dir", str(tmp_path), "--config", str(file))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "quota_storage" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

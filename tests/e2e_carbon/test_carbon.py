"""CO2e, water and money on a real daemon: never a silent default, never a wait on a grid that does not answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.e2e.service import Service, environment, run_command
from tests.grid.simulators import ElectricityMapsSimulator, hourly

from joulegate.pipelines.meter import Meter
from joulegate.pipelines.request import Request
from joulegate.pipelines.socket_client import SocketSink

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("e2e_carbon")]

SITE = """
[site]
country = "DEU"
pue = 1.2
price_per_kwh = 0.3
currency = "EUR"
wue_onsite_l_per_kwh = 1.1
gpus_per_server = 8
lifetime_years = 5
"""
ELECTRICITY_MAPS = """
[grid]
provider = "electricity-maps"
zone = "DE"
base_url = "{url}"
timeout_s = {timeout_s}
"""
PATIENT_S = 20.0


def started(folder: Path, config: str, **env: str) -> Service:
    """A daemon on the twin with this configuration, ready."""
    file = folder / "joulegate.toml"
    file.write_text(config)
    service = Service(folder / "state", "--source", "twin", "--config", str(file), **env)
    try:
        return service.ready()
    except BaseException:
        service.kill()
        raise


def one_request(service: Service) -> Request:
    """A finished request over the socket, with its final figures."""
    meter = Meter(SocketSink(service.socket))
    try:
        with meter.request("sdxl", images=2, steps=30, width=1024, height=1024, tier="free") as request:
            time.sleep(0.6)
        request.result(timeout=PATIENT_S)
        return request
    finally:
        meter.close()


@pytest.fixture
def silent_api() -> Iterator[str]:
    """A server that accepts every connection and never answers."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_without_a_place_co2e_is_missing_everywhere(tmp_path: Path) -> None:
    """No place and no network: CO2e is null with its reason on every surface, and energy is as ever."""
    with started(tmp_path, "") as service:
        request = one_request(service)
        assert request.energy_j is not None
        assert request.energy_j > 0
        assert request.co2e_g is None
        (entry,) = service.get("/v1/requests")["items"]
        assert entry["energy_j"] == request.energy_j
        assert entry["co2e_g"]["location_based"] is None
        assert "place" in entry["co2e_g"]["why_missing"]["location_based"]
        energy = service.get("/v1/energy")
        assert energy["totals"]["device_mj"] > 0
        assert energy["co2e_g"]["location_based"] is None
        grid = service.get("/v1/grid")
        assert (grid["now"]["g_per_kwh"], grid["now"]["label"]) == (None, "missing")
        metrics = httpx.get(service.url + "/metrics", timeout=PATIENT_S).text
        assert "joulegate_grid_carbon_intensity" not in metrics
        assert "joulegate_request_co2e_grams" not in metrics
        assert "joulegate_request_without_co2e_total" in metrics
        estimate = service.get("/v1/estimate?model=FLUX.1-dev&gpu=H100")
        assert estimate["energy_j"]["central"] > 0
        assert estimate["co2e_g"] is None
        assert estimate["co2e_why"]


def test_a_place_gives_every_figure_with_its_reasons(tmp_path: Path) -> None:
    """With a country the static factor rules, PUE is applied once; each figure has range, unit, tier and boundary."""
    with started(tmp_path, SITE) as service:
        request = one_request(service)
        entry = service.get(f"/v1/requests/{request.request_id}")
        co2e = entry["co2e_g"]
        kwh = entry["energy_mj"] / 1000 / 3.6e6
        assert co2e["location_based"]["central"] == pytest.approx(kwh * 1.2 * co2e["factor"]["g_per_kwh"], rel=1e-9)
        assert request.co2e_g == pytest.approx(co2e["location_based"]["central"], rel=1e-9)
        assert entry["water_l"]["onsite"]["central"] == pytest.approx(kwh * 1.1, rel=1e-9)
        assert entry["cost"]["electricity"]["central"] == pytest.approx(kwh * 1.2 * 0.3, rel=1e-9)
        for figure in (co2e["location_based"], co2e["embodied"], entry["cost"]["electricity"]):
            assert figure["low"] <= figure["central"] <= figure["high"]
            assert figure["unit"]
        assert co2e["location_based"]["tier"] == "simulated"
        assert co2e["boundary"] == "gpu only"
        metrics = httpx.get(service.url + "/metrics", timeout=PATIENT_S).text
        assert 'joulegate_grid_carbon_intensity_grams_per_kwh{label="static"' in metrics
        assert 'joulegate_request_co2e_grams_total{model="sdxl",quality="simulated",tier="free"}' in metrics


def test_questions_that_cannot_be_answered(tmp_path: Path) -> None:
    """An unknown model is null with the reason, a wrong question is a 422 problem, and the page names both paths."""
    with started(tmp_path, SITE) as service:
        unknown = service.get("/v1/estimate?model=nobody-knows-this&gpu=H100")
        assert unknown["energy_j"] is None
        assert unknown["why"]
        wrong = ("estimate", "grid?duration_s=0", "grid?nonsense=1", "estimate?model=a&gpu=b&steps=-1")
        for path in wrong:
            answer = httpx.get(f"{service.url}/v1/{path}", timeout=PATIENT_S)
            assert answer.status_code == 422, path
            assert answer.headers["content-type"] == "application/problem+json"
        page = httpx.get(service.url + "/", timeout=PATIENT_S).text
        assert "/v1/grid" in page
        assert "/v1/estimate" in page


def test_a_silent_grid_delays_nothing(tmp_path: Path, silent_api: str) -> None:
    """While the API accepts and never answers, requests become final and scrapes are answered, by the static set."""
    config = SITE + ELECTRICITY_MAPS.format(url=silent_api, timeout_s=60)
    with started(tmp_path, config, JOULEGATE_GRID__TOKEN="secret-token") as service:
        began_s = time.monotonic()
        request = one_request(service)
        httpx.get(service.url + "/metrics", timeout=PATIENT_S).raise_for_status()
        grid = service.get("/v1/grid")
        assert time.monotonic() - began_s < 40, "the API's own limit is 60 s: somebody waited for it"
        assert grid["now"]["label"] == "static"
        assert request.co2e_g is not None
        entry = service.get(f"/v1/requests/{request.request_id}")
        assert entry["co2e_g"]["intensity"]["covered"] == 0
        assert "secret-token" not in service.said()


def test_a_live_grid_rules_over_the_static_factor(tmp_path: Path) -> None:
    """The intensity of the hour in which a request ran is used, labelled with its source, and simulated when it is."""
    now_s = time.time()
    hour_s = now_s - now_s % 3600
    values = {"DE": hourly(hour_s - 24 * 3600, [200.0] * 49)}
    with ElectricityMapsSimulator(now_s, values) as simulator:
        config = SITE + ELECTRICITY_MAPS.format(url=simulator.base_url, timeout_s=5)
        with started(tmp_path, config, JOULEGATE_GRID__TOKEN="right-token") as service:
            service.until("/v1/grid", lambda body: body["now"]["g_per_kwh"] == 200.0)
            request = one_request(service)
            co2e = service.get(f"/v1/requests/{request.request_id}")["co2e_g"]
            assert co2e["intensity"]["central"] == pytest.approx(200.0)
            assert co2e["intensity"]["covered"] == pytest.approx(1.0)
            assert co2e["factor"] is None
            assert service.get("/v1/grid")["best_window"]["g_per_kwh"] == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("[site]\nlifetime_years = 0\n", "lifetime_years"),
        ('[site]\ncountry = "DEX"\n', "site.country"),
        ("[site]\nresidual_g_per_kwh = -1\n", "residual_g_per_kwh"),
        (
            '[[site.instruments]]\nkind = "ppa"\nshare = 1\ng_per_kwh = 3001\nsource = "x"\n',
            "g_per_kwh",
        ),
        ('[grid]\nprovider = "electricity-maps"\nzone = "not a zone"\ntoken = "t"\n', "grid.zone"),
        ('[grid]\nprovider = "electricity-maps"\nzone = "DE"\n', "grid.token"),
    ],
)
def test_what_cannot_be_used_stops_the_start(tmp_path: Path, config: str, named: str) -> None:
    """A lifetime of zero, an unknown place, a factor out of range, a missing token: one clear line, exit 2."""
    file = tmp_path / "joulegate.toml"
    file.write_text(config)
    state = tmp_path / "state"
    done = run_command("run", "--source", "twin", "--port", "0", "--state-dir", str(state), "--config", str(file))
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_token_stops_the_start(tmp_path: Path) -> None:
    """A token that the provider refuses: one clear line without the token, exit 2."""
    with ElectricityMapsSimulator(time.time(), {"DE": hourly(time.time() - 3600, [200.0] * 3)}) as simulator:
        file = tmp_path / "joulegate.toml"
        file.write_text(ELECTRICITY_MAPS.format(url=simulator.base_url, timeout_s=5))
        arguments = ("--source", "twin", "--port", "0", "--state-dir", str(tmp_path / "state"), "--config", str(file))
        done = run_command("run", *arguments, JOULEGATE_GRID__TOKEN="wrong-token")
    assert done.returncode == 2
    assert "token" in done.stderr
    assert "wrong-token" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


IN_PROCESS = """
import json, sys, time, joulegate
meter = joulegate.connect()
with meter.request("sdxl", images=1) as r:
    time.sleep(0.3)
final = r.result(timeout=20)
seen = (final.entries[0].views or {}).get("co2e_g") or {}
print(json.dumps([r.energy_j, r.co2e_g, r.water_l, r.cost, seen.get("why_missing")]))
"""


@pytest.mark.parametrize("country", [None, "DEU", "DEX"])
def test_a_meter_inside_the_pipeline_knows_the_place_too(tmp_path: Path, country: str | None) -> None:
    """Without a daemon the factor set gives CO2e where a place is set; a faulty one costs the figure, not the meter."""
    given = {} if country is None else {"JOULEGATE_SITE__COUNTRY": country}
    env = environment(JOULEGATE_SOURCE="twin", JOULEGATE_STATE_DIR=str(tmp_path), **given)
    script = (
        IN_PROCESS if country != "DEX" else IN_PROCESS.replace('final.entries[0].views["co2e_g"]["why_missing"]', "{}")
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    energy_j, co2e_g, water_l, cost, why = json.loads(done.stdout)
    assert energy_j > 0
    assert water_l is None
    assert cost is None
    assert (co2e_g is not None) == (country == "DEU")
    if country is None:
        assert "place" in why["location_based"]

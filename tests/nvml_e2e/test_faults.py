"""Boards that break while a daemon meters them: each fault stays its board's own, and all is told.

One daemon meters six boards. A watcher notes ``/v1/devices`` and ``/metrics`` all the while, so that the tests can look
at any moment of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.nvml.stand_in import StandIn
from tests.nvml_e2e.driver import Driver
from tests.nvml_e2e.pipeline import Pipeline
from tests.nvml_e2e.service import Service

pytestmark = pytest.mark.xdist_group("nvml_e2e_faults")

WELL, LOST, RESET, HUNG, CAPPED, REFUSED = range(6)
POWER_W = {"sdxl": 480.0}
REQUEST_S, AFTER_S = 6.0, 1.5
SETTLED_S = 6.0
BUSY_W, CAP_W = 400.0, 300.0
SMALL_MJ = 1_000_000


@dataclass
class Run:
    """Notes of the run: the states of each device in time, its series at marked moments, and the ledger at the end."""

    driver: Driver
    states: dict[str, list[dict]] = field(default_factory=dict)
    series: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    entries: dict[str, dict] = field(default_factory=dict)
    true_mj: dict[str, float] = field(default_factory=dict)
    true_w: dict[int, float] = field(default_factory=dict)
    groups: dict[str, dict] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def of(self, gpu: int) -> list[dict]:
        """A board's states, oldest first."""
        return self.states[self.driver.uuid(gpu)]

    def last(self, gpu: int) -> dict:
        """A board's state at the end."""
        return self.of(gpu)[-1]


@pytest.fixture(scope="module")
def run(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A moment well, then everything breaks under its requests, then what can recovers."""
    folder = tmp_path_factory.mktemp("run")
    stand_in = StandIn(library, folder / "gpus")
    driver = Driver(stand_in, class_power_w=POWER_W)
    for _ in range(REFUSED + 1):
        driver.add()
    found = Run(driver)
    try:
        with driver, Service(stand_in.environment, folder / "state", "--source", "nvml") as service:
            _drive(found, stand_in, service)
        found.lines = service.lines
    finally:
        stand_in.close()
    return found


def _drive(run: Run, stand_in: StandIn, service: Service) -> None:
    driver = run.driver

    def note() -> None:
        for device in service.get("/v1/devices")["devices"]:
            run.states.setdefault(device["id"], []).append(device)

    def until(wanted: Callable[[], bool], timeout_s: float = 40.0) -> None:
        """Watch until it is so, or for ``timeout_s``: the tests judge what was seen."""
        end_s = time.monotonic() + timeout_s
        while not wanted() and time.monotonic() < end_s:
            note()
            time.sleep(0.1)

    def mark(moment: str) -> None:
        run.series[moment] = {gpu: service.series(driver.uuid(gpu)) for gpu in (WELL, LOST, HUNG)}

    with Pipeline(driver, service.state_dir, stand_in.environment) as pipeline:
        names = {WELL: "well", LOST: "lost", RESET: "reset", CAPPED: "capped", REFUSED: "refused"}
        note()
        until(lambda: all(run.last(gpu)["up"] and run.last(gpu)["energy_j"] for gpu in range(REFUSED + 1)))
        for gpu, name in names.items():
            pipeline.run(name, "sdxl", (gpu,), REQUEST_S)
        until(lambda: all(run.last(gpu)["power_w"] > BUSY_W for gpu in names))
        mark("well")
        driver.break_(LOST, "lost", for_s=2.5)
        driver.break_(RESET, "reset")
        driver.break_(HUNG, "hung")
        driver.break_(REFUSED, "not_supported")
        driver.cap(CAPPED, CAP_W)
        until(lambda: not run.last(LOST)["up"])
        until(lambda: _capped(run.last(CAPPED)))
        run.true_w[CAPPED] = driver.power_w(CAPPED)
        until(lambda: not run.last(HUNG)["up"])
        mark("hung")
        until(lambda: run.last(LOST)["up"] and "lost" in pipeline.stopped)
        pipeline.run("after", "sdxl", (LOST,), AFTER_S)
        for name in (*names.values(), "after"):
            pipeline.final(name)
        until(lambda: run.last(REFUSED)["epoch"] > 0 and run.last(RESET)["epoch"] > 0, SETTLED_S)
        mark("end")
        for name in (*names.values(), "after"):
            run.entries[name] = service.request(name)
            run.true_mj[name] = driver.true_mj(name)
        run.groups = {group["device"]: group for group in service.get("/v1/energy?by=device")["groups"]}


def _capped(state: dict) -> bool:
    """Busy at the cap, and the board says so."""
    return "sw_power_cap" in state["clock_events"] and CAP_W - 10 < state["power_w"] < CAP_W + 10


def test_a_board_that_falls_off_the_bus_is_down_and_says_why(run: Run):
    """A lost board is up=false with no power and temperature, and its error is counted by NVML's name."""
    down = [state for state in run.of(LOST) if not state["up"]]
    assert down
    for state in down:
        assert (state["power_w"], state["temperature_c"], state["utilization"]) == (None, None, None)
        assert state["errors"]["GPU_IS_LOST"] >= 1
        assert state["energy_j"] > 0


def test_the_others_go_on_while_boards_are_down(run: Run):
    """While one board is lost and one hangs, the well board stays up, fresh, and its energy keeps growing."""
    assert all(state["up"] and state["power_w"] is not None for state in run.of(WELL))
    assert run.last(WELL)["errors"] == {}
    energies = [state["energy_j"] for state in run.of(WELL)]
    assert energies == sorted(energies)
    between = [state for state, lost in zip(run.of(WELL), run.of(LOST), strict=True) if not lost["up"]]
    assert len({state["energy_j"] for state in between}) >= 2
    entry = run.entries["well"]
    assert (entry["quality"], entry["method"], entry["flags"]) == ("measured", "counter", [])
    assert entry["energy_mj"] == pytest.approx(run.true_mj["well"], rel=0.05)


def test_a_request_on_a_board_that_was_lost_is_no_longer_measured(run: Run):
    """The request that ran while its board was gone is apportioned and flagged; what no counter saw is not in it."""
    entry = run.entries["lost"]
    assert entry["quality"] == "apportioned"
    assert {"partial", "gap"} & set(entry["flags"])
    assert 0 < entry["energy_mj"] < run.true_mj["lost"]


def test_metrics_lose_no_series_of_another_board(run: Run):
    """A scrape amid the faults has every series of the well board; a down one keeps its totals, not its watts."""
    assert run.series["well"][WELL] <= run.series["hung"][WELL]
    assert run.series["well"][WELL] <= run.series["end"][WELL]
    kept = {"joulegate_gpu_up", "joulegate_gpu_info", "joulegate_gpu_joules_total", "joulegate_gpu_errors_total"}
    assert kept <= run.series["hung"][HUNG]
    assert "joulegate_gpu_watts" in run.series["well"][HUNG]
    assert not {"joulegate_gpu_watts", "joulegate_gpu_celsius"} & run.series["hung"][HUNG]


def test_a_board_that_returns_is_metered_again(run: Run):
    """Found again by its UUID it is up in a new epoch, and its next request is measured by the counter."""
    assert run.last(LOST)["up"]
    assert run.last(LOST)["epoch"] > run.of(LOST)[0]["epoch"]
    entry = run.entries["after"]
    assert (entry["quality"], entry["method"]) == ("measured", "counter")
    assert entry["energy_mj"] == pytest.approx(run.true_mj["after"], rel=0.1)
    assert run.series["well"][LOST] <= run.series["end"][LOST]


def test_a_counter_that_starts_again_begins_a_new_epoch(run: Run):
    """After a reset the epoch is one higher, what nobody counted is estimated, and our own total never falls."""
    first, last = run.of(RESET)[0], run.last(RESET)
    assert last["epoch"] == first["epoch"] + 1
    assert 0 < last["totals"]["estimated_mj"] < SMALL_MJ
    energies = [state["energy_j"] for state in run.of(RESET)]
    assert energies == sorted(energies)
    entry = run.entries["reset"]
    assert entry["quality"] == "apportioned"
    assert entry["energy_mj"] == pytest.approx(run.true_mj["reset"], rel=0.15)


def test_the_law_holds_through_every_fault(run: Run):
    """Device = requests + idle + unattributed to the millijoule on every board, whatever happened to it."""
    assert set(run.groups) == {run.driver.uuid(gpu) for gpu in range(REFUSED + 1)}
    for group in run.groups.values():
        assert group["device_mj"] == group["requests_mj"] + group["idle_mj"] + group["unattributed_mj"]


def test_a_call_that_hangs_takes_only_its_own_board_down(run: Run):
    """A driver that does not return for one board blanks that board, with TIMEOUT counted, and no other."""
    assert not run.last(HUNG)["up"]
    assert run.last(HUNG)["errors"]["TIMEOUT"] >= 1
    for gpu in (WELL, RESET, CAPPED):
        assert all(state["up"] for state in run.of(gpu))


def test_a_counter_that_is_refused_midway_gives_way_to_power(run: Run):
    """When the energy field turns NOT_SUPPORTED, instant power is integrated, said, and in a new epoch."""
    last = run.last(REFUSED)
    assert (last["method"], last["up"]) == ("instant", True)
    assert any("instant power is integrated" in note for note in last["notes"])
    assert last["epoch"] > run.of(REFUSED)[0]["epoch"]
    assert last["totals"]["estimated_mj"] > 0
    entry = run.entries["refused"]
    assert (entry["quality"], entry["method"]) == ("apportioned", "instant")
    assert 0 < entry["energy_mj"] < run.true_mj["refused"]


def test_a_device_shows_what_the_board_does(run: Run):
    """Power, limit, temperature, headroom and clock events follow the board: full load first, then a power cap."""
    full = [state for state in run.of(CAPPED) if state["power_limit_w"] == 700 and state["power_w"] > BUSY_W]
    capped = [state for state in run.of(CAPPED) if state["power_limit_w"] == CAP_W and _capped(state)]
    assert full[-1]["power_w"] == pytest.approx(95 + POWER_W["sdxl"], rel=0.06)
    assert capped[-1]["power_w"] == pytest.approx(run.true_w[CAPPED], rel=0.03)
    for state in (full[-1], capped[-1]):
        assert (state["max_operating_c"], state["slowdown_c"]) == (83, 87)
        assert state["headroom_c"] == 83 - state["temperature_c"]
        assert 30 < state["temperature_c"] < 83
        assert state["power_method"] == "instant"
    assert run.last(CAPPED)["clock_event_s"]["sw_power_cap"] > 0.5
    assert run.entries["capped"]["devices"][run.driver.uuid(CAPPED)]["clock_event_s"]["sw_power_cap"] > 0.5


def test_the_daemon_prints_no_traceback(run: Run):
    """Whatever broke, the daemon's own lines are for a person."""
    assert not [line for line in run.lines if "Traceback" in line]

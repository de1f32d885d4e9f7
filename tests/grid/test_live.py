"""What doctor --live and the start of the daemon ask, against simulators."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.grid.conftest import NOW_S, SetClock
from tests.grid.providers import PROVIDERS, TOKEN, Provider
from tests.grid.simulators import Reply, Simulator

from joulegate.sources.grid.http_client import Limits
from joulegate.sources.grid.live import check_live, start_fault
from joulegate.sources.grid.options import GridOptions, GridOptionsFault


def options_for(provider: Provider, simulator: Simulator, **more: Any) -> GridOptions:
    """Options that lead to the simulator."""
    base = {"provider": provider.name, "zone": provider.place.zone, "token": TOKEN, "username": "me"}
    return GridOptions(**{**base, "base_url": simulator.base_url, "timeout_s": 0.3, **more})


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_each_provider_is_checked_in_lines(provider: Provider, quick: Limits):
    """Latest, history and forecast have a line each that says ok, how much, and that it was simulated."""
    with provider.simulate() as simulator:
        lines = check_live(options_for(provider, simulator), SetClock(NOW_S), quick)
    assert [line.split(": ")[0].split()[-1] for line in lines] == ["latest", "history", "forecast"]
    for line in lines:
        assert line.startswith(f"{provider.name} at 127.0.0.1:{simulator.port} {provider.place.zone} ")
        wanted = "not offered" if "publishes no forecast" in line else ": ok, "
        assert wanted in line
        assert ("simulated" in line) == (wanted == ": ok, ")
        assert TOKEN not in line


def test_what_fails_is_said(quick: Limits):
    """A plan that covers less is one line of its own."""
    with PROVIDERS[0].simulate() as simulator:
        simulator.faults.extend([Reply(403), Reply(500), Reply(500), Reply(200, b"{}")])
        latest, history, forecast = check_live(options_for(PROVIDERS[0], simulator), SetClock(NOW_S), quick)
    assert "latest: failed: " in latest
    assert "403" in latest
    assert "500" in history
    assert "the answer has no zone" in forecast


def test_nothing_to_check(quick: Limits):
    """Without a provider there is one line that says what to set."""
    assert check_live(None, SetClock(NOW_S), quick) == [
        "grid: no provider is configured; set grid.provider, grid.zone and the token"
    ]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (None, None),
        (Reply(401), "the token is refused (401)"),
        (Reply(404), "the zone is not known there (404)"),
        (Reply(200, b'{"zone": "FR"}'), "asked for zone DE, answered for FR"),
        (Reply(403), None),
        (Reply(500), None),
        (Reply(hang=True), None),
    ],
)
def test_only_a_wrong_configuration_stops_a_start(reply: Reply | None, says: str | None):
    """A wrong token or zone is said in one line; an outage, a plan or a hanging server stops nothing."""
    with PROVIDERS[0].simulate() as simulator:
        simulator.always = reply
        line = start_fault(options_for(PROVIDERS[0], simulator), clock=SetClock(NOW_S))
        simulator.released.set()
    if says is None:
        assert line is None
    else:
        assert line is not None
        assert says in line


def test_a_start_does_not_wait_for_a_hanging_server(no_leaks: None):
    """The start goes on while the server has not answered yet."""
    with PROVIDERS[0].simulate() as simulator:
        simulator.always = Reply(hang=True)
        assert start_fault(options_for(PROVIDERS[0], simulator, timeout_s=2.0), wait_s=0.1) is None
        assert "joulegate-grid-start" in {thread.name for thread in threading.enumerate()}


def test_a_start_needs_usable_options():
    """What can be known without asking is raised, and without a provider nothing is asked."""
    with pytest.raises(GridOptionsFault):
        start_fault(GridOptions(provider="entsoe"))
    assert start_fault(GridOptions()) is None

"""The monitor: what is published when all is well, what is left when it is not, and that nobody ever waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.grid.conftest import NOW_S, SetClock
from tests.grid.providers import HOUR_BEGUN_S, TOKEN
from tests.grid.simulators import HOUR_S, ElectricityMapsSimulator, Reply, hourly, until

from joulegate.daemon.jobs import Jobs, refresh_grid
from joulegate.sources.grid.cache import DiskCache
from joulegate.sources.grid.electricity_maps import ElectricityMaps
from joulegate.sources.grid.http_client import Limits
from joulegate.sources.grid.intensity import FactorType, Intensity, Label, Place, Signal
from joulegate.sources.grid.monitor import GridMonitor, Rhythm
from joulegate.sources.grid.static import StaticSource
from joulegate.sources.grid.wire import grid_to_wire

DE = Place("DE", "DEU")


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor of the test's own set."""

    g_per_kwh: float = 380.95
    year: int | None = 2023
    source: str = "test set"
    signal: Signal | None = Signal.AVERAGE
    emission_factor_type: FactorType | None = FactorType.LIFECYCLE


class Factors:
    """A factor set of one country."""

    def __init__(self, **by_country: Factor) -> None:
        self._by_country = by_country

    def factor(self, country: str) -> Factor | None:
        """The country's own factor or none."""
        return self._by_country.get(country)


@dataclass
class Rig:
    """A simulator, a monitor on the real client, and the clock of both."""

    simulator: ElectricityMapsSimulator
    monitor: GridMonitor
    clock: SetClock

    def now(self) -> Intensity:
        """The figure of the present."""
        return self.monitor.state.intensity(self.clock.now_s)

    def later(self, by_s: float) -> None:
        """Let time pass here and at the provider."""
        self.clock.now_s += by_s
        self.simulator.now_s = self.clock.now_s


@contextmanager
def rigged(
    quick: Limits,
    *,
    place: Place = DE,
    factors: Factors | None = None,
    cache: DiskCache | None = None,
    values: dict[float, float | None] | None = None,
    token: str = TOKEN,
) -> Iterator[Rig]:
    """The whole of it, closed at the end."""
    hours = values or hourly(HOUR_BEGUN_S - 24 * HOUR_S, [300.0 + hour for hour in range(120)])
    clock = SetClock(NOW_S)
    with ElectricityMapsSimulator(NOW_S, {"DE": hours}, token=TOKEN) as simulator:
        source = ElectricityMaps("em", simulator.base_url, token, clock, limits=quick)
        static = None if factors is None else StaticSource(factors, clock)
        monitor = GridMonitor(source, place, static=static, clock=clock, cache=cache)
        try:
            yield Rig(simulator, monitor, clock)
        finally:
            simulator.released.set()
            monitor.close(5.0)


def test_a_refresh_publishes_everything(quick: Limits):
    """One refresh gives the newest figure, the forecast, a day of history and the best window, all live."""
    with rigged(quick) as rig:
        state = rig.monitor.refresh()
        now = state.intensity(NOW_S)
        assert (now.g_per_kwh, now.label, now.age_s, now.why) == (324.0, Label.LIVE, 0.0, "")
        assert state.outlook(NOW_S).label is Label.LIVE
        assert len(state.outlook(NOW_S).points) == 25
        assert len(state.past(NOW_S).points) == 24
        window, _ = state.best_window(NOW_S, HOUR_S, NOW_S + 24 * HOUR_S)
        assert window is not None
        assert window.start_s == NOW_S
        with pytest.raises(FrozenInstanceError):
            state.provider = "other"  # type: ignore[misc]
        assert not state.faults


def test_questions_have_their_own_rhythm(quick: Limits):
    """The newest figure is asked for every five minutes, the forecast every half hour, the history every hour."""
    with rigged(quick) as rig:
        for _ in range(13):
            rig.monitor.refresh()
            rig.later(300.0)
        kinds = [path.rpartition("/")[2] for path in rig.simulator.paths()]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == {"latest": 13, "forecast": 3, "history": 2}


def test_newest_figures_fill_the_history(quick: Limits):
    """Between two askings for history, each newest figure is added to it, and what is too old falls off."""
    with rigged(quick) as rig:
        rig.monitor.refresh()
        rig.simulator.plan.discard("history")
        for _ in range(30):
            rig.later(HOUR_S)
            rig.monitor.refresh()
        starts = [point.start_s for point in rig.monitor.state.history.points]
        assert starts == [HOUR_BEGUN_S + HOUR_S * hour for hour in range(6, 31)]
        mean, covered_s = rig.monitor.state.mean_g_per_kwh(HOUR_BEGUN_S + 8 * HOUR_S, HOUR_BEGUN_S + 10 * HOUR_S)
        assert (mean, covered_s) == (pytest.approx(332.5), 2 * HOUR_S)


def test_a_failing_provider_fades(quick: Limits):
    """What is cached grows old and says so, then the yearly figure stands in; the host is left alone."""
    with rigged(quick, factors=Factors(DEU=Factor())) as rig:
        rig.monitor.refresh()
        rig.simulator.always = Reply(500)
        rig.simulator.asked.clear()
        ages: list[float] = []
        for _ in range(int(8 * HOUR_S / 300.0)):
            rig.later(300.0)
            rig.monitor.refresh()
            now = rig.now()
            assert now.label is (Label.CACHED if (now.age_s or 0.0) else Label.STATIC), now
            if now.label is Label.CACHED:
                assert (now.g_per_kwh, now.place) == (324.0, "DE")
                assert "the server fails (500)" in now.why
                ages.append(now.age_s or 0.0)
        assert ages == sorted(set(ages))
        assert ages[-1] == 6 * HOUR_S
        assert (now.g_per_kwh, now.place, now.source) == (380.95, "DEU", "test set")
        assert "factor of DEU for 2023" in now.why
        assert "the server fails (500)" in now.why
        assert rig.monitor.state.outlook(rig.clock.now_s).label is Label.CACHED
        assert rig.monitor.state.faults["server"] == len(rig.simulator.asked) / quick.attempts < 20


def test_the_label_grows_old_by_itself(quick: Limits):
    """A published state is right at any later time, also if nobody ever refreshes again."""
    with rigged(quick, factors=Factors(DEU=Factor())) as rig:
        state = rig.monitor.refresh()
    labels = [state.intensity(NOW_S + after_s).label for after_s in (0.0, 900.0, 901.0, 6 * HOUR_S, 6 * HOUR_S + 1)]
    assert labels == [Label.LIVE, Label.LIVE, Label.CACHED, Label.CACHED, Label.STATIC]
    outlooks = [state.outlook(NOW_S + after_s).label for after_s in (0.0, 2 * HOUR_S, 23 * HOUR_S, 25 * HOUR_S)]
    assert outlooks == [Label.LIVE, Label.CACHED, Label.CACHED, Label.MISSING]


def test_without_a_country_it_ends_in_missing(quick: Limits):
    """With no yearly figure configured nothing stands in: the figure is missing, and says what to do."""
    with rigged(quick, place=Place("DE"), factors=Factors(DEU=Factor())) as rig:
        rig.simulator.always = Reply(500)
        rig.monitor.refresh()
        now = rig.now()
        assert (now.label, now.g_per_kwh, now.place) == (Label.MISSING, None, "DE")
        assert "the server fails (500)" in now.why
        assert "grid.country is not set" in now.why


@pytest.mark.parametrize(
    ("place", "factors", "says"),
    [
        (Place(), None, "no place is configured; set grid.provider"),
        (Place(None, "DEU"), None, "no factor set with a yearly figure of DEU"),
        (Place(None, "FRA"), Factors(DEU=Factor()), "the factor set has no factor of FRA"),
        (Place(None, "DEU"), Factors(DEU=Factor(-5.0)), "-5 g/kWh is not between 0 and 3000"),
        (Place(None, "DEU"), Factors(DEU=Factor(3001.0)), "3001 g/kWh is not between 0 and 3000"),
    ],
)
def test_no_place_no_figure(place: Place, factors: Factors | None, says: str, clock: SetClock):
    """Without a provider, a figure is of the country that was set or missing, never another's."""
    static = None if factors is None else StaticSource(factors, clock)
    monitor = GridMonitor(None, place, static=static, clock=clock)
    for state in (monitor.state, monitor.refresh()):
        now = state.intensity(NOW_S)
        assert (now.label, now.g_per_kwh) == (Label.MISSING, None)
        assert says in now.why
        window, why = state.best_window(NOW_S, HOUR_S, NOW_S + 24 * HOUR_S)
        assert window is None
        assert why


def test_a_country_alone_is_static_from_the_start(clock: SetClock):
    """With a country and no provider the yearly figure is there before any refresh, exactly."""
    monitor = GridMonitor(None, Place(None, "DEU"), static=StaticSource(Factors(DEU=Factor()), clock), clock=clock)
    now = monitor.state.intensity(NOW_S)
    assert (now.label, now.g_per_kwh, now.place, now.age_s) == (Label.STATIC, 380.95, "DEU", None)


def test_a_stale_answer_is_not_live(quick: Limits):
    """A provider that answers at once with an old hour is shown as cached, with the hour's age."""
    values = hourly(HOUR_BEGUN_S - 4 * HOUR_S, [300.0])
    with rigged(quick, values=values) as rig:
        rig.monitor.refresh()
        now = rig.now()
        assert (now.label, now.age_s) == (Label.CACHED, NOW_S - (HOUR_BEGUN_S - 3 * HOUR_S))
        assert "its period ended 200 min ago" in now.why


def test_an_estimate_stays_an_estimate(quick: Limits):
    """An estimated hour is live and marked, and still marked when it is cached."""
    with rigged(quick) as rig:
        rig.simulator.more = {"isEstimated": True, "estimationMethod": "TIME_SLICER_AVERAGE"}
        rig.monitor.refresh()
        assert (rig.now().label, rig.now().is_estimated) == (Label.LIVE, True)
        rig.simulator.always = Reply(503)
        rig.later(600.0)
        rig.monitor.refresh()
        now = rig.now()
        assert (now.label, now.is_estimated) == (Label.CACHED, True)
        assert "TIME_SLICER_AVERAGE" in now.why


@pytest.mark.parametrize("fault", ["wrong zone", "negative", "too much", "not json", "forbidden"])
def test_a_wrong_answer_keeps_the_right_one(fault: str, quick: Limits):
    """After an answer that cannot be used the one before is still shown, as cached, with what was wrong."""
    replies = {
        "wrong zone": b'{"zone": "FR", "carbonIntensity": 56, "datetime": "2026-09-21T12:00:00Z"}',
        "negative": b'{"zone": "DE", "carbonIntensity": -5, "datetime": "2026-09-21T12:00:00Z"}',
        "too much": b'{"zone": "DE", "carbonIntensity": 30000, "datetime": "2026-09-21T12:00:00Z"}',
        "not json": b"<html>welcome to our airport</html>",
    }
    with rigged(quick) as rig:
        rig.monitor.refresh()
        rig.simulator.always = Reply(200, replies[fault]) if fault in replies else Reply(403)
        rig.later(600.0)
        rig.monitor.refresh()
        now = rig.now()
        assert (now.label, now.g_per_kwh, now.place, now.age_s) == (Label.CACHED, 324.0, "DE", 600.0)
        assert now.why.startswith("em: ")


def test_a_forecast_that_is_not_in_the_plan(quick: Limits):
    """Without a forecast the figure of now stays live, the window says why there is none, and it is asked rarely."""
    with rigged(quick) as rig:
        rig.simulator.plan.discard("forecast")
        for _ in range(12):
            rig.monitor.refresh()
            rig.later(290.0)
        assert rig.now().label is Label.LIVE
        window, why = rig.monitor.state.best_window(rig.clock.now_s, HOUR_S, rig.clock.now_s + 24 * HOUR_S)
        assert window is None
        assert "the token's plan does not cover this (403)" in why
        assert rig.simulator.paths().count("/v3/carbon-intensity/forecast") == 1


def test_a_host_that_is_down_is_met_once(quick: Limits):
    """What one question has met at the host is not tried by the next two, and pauses double up to an hour."""
    with rigged(quick) as rig:
        rig.simulator.always = Reply(hang=True)
        rig.monitor.refresh()
        assert rig.simulator.paths() == ["/v3/carbon-intensity/latest"] * quick.attempts
        gaps, last_s = [], rig.clock.now_s
        for _ in range(4 * 120):
            rig.later(30.0)
            before = len(rig.simulator.asked)
            rig.simulator.always = Reply(500)
            rig.monitor.refresh()
            if len(rig.simulator.asked) > before:
                gaps.append(rig.clock.now_s - last_s)
                last_s = rig.clock.now_s
        assert gaps == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
        assert rig.monitor.state.outlook(rig.clock.now_s).why == rig.monitor.state.newest.fault


def test_a_provider_that_asks_for_a_pause_gets_it(quick: Limits):
    """Retry-After beyond the next time is kept to."""
    with rigged(quick) as rig:
        rig.simulator.always = Reply(429, b"", {"Retry-After": "7000"})
        rig.monitor.refresh()
        rig.simulator.always = None
        rig.later(6990.0)
        rig.monitor.refresh()
        assert len(rig.simulator.asked) == 1
        rig.later(20.0)
        rig.monitor.refresh()
        assert rig.now().label is Label.LIVE


def test_recovery_is_live_again(quick: Limits):
    """After an outage the next good answer is live, with no trace of the fault but its count."""
    with rigged(quick) as rig:
        rig.simulator.always = Reply(500)
        rig.monitor.refresh()
        assert rig.now().label is Label.MISSING
        rig.simulator.always = None
        rig.later(60.0)
        rig.monitor.refresh()
        assert (rig.now().label, rig.now().why) == (Label.LIVE, "")
        assert rig.monitor.state.faults == {"server": 1}


def test_a_restart_without_a_network(quick: Limits, tmp_path: Path):
    """A new monitor shows what the one before left on disk, as cached, before it has asked anybody."""
    with rigged(quick, cache=DiskCache(tmp_path)) as rig:
        rig.monitor.refresh()
    with rigged(quick, cache=DiskCache(tmp_path)) as rig:
        assert rig.now().label is Label.CACHED
        rig.clock.now_s = NOW_S + 1800.0
        assert (rig.now().g_per_kwh, rig.now().age_s) == (324.0, 1800.0)
        assert "restored from disk" in rig.now().why
        assert len(rig.monitor.state.outlook(rig.clock.now_s).points) == 25
        assert not rig.simulator.asked


def test_a_restart_with_a_spoiled_cache(quick: Limits, tmp_path: Path):
    """Spoiled files are counted and forgotten; the next refresh is as on the first day."""
    with rigged(quick, cache=DiskCache(tmp_path)) as rig:
        rig.monitor.refresh()
    for file in tmp_path.iterdir():
        file.write_bytes(b"\x00garbage")
    with rigged(quick, cache=DiskCache(tmp_path)) as rig:
        assert rig.now().label is Label.MISSING
        assert rig.monitor.state.faults == {"cache_corrupt": 3}
        rig.monitor.refresh()
        assert rig.now().label is Label.LIVE


def test_nothing_written_holds_the_token(quick: Limits, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Neither files and their names, nor logs, wire or reprs hold the token, whatever the provider says."""
    with caplog.at_level(logging.DEBUG), rigged(quick, cache=DiskCache(tmp_path)) as rig:
        for reply in (None, Reply(401, TOKEN.encode()), Reply(200, b"<%s>" % TOKEN.encode()), Reply(reset=True)):
            rig.simulator.always = reply
            rig.monitor.refresh()
            rig.later(4000.0)
        state = rig.monitor.state
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    written = b"\n".join(path.name.encode() + path.read_bytes() for path in files).decode()
    said = [written, repr(state), repr(grid_to_wire(state, NOW_S)), *(record.getMessage() for record in caplog.records)]
    assert not [text for text in said if TOKEN in text]


def test_a_server_that_never_answers_holds_up_nobody(quick: Limits, no_leaks: None):
    """While a refresh hangs, the state can be read, a second refresh is not begun, and closing does not wait for it."""
    slow = replace(quick, read_s=3.0, total_s=6.0, attempts=1)
    with rigged(slow, factors=Factors(DEU=Factor())) as rig:
        rig.monitor.refresh()
        rig.simulator.always = Reply(hang=True)
        rig.simulator.asked.clear()
        rig.later(300.0)
        assert rig.monitor.start_refresh()
        assert until(lambda: bool(rig.simulator.asked))
        hanging = [thread for thread in threading.enumerate() if thread.name == "joulegate-grid"]
        assert [thread.daemon for thread in hanging] == [True]
        for _ in range(1000):
            assert rig.now().label is Label.LIVE
        assert rig.monitor.state.refreshing_since_s == rig.clock.now_s
        assert not rig.monitor.start_refresh()
        assert len(rig.simulator.asked) == 1
        rig.monitor.close(0.0)
        assert hanging[0].is_alive()
        assert not rig.monitor.start_refresh()


def test_jobs_refresh_and_stop(quick: Limits, no_leaks: None):
    """APScheduler refreshes from its start on, and stops while a server hangs."""
    with rigged(quick) as rig:
        jobs = Jobs()
        refresh_grid(jobs, rig.monitor, tick_s=1.0)
        jobs.start()
        assert until(lambda: rig.now().label is Label.LIVE)
        rig.simulator.always = Reply(hang=True)
        rig.later(300.0)
        before = len(rig.simulator.asked)
        assert until(lambda: len(rig.simulator.asked) > before)
        jobs.stop()
        jobs.stop()


class Broken:
    """A source with a fault of its own making."""

    name = "broken"
    fresh_s = 1.0

    def latest(self, place: Place) -> Intensity:
        """Fail."""
        raise KeyError("secret-value")

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """Fail."""
        raise ZeroDivisionError

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """Fail."""
        raise RecursionError

    def close(self) -> None:
        """Nothing is open."""


def test_a_fault_of_our_own_is_counted(clock: SetClock):
    """Whatever a source raises, the refresh ends, counts it and says it in one line without the exception's text."""
    monitor = GridMonitor(Broken(), DE, static=None, clock=clock)
    state = monitor.refresh()
    assert state.faults == {"internal": 3}
    why = state.intensity(NOW_S).why
    assert "KeyError" in why
    assert "secret-value" not in why


def test_summary(quick: Limits):
    """One line says figure, label, place, source and age, or what is missing."""
    with rigged(quick) as rig:
        assert rig.monitor.state.summary(NOW_S) == (
            False,
            "missing: em: nothing of the present has been fetched; there is no factor set with a yearly figure of DEU",
        )
        rig.monitor.refresh()
        assert rig.monitor.state.summary(NOW_S + 5.0) == (True, "live: 324 g/kWh in DE from em, 5 s old, simulated")


def test_wire(quick: Limits):
    """The body of GET /v1/grid says figure, label, source, age, window and that all of it was simulated."""
    with rigged(quick) as rig:
        body: dict[str, Any] = grid_to_wire(rig.monitor.refresh(), NOW_S + 60.0)
    assert body["now"] == {
        "g_per_kwh": 324.0,
        "label": "live",
        "why": "",
        "place": "DE",
        "source": "em",
        "signal": "average",
        "emission_factor_type": "lifecycle",
        "is_estimated": False,
        "simulated": True,
        "start": "2026-09-21T14:00:00.000000Z",
        "end": "2026-09-21T15:00:00.000000Z",
        "updated": "2026-09-21T14:16:00.000000Z",
        "age_s": 60.0,
    }
    assert body["place"] == {"zone": "DE", "country": "DEU"}
    assert (body["forecast"]["label"], len(body["forecast"]["points"]), body["forecast"]["simulated"]) == (
        "live",
        25,
        True,
    )
    assert body["best_window"]["start"] == body["at"]
    assert body["best_window"]["duration_s"] == HOUR_S
    assert 0.0 <= body["best_window"]["saving_fraction"] <= 1.0
    assert Rhythm().horizon_s == 24 * HOUR_S

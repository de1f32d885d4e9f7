"""The real clients read the providers' own shapes, simulated on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.grid.conftest import NOW_S, SetClock
from tests.grid.providers import GERMANY, HOUR_BEGUN_S, TOKEN
from tests.grid.simulators import (
    CALLERS_ZONE,
    HOUR_S,
    ElectricityMapsSimulator,
    EntsoeSimulator,
    GbSimulator,
    Production,
    Reply,
    WattTimeSimulator,
    hourly,
    iso,
)

from joulegate.sources.grid.electricity_maps import ElectricityMaps
from joulegate.sources.grid.entsoe import Entsoe
from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.gb_carbon_intensity import GbCarbonIntensity
from joulegate.sources.grid.generation import generation_factors, generation_table, mix_intensity
from joulegate.sources.grid.http_client import Limits
from joulegate.sources.grid.intensity import FactorType, Label, Place, Signal
from joulegate.sources.grid.watttime import WattTime

BERLIN = ZoneInfo("Europe/Berlin")
IN_MEGAWATT_HOURS = (
    b"<GL_MarketDocument><TimeSeries><quantity_Measure_Unit.name>MWH</quantity_Measure_Unit.name></TimeSeries>"
    b"</GL_MarketDocument>"
)


def json_bytes(message: Any) -> bytes:
    """``message`` as JSON."""
    return json.dumps(message).encode()


@contextmanager
def electricity_maps(values: Any, quick: Limits, *, direct: bool = False) -> Iterator[tuple[Any, ElectricityMaps]]:
    """The simulator and the client."""
    with ElectricityMapsSimulator(NOW_S, values, token=TOKEN) as simulator:
        client = ElectricityMaps("em", simulator.base_url, TOKEN, SetClock(NOW_S), direct=direct, limits=quick)
        try:
            yield simulator, client
        finally:
            client.close()


@contextmanager
def watttime(values: Any, quick: Limits) -> Iterator[tuple[Any, WattTime]]:
    """The simulator and the client."""
    with WattTimeSimulator(NOW_S, values, password=TOKEN) as simulator:
        client = WattTime("wt", simulator.base_url, "me", TOKEN, SetClock(NOW_S), limits=quick)
        try:
            yield simulator, client
        finally:
            client.close()


@contextmanager
def great_britain(values: Any, quick: Limits) -> Iterator[tuple[Any, GbCarbonIntensity]]:
    """The simulator and the client."""
    with GbSimulator(NOW_S, values) as simulator:
        client = GbCarbonIntensity("gb", simulator.base_url, SetClock(NOW_S), limits=quick)
        try:
            yield simulator, client
        finally:
            client.close()


@contextmanager
def entsoe(series: Any, quick: Limits, *, direct: bool = False) -> Iterator[tuple[Any, Entsoe]]:
    """The simulator and the client; the series begin four hours before this hour."""
    with EntsoeSimulator(HOUR_BEGUN_S - 4 * HOUR_S, GERMANY, series, token=TOKEN) as simulator:
        client = Entsoe("entsoe", simulator.base_url, TOKEN, SetClock(NOW_S), direct=direct, limits=quick)
        try:
            yield simulator, client
        finally:
            client.close()


def test_electricity_maps_latest(quick: Limits):
    """The newest hour comes with zone, period, convention, times and the mark of its simulator."""
    with electricity_maps({"DE": hourly(HOUR_BEGUN_S - HOUR_S, [400.0, 312.5])}, quick) as (simulator, client):
        point = client.latest(Place("DE"))
    assert (point.g_per_kwh, point.place, point.source, point.label) == (312.5, "DE", "em", Label.LIVE)
    assert (point.start_s, point.end_s) == (HOUR_BEGUN_S, HOUR_BEGUN_S + HOUR_S)
    assert (point.signal, point.emission_factor_type) == (Signal.AVERAGE, FactorType.LIFECYCLE)
    assert (point.is_estimated, point.updated_s, point.fetched_s) == (False, NOW_S - 240.0, NOW_S)
    assert point.simulated
    asked = simulator.asked[0].query
    assert (asked["zone"], asked["shouldUseFallbackCallerLookup"]) == ("DE", "false")


def test_electricity_maps_says_what_is_estimated(quick: Limits):
    """An estimated hour is marked, with the provider's method."""
    with electricity_maps({"DE": hourly(HOUR_BEGUN_S, [312.0])}, quick) as (simulator, client):
        simulator.more = {"isEstimated": True, "estimationMethod": "TIME_SLICER_AVERAGE"}
        point = client.latest(Place("DE"))
    assert point.is_estimated
    assert "TIME_SLICER_AVERAGE" in point.why


def test_electricity_maps_history_and_past_range(quick: Limits):
    """A day back is the free plan's history, further back the paid range; a missing hour stays missing."""
    values = hourly(HOUR_BEGUN_S - 72 * HOUR_S, [100.0 + hour for hour in range(73)])
    values[HOUR_BEGUN_S - 2 * HOUR_S] = None
    with electricity_maps({"DE": values}, quick) as (simulator, client):
        day = client.history(Place("DE"), NOW_S - 24 * HOUR_S, NOW_S)
        past = client.history(Place("DE"), NOW_S - 48 * HOUR_S, NOW_S - 36 * HOUR_S)
    assert simulator.paths() == ["/v3/carbon-intensity/history", "/v3/carbon-intensity/past-range"]
    assert [point.start_s for point in day[-3:]] == [HOUR_BEGUN_S - 3 * HOUR_S, HOUR_BEGUN_S - HOUR_S, HOUR_BEGUN_S]
    assert len(day) == 23
    assert [point.g_per_kwh for point in past] == [125.0 + hour for hour in range(12)]


def test_electricity_maps_forecast(quick: Limits):
    """The forecast begins with this hour; more than a day is asked for in the steps that the service has."""
    with electricity_maps({"DE": hourly(HOUR_BEGUN_S - 2 * HOUR_S, [float(v) for v in range(80)])}, quick) as (
        simulator,
        client,
    ):
        day = client.forecast(Place("DE"), 24 * HOUR_S)
        longer = client.forecast(Place("DE"), 30 * HOUR_S)
    assert (day[0].start_s, len(day), day[0].is_estimated) == (HOUR_BEGUN_S, 25, True)
    assert len(longer) == 31
    assert [asked.query.get("horizon_hours") for asked in simulator.asked] == [None, "48"]


def test_electricity_maps_granularity(quick: Limits):
    """A quarter of an hour is taken for a quarter of an hour, and a granularity that nobody knows for a fault."""
    with electricity_maps({"DE": hourly(HOUR_BEGUN_S, [312.0])}, quick) as (simulator, client):
        simulator.granularity = "15_minutes"
        point = client.latest(Place("DE"))
        assert point.end_s is not None
        assert point.start_s is not None
        assert point.end_s - point.start_s == 900.0
        simulator.granularity = "fortnightly"
        with pytest.raises(GridFault) as caught:
            client.latest(Place("DE"))
        assert caught.value.kind is FaultKind.MALFORMED


def test_electricity_maps_convention_is_checked(quick: Limits):
    """Direct factors are asked for as direct, and an answer of the other convention is not used."""
    with electricity_maps({"DE": hourly(HOUR_BEGUN_S, [312.0])}, quick, direct=True) as (simulator, client):
        assert client.latest(Place("DE")).emission_factor_type is FactorType.DIRECT
        simulator.more = {"emissionFactorType": "lifecycle"}
        with pytest.raises(GridFault) as caught:
            client.latest(Place("DE"))
    assert caught.value.kind is FaultKind.MALFORMED


def test_the_callers_address_is_no_place(quick: Limits):
    """Without a zone nothing is asked, and an unknown zone is a fault; the caller's own zone is never the answer."""
    values = {"DE": hourly(HOUR_BEGUN_S, [312.0]), CALLERS_ZONE: hourly(HOUR_BEGUN_S, [700.0])}
    with electricity_maps(values, quick) as (simulator, client):
        for place in (Place(), Place("XX"), Place(None, "DEU")):
            with pytest.raises(GridFault) as caught:
                client.latest(place)
            assert caught.value.kind is FaultKind.REJECTED
    assert [asked.query["zone"] for asked in simulator.asked] == ["XX"]


def test_watttime_converts_pounds(quick: Limits):
    """Pounds per MWh become grams per kWh exactly, marginal, and without a life-cycle claim."""
    with watttime({"CAISO_NORTH": hourly(HOUR_BEGUN_S, [1000.0] * 12, 300.0)}, quick) as (_, client):
        point = client.latest(Place("CAISO_NORTH"))
    assert point.g_per_kwh == pytest.approx(453.59237, rel=1e-12)
    assert (point.signal, point.emission_factor_type) == (Signal.MARGINAL, None)
    assert (point.start_s, point.end_s) == (HOUR_BEGUN_S + 900.0, HOUR_BEGUN_S + 1200.0)


def test_watttime_logs_in_again_once(quick: Limits):
    """One login serves many calls; a token that ran out is renewed once and the call answered."""
    with watttime({"CAISO_NORTH": hourly(HOUR_BEGUN_S, [1000.0] * 400, 300.0)}, quick) as (simulator, client):
        client.latest(Place("CAISO_NORTH"))
        client.forecast(Place("CAISO_NORTH"), 24 * HOUR_S)
        assert simulator.logins == 1
        simulator.expire_tokens()
        assert client.history(Place("CAISO_NORTH"), NOW_S - HOUR_S, NOW_S)
        assert simulator.logins == 2
        simulator.faults.extend([Reply(401), Reply(200, b'{"token": "dead"}')])
        with pytest.raises(GridFault) as caught:
            client.latest(Place("CAISO_NORTH"))
        assert caught.value.kind is FaultKind.UNAUTHORIZED
        assert len(simulator.asked) == 9


@pytest.mark.parametrize("name", ["data_point_period_seconds", "data_points_period_seconds"])
def test_watttime_period_is_spelled_two_ways(name: str, quick: Limits):
    """Both spellings of the period are read."""
    with watttime({"CAISO_NORTH": hourly(HOUR_BEGUN_S, [1000.0] * 12, 300.0)}, quick) as (simulator, client):
        simulator.period_name = name
        simulator.meta = {name: 600}
        point = client.latest(Place("CAISO_NORTH"))
    assert point.start_s is not None
    assert point.end_s == point.start_s + 600.0


@pytest.mark.parametrize("meta", [{"units": "kg_co2_per_mwh"}, {"units": None}, {"signal_type": "health_damage"}])
def test_watttime_unit_and_signal_are_not_guessed(meta: dict[str, Any], quick: Limits):
    """Another unit or signal than the one that is converted is refused."""
    with watttime({"CAISO_NORTH": hourly(HOUR_BEGUN_S, [1000.0] * 12, 300.0)}, quick) as (simulator, client):
        simulator.meta = meta
        with pytest.raises(GridFault) as caught:
            client.latest(Place("CAISO_NORTH"))
    assert caught.value.kind is FaultKind.MALFORMED


def test_watttime_says_what_is_imputed(quick: Limits):
    """Imputed data are marked as estimated."""
    with watttime({"CAISO_NORTH": hourly(HOUR_BEGUN_S, [1000.0] * 12, 300.0)}, quick) as (simulator, client):
        simulator.imputed = True
        point = client.latest(Place("CAISO_NORTH"))
    assert point.is_estimated
    assert point.updated_s == NOW_S


def test_gb_prefers_what_was_measured(quick: Limits):
    """A half hour is measured where an actual figure is there, and estimated where it is null or absent."""
    values = hourly(HOUR_BEGUN_S - 2 * HOUR_S, [100.0 + step for step in range(110)], 1800.0)
    with great_britain({"GB": values}, quick) as (_, client):
        now = client.latest(Place("GB"))
        past = client.history(Place("GB"), NOW_S - HOUR_S, NOW_S)
        ahead = client.forecast(Place("GB"), 48 * HOUR_S)
    assert (now.g_per_kwh, now.is_estimated, now.end_s) == (104.0, True, HOUR_BEGUN_S + 1800.0)
    assert [(point.g_per_kwh, point.is_estimated) for point in past[:2]] == [(95.0, False), (96.0, False)]
    assert past[-1].is_estimated
    assert (ahead[0].start_s, ahead[0].is_estimated) == (HOUR_BEGUN_S, True)
    assert ahead[-1].end_s == HOUR_BEGUN_S + 48.5 * HOUR_S


@pytest.mark.parametrize(("zone", "path"), [("GB:SW1", "postcode/SW1"), ("GB:13", "regionid/13")])
def test_gb_regions_are_forecasts(zone: str, path: str, quick: Limits):
    """A postcode or region is asked for by its own path, and its figures are estimates."""
    values = hourly(HOUR_BEGUN_S - 2 * HOUR_S, [100.0] * 110, 1800.0)
    with great_britain({"SW1": values, "13": values}, quick) as (simulator, client):
        points = [client.latest(Place(zone)), *client.forecast(Place(zone), HOUR_S)]
        points += client.history(Place(zone), NOW_S - HOUR_S, NOW_S)
    assert all(point.is_estimated and point.place == zone for point in points)
    assert all(asked.path.startswith("/regional/") and asked.path.endswith(path) for asked in simulator.asked)


@pytest.mark.parametrize("zone", [None, "DE", "GB:", "GB:0", "GB:18", "GB:SW1A 1AA", "GB:../x"])
def test_gb_asks_for_no_other_zone(zone: str | None, quick: Limits):
    """What is no zone of Great Britain is refused before anything is asked."""
    with great_britain({"GB": hourly(HOUR_BEGUN_S, [100.0], 1800.0)}, quick) as (simulator, client):
        with pytest.raises(GridFault) as caught:
            client.latest(Place(zone))
        assert caught.value.kind is FaultKind.REJECTED
    assert not simulator.asked


def whole(mw: float, steps: int = 4) -> dict[int, float]:
    """The same power in every step."""
    return dict.fromkeys(range(1, steps + 1), mw)


def test_entsoe_weighs_the_mix(quick: Limits):
    """The intensity is the mean of published factors by generation, and says that imports are not traced."""
    series = [Production("B05", whole(100.0), 4), Production("B19", whole(300.0), 4)]
    with entsoe(series, quick) as (simulator, client):
        points = client.history(Place(GERMANY), HOUR_BEGUN_S - 4 * HOUR_S, NOW_S)
    assert [point.g_per_kwh for point in points] == pytest.approx([(820.0 + 3 * 11.0) / 4] * 4)
    assert all("imports not traced" in point.why for point in points)
    assert (points[0].emission_factor_type, points[0].place) == (FactorType.LIFECYCLE, GERMANY)
    asked = simulator.asked[0].query
    assert asked["periodStart"] == datetime.fromisoformat(iso(HOUR_BEGUN_S - 4 * HOUR_S)).strftime("%Y%m%d%H%M")


def test_entsoe_direct_factors(quick: Limits):
    """Direct factors count the stack alone."""
    series = [Production("B05", whole(100.0), 4), Production("B14", whole(100.0), 4)]
    with entsoe(series, quick, direct=True) as (_, client):
        assert client.latest(Place(GERMANY)).g_per_kwh == pytest.approx(380.0)


def test_entsoe_waits_for_late_types(quick: Limits):
    """An hour for which one type has not reported has no figure; the newest whole hour is the latest."""
    series = [Production("B05", whole(100.0), 4), Production("B16", whole(100.0, 2), 4)]
    with entsoe(series, quick) as (_, client):
        latest = client.latest(Place(GERMANY))
    assert latest.start_s == HOUR_BEGUN_S - 3 * HOUR_S
    assert latest.g_per_kwh == pytest.approx((820.0 + 48.0) / 2)


def test_entsoe_repeats_only_where_the_curve_says_so(quick: Limits):
    """A position left out repeats the one before in curve A03 and is a gap in A01."""
    for curve, expected in (("A03", [12.0, 12.0, 490.0, 490.0]), ("A01", [12.0, 490.0])):
        series = [
            Production("B14", {1: 100.0, 3: 0.0}, 4, curve=curve),
            Production("B04", {1: 0.0, 3: 100.0}, 4, curve=curve),
        ]
        with entsoe(series, quick) as (_, client):
            points = client.history(Place(GERMANY), HOUR_BEGUN_S - 4 * HOUR_S, NOW_S)
        assert [point.g_per_kwh for point in points] == pytest.approx(expected)


def test_entsoe_mixes_resolutions(quick: Limits):
    """Quarter hours and hours are brought to quarter hours."""
    quarters = {position: (400.0 if position <= 2 else 0.0) for position in range(1, 5)}
    series = [Production("B14", whole(100.0, 1), 1), Production("B05", quarters, 4, step_s=900.0)]
    with entsoe(series, quick) as (_, client):
        points = client.history(Place(GERMANY), HOUR_BEGUN_S - 4 * HOUR_S, NOW_S)
    mixed = (400.0 * 820.0 + 100.0 * 12.0) / 500.0
    assert [point.g_per_kwh for point in points] == pytest.approx([mixed, mixed, 12.0, 12.0])


def test_entsoe_leaves_storage_out(quick: Limits):
    """Storage, in either direction and however sparsely reported, moves nothing, and neither does plants' own use."""
    series = [
        Production("B14", whole(100.0), 4),
        Production("B10", {2: 5000.0}, 4),
        Production("B10", {1: 5000.0}, 4, consumption=True),
        Production("B05", whole(900.0), 4, consumption=True),
    ]
    with entsoe(series, quick) as (_, client):
        points = client.history(Place(GERMANY), HOUR_BEGUN_S - 4 * HOUR_S, NOW_S)
    assert [point.g_per_kwh for point in points] == pytest.approx([12.0] * 4)


def test_entsoe_names_what_it_left_out(quick: Limits):
    """A little waste without a factor is left out and named; a lot makes the mix unusable."""
    for waste_mw, usable in ((4.0, True), (6.0, False)):
        series = [Production("B14", whole(96.0), 4), Production("B17", whole(waste_mw), 4)]
        with entsoe(series, quick) as (_, client):
            if usable:
                assert "4.0% without a factor" in client.latest(Place(GERMANY)).why
                continue
            with pytest.raises(GridFault) as caught:
                client.latest(Place(GERMANY))
            assert "no published lifecycle factor" in str(caught.value)


def test_entsoe_has_no_forecast(quick: Limits):
    """It says that it has none, without asking."""
    with entsoe([], quick) as (simulator, client):
        with pytest.raises(GridFault) as caught:
            client.forecast(Place(GERMANY), HOUR_S)
        assert caught.value.kind is FaultKind.UNSUPPORTED
    assert not simulator.asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<Publication_MarketDocument/>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><GL_MarketDocument>&a;</GL_MarketDocument>',
        IN_MEGAWATT_HOURS,
    ],
    ids=["empty", "html", "other", "entities", "unit"],
)
def test_entsoe_refuses_other_documents(body: bytes, quick: Limits):
    """What is not the document that was asked for is a fault of one line."""
    with entsoe([], quick) as (simulator, client):
        simulator.always = Reply(200, body)
        with pytest.raises(GridFault) as caught:
            client.latest(Place(GERMANY))
    assert caught.value.kind in {FaultKind.MALFORMED, FaultKind.WRONG_ZONE}


def test_entsoe_points_must_fit_their_period(quick: Limits):
    """A point outside its period, or of a resolution that nobody knows, is a fault."""
    for series in (Production("B14", {5: 1.0}, 4), Production("B14", {1: 1.0}, 4, step_s=420.0)):
        with entsoe([series], quick) as (_, client):
            with pytest.raises(GridFault) as caught:
                client.latest(Place(GERMANY))
            assert caught.value.kind is FaultKind.MALFORMED


def test_every_generation_factor_is_cited():
    """Each figure has a source with title, year and licence, and a grid can have it; direct is not above 3,000."""
    table = generation_table()
    for code, entry in table["types"].items():
        for kind in FactorType:
            if kind.value in entry:
                source = table["sources"][entry[kind.value]["source"]]
                assert source["title"], code
                assert source["year"] > 2000
                assert source["licence"]
                assert 0 <= entry[kind.value]["g_per_kwh"] <= 1200
    assert set(generation_factors()) == {f"B{number:02}" for number in (*range(1, 21), 25)}


@given(
    st.dictionaries(st.sampled_from(sorted(generation_factors())), st.floats(0, 1e5), max_size=8), st.floats(0.1, 10)
)
def test_mix_lies_between_its_factors(mix_mw: dict[str, float], scale: float):
    """A mix is never outside its types' factors, and the size of the grid changes nothing."""
    found = mix_intensity(mix_mw, FactorType.LIFECYCLE)
    if found is None:
        return
    used = [
        factor.g_per_kwh[FactorType.LIFECYCLE]
        for code, factor in generation_factors().items()
        if mix_mw.get(code, 0.0) > 0 and FactorType.LIFECYCLE in factor.g_per_kwh
    ]
    assert min(used) * (1 - 1e-9) <= found.g_per_kwh <= max(used) * (1 + 1e-9)
    scaled = mix_intensity({code: mw * scale for code, mw in mix_mw.items()}, FactorType.LIFECYCLE)
    if scaled is not None:
        assert scaled.g_per_kwh == pytest.approx(found.g_per_kwh, rel=1e-6)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2025-10-26", 25), ("2026-06-01", 24)])
def test_days_of_23_and_25_hours(day: str, hours: int, quick: Limits):
    """Every hour of a local day is there once and in order, whatever the clocks on the wall did."""
    from_s = datetime.fromisoformat(day).replace(tzinfo=BERLIN).timestamp()
    to_s = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=BERLIN).timestamp()
    moments = [from_s + HOUR_S * hour for hour in range(hours)]
    local = [datetime.fromtimestamp(at_s, BERLIN).isoformat() for at_s in moments]
    items = [{"carbonIntensity": 100 + n, "datetime": text} for n, text in enumerate(local)]
    with electricity_maps({"DE": {}}, quick) as (simulator, client):
        simulator.always = Reply(200, json_bytes({"zone": "DE", "data": items}))
        points = client.history(Place("DE"), from_s, to_s)
    assert to_s - from_s == hours * HOUR_S
    assert [point.start_s for point in points] == moments
    assert [point.end_s for point in points] == [at_s + HOUR_S for at_s in moments]
    assert [point.g_per_kwh for point in points] == [100.0 + n for n in range(hours)]


def test_a_time_without_an_offset_is_nobodys(quick: Limits):
    """A local time of an unknown place is refused, not taken for UTC."""
    with electricity_maps({"DE": {}}, quick) as (simulator, client):
        simulator.always = Reply(
            200, json_bytes({"zone": "DE", "carbonIntensity": 100, "datetime": "2026-10-25T02:30:00"})
        )
        with pytest.raises(GridFault) as caught:
            client.latest(Place("DE"))
    assert caught.value.kind is FaultKind.MALFORMED

"""What goes wrong at a provider becomes one named fault, in bounded time, and never another number."""

from __future__ import annotations

import json
import logging
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest
from tests.grid.conftest import NOW_S, SetClock
from tests.grid.providers import PROVIDERS, TOKEN, Provider
from tests.grid.simulators import ElectricityMapsSimulator, EntsoeSimulator, GbSimulator, Reply, Simulator, hourly

from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.http_client import ApiClient, Limits
from joulegate.sources.grid.intensity import Place
from joulegate.sources.grid.ports import GridSource

every_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)


@contextmanager
def connected(provider: Provider, quick: Limits, token: str = TOKEN) -> Iterator[tuple[Simulator, GridSource]]:
    """A provider's simulator and the real client on it."""
    with provider.simulate() as simulator:
        source = provider.client(simulator.base_url, SetClock(NOW_S), quick, token)
        try:
            yield simulator, source
        finally:
            source.close()


def fault_of(source: GridSource, place: Place) -> GridFault:
    """What asking for the newest figure raises; its text is one line that names the source."""
    with pytest.raises(GridFault) as caught:
        source.latest(place)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(source.name)
    return caught.value


@every_provider
def test_all_is_well_without_a_fault(provider: Provider, quick: Limits):
    """Each simulator answers its client, so that the faults below are the faults' doing."""
    with connected(provider, quick) as (_, source):
        point = source.latest(provider.place)
        assert point.g_per_kwh is not None
        assert point.simulated
        assert source.history(provider.place, NOW_S - 7200.0, NOW_S)


@every_provider
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, FaultKind.UNAUTHORIZED),
        (403, FaultKind.FORBIDDEN),
        (400, FaultKind.REJECTED),
        (404, FaultKind.REJECTED),
        (429, FaultKind.RATE_LIMITED),
        (500, FaultKind.SERVER),
        (503, FaultKind.SERVER),
        (302, FaultKind.MALFORMED),
    ],
)
def test_statuses(provider: Provider, status: int, kind: FaultKind, quick: Limits):
    """Each status has its kind; only what may pass is tried again, and no more often than the limits say."""
    with connected(provider, quick) as (simulator, source):
        simulator.always = Reply(status, b"", {"Location": "http://127.0.0.1:1/"})
        assert fault_of(source, provider.place).kind is kind
        tries = quick.attempts if kind in {FaultKind.SERVER, FaultKind.RATE_LIMITED} else 1
        assert len(simulator.asked) == tries


@every_provider
def test_a_server_that_recovers_is_not_a_fault(provider: Provider, quick: Limits):
    """One failure in passing is bridged by another try."""
    with connected(provider, quick) as (simulator, source):
        simulator.faults.append(Reply(500))
        assert source.latest(provider.place).g_per_kwh is not None


@every_provider
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(hang=True), FaultKind.TIMEOUT),
        (Reply(drip=True), FaultKind.TIMEOUT),
        (Reply(reset=True), FaultKind.NETWORK),
    ],
    ids=["hangs", "drips", "breaks off"],
)
def test_servers_that_do_not_answer(provider: Provider, reply: Reply, kind: FaultKind, quick: Limits):
    """Accepting and never answering, answering byte by byte and breaking off all end within the limits."""
    with connected(provider, quick) as (simulator, source):
        simulator.always = reply
        assert fault_of(source, provider.place).kind is kind


@every_provider
def test_nobody_listens(provider: Provider, quick: Limits):
    """A refused connection is named as such."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        source = provider.client(url, SetClock(NOW_S), quick, TOKEN)
        assert fault_of(source, provider.place).kind is FaultKind.REFUSED
        source.close()


@every_provider
def test_a_name_that_does_not_resolve(provider: Provider, quick: Limits):
    """A host that no resolver knows is named as such, and not tried again: the resolver has."""
    source = provider.client("https://grid.invalid", SetClock(NOW_S), quick, TOKEN)
    assert fault_of(source, provider.place).kind is FaultKind.DNS
    source.close()


@every_provider
def test_a_wrong_token(provider: Provider, quick: Limits):
    """A token that the provider does not know is named as such."""
    if not provider.needs_token:
        return
    with connected(provider, quick, token="wrong-token") as (_, source):
        assert fault_of(source, provider.place).kind is FaultKind.UNAUTHORIZED


@every_provider
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b'"ok"', b"[" * 100_000, b"\xff\xfe", b"{}", b'{"a": NaN}']
)
def test_answers_that_are_none(provider: Provider, body: bytes, quick: Limits):
    """A 200 that holds nothing of use is malformed, not a figure and not a crash."""
    with connected(provider, quick) as (simulator, source):
        simulator.always = Reply(200, body)
        assert fault_of(source, provider.place).kind is FaultKind.MALFORMED


@every_provider
def test_a_broken_compression(provider: Provider, quick: Limits):
    """A body that claims to be compressed and is not is malformed."""
    with connected(provider, quick) as (simulator, source):
        simulator.always = Reply(200, b"not gzip", {"Content-Encoding": "gzip"})
        assert fault_of(source, provider.place).kind is FaultKind.MALFORMED


@every_provider
def test_a_body_without_end(provider: Provider, quick: Limits):
    """A body beyond what an answer can be is given up."""
    with connected(provider, replace(quick, read_s=5.0, total_s=20.0)) as (simulator, source):
        simulator.always = Reply(200, b" " * (8 * 1024 * 1024 + 1))
        assert fault_of(source, provider.place).kind is FaultKind.MALFORMED


@pytest.mark.parametrize("value", [-1.0, 3000.1, 1e9, float("nan"), float("inf")])
def test_figures_that_no_grid_has(value: float, quick: Limits):
    """An unbelievable newest figure is a fault, and in a series a gap."""
    provider = PROVIDERS[0]
    hours = hourly(NOW_S // 3600 * 3600 - 3600.0, [300.0, value])
    with ElectricityMapsSimulator(NOW_S, {"DE": hours}, token=TOKEN) as simulator:
        source = provider.client(simulator.base_url, SetClock(NOW_S), quick, TOKEN)
        assert fault_of(source, provider.place).kind is FaultKind.OUT_OF_RANGE
        points = source.history(provider.place, NOW_S - 7200.0, NOW_S)
        assert [point.g_per_kwh for point in points] == [300.0]
        source.close()


@pytest.mark.parametrize("value", [True, "300", None, [], {}])
def test_figures_that_are_no_numbers(value: Any, quick: Limits):
    """Text, booleans and null are no figures."""
    with connected(PROVIDERS[0], quick) as (simulator, source):
        body = {"zone": "DE", "carbonIntensity": value, "datetime": "2026-09-21T12:00:00Z"}
        simulator.always = Reply(200, json.dumps(body).encode())
        assert fault_of(source, PROVIDERS[0].place).kind is FaultKind.MALFORMED


@pytest.mark.parametrize("echo", ["FR", "", None, 7, "DE-LU", {"zone": "DE"}])
def test_electricity_maps_answers_for_another_zone(echo: Any, quick: Limits):
    """Whatever is echoed but the zone that was asked for, the figure is not used."""
    with connected(PROVIDERS[0], quick) as (simulator, source):
        body = {"zone": echo, "carbonIntensity": 56, "datetime": "2026-09-21T12:00:00Z"}
        simulator.always = Reply(200, json.dumps(body).encode())
        for ask in (source.latest, lambda place: source.forecast(place, 3600.0)):
            with pytest.raises(GridFault) as caught:
                ask(PROVIDERS[0].place)
            assert caught.value.kind is FaultKind.WRONG_ZONE


def test_other_providers_answer_for_another_zone(quick: Limits):
    """The region, the postcode and the bidding zone that are echoed are checked too."""
    watttime, great_britain, entsoe = PROVIDERS[1:]
    with connected(watttime, quick) as (simulator, source):
        simulator.meta = {"region": "PJM_DC"}
        assert fault_of(source, watttime.place).kind is FaultKind.WRONG_ZONE
    with connected(great_britain, quick) as (simulator, source):
        assert isinstance(simulator, GbSimulator)
        simulator.echo = "EH1"
        assert fault_of(source, Place("GB:SW1")).kind is FaultKind.WRONG_ZONE
    with connected(entsoe, quick) as (simulator, source):
        assert isinstance(simulator, EntsoeSimulator)
        simulator.echo = "10YFR-RTE------C"
        assert fault_of(source, entsoe.place).kind is FaultKind.WRONG_ZONE


def test_no_data_for_a_zone(quick: Limits):
    """ENTSO-E's acknowledgement that it has nothing is told, without the token that it quotes."""
    with connected(PROVIDERS[3], quick) as (_, source):
        fault = fault_of(source, Place("10YXX-XXXXXX---X"))
    assert fault.kind is FaultKind.NO_DATA
    assert "No matching data" in str(fault)
    assert TOKEN not in str(fault)


def test_retry_after_is_heeded(quick: Limits):
    """A short wait is waited, a long one is handed up at once; seconds and dates are both understood."""
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    with connected(PROVIDERS[0], quick) as (simulator, source):
        simulator.faults.append(Reply(429, b"", {"Retry-After": "0.03"}))
        assert source.latest(PROVIDERS[0].place).g_per_kwh is not None
        for text, least_s, most_s in (("600", 600.0, 600.0), (later, 3500.0, 3600.0), ("1e9", 86_400.0, 86_400.0)):
            simulator.asked.clear()
            simulator.faults.append(Reply(429, b"", {"Retry-After": text}))
            fault = fault_of(source, PROVIDERS[0].place)
            assert len(simulator.asked) == 1
            assert fault.retry_after_s is not None
            assert least_s <= fault.retry_after_s <= most_s
        simulator.always = Reply(429, b"", {"Retry-After": "soon"})
        assert fault_of(source, PROVIDERS[0].place).retry_after_s is None


def test_a_closed_client_asks_nobody(quick: Limits):
    """After close a call ends with a fault of its own kind."""
    with connected(PROVIDERS[0], quick) as (simulator, source):
        source.close()
        assert fault_of(source, PROVIDERS[0].place).kind is FaultKind.CLOSED
        assert not simulator.asked


TOKENS = [TOKEN, "with space", "line\nend", "naïve", "%26&securityToken=x"]


def indiscreet(token: str) -> list[Reply]:
    """Answers that quote the token back."""
    return [
        *(Reply(status, f"your token {token} is bad".encode()) for status in (400, 401, 403, 429, 500)),
        Reply(200, f"<{token}".encode()),
        Reply(reset=True),
        Reply(302, b"", {"Location": f"http://127.0.0.1:1/?securityToken={quote(token, safe='')}"}),
    ]


@every_provider
@pytest.mark.parametrize("token", TOKENS)
def test_no_token_in_logs_faults_or_reprs(
    provider: Provider, token: str, quick: Limits, caplog: pytest.LogCaptureFixture
):
    """With every logger at its most talkative, no fault, log line or repr holds the token or WattTime's session."""
    if not provider.needs_token:
        return
    said: list[str] = []
    with caplog.at_level(logging.DEBUG), connected(provider, quick, token=token) as (simulator, source):
        for reply in (None, *indiscreet(token)):
            simulator.always = reply
            try:
                said.append(repr(source.latest(provider.place)))
            except GridFault as fault:
                said += [str(fault), repr(fault), repr(fault.__cause__), repr(fault.__context__)]
        said += [repr(source), *(repr(value) for value in vars(source).values() if isinstance(value, ApiClient))]
    said += [record.getMessage() for record in caplog.records]
    assert said
    for secret in (token, quote(token, safe=""), "session-1"):
        assert not [line for line in said if secret in line]


WEIRD = [None, True, -1, 1e300, float("nan"), "", "x", [], {}, [None], "2026-10-25T02:30:00", "DE", 10**400, "9" * 5000]


def spoiled(body: bytes, chance: random.Random) -> bytes:
    """A right answer with one thing in it replaced or taken away; of XML, with a few bytes changed."""
    if not body.startswith(b"{"):
        changed = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            changed[place : place + chance.randint(0, 3)] = chance.choice([b"", b"-", b"9", b"<", b"N", b"T"])
        return bytes(changed)
    message = json.loads(body)
    node, key = message, chance.choice(list(message))
    while isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
        node = node[key]
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
    if chance.random() < 0.3 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = chance.choice(WEIRD)
    return json.dumps(message).encode()


@every_provider
def test_spoiled_answers(provider: Provider, quick: Limits):
    """However a right answer is spoiled, what comes of it is a fault or believable points of this place in order."""
    chance, refused = random.Random(3), 0
    with connected(provider, replace(quick, attempts=1)) as (simulator, source):
        for _ in range(70):
            simulator.spoil = lambda body: spoiled(body, chance)
            ask = chance.choice([_newest, _ahead, _behind])
            try:
                points = ask(source, provider.place)
            except GridFault:
                refused += 1
                continue
            assert points
            for point in points:
                assert point.place == provider.place.zone
                assert 0 <= point.g_per_kwh <= 3000
                assert point.start_s < point.end_s
            starts = [point.start_s for point in points]
            assert starts == sorted(set(starts))
    assert refused > 10


def _newest(source: GridSource, place: Place) -> list[Any]:
    return [source.latest(place)]


def _ahead(source: GridSource, place: Place) -> list[Any]:
    return list(source.forecast(place, 86_400.0))


def _behind(source: GridSource, place: Place) -> list[Any]:
    return list(source.history(place, NOW_S - 7200.0, NOW_S))

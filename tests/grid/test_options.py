"""What is wrong with the options is said at once, in one line a fault, without asking anybody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr
from tests.grid.conftest import SetClock

from joulegate.sources.grid.choice import make_grid_source
from joulegate.sources.grid.options import PROVIDERS, GridOptions, GridOptionsFault, require_usable

GOOD: dict[str, dict[str, Any]] = {
    "electricity-maps": {"zone": "DE", "token": "tok-x"},
    "watttime": {"zone": "CAISO_NORTH", "username": "me", "token": "tok-x"},
    "gb-carbon-intensity": {"zone": "GB:SW1"},
    "entsoe": {"zone": "10Y1001A1001A82H", "token": "tok-x"},
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_can_be_made(name: str, clock: SetClock):
    """Options that are right give a client that is named after its provider and host, and asks nobody yet."""
    options = GridOptions(provider=name, **GOOD[name])
    source = make_grid_source(options, clock)
    assert source is not None
    assert source.name == name
    source.close()
    other = make_grid_source(GridOptions(provider=name, base_url="https://mirror.example:8443", **GOOD[name]), clock)
    assert other is not None
    assert other.name == f"{name} at mirror.example:8443"
    other.close()


def test_nothing_configured_is_no_fault(clock: SetClock):
    """Without a provider there is no client, and that is fine."""
    assert make_grid_source(GridOptions(), clock) is None
    assert make_grid_source(GridOptions(country="DEU"), clock) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"zone": "DE"}, ["grid.zone: a zone needs a provider"]),
        ({"provider": "carbon"}, ["grid.provider: 'carbon' is not known"]),
        ({"provider": "electricity-maps"}, ["grid.zone: electricity-maps needs a zone", "grid.token: "]),
        ({"provider": "electricity-maps", "zone": "Germany", "token": "x"}, ["grid.zone: 'Germany' is no zone"]),
        ({"provider": "electricity-maps", "zone": "DE&x=1", "token": "x"}, ["grid.zone: 'DE&x=1' is no zone"]),
        (
            {"provider": "electricity-maps", "zone": "FR", "country": "DEU", "token": "x"},
            ["grid.country: DEU is not where"],
        ),
        ({"provider": "gb-carbon-intensity", "zone": "GB", "country": "FRA"}, ["grid.country: FRA is not where"]),
        ({"provider": "gb-carbon-intensity", "zone": "GB/../x"}, ["grid.zone: "]),
        ({"provider": "watttime", "zone": "CAISO_NORTH"}, ["grid.token: ", "grid.username: "]),
        ({"provider": "entsoe", "zone": "DE", "token": "x"}, ["grid.zone: 'DE' is no zone of entsoe"]),
        ({"country": "DE"}, ["grid.country: 'DE' is not a country"]),
        ({"country": "XYZ"}, ["grid.country: 'XYZ' is not a country"]),
        ({"refresh_s": 1.0, "timeout_s": float("nan")}, ["grid.refresh_s: 1 is not", "grid.timeout_s: nan is not"]),
        ({"factor_type": "marginal"}, ["grid.factor_type: "]),
    ],
)
def test_faults_are_all_named(given: dict[str, Any], says: list[str]):
    """Each fault is one line that names the key and what to give."""
    with pytest.raises(GridOptionsFault) as caught:
        require_usable(GridOptions(**given))
    assert len(caught.value.lines) == len(says)
    for line, beginning in zip(caught.value.lines, says, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize("url", ["ftp://x", "http:", "https://me:pw@x", "https://x?a=b", "x", "http://[", "http://x:p"])
def test_addresses_are_plain(url: str):
    """What is no plain http address is refused, without quoting what may hold a password."""
    with pytest.raises(GridOptionsFault) as caught:
        require_usable(GridOptions(provider="electricity-maps", base_url=url, **GOOD["electricity-maps"]))
    assert "pw" not in str(caught.value)


def test_a_token_is_not_sent_in_the_clear():
    """Plain http is for loopback, or for a provider that wants no token."""
    for url, name, fine in (
        ("http://127.0.0.1:1", "electricity-maps", True),
        ("http://[::1]:1", "electricity-maps", True),
        ("http://proxy.example", "electricity-maps", False),
        ("http://proxy.example", "gb-carbon-intensity", True),
    ):
        options = GridOptions(provider=name, base_url=url, **GOOD[name])
        if fine:
            require_usable(options)
            continue
        with pytest.raises(GridOptionsFault, match="unencrypted"):
            require_usable(options)


@pytest.mark.parametrize("token", ["tok 1", "tok\n", "naïve", "tok\x00"])
def test_a_token_that_cannot_be_sent_is_not_shown(token: str):
    """A token with a space, a line end or other letters is refused by its key alone."""
    options = GridOptions(provider="entsoe", zone="10Y1001A1001A82H", token=token)
    with pytest.raises(GridOptionsFault) as caught:
        require_usable(options)
    assert token not in str(caught.value)
    assert token not in repr(options)


def test_options_come_from_any_table():
    """Attributes of the settings' table are taken by name, a secret is revealed, and what is absent stays default."""

    @dataclass
    class Table:
        provider: str = "entsoe"
        zone: str = "10Y1001A1001A82H"
        token: SecretStr = field(default_factory=lambda: SecretStr("tok-x"))
        refresh_s: float = 600.0
        country: str | None = None

    options = GridOptions.of(Table())
    assert (options.provider, options.token, options.refresh_s, options.attempts) == ("entsoe", "tok-x", 600.0, 3)
    assert GridOptions.of(Table(), country="DEU").country == "DEU"
    assert GridOptions.of(Table(country="AUT"), country="DEU").country == "AUT"
    assert GridOptions.of(None) == GridOptions()

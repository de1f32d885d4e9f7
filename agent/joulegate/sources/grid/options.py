"""What can be set of the grid, and what is wrong with it, found without asking anybody."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from joulegate.carbon.place import country_of_zone, is_country
from joulegate.sources.grid import electricity_maps, entsoe, gb_carbon_intensity, watttime
from joulegate.sources.grid.http_client import is_loopback

PROVIDERS: Mapping[str, str] = {
    electricity_maps.NAME: electricity_maps.BASE_URL,
    watttime.NAME: watttime.BASE_URL,
    gb_carbon_intensity.NAME: gb_carbon_intensity.BASE_URL,
    entsoe.NAME: entsoe.BASE_URL,
}
"""Each provider's own address."""

_TOKENS = frozenset({electricity_maps.NAME, watttime.NAME, entsoe.NAME})
_ZONES: Mapping[str, tuple[re.Pattern[str], str]] = {
    electricity_maps.NAME: (re.compile(r"[A-Z]{2}(-[A-Z0-9]+)*"), "a zone such as DE or US-CAL-CISO"),
    watttime.NAME: (re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)*"), "a region such as CAISO_NORTH"),
    gb_carbon_intensity.NAME: (gb_carbon_intensity.ZONE, "GB, GB:SW1 (postcode) or GB:13 (region)"),
    entsoe.NAME: (entsoe.ZONE, "a bidding zone's code such as 10Y1001A1001A82H"),
}
_NAMED_BY_COUNTRY = frozenset({electricity_maps.NAME, gb_carbon_intensity.NAME})


class GridOptionsFault(Exception):
    """The options cannot be used; one line a fault: which, what, what to do."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOptions:
    """The ``[grid]`` table. ``token`` (and WattTime's ``username``) never appear in a text of ours."""

    provider: str | None = None
    zone: str | None = None
    country: str | None = None
    token: str | None = field(default=None, repr=False)
    username: str | None = field(default=None, repr=False)
    base_url: str | None = None
    factor_type: str = "lifecycle"
    refresh_s: float = 300.0
    forecast_refresh_s: float = 1800.0
    timeout_s: float = 5.0
    attempts: int = 3
    kept_s: float = 6 * 3600.0

    @classmethod
    def of(cls, settings: object, *, country: str | None = None) -> GridOptions:
        """Options from anything with attributes of these names (the settings' table); what is absent is default.

        ``country`` is that of the site, for where the table names none.
        """
        given: dict[str, Any] = {} if country is None else {"country": country}
        for name in cls.__slots__:
            value = getattr(settings, name, None)
            if value is not None:
                reveal = getattr(value, "get_secret_value", None)
                given[name] = value if reveal is None else reveal()
        return cls(**given)

    @property
    def address(self) -> str:
        """Where the provider is asked."""
        return self.base_url or PROVIDERS[self.provider or ""]

    @property
    def source_name(self) -> str:
        """The provider, and where it is asked if that is not its own address."""
        if self.provider is None or self.address == PROVIDERS[self.provider]:
            return self.provider or ""
        return f"{self.provider} at {urlsplit(self.address).netloc.rpartition('@')[2]}"


def require_usable(options: GridOptions) -> GridOptions:
    """``options``; raises ``GridOptionsFault`` with every fault found."""
    lines = (*_place_faults(options), *_access_faults(options), *_number_faults(options))
    if lines:
        raise GridOptionsFault(*lines)
    return options


def _place_faults(options: GridOptions) -> list[str]:
    lines = []
    if options.country is not None and not is_country(options.country):
        lines.append(f"grid.country: {options.country!r} is not a country; give ISO 3166-1 alpha-3, such as DEU")
    if options.provider is None:
        if options.zone is not None:
            lines.append(f"grid.zone: a zone needs a provider; set grid.provider to one of {', '.join(PROVIDERS)}")
        return lines
    if options.provider not in PROVIDERS:
        return [*lines, f"grid.provider: {options.provider!r} is not known; give one of {', '.join(PROVIDERS)}"]
    pattern, what = _ZONES[options.provider]
    if options.zone is None:
        lines.append(f"grid.zone: {options.provider} needs a zone; give {what}")
    elif not pattern.fullmatch(options.zone):
        lines.append(f"grid.zone: {options.zone!r} is no zone of {options.provider}; give {what}")
    else:
        lines += _elsewhere(options)
    return lines


def _elsewhere(options: GridOptions) -> list[str]:
    """A zone and a country apart would give, with each fault of the provider, another place's number."""
    if options.provider not in _NAMED_BY_COUNTRY or options.country is None or options.zone is None:
        return []
    country = country_of_zone(options.zone.partition(":")[0])
    if country in {None, options.country}:
        return []
    return [f"grid.country: {options.country} is not where zone {options.zone} lies; give {country} or leave it out"]


def _access_faults(options: GridOptions) -> list[str]:
    lines = []
    needed = options.provider in _TOKENS
    if needed and not options.token:
        lines.append(f"grid.token: {options.provider} needs one; set JOULEGATE_GRID__TOKEN")
    if options.provider == watttime.NAME and not options.username:
        lines.append("grid.username: watttime needs one; set JOULEGATE_GRID__USERNAME")
    for name, secret in (("token", options.token), ("username", options.username)):
        if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
            lines.append(
                f"grid.{name}: holds a space, a line end or a character outside ASCII; give it as it was issued"
            )
    if options.base_url is not None:
        lines += _address_faults(options.base_url, secret=needed)
    return lines


def _address_faults(base_url: str, *, secret: bool) -> list[str]:
    try:
        address = urlsplit(base_url)
        host, _ = address.hostname, address.port
    except ValueError:
        return ["grid.base_url: is not an address; give one such as https://example.org"]
    if address.scheme not in {"http", "https"} or not host or address.query or address.fragment or address.username:
        return ["grid.base_url: is not a plain http or https address; give one such as https://example.org"]
    if secret and address.scheme == "http" and not is_loopback(host):
        return ["grid.base_url: would send the token unencrypted; give an https address"]
    return []


def _number_faults(options: GridOptions) -> list[str]:
    ranges = {
        "refresh_s": (60.0, 86_400.0),
        "forecast_refresh_s": (60.0, 86_400.0),
        "timeout_s": (0.1, 60.0),
        "attempts": (1, 5),
        "kept_s": (60.0, 86_400.0),
    }
    lines = []
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and least <= value <= most):
            lines.append(f"grid.{name}: {value:g} is not between {least:g} and {most:g}")
    if options.factor_type not in {"lifecycle", "direct"}:
        lines.append(f"grid.factor_type: {options.factor_type!r} is not known; give lifecycle or direct")
    return lines

"""The Carbon Intensity API of Great Britain: half hours, national (measured) or regional (forecast only).

Shapes: carbon-intensity.github.io/api-definitions. Zones: ``GB``, ``GB:SW1`` (outward half of a postcode), ``GB:13``
(a region from 1 to 17). No token. It counts CO2 of generation and of imports, not what came before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from joulegate.sources.grid.answers import (
    in_order,
    in_utc,
    malformed,
    member,
    moment_s,
    number,
    objects,
    require_same,
)
from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.http_client import Answer, ApiClient, Limits
from joulegate.sources.grid.intensity import (
    FactorType,
    Intensity,
    Label,
    Place,
    Signal,
    require_believable,
)
from joulegate.sources.grid.ports import WallClock
from joulegate.sources.grid.series import usable, within

NAME = "gb-carbon-intensity"
BASE_URL = "https://api.carbonintensity.org.uk"
ZONE = re.compile(r"GB(?::(?P<part>(?P<region>1[0-7]|[1-9])|[A-Z]{1,2}[0-9][A-Z0-9]?))?", re.IGNORECASE)

_PATTERN = "%Y-%m-%dT%H:%MZ"
_LONGEST_RANGE_S = 13 * 86_400.0
"""The service takes ranges of up to 14 days."""
_LONGEST_FORECAST_S = 48 * 3600.0


class GbCarbonIntensity:
    """``GridSource`` over the GB Carbon Intensity API."""

    fresh_s = 3600.0

    def __init__(self, name: str, base_url: str, clock: WallClock, *, limits: Limits | None = None) -> None:
        self.name = name
        self._clock = clock
        self._client = ApiClient(name, base_url, limits or Limits())

    def latest(self, place: Place) -> Intensity:
        """This half hour: ``/intensity`` or ``/regional/postcode/{x}``."""
        part, kind = self._part(place)
        path = f"/regional/{kind}/{part}" if part else "/intensity"
        answer, items = self._ask(path, place)
        newest = in_order(self._points(items, answer, place), self.name)[-1]
        require_believable(newest.g_per_kwh or 0.0, self.name)
        return newest

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """``/intensity/{from}/{to}``."""
        part, kind = self._part(place)
        path = f"/intensity/{in_utc(max(from_s, to_s - _LONGEST_RANGE_S), _PATTERN)}/{in_utc(to_s, _PATTERN)}"
        answer, items = self._ask(f"/regional{path}/{kind}/{part}" if part else path, place)
        return in_order(within(usable(self._points(items, answer, place)), from_s, to_s), self.name)

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """``/intensity/{from}/fw48h``."""
        part, kind = self._part(place)
        now_s = self._clock()
        path = f"/intensity/{in_utc(now_s, _PATTERN)}/fw48h"
        answer, items = self._ask(f"/regional{path}/{kind}/{part}" if part else path, place)
        until_s = now_s + min(horizon_s, _LONGEST_FORECAST_S)
        points = usable(self._points(items, answer, place, forecast_only=True))
        return in_order(within(points, now_s, until_s), self.name)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _part(self, place: Place) -> tuple[str, str]:
        """The postcode or region of the zone and which of both it is; empty where the zone is all of Great Britain."""
        found = ZONE.fullmatch(place.zone or "")
        if found is None:
            raise GridFault(
                FaultKind.REJECTED, f"{self.name}: set grid.zone to GB, GB:SW1 (postcode) or GB:13 (region)"
            )
        return (found["part"] or "").upper(), "regionid" if found["region"] else "postcode"

    def _ask(self, path: str, place: Place) -> tuple[Answer, Sequence[Mapping[str, Any]]]:
        answer = self._client.get(path)
        body = answer.json()
        part, kind = self._part(place)
        if not part:
            return answer, objects(body, "data", self.name)
        region = member(body, "data", self.name)
        # The half hour of now stands in a list of one, a range does not.
        if isinstance(region, list) and len(region) == 1:
            region = region[0]
        require_same(part, member(region, kind, self.name), kind, self.name)
        return answer, objects(region, "data", self.name)

    def _points(
        self, items: Iterable[Mapping[str, Any]], answer: Answer, place: Place, *, forecast_only: bool = False
    ) -> list[Intensity]:
        who, fetched_s, points = self.name, self._clock(), []
        for item in items:
            figures = member(item, "intensity", who)
            if not isinstance(figures, Mapping):
                raise malformed(who, "intensity is not an object")
            actual = None if forecast_only else figures.get("actual")
            value = figures.get("forecast") if actual is None else actual
            if value is None:
                continue
            points.append(
                Intensity(
                    g_per_kwh=number(value, "intensity", who),
                    place=(place.zone or "").upper(),
                    source=who,
                    label=Label.LIVE,
                    start_s=moment_s(member(item, "from", who), "from", who),
                    end_s=moment_s(member(item, "to", who), "to", who),
                    signal=Signal.AVERAGE,
                    emission_factor_type=FactorType.DIRECT,
                    is_estimated=actual is None,
                    fetched_s=fetched_s,
                    why="" if actual is not None or forecast_only else "estimated (the service's own forecast)",
                    simulated=answer.simulated,
                )
            )
        if any(point.start_s is None or point.end_s is None or point.end_s <= point.start_s for point in points):
            raise malformed(who, "a period ends before it starts")
        return points

"""Electricity Maps v3: hourly average of what is consumed in a zone, imports traced, life-cycle factors by default.

Shapes: docs.electricitymaps.com and the fixtures of jpbede/aioelectricitymaps. Without ``zone`` the service answers for
the place of the caller's address; hence ``shouldUseFallbackCallerLookup=false`` and a check of the zone it echoes.
"""

from __future__ import annotations

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
    optional_moment_s,
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

NAME = "electricity-maps"
BASE_URL = "https://api.electricitymaps.com"

_PERIODS_S = {"hourly": 3600.0, "60_minutes": 3600.0, "15_minutes": 900.0, "5_minutes": 300.0}
_DAY_S = 86_400.0
_HORIZONS_H = (24, 48, 72)
_PATTERN = "%Y-%m-%dT%H:%M:%SZ"


class ElectricityMaps:
    """``GridSource`` over Electricity Maps v3."""

    fresh_s = 7200.0
    """An hour's figure appears, first estimated, during or soon after it."""

    def __init__(
        self,
        name: str,
        base_url: str,
        token: str,
        clock: WallClock,
        *,
        direct: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self._clock = clock
        self._factor_type = FactorType.DIRECT if direct else FactorType.LIFECYCLE
        self._client = ApiClient(name, base_url, limits or Limits(), headers={"auth-token": token}, secrets=[token])

    def latest(self, place: Place) -> Intensity:
        """``/carbon-intensity/latest``."""
        answer, body = self._ask("latest", place)
        point = self._point(body, body, answer, place)
        require_believable(point.g_per_kwh or 0.0, self.name)
        return point

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """``/carbon-intensity/history`` for the last 24 hours, else ``past-range`` (a paid plan)."""
        if from_s >= self._clock() - _DAY_S - 3600.0:
            answer, body = self._ask("history", place)
            items = objects(body, "history", self.name)
        else:
            answer, body = self._ask(
                "past-range", place, {"start": in_utc(from_s, _PATTERN), "end": in_utc(to_s, _PATTERN)}
            )
            items = objects(body, "data", self.name)
        return in_order(within(self._points(items, body, answer, place), from_s, to_s), self.name)

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """``/carbon-intensity/forecast`` (a paid plan)."""
        hours = next((hours for hours in _HORIZONS_H if hours * 3600.0 >= horizon_s), _HORIZONS_H[-1])
        # 24 hours are what the service gives unasked; older plans do not know the parameter.
        answer, body = self._ask("forecast", place, {} if hours == _HORIZONS_H[0] else {"horizon_hours": str(hours)})
        now_s = self._clock()
        points = self._points(objects(body, "forecast", self.name), body, answer, place, is_estimated=True)
        return in_order(within(points, now_s, now_s + horizon_s), self.name)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, what: str, place: Place, more: Mapping[str, str] | None = None) -> tuple[Answer, Any]:
        if not place.zone:
            raise GridFault(FaultKind.REJECTED, f"{self.name}: no zone is given; set grid.zone, such as DE")
        params = {
            "zone": place.zone,
            "shouldUseFallbackCallerLookup": "false",
            "emissionFactorType": self._factor_type.value,
            **(more or {}),
        }
        answer = self._client.get(f"/v3/carbon-intensity/{what}", params)
        body = answer.json()
        require_same(place.zone, member(body, "zone", self.name), "zone", self.name)
        return answer, body

    def _points(
        self,
        items: Iterable[Mapping[str, Any]],
        body: Any,
        answer: Answer,
        place: Place,
        *,
        is_estimated: bool | None = None,
    ) -> list[Intensity]:
        """The hours that have a believable figure; a missing or an unbelievable one leaves a gap."""
        return usable(
            self._point(item, body, answer, place, is_estimated=is_estimated)
            for item in items
            if item.get("carbonIntensity") is not None
        )

    def _point(
        self, item: Any, body: Any, answer: Answer, place: Place, *, is_estimated: bool | None = None
    ) -> Intensity:
        who = self.name
        if "zone" in item:
            require_same(place.zone or "", item["zone"], "zone", who)
        start_s = moment_s(member(item, "datetime", who), "datetime", who)
        estimated = item.get("isEstimated", is_estimated)
        method = item.get("estimationMethod")
        return Intensity(
            g_per_kwh=number(member(item, "carbonIntensity", who), "carbonIntensity", who),
            place=place.zone or "",
            source=who,
            label=Label.LIVE,
            start_s=start_s,
            end_s=start_s + self._period_s(body),
            signal=Signal.AVERAGE,
            emission_factor_type=self._answered_type(item.get("emissionFactorType")),
            is_estimated=estimated if isinstance(estimated, bool) else None,
            updated_s=optional_moment_s(item.get("updatedAt", body.get("updatedAt")), "updatedAt", who),
            fetched_s=self._clock(),
            why=f"estimated ({self._client.scrubbed(str(method or 'no method named'))})" if estimated is True else "",
            simulated=answer.simulated,
        )

    def _period_s(self, body: Any) -> float:
        granularity = body.get("temporalGranularity", "hourly")
        if granularity not in _PERIODS_S:
            raise malformed(self.name, "temporalGranularity is not one that is known")
        return _PERIODS_S[granularity]

    def _answered_type(self, answered: object) -> FactorType:
        if answered is None:
            return self._factor_type
        if answered != self._factor_type.value:
            raise malformed(self.name, f"emissionFactorType is not the {self._factor_type.value} that was asked for")
        return self._factor_type

"""WattTime v3: marginal CO2 of a grid region, every five minutes.

Shapes: docs.watttime.org/openapi.json. The login gives a token for 30 minutes; it is asked for again once when a call
is refused. Values are pounds of CO2 per megawatt hour.
"""

from __future__ import annotations

import threading
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
from joulegate.sources.grid.intensity import Intensity, Label, Place, Signal, require_believable
from joulegate.sources.grid.ports import WallClock
from joulegate.sources.grid.series import usable, within

NAME = "watttime"
BASE_URL = "https://api.watttime.org"
G_PER_KWH_OF_LB_PER_MWH = 0.45359237
"""A pound is 453.59237 g exactly, a megawatt hour 1000 kWh."""

_SIGNAL = "co2_moer"
_UNIT = "lbs_co2_per_mwh"
_PATTERN = "%Y-%m-%dT%H:%M:%SZ"
_LOOK_BACK_S = 3 * 3600.0
_DEFAULT_PERIOD_S = 300.0
_PERIOD_SPELLINGS = ("data_point_period_seconds", "data_points_period_seconds")
_LONGEST_HORIZON_H = 72


class WattTime:
    """``GridSource`` over WattTime v3."""

    fresh_s = 1800.0

    def __init__(
        self, name: str, base_url: str, username: str, password: str, clock: WallClock, *, limits: Limits | None = None
    ) -> None:
        self.name = name
        self._clock = clock
        self._login = (username, password)
        self._token: str | None = None
        self._token_lock = threading.Lock()
        self._client = ApiClient(name, base_url, limits or Limits(), secrets=[password])

    def latest(self, place: Place) -> Intensity:
        """The newest point of ``/historical`` that has begun."""
        now_s = self._clock()
        answer, body = self._ask("historical", place, _range(now_s - _LOOK_BACK_S, now_s))
        begun = [
            item for item in self._items(body) if moment_s(item.get("point_time"), "point_time", self.name) <= now_s
        ]
        newest = in_order(self._points(begun, body, answer, place), self.name)[-1]
        require_believable(newest.g_per_kwh or 0.0, self.name)
        return newest

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """``/historical``."""
        answer, body = self._ask("historical", place, _range(from_s, to_s))
        points = usable(self._points(self._items(body), body, answer, place))
        return in_order(within(points, from_s, to_s), self.name)

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """``/forecast``."""
        hours = min(max(1, -int(-horizon_s // 3600)), _LONGEST_HORIZON_H)
        answer, body = self._ask("forecast", place, {"horizon_hours": str(hours)})
        now_s = self._clock()
        points = usable(self._points(self._items(body), body, answer, place, is_estimated=True))
        return in_order(within(points, now_s, now_s + horizon_s), self.name)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, what: str, place: Place, more: Mapping[str, str]) -> tuple[Answer, Any]:
        if not place.zone:
            raise GridFault(FaultKind.REJECTED, f"{self.name}: no zone is given; set grid.zone, such as CAISO_NORTH")
        answer = self._authorized(f"/v3/{what}", {"region": place.zone, "signal_type": _SIGNAL, **more})
        body = answer.json()
        meta = member(body, "meta", self.name)
        require_same(place.zone, member(meta, "region", self.name), "region", self.name)
        if meta.get("signal_type", _SIGNAL) != _SIGNAL:
            raise malformed(self.name, f"signal_type is not {_SIGNAL}")
        if meta.get("units") != _UNIT:
            raise malformed(self.name, f"units are not {_UNIT}")
        return answer, body

    def _authorized(self, path: str, params: Mapping[str, str]) -> Answer:
        """The answer, with one new login where the token has run out."""
        token = self._token
        if token is not None:
            try:
                return self._client.get(path, params, bearer=token)
            except GridFault as fault:
                if fault.kind is not FaultKind.UNAUTHORIZED:
                    raise
        return self._client.get(path, params, bearer=self._new_token(token))

    def _new_token(self, used: str | None) -> str:
        with self._token_lock:
            if self._token is None or self._token == used:
                token = member(self._client.get("/login", auth=self._login).json(), "token", self.name)
                if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                    raise malformed(self.name, "the login's token is not text")
                self._token = token
            return self._token

    def _items(self, body: Any) -> Sequence[Mapping[str, Any]]:
        return objects(body, "data", self.name)

    def _points(
        self,
        items: Iterable[Mapping[str, Any]],
        body: Any,
        answer: Answer,
        place: Place,
        *,
        is_estimated: bool | None = None,
    ) -> list[Intensity]:
        who, meta, fetched_s = self.name, body["meta"], self._clock()
        period_s = next((number(meta[key], key, who) for key in _PERIOD_SPELLINGS if key in meta), _DEFAULT_PERIOD_S)
        if not 0.0 < period_s <= 86_400.0:
            raise malformed(who, "the period of its points is not between 0 and a day")
        generated = meta.get("generated_at")
        points = []
        for item in items:
            start_s = moment_s(member(item, "point_time", who), "point_time", who)
            updated = item.get("last_updated", generated)
            imputed = item.get("imputed_data_used")
            points.append(
                Intensity(
                    g_per_kwh=number(member(item, "value", who), "value", who) * G_PER_KWH_OF_LB_PER_MWH,
                    place=place.zone or "",
                    source=who,
                    label=Label.LIVE,
                    start_s=start_s,
                    end_s=start_s + period_s,
                    signal=Signal.MARGINAL,
                    emission_factor_type=None,
                    is_estimated=imputed if isinstance(imputed, bool) else is_estimated,
                    updated_s=None if updated is None else moment_s(updated, "last_updated", who),
                    fetched_s=fetched_s,
                    why="estimated (imputed data)" if imputed is True else "",
                    simulated=answer.simulated,
                )
            )
        return points


def _range(from_s: float, to_s: float) -> dict[str, str]:
    return {"start": in_utc(from_s, _PATTERN), "end": in_utc(to_s, _PATTERN)}

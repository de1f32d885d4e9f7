"""ENTSO-E Transparency Platform: actual generation by production type (A75, A16), and from it an intensity of our own.

Shapes: ``GL_MarketDocument`` of IEC 62325-451-6. The intensity is that of what is *generated* in the zone: imports are
not traced. There is no forecast of the mix. The token travels in the address, and therefore only below httpx.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from joulegate.sources.grid.answers import in_order, in_utc, malformed, moment_s, require_same
from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.generation import MOST_UNKNOWN_SHARE, is_storage, mix_intensity
from joulegate.sources.grid.http_client import Answer, ApiClient, Limits
from joulegate.sources.grid.intensity import FactorType, Intensity, Label, Place, Signal, believable
from joulegate.sources.grid.ports import WallClock
from joulegate.sources.grid.series import within

NAME = "entsoe"
BASE_URL = "https://web-api.tp.entsoe.eu"
ZONE = re.compile(r"[0-9]{2}[XYZTWV][A-Z0-9-]{12}[A-Z0-9]")
"""An Energy Identification Code of 16 characters."""

_LATEST_LOOK_BACK_S = 12 * 3600.0
_RESOLUTIONS_S = {"PT15M": 900.0, "PT30M": 1800.0, "PT60M": 3600.0, "PT1H": 3600.0}
_REPEATS_UNTIL_CHANGED = "A03"
_NO_DATA_CODE = "999"
_MOST_POINTS = 100_000


class Entsoe:
    """``GridSource`` over ENTSO-E's A75."""

    fresh_s = 3 * 3600.0
    """Generation is due an hour after the hour; some zones take longer."""

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
        self._client = ApiClient(
            name, base_url, limits or Limits(), query_secret=("securityToken", token), secrets=[token]
        )

    def latest(self, place: Place) -> Intensity:
        """The newest period for which every production type has reported."""
        now_s = self._clock()
        return self.history(place, now_s - _LATEST_LOOK_BACK_S, now_s)[-1]

    def history(self, place: Place, from_s: float, to_s: float) -> Sequence[Intensity]:
        """A75 over whole hours around [``from_s``, ``to_s``)."""
        if not place.zone:
            raise GridFault(
                FaultKind.REJECTED, f"{self.name}: no zone is given; set grid.zone, such as 10Y1001A1001A82H"
            )
        params = {
            "documentType": "A75",
            "processType": "A16",
            "in_Domain": place.zone,
            "periodStart": in_utc(from_s // 3600 * 3600, "%Y%m%d%H%M"),
            "periodEnd": in_utc(-(-to_s // 3600) * 3600, "%Y%m%d%H%M"),
        }
        answer = self._client.get("/api", params)
        points = self._points(_series(self._document(answer), self.name), answer, place)
        return in_order(within(points, from_s, to_s), self.name)

    def forecast(self, place: Place, horizon_s: float) -> Sequence[Intensity]:
        """There is none."""
        del place, horizon_s
        raise GridFault(FaultKind.UNSUPPORTED, f"{self.name}: publishes no forecast of the whole mix")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _document(self, answer: Answer) -> ET.Element:
        if b"<!DOCTYPE" in answer.body or b"<!ENTITY" in answer.body:
            raise malformed(self.name, "the XML declares a document type")
        try:
            root = ET.fromstring(answer.body)  # noqa: S314 - what declares a DTD is refused above
        except ET.ParseError:
            raise malformed(self.name, "the answer is not XML") from None
        kind = _tag(root)
        if kind == "Acknowledgement_MarketDocument":
            raise self._acknowledged(root)
        if kind != "GL_MarketDocument":
            raise malformed(self.name, "the answer is no GL_MarketDocument")
        return root

    def _acknowledged(self, root: ET.Element) -> GridFault:
        said = self._client.scrubbed(_text(root, "Reason/text"))
        if _text(root, "Reason/code") == _NO_DATA_CODE:
            return GridFault(
                FaultKind.NO_DATA, f"{self.name}: no data for this zone and time ({said}); check grid.zone"
            )
        return GridFault(FaultKind.REJECTED, f"{self.name}: refused: {said}; check grid.zone")

    def _points(self, series: Sequence[_Series], answer: Answer, place: Place) -> list[Intensity]:
        for one in series:
            require_same(place.zone or "", one.zone, "bidding zone", self.name)
        generation = [one for one in series if not one.consumption]
        mixes = list(_mixes(generation))
        unusable, fetched_s, points = 0, self._clock(), []
        for start_s, end_s, mix_mw in mixes:
            found = mix_intensity(mix_mw, self._factor_type)
            if found is None or not believable(found.g_per_kwh):
                unusable += 1
                continue
            left_out = f", {found.unknown_share:.1%} without a factor left out" if found.unknown_share else ""
            points.append(
                Intensity(
                    g_per_kwh=found.g_per_kwh,
                    place=place.zone or "",
                    source=self.name,
                    label=Label.LIVE,
                    start_s=start_s,
                    end_s=end_s,
                    signal=Signal.AVERAGE,
                    emission_factor_type=self._factor_type,
                    is_estimated=False,
                    fetched_s=fetched_s,
                    why=f"of what is generated in the zone; imports not traced{left_out}",
                    simulated=answer.simulated,
                )
            )
        if unusable and not points:
            raise GridFault(
                FaultKind.OUT_OF_RANGE,
                f"{self.name}: over {MOST_UNKNOWN_SHARE:.0%} of this zone's mix has no published "
                f"{self._factor_type.value} factor; use another provider or grid.country",
            )
        return points


@dataclass(frozen=True, slots=True)
class _Series:
    """One production type: (start, end, MW) by time; ``consumption`` is what storage takes in."""

    zone: str
    psr_type: str
    consumption: bool
    points: tuple[tuple[float, float, float], ...]


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    return (child for child in element if _tag(child) == name)


def _text(element: ET.Element, path: str) -> str:
    """Text at ``path`` whatever the namespace, whose version changes from time to time; empty where there is none."""
    for name in path.split("/"):
        found = next(_children(element, name), None)
        if found is None:
            return ""
        element = found
    return (element.text or "").strip()


def _series(root: ET.Element, who: str) -> list[_Series]:
    found = []
    for node in _children(root, "TimeSeries"):
        unit = _text(node, "quantity_Measure_Unit.name")
        if unit not in {"", "MAW"}:
            raise malformed(who, "quantities are not in megawatts (MAW)")
        into, out_of = _text(node, "inBiddingZone_Domain.mRID"), _text(node, "outBiddingZone_Domain.mRID")
        repeats = _text(node, "curveType") == _REPEATS_UNTIL_CHANGED
        points = [point for period in _children(node, "Period") for point in _period(period, repeats, who)]
        psr_type = _text(node, "MktPSRType/psrType")
        found.append(_Series(into or out_of, psr_type, not into, tuple(sorted(points))))
    return found


def _period(period: ET.Element, repeats: bool, who: str) -> Iterator[tuple[float, float, float]]:
    """Points of one period. In curve A03 a position left out repeats the one before; in A01 it is a gap."""
    start_s = moment_s(_text(period, "timeInterval/start"), "timeInterval", who)
    end_s = moment_s(_text(period, "timeInterval/end"), "timeInterval", who)
    step_s = _RESOLUTIONS_S.get(_text(period, "resolution"))
    if step_s is None or not 0.0 < end_s - start_s <= step_s * _MOST_POINTS:
        raise malformed(who, "a period has no resolution or length that is known")
    steps = round((end_s - start_s) / step_s)
    given: dict[int, float] = {}
    for point in _children(period, "Point"):
        try:
            position, quantity_mw = int(_text(point, "position")), float(_text(point, "quantity"))
        except ValueError:
            raise malformed(who, "a point has no position or quantity") from None
        if not 1 <= position <= steps or not math.isfinite(quantity_mw):
            raise malformed(who, "a point lies outside its period or is no number")
        given[position] = quantity_mw
    held: float | None = None
    for position in range(1, steps + 1):
        held = given.get(position, held if repeats else None)
        if held is not None:
            at_s = start_s + (position - 1) * step_s
            yield at_s, at_s + step_s, held


def _mixes(series: Sequence[_Series]) -> Iterator[tuple[float, float, dict[str, float]]]:
    """(start, end, psrType -> MW) for each step of the finest resolution in which every type has reported.

    A type that is late by an hour would make that hour look cleaner or dirtier than it was, so the hour waits for
    it. Storage reports only when it works, and has no part in the mean.
    """
    filled = [one for one in series if one.points]
    if not filled:
        return
    step_s = min(end_s - start_s for one in filled for start_s, end_s, _ in one.points)
    slots: dict[float, dict[str, float]] = {}
    for one in filled:
        for start_s, end_s, power_mw in one.points:
            for part in range(round((end_s - start_s) / step_s)):
                slot = slots.setdefault(start_s + part * step_s, {})
                slot[one.psr_type] = power_mw
    types = {one.psr_type for one in filled if not is_storage(one.psr_type)}
    for start_s in sorted(slots):
        if slots[start_s].keys() >= types:
            yield start_s, start_s + step_s, slots[start_s]

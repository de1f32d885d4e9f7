"""Simulators of the grid APIs on loopback: real sockets, the providers' shapes, and their faults on command.

Every answer carries ``X-Joulegate-Simulated``, so nothing made from one can pass for the real thing.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from joulegate.sources.grid.http_client import SIMULATED_HEADER

HOUR_S = 3600.0
CALLERS_ZONE = "IN-KA"
"""Where Electricity Maps would think that the caller is."""

Values = dict[float, float | None]
"""Unix second at which an hour (or half hour) starts -> g/kWh, ``None`` where the provider has no figure."""


@dataclass
class Reply:
    """One answer that is given instead of the right one, or with ``hang`` never, or with ``drip`` byte by byte."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drip: bool = False
    reset: bool = False


@dataclass
class Asked:
    """A request as it arrived."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


def iso(wall_s: float, *, seconds: bool = True) -> str:
    """A time as the providers write it."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ" if seconds else "%Y-%m-%dT%H:%MZ")


class Simulator:
    """An HTTP server in a thread; ``faults`` are given first, one a request, and ``always`` until it is taken away."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: deque[Reply] = deque()
        self.always: Reply | None = None
        self.spoil: Callable[[bytes], bytes] | None = None
        self.released = threading.Event()
        simulator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                simulator._handle(self)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="simulator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, asked: Asked) -> Reply:
        """The right answer."""
        raise AssertionError(asked)

    def paths(self) -> list[str]:
        """The paths asked for so far."""
        return [asked.path for asked in self.asked]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        asked = Asked(address.path, query, {name.lower(): value for name, value in handler.headers.items()})
        self.asked.append(asked)
        reply = self.faults.popleft() if self.faults else self.always
        if reply is None:
            reply = self.answer(asked)
            if self.spoil is not None and reply.status == 200 and reply.body is not None:
                reply = replace(reply, body=self.spoil(reply.body))
        if reply.hang:
            self.released.wait()
            handler.close_connection = True
            return
        if reply.reset:
            handler.connection.close()
            handler.close_connection = True
            return
        try:
            self._send(handler, reply)
        except OSError:
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        body = b"{}" if reply.body is None else reply.body
        handler.send_response(reply.status)
        handler.send_header(SIMULATED_HEADER, "yes")
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) + (10_000 if reply.drip else 0)))
        handler.end_headers()
        handler.wfile.write(body)
        while reply.drip and not self.released.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()


def as_json(message: Any, status: int = 200) -> Reply:
    """A JSON reply."""
    return Reply(status, json.dumps(message).encode(), {"Content-Type": "application/json"})


class ElectricityMapsSimulator(Simulator):
    """v3 as docs.electricitymaps.com and the fixtures of aioelectricitymaps have it."""

    def __init__(self, now_s: float, values: Mapping[str, Values], *, token: str = "right-token") -> None:
        super().__init__()
        self.now_s = now_s
        self.values = values
        self.token = token
        self.updated_s = now_s - 240.0
        self.echo: str | None = None
        self.more: dict[str, Any] = {}
        self.granularity: str | None = None
        self.step_s = HOUR_S
        self.plan = {"latest", "history", "past-range", "forecast"}

    def answer(self, asked: Asked) -> Reply:
        """What the service would say."""
        if asked.headers.get("auth-token") != self.token:
            return as_json({"status": "error", "message": "Invalid auth-token"}, 401)
        what = asked.path.removeprefix("/v3/carbon-intensity/")
        if what not in self.plan:
            return as_json({"status": "error", "message": "Request unauthorized for this plan"}, 403)
        zone = asked.query.get("zone")
        if zone not in self.values:
            if asked.query.get("shouldUseFallbackCallerLookup") == "false":
                return as_json({"status": "error", "message": f"Zone {zone} does not exist"}, 404)
            zone = CALLERS_ZONE
        kind = asked.query.get("emissionFactorType", "lifecycle")
        return as_json(getattr(self, "_" + what.replace("-", "_"))(zone, kind, asked))

    def _body(self, zone: str) -> dict[str, Any]:
        body: dict[str, Any] = {"zone": self.echo or zone}
        return body if self.granularity is None else {**body, "temporalGranularity": self.granularity}

    def _hour(self, zone: str, at_s: float, kind: str) -> dict[str, Any]:
        return {
            **self._body(zone),
            "carbonIntensity": self.values[zone][at_s],
            "datetime": iso(at_s).replace("Z", ".000Z"),
            "updatedAt": iso(self.updated_s),
            "createdAt": iso(self.updated_s - HOUR_S),
            "emissionFactorType": kind,
            "isEstimated": False,
            "estimationMethod": None,
            **self.more,
        }

    def _latest(self, zone: str, kind: str, asked: Asked) -> dict[str, Any]:
        return self._hour(zone, max(at_s for at_s in self.values[zone] if at_s <= self.now_s), kind)

    def _history(self, zone: str, kind: str, asked: Asked) -> dict[str, Any]:
        hours = [at_s for at_s in self.values[zone] if self.now_s - 86_400.0 < at_s <= self.now_s]
        return {**self._body(zone), "history": [self._hour(zone, at_s, kind) for at_s in hours]}

    def _past_range(self, zone: str, kind: str, asked: Asked) -> dict[str, Any]:
        from_s, to_s = (datetime.fromisoformat(asked.query[name]).timestamp() for name in ("start", "end"))
        hours = [at_s for at_s in self.values[zone] if from_s <= at_s < to_s]
        return {**self._body(zone), "data": [self._hour(zone, at_s, kind) for at_s in hours]}

    def _forecast(self, zone: str, kind: str, asked: Asked) -> dict[str, Any]:
        until_s = self.now_s + HOUR_S * float(asked.query.get("horizon_hours", 24))
        hours = [at_s for at_s in self.values[zone] if self.now_s - self.step_s < at_s < until_s]
        points = [{"carbonIntensity": self.values[zone][at_s], "datetime": iso(at_s)} for at_s in hours]
        return {**self._body(zone), "forecast": points, "updatedAt": iso(self.updated_s)}


class WattTimeSimulator(Simulator):
    """v3 as docs.watttime.org/openapi.json has it; ``values`` are pounds of CO2 per MWh."""

    step_s = 300.0

    def __init__(
        self, now_s: float, values: Mapping[str, Values], *, user: str = "me", password: str = "right"
    ) -> None:
        super().__init__()
        self.now_s = now_s
        self.values = values
        self.expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.valid_tokens: set[str] = set()
        self.logins = 0
        self.meta: dict[str, Any] = {}
        self.imputed = False
        self.period_name = "data_point_period_seconds"

    def expire_tokens(self) -> None:
        """30 minutes have passed."""
        self.valid_tokens.clear()

    def answer(self, asked: Asked) -> Reply:
        """What the service would say."""
        given = asked.headers.get("authorization", "")
        if asked.path == "/login":
            if given != self.expected:
                return as_json({"ok": False}, 401)
            self.logins += 1
            token = f"session-{self.logins}"
            self.valid_tokens.add(token)
            return as_json({"token": token})
        if given.removeprefix("Bearer ") not in self.valid_tokens:
            return as_json({"error": "Invalid scope"}, 401)
        region = asked.query["region"]
        if region not in self.values:
            return as_json({"error": "You do not have access to this region"}, 403)
        if asked.path == "/v3/historical":
            from_s, to_s = (datetime.fromisoformat(asked.query[name]).timestamp() for name in ("start", "end"))
        else:
            from_s, to_s = self.now_s, self.now_s + HOUR_S * float(asked.query.get("horizon_hours", 24))
        moments = [at_s for at_s in self.values[region] if from_s <= at_s < to_s]
        more = {"imputed_data_used": True, "last_updated": iso(self.now_s)} if self.imputed else {}
        return as_json(
            {
                "data": [{"point_time": iso(at_s), "value": self.values[region][at_s], **more} for at_s in moments],
                "meta": {
                    self.period_name: 300,
                    "region": region,
                    "signal_type": asked.query["signal_type"],
                    "model": {"date": "2026-03-01"},
                    "units": "lbs_co2_per_mwh",
                    "generated_at": iso(self.now_s),
                    "warnings": [],
                    **self.meta,
                },
            }
        )


class GbSimulator(Simulator):
    """The Carbon Intensity API; ``values`` by zone: ``GB`` or a postcode or region."""

    def __init__(self, now_s: float, values: Mapping[str, Values]) -> None:
        super().__init__()
        self.now_s = now_s
        self.values = values
        self.echo: str | None = None
        self.actual_lag_s = 1800.0

    def answer(self, asked: Asked) -> Reply:
        """What the service would say."""
        parts = asked.path.strip("/").split("/")
        regional = parts[0] == "regional"
        if regional:
            kind, name, parts = parts[-2], parts[-1], parts[1:-2]
        else:
            kind, name = "", "GB"
        if name not in self.values:
            return as_json({"error": {"code": "400 Bad Request", "message": "unknown"}}, 400)
        items = [self._item(at_s, value, regional) for at_s, value in self._span(parts, self.values[name])]
        if not regional:
            return as_json({"data": items})
        shown: Any = self.echo or (int(name) if kind == "regionid" else name)
        region = {"regionid": 13, "dnoregion": "UKPN London", "shortname": "London", kind: shown, "data": items}
        return as_json({"data": [region] if not parts else region})

    def _span(self, parts: list[str], values: Values) -> Iterable[tuple[float, float | None]]:
        if len(parts) <= 1:
            newest = max(at_s for at_s in values if at_s <= self.now_s)
            return [(newest, values[newest])]
        from_s = datetime.fromisoformat(parts[1]).timestamp()
        to_s = from_s + 48 * HOUR_S if parts[2] == "fw48h" else datetime.fromisoformat(parts[2]).timestamp()
        # On a boundary the half hour before is part of the answer: 97 of them for fw48h.
        return [(at_s, value) for at_s, value in values.items() if from_s - 1800.0 <= at_s < to_s]

    def _item(self, at_s: float, value: float | None, regional: bool) -> dict[str, Any]:
        figures: dict[str, Any] = {"forecast": value, "index": "moderate"}
        if not regional and at_s <= self.now_s:
            known = at_s + self.actual_lag_s <= self.now_s and value is not None
            figures["actual"] = value - 7 if known and value is not None else None
        mix = [{"fuel": "gas", "perc": 76.4}] if regional else []
        item = {"from": iso(at_s, seconds=False), "to": iso(at_s + 1800.0, seconds=False), "intensity": figures}
        return {**item, "generationmix": mix} if regional else item


@dataclass
class Production:
    """One TimeSeries of A75: MW by position of ``step_s`` from ``start_s`` on."""

    psr_type: str
    quantities_mw: Mapping[int, float]
    steps: int
    step_s: float = HOUR_S
    curve: str = "A01"
    consumption: bool = False


class EntsoeSimulator(Simulator):
    """A75/A16 as a ``GL_MarketDocument``."""

    def __init__(self, start_s: float, zone: str, series: Iterable[Production], *, token: str = "right-token") -> None:
        super().__init__()
        self.start_s = start_s
        self.zone = zone
        self.series = list(series)
        self.token = token
        self.echo: str | None = None

    def answer(self, asked: Asked) -> Reply:
        """What the platform would say."""
        if asked.query.get("securityToken") != self.token:
            return Reply(401, b"<html>Unauthorized</html>")
        if (asked.path, asked.query["documentType"], asked.query["processType"]) != ("/api", "A75", "A16"):
            return Reply(400, b"")
        for name in ("periodStart", "periodEnd"):
            datetime.strptime(asked.query[name], "%Y%m%d%H%M").replace(tzinfo=UTC)
        if asked.query["in_Domain"] != self.zone:
            return Reply(200, self._acknowledgement(f"No matching data found, {asked.query['securityToken']}"))
        body = "".join(self._one(number, one) for number, one in enumerate(self.series, start=1))
        space = "urn:iec62325.351:tc57wg16:451-6:generationloaddocument:3:0"
        return Reply(
            200,
            f'<?xml version="1.0" encoding="UTF-8"?><GL_MarketDocument xmlns="{space}"><mRID>x</mRID>'
            f"<type>A75</type><process.processType>A16</process.processType>{body}</GL_MarketDocument>".encode(),
        )

    def _acknowledgement(self, text: str) -> bytes:
        space = "urn:iec62325.351:tc57wg16:451-1:acknowledgementdocument:7:0"
        return (
            f'<?xml version="1.0"?><Acknowledgement_MarketDocument xmlns="{space}"><Reason><code>999</code>'
            f"<text>{text}</text></Reason></Acknowledgement_MarketDocument>"
        ).encode()

    def _one(self, number: int, one: Production) -> str:
        domain = "outBiddingZone_Domain.mRID" if one.consumption else "inBiddingZone_Domain.mRID"
        points = "".join(
            f"<Point><position>{position}</position><quantity>{mw}</quantity></Point>"
            for position, mw in one.quantities_mw.items()
        )
        end_s = self.start_s + one.steps * one.step_s
        return (
            f"<TimeSeries><mRID>{number}</mRID><businessType>A01</businessType>"
            f'<{domain} codingScheme="A01">{self.echo or self.zone}</{domain}>'
            f"<quantity_Measure_Unit.name>MAW</quantity_Measure_Unit.name><curveType>{one.curve}</curveType>"
            f"<MktPSRType><psrType>{one.psr_type}</psrType></MktPSRType><Period><timeInterval>"
            f"<start>{iso(self.start_s, seconds=False)}</start><end>{iso(end_s, seconds=False)}</end></timeInterval>"
            f"<resolution>PT{one.step_s / 60:.0f}M</resolution>{points}</Period></TimeSeries>"
        )


def hourly(from_s: float, values: Iterable[float | None], step_s: float = HOUR_S) -> Values:
    """``values`` from ``from_s`` on, one a step."""
    return {from_s + step_s * number: value for number, value in enumerate(values)}


def until(condition: Callable[[], bool], patience_s: float = 10.0) -> bool:
    """Whether ``condition`` came true in time."""
    give_up_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.005)
    return True

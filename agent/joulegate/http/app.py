"""The HTTP application: routes over the parts, problems for everything else, one envelope around all."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import Receive, Scope, Send

from joulegate.http.carbon import CarbonCollector, carbon_routes
from joulegate.http.devices import device_routes
from joulegate.http.energy import energy_routes
from joulegate.http.envelope import Envelope
from joulegate.http.health import health_routes
from joulegate.http.index import index_page
from joulegate.http.metrics import Exposition, SnapshotCollector
from joulegate.http.parts import Parts, ThrottleParts
from joulegate.http.problems import ProblemBody, documented, install
from joulegate.http.requests import request_routes
from joulegate.http.schemas import SpanPostBody
from joulegate.http.spans import span_routes
from joulegate.http.throttle_authz import Gatekeeper
from joulegate.http.throttle_lane import Lane
from joulegate.http.throttle_pages import Desk
from joulegate.http.throttle_routes import throttle_routes
from joulegate.http.throttle_schemas import DecideBody, QueueReportBody

_METRIC_TYPES: dict[str, Any] = {
    "text/plain": {"schema": {"type": "string"}},
    "application/openmetrics-text": {"schema": {"type": "string"}},
}
_SUMMARY = "Joules per image: devices now, requests, energy, and the spans of pipelines."


class Application(FastAPI):
    """FastAPI with a fast lane, whose OpenAPI document also has the shapes that routes name by reference."""

    lane: Lane | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the lane what it takes, and everything else from the framework."""
        lane = self.lane
        if lane is None or scope["type"] != "http" or not await lane.serve(scope, receive, send):
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document, built once."""
        if self.openapi_schema is None:
            document = super().openapi()
            taken: list[type[BaseModel]] = [SpanPostBody]
            if self.lane is not None:
                taken += [DecideBody, QueueReportBody]
            _, shapes = models_json_schema(
                [(ProblemBody, "serialization"), *[(shape, "validation") for shape in taken]],
                ref_template="#/components/schemas/{model}",
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(shapes["$defs"])
            self.openapi_schema = document
        return self.openapi_schema


def create_app(parts: Parts) -> FastAPI:
    """The application over ``parts``. It opens nothing, starts nothing and allows no other origin."""
    app = Application(
        title="Joulegate",
        version=parts.version,
        summary=_SUMMARY,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in (device_routes, request_routes, energy_routes, span_routes, health_routes):
        app.include_router(routes(parts))
    if parts.carbon is not None:
        app.include_router(carbon_routes(parts.carbon))
    if parts.throttle is not None:
        _add_throttle(app, parts, parts.throttle)
    _add_metrics(app, parts)
    _add_index(app, parts)
    install(app)
    app.add_middleware(Envelope, hosts=parts.hosts, faults=parts.faults)
    return app


def _add_throttle(app: Application, parts: Parts, throttle: ThrottleParts) -> None:
    desk, gatekeeper = Desk(throttle.reader), Gatekeeper(throttle.decider, throttle.deny_status)
    app.include_router(throttle_routes(throttle, desk, gatekeeper))
    app.lane = Lane(desk, gatekeeper, parts)


def _add_metrics(app: FastAPI, parts: Parts) -> None:
    exposition = Exposition(
        SnapshotCollector(
            parts.snapshots,
            parts.clock,
            version=parts.version,
            stale_after_s=parts.stale_after_s,
            faults=lambda: parts.faults.total,
        ),
        CarbonCollector(parts.carbon),
    )

    @app.get(
        "/metrics",
        response_class=Response,
        responses=documented() | {200: {"content": _METRIC_TYPES}},
        tags=["now"],
    )
    async def metrics(request: Request) -> Response:
        """Prometheus text, or OpenMetrics where Accept asks for it. What is not known has no series."""
        body, media_type = exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": media_type, "Vary": "Accept"})


def _add_index(app: FastAPI, parts: Parts) -> None:
    @app.get("/", response_class=HTMLResponse, responses=documented(), tags=["agent"])
    async def index() -> HTMLResponse:
        """What is served here, for a person."""
        snapshot = parts.snapshots.snapshot()
        state = "No reading has been taken yet."
        if snapshot is not None:
            qualities = ", ".join(sorted({device.quality.value for device in snapshot.devices.values()}))
            state = f"{len(snapshot.devices)} device(s) from source {snapshot.source}: {qualities or 'none'}."
        return HTMLResponse(
            index_page(parts.version, state, carbon=parts.carbon is not None, throttle=parts.throttle is not None)
        )

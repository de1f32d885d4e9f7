"""``GET /v1/grid`` and ``/v1/estimate``, and the carbon series of ``/metrics``: views on energy, never a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from joulegate.http.answers import json_answer
from joulegate.http.ports import CarbonReader
from joulegate.http.problems import Fault, documented, invalid
from joulegate.metering.wire import MAX_TEXT

HELP = {
    "joulegate_agent_carbon_faults": "Requests whose CO2e, water and cost could not be worked out; their energy stands",
    "joulegate_grid_carbon_intensity_grams_per_kwh": "Carbon intensity of the grid now, by source and label",
    "joulegate_grid_age_seconds": "Age of the carbon intensity",
    "joulegate_request_co2e_grams": "Location-based operational CO2e of finished requests since the start, central",
    "joulegate_request_water_litres": "On-site water of finished requests since the start, central",
    "joulegate_request_cost": "Electricity cost of finished requests since the start, central, in its currency",
    "joulegate_request_without_co2e": "Finished requests since the start whose CO2e is missing",
}


class GridQuery(BaseModel):
    """How long the work takes that the best window is asked for."""

    model_config = ConfigDict(extra="forbid")

    duration_s: float = Field(3600.0, gt=0, le=86_400, allow_inf_nan=False, description="seconds of deferrable work")


class EstimateQuery(BaseModel):
    """A request that has not run yet."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=MAX_TEXT, examples=["FLUX.1-dev"])
    gpu: str = Field(min_length=1, max_length=MAX_TEXT, examples=["H100"])
    images: int = Field(1, ge=1, le=100_000)
    steps: int | None = Field(None, ge=1, le=100_000)
    width: int | None = Field(None, ge=1, le=100_000)
    height: int | None = Field(None, ge=1, le=100_000)
    gpus: int = Field(1, ge=1, le=1024)
    params: float | None = Field(None, gt=0, le=1e15, allow_inf_nan=False)


def carbon_routes(carbon: CarbonReader) -> APIRouter:
    """The routes over ``carbon``."""
    router = APIRouter(tags=["carbon"])

    @router.get("/v1/grid", response_model=dict[str, object], responses=documented(422))
    def grid(query: Annotated[GridQuery, Query()]) -> Response:
        """Carbon intensity now and ahead, with source, label and age, and the best window for work that can wait."""
        return json_answer(dict(carbon.grid(query.duration_s)))

    @router.get("/v1/estimate", response_model=dict[str, object], responses=documented(422))
    def estimate(query: Annotated[EstimateQuery, Query()]) -> Response:
        """Joules and CO2e that a request would take, with a range, and what that rests on."""
        work = query.model_dump(exclude={"model", "gpu"})
        try:
            return json_answer(dict(carbon.estimate(query.model, query.gpu, work)))
        except ValueError as fault:
            raise invalid([Fault("query", "model", str(fault))]) from fault

    return router


class CarbonCollector(Collector):
    """Grid and CO2e series; what is missing has none."""

    def __init__(self, carbon: CarbonReader | None) -> None:
        self._carbon = carbon

    def collect(self) -> Iterator[Metric]:
        """Families in a stable order."""
        if self._carbon is None:
            return
        families: dict[str, Metric] = {}
        for name, kind, labels, value in self._carbon.series():
            family = families.get(name)
            if family is None:
                made = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                family = families[name] = made(name, HELP[name], labels=list(labels))
            family.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
        yield from families.values()

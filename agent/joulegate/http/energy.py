"""``GET /v1/energy``: accounts of a range, divided by what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from joulegate.http.answers import json_answer
from joulegate.http.moments import wall_s_from_query
from joulegate.http.parts import Parts
from joulegate.http.ports import DIMENSIONS, EnergyGroup, EnergyTable
from joulegate.http.problems import Fault, documented, invalid, unavailable
from joulegate.http.schemas import EnergyBody
from joulegate.metering.wire import rfc3339
from joulegate.units import S_PER_HOUR

MAX_GROUPS = 10_000

_ACCOUNTS = ("device_mj", "requests_mj", "idle_mj", "unattributed_mj", "estimated_mj", "pending_mj")
_MOMENT = "RFC 3339 with an offset, or Unix seconds"


class EnergyQuery(BaseModel):
    """What of the ledger to add up."""

    model_config = ConfigDict(extra="forbid")

    from_: Annotated[str, StringConstraints(max_length=40)] | None = Field(
        None, alias="from", description=f"{_MOMENT}; an hour before `to` by default", examples=["2025-03-30T12:00:00Z"]
    )
    to: Annotated[str, StringConstraints(max_length=40)] | None = Field(
        None, description=f"{_MOMENT}; now by default", examples=["1743339600"]
    )
    by: list[str] = Field(
        [], description=f"any of {', '.join(DIMENSIONS)}, separated by commas", examples=[["model,tier"]]
    )

    @field_validator("from_", "to")
    @classmethod
    def _moment(cls, text: str | None) -> str | None:
        if text is not None:
            wall_s_from_query(text)
        return text

    @field_validator("by")
    @classmethod
    def _known(cls, texts: list[str]) -> list[str]:
        dimensions(texts)
        return texts


def dimensions(texts: Sequence[str]) -> tuple[str, ...]:
    """The dimensions in ``texts``, each once; raises ``ValueError`` that names the choices."""
    names = [name for text in texts for part in text.split(",") if (name := part.strip())]
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"unknown: {unknown[0][:40]!r}; choose from {', '.join(DIMENSIONS)}")
    return tuple(dict.fromkeys(names))


def energy_routes(parts: Parts) -> APIRouter:
    """The route over ``parts``."""
    router = APIRouter(tags=["ledger"])

    @router.get("/v1/energy", response_model=EnergyBody, responses=documented(422, 503))
    def add_up_energy(query: Annotated[EnergyQuery, Query()]) -> Response:
        """Totals with idle, unattributed and quality shares, over the whole ten-second stretches a range touches."""
        from_s, to_s = _range(query, parts.clock.wall_s())
        by = dimensions(query.by)
        try:
            table = parts.ledger.energy(from_s, to_s, by)
        except parts.ledger_fault as fault:
            raise unavailable("ledger-unreadable", str(fault), 5.0) from fault
        if len(table.groups) > MAX_GROUPS:
            detail = f"gives {len(table.groups)} groups; ask for a shorter range or fewer keys (at most {MAX_GROUPS})"
            raise invalid([Fault("query", "by", detail)])
        return json_answer({**energy_to_wire(table, by), **_views(parts, table)})

    return router


def _views(parts: Parts, table: EnergyTable) -> Mapping[str, object]:
    """CO2e, water and cost of all the devices' energy, hour by hour with the grid of that hour."""
    if parts.carbon is None:
        return {}
    try:
        hours = parts.ledger.energy(table.from_s, table.to_s, ("hour",))
    except parts.ledger_fault as fault:
        raise unavailable("ledger-unreadable", str(fault), 5.0) from fault
    energy_mj: dict[int, int] = {}
    for group in hours.groups:
        hour_s = group.keys.get("hour")
        if isinstance(hour_s, int) and group.device_mj is not None:
            energy_mj[hour_s] = energy_mj.get(hour_s, 0) + group.device_mj
    return parts.carbon.of_energy(energy_mj, S_PER_HOUR, table.qualities_mj)


def energy_to_wire(table: EnergyTable, by: Sequence[str]) -> dict[str, object]:
    """``table`` in the words of the contract."""
    return {
        "from": rfc3339(table.from_s),
        "to": rfc3339(table.to_s),
        "by": list(by),
        "groups": [_group(group, by) for group in table.groups],
        "totals": {name: getattr(table.totals, name) for name in _ACCOUNTS},
        "quality": {
            "device": _portions(table.qualities_mj),
            "requests": _portions(table.request_qualities_mj),
        },
    }


def _range(query: EnergyQuery, now_s: float) -> tuple[float, float]:
    to_s = now_s if query.to is None else wall_s_from_query(query.to)
    from_s = max(0.0, to_s - S_PER_HOUR) if query.from_ is None else wall_s_from_query(query.from_)
    if from_s >= to_s:
        bound = "now" if query.to is None else "to"
        raise invalid([Fault("query", "from", f"must be before {bound}")])
    return from_s, to_s


def _group(group: EnergyGroup, by: Sequence[str]) -> dict[str, object]:
    keys: dict[str, object] = {name: group.keys[name] for name in by}
    hour_s = group.keys.get("hour")
    if isinstance(hour_s, int):
        keys["hour"] = rfc3339(hour_s)
    figures = {name: getattr(group, name) for name in ("requests", *_ACCOUNTS, "pending")}
    return keys | figures | {"quality": _portions(group.qualities_mj)}


def _portions(qualities_mj: Mapping[str, int]) -> dict[str, float]:
    total_mj = sum(qualities_mj.values())
    return {name: part_mj / total_mj for name, part_mj in qualities_mj.items()} if total_mj > 0 else {}

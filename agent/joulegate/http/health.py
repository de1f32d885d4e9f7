"""``GET /healthz`` and ``/readyz``: does the loop turn, and can figures be given and kept."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter

from joulegate.http.parts import Parts
from joulegate.http.ports import PartStatus, StatusReader
from joulegate.http.problems import MEDIA_TYPE, documented, unavailable
from joulegate.http.schemas import HealthBody, PartBody, ReadinessBody
from joulegate.http.view import view_device
from joulegate.metering.snapshot import AgentState, Snapshot

_NOT_READY_SCHEMA = {
    "allOf": [{"$ref": "#/components/schemas/ProblemBody"}, {"$ref": "#/components/schemas/ReadinessBody"}]
}


def health_routes(parts: Parts) -> APIRouter:
    """The routes over ``parts``; they touch neither SQL nor a lock."""
    router = APIRouter(tags=["agent"])
    created_s = parts.clock.monotonic_s()
    not_ready = documented(503)
    not_ready[503]["content"] = {MEDIA_TYPE: {"schema": _NOT_READY_SCHEMA}}

    @router.get("/healthz", responses=documented(503))
    async def healthz() -> HealthBody:
        """Liveness: 200 while the loop publishes, 503 once it has been silent for too long."""
        snapshot, now_s = parts.snapshots.snapshot(), parts.clock.monotonic_s()
        silent_s = max(0.0, now_s - (created_s if snapshot is None else snapshot.t_s))
        if silent_s > parts.stuck_after_s:
            since = "since the start" if snapshot is None else "since the newest snapshot"
            raise unavailable("loop-stuck", f"the loop has published nothing for {silent_s:.1f} s {since}", 5.0)
        if snapshot is None:
            return HealthBody(status="starting", snapshot_age_s=None)
        return HealthBody(status="ok", snapshot_age_s=silent_s)

    @router.get("/readyz", responses=not_ready)
    async def readyz() -> ReadinessBody:
        """Readiness, one line a part. 503 carries the same members in its problem."""
        answer = readiness(parts)
        if not answer.ready:
            silent = ", ".join(part.name for part in answer.parts if part.required and not part.ok)
            raise unavailable("not-ready", f"not ready: {silent}", 5.0, extra=answer.model_dump())
        return answer

    return router


def readiness(parts: Parts) -> ReadinessBody:
    """How every part does. Sinks and grid are told and do not decide: without them figures are still given and kept."""
    snapshot = parts.snapshots.snapshot()
    states = {"sensors": _starting(), "ledger": _starting()}
    if snapshot is not None:
        states = {"sensors": _sensors(parts, snapshot), "ledger": _ledger(snapshot.agent)}
    lines = [_line(name, state, required=True) for name, state in states.items()]
    lines += [_line("sinks", _status(parts.sinks), required=False), _line("grid", _status(parts.grid), required=False)]
    if parts.throttle is not None:
        lines.append(_line("throttle", _status(parts.throttle.status), required=False))
    return ReadinessBody(ready=all(line.ok for line in lines if line.required), parts=lines)


def _line(name: str, state: PartStatus, *, required: bool) -> PartBody:
    return PartBody(name=name, ok=state.ok, detail=state.detail, required=required)


def _starting() -> PartStatus:
    return PartStatus(ok=False, detail="no reading has been taken yet")


def _status(reader: StatusReader | None) -> PartStatus:
    return PartStatus(ok=True, detail="not configured") if reader is None else reader.status()


def _sensors(parts: Parts, snapshot: Snapshot) -> PartStatus:
    elapsed_s = parts.clock.monotonic_s() - snapshot.t_s
    views = [view_device(state, elapsed_s, parts.stale_after_s) for state in snapshot.devices.values()]
    silent = [view.device.id for view in views if not view.up]
    if not views:
        return PartStatus(ok=False, detail="; ".join(_advice(snapshot)) or "no device is metered; run joulegate doctor")
    detail = f"{len(views) - len(silent)} of {len(views)} devices answer ({snapshot.source})"
    if silent:
        detail += f"; silent: {', '.join(silent[:8])}"
    return PartStatus(ok=len(silent) < len(views), detail=detail)


def _advice(snapshot: Snapshot) -> Iterator[str]:
    for sensor in snapshot.sensors:
        yield f"{sensor.device}: {sensor.why}" + (f" ({sensor.fix})" if sensor.fix else "")


def _ledger(agent: AgentState) -> PartStatus:
    if agent.ledger_error is not None:
        return PartStatus(ok=False, detail=agent.ledger_error)
    return PartStatus(ok=True, detail=f"{agent.ledger_backlog} records wait to be written")

"""``GET /v1/devices``: every device as it is now, from the snapshot alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict

from fastapi import APIRouter

from joulegate.http.parts import Parts
from joulegate.http.problems import documented
from joulegate.http.schemas import DeviceBody, DeviceListBody, ProcessBody, TotalsBody
from joulegate.http.view import DeviceView, finite, view_device
from joulegate.metering.reading import Quality, clock_event_names
from joulegate.metering.snapshot import DeviceState, DeviceTotals
from joulegate.units import j_from_mj

_NOT_SHOWN = "its figures cannot be shown; the agent's log has the reason"
_LOG = logging.getLogger("joulegate.http")


def device_routes(parts: Parts) -> APIRouter:
    """The route over ``parts``."""
    router = APIRouter(tags=["now"])

    @router.get("/v1/devices", responses=documented(503))
    async def list_devices() -> DeviceListBody:
        """Every device: sensor, scope, power, limits, temperature, headroom, clock events, age of the last success."""
        snapshot = parts.present()
        elapsed_s = parts.clock.monotonic_s() - snapshot.t_s
        return DeviceListBody(
            devices=[_body_or_fault(state, elapsed_s, parts) for state in snapshot.devices.values()],
            source=snapshot.source,
            snapshot_age_s=max(0.0, elapsed_s),
        )

    return router


def device_body(view: DeviceView) -> DeviceBody:
    """``view`` in the words of the contract."""
    device, state, value = view.device, view.state, view.value
    live = view.live
    events = None if live is None else clock_event_names(live.clock_events)
    return DeviceBody(
        id=device.id,
        name=device.name,
        index=device.index,
        up=view.up,
        method=device.method,
        quality=state.quality,
        scope=device.scope,
        power_w=view.power_w,
        power_method=view.power_method,
        energy_j=None if view.totals is None else j_from_mj(view.totals.device_mj),
        temperature_c=value(lambda reading: reading.temperature_c),
        memory_temperature_c=value(lambda reading: reading.memory_temperature_c),
        utilization=value(lambda reading: reading.utilization),
        memory_used_bytes=None if live is None else live.memory_used_bytes,
        memory_total_bytes=device.memory_total_bytes,
        power_limit_w=value(lambda reading: reading.power_limit_w),
        max_operating_c=finite(device.max_operating_c),
        slowdown_c=finite(device.slowdown_c),
        headroom_c=view.headroom_c,
        memory_headroom_c=view.memory_headroom_c,
        clock_events=None if events is None else list(events),
        clock_event_s=_finite_values(state.clock_event_s),
        age_s=view.age_s,
        errors=dict(state.errors),
        totals=_totals(view.totals),
        epoch=state.epoch,
        active_spans=state.active_spans,
        calibrated=state.calibrated,
        idle_w=finite(state.idle_w),
        lag_s=finite(state.lag_s),
        step_s=finite(state.step_s),
        processes=[
            ProcessBody(pid=seen.pid, name=seen.name, memory_bytes=seen.memory_bytes, sm_share=finite(seen.sm_share))
            for seen in state.processes
        ],
        notes=list(device.notes),
        warnings=list(state.warnings),
    )


def _body_or_fault(state: DeviceState, elapsed_s: float, parts: Parts) -> DeviceBody:
    try:
        return device_body(view_device(state, elapsed_s, parts.stale_after_s))
    except Exception as error:  # noqa: BLE001 - law 8: whatever is wrong with it, the other devices stay
        parts.faults.total += 1
        _LOG.error("device %s cannot be shown: %s: %s", state.device.id, type(error).__name__, error)
        bare = DeviceState(
            state.device, up=False, quality=Quality.MISSING, reading=None, age_s=None, warnings=(_NOT_SHOWN,)
        )
        return device_body(view_device(bare, 0.0, parts.stale_after_s))


def _totals(totals: DeviceTotals | None) -> TotalsBody | None:
    return None if totals is None else TotalsBody(**asdict(totals))


def _finite_values(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figure for name, figure in figures.items() if finite(figure) is not None}

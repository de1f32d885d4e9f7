"""The throttle side of a daemon: trail, adviser, decisions and quotas, put together from settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from joulegate.config import ConfigFault, Settings, ThrottleTable
from joulegate.daemon.carbon import CarbonViews
from joulegate.daemon.deciding import Deciding, Tenant
from joulegate.daemon.throttle import Feeds, ThrottleAdviser
from joulegate.daemon.throttle_board import Board
from joulegate.daemon.throttle_budget import BudgetMeter, Used
from joulegate.daemon.throttle_demand import DemandCount
from joulegate.daemon.throttle_observation import GridNow
from joulegate.http.parts import ThrottleParts
from joulegate.http.ports import PartStatus
from joulegate.http.throttle_ports import TrailPage
from joulegate.metering.entry import RequestEntry
from joulegate.metering.snapshot import Snapshot
from joulegate.metering.span import Span
from joulegate.sources.grid.state import GridState
from joulegate.stores.fault import LedgerFault
from joulegate.stores.quota import Quotas
from joulegate.stores.reader import LedgerReader
from joulegate.stores.trail import FOLDER, DecisionTrail
from joulegate.stores.trail_code import code_here
from joulegate.stores.trail_files import TrailFault
from joulegate.stores.trail_reader import TrailReader
from joulegate.units import J_PER_KWH, S_PER_HOUR

BYTES_PER_MB = 1_000_000
G_PER_KG = 1000.0


class TrailPages:
    """Implements ``http.throttle_ports.Trail`` over the trail's reader."""

    def __init__(self, reader: TrailReader) -> None:
        self._reader = reader

    async def decisions(self, since: str | None, limit: int) -> TrailPage:
        """Records after ``since``, oldest first."""
        page = await self._reader.decisions(since, limit)
        return TrailPage(page.items, page.next)

    async def decision(self, decision_id: str) -> Mapping[str, Any] | None:
        """The record of one decision."""
        return await self._reader.decision(decision_id)


class Advising:
    """Everything behind ``/v1/throttle``; made in the server's event loop, which its waiting readers belong to."""

    def __init__(
        self,
        settings: Settings,
        *,
        snapshot: Callable[[], Snapshot | None],
        grid: Callable[[], GridState],
        views: CarbonViews,
        ledger: LedgerReader,
        version: str,
    ) -> None:
        """``grid`` gives the newest state of the grid's monitor; raises ``ConfigFault`` for what cannot be used."""
        table = self._table = settings.throttle
        pure = table.pure()
        folder = settings.state_dir / FOLDER
        self._trail = DecisionTrail(folder, table.decisions_mb * BYTES_PER_MB)
        self._reader = TrailReader(folder)
        self._quotas = _quotas(table)
        self._board = Board(asyncio.get_running_loop())
        tenants = [Tenant(**tenant.model_dump()) for tenant in table.tenants]
        self._deciding = Deciding(pure, self._board, self._quotas, zone=table.zone, tenants=tenants)
        self._demand = DemandCount(pure, self._deciding.take_arrivals, clock=time.monotonic, began_s=time.time())
        feeds = Feeds(
            snapshot=snapshot,
            demand=self._demand,
            grid=lambda wall_s: grid_now(grid(), wall_s),
            budget=budget_meter(table, ledger, views),
        )
        self._adviser = ThrottleAdviser(pure, feeds, self._trail, self._board, code_here(version))

    def parts(self, stop: asyncio.Event) -> ThrottleParts:
        """What the HTTP application is given; ``stop`` ends its streams."""
        token = self._table.control_token
        return ThrottleParts(
            reader=self._board,
            decider=self._deciding,
            trail=TrailPages(self._reader),
            queue=self._demand,
            trail_fault=TrailFault,
            status=self,
            stop=stop,
            deny_status=self._table.deny_status,
            control_token=None if token is None else token.get_secret_value(),
        )

    def status(self) -> PartStatus:
        """The line of ``/readyz``: the adviser's, and where quotas are counted if not where they should be."""
        state, quotas = self._adviser.status(), self._quotas.status()
        if quotas.shared is None or quotas.shared_up:
            return state
        why = (
            f"quotas are counted by this process alone: {quotas.last_fault or quotas.shared + ' has not answered yet'}"
        )
        return PartStatus(ok=state.ok, detail=f"{state.detail}; {why}")

    def began(self, span: Span) -> None:
        """A span began; called by the meter's thread."""
        self._demand.began(span)

    def finished(self, entries: Sequence[RequestEntry]) -> None:
        """Requests ended or became final; called by the meter's thread."""
        self._demand.finished(entries)

    def start(self) -> None:
        """Advise from now on."""
        self._trail.start()
        self._adviser.start()

    async def stop(self) -> None:
        """End the adviser, then write what it has recorded; the event loop goes on meanwhile."""
        await asyncio.to_thread(self._adviser.stop)
        await asyncio.to_thread(self._trail.close)
        await self._quotas.close()


def _quotas(table: ThrottleTable) -> Quotas:
    try:
        return Quotas(table.quota_storage)
    except ValueError as error:
        raise ConfigFault(f"throttle.quota_storage: {error}") from error


def grid_now(state: GridState, wall_s: float) -> GridNow:
    """The grid's intensity at ``wall_s`` and ahead."""
    now, ahead = state.intensity(wall_s), state.outlook(wall_s)
    forecast = [
        (point.start_s - wall_s, point.g_per_kwh)
        for point in ahead.points
        if point.start_s is not None and point.g_per_kwh is not None
    ]
    label = f"{now.label.value}, simulated" if now.simulated else now.label.value
    return GridNow(now.g_per_kwh, now.age_s, label, forecast)


def budget_meter(table: ThrottleTable, ledger: LedgerReader, views: CarbonViews) -> BudgetMeter:
    """The budget as configured, over the ledger and the CO2e view of its energy (location-based, central)."""

    def read(start_s: float, end_s: float) -> Used:
        energy = ledger.energy(start_s, end_s, ("hour",))
        hours_mj: dict[int, int] = {}
        for group in energy.groups:
            hour_s = int(group.keys["hour"] or 0)
            hours_mj[hour_s] = hours_mj.get(hour_s, 0) + (group.device_mj or 0) + (group.estimated_mj or 0)
        return Used(hours_mj, frozenset(energy.qualities_mj))

    def co2e_of(used: Used) -> float | None:
        figures: Any = views.of_energy(used.hours_mj, S_PER_HOUR, used.qualities)
        figure = (figures.get("co2e_g") or {}).get("location_based")
        return None if figure is None else float(figure["central"])

    return BudgetMeter(
        None if table.budget_kwh is None else table.budget_kwh * J_PER_KWH,
        None if table.budget_co2e_kg is None else table.budget_co2e_kg * G_PER_KG,
        table.budget_period,
        ZoneInfo(table.zone),
        read=read,
        co2e_of=co2e_of,
        faults=(LedgerFault,),
    )

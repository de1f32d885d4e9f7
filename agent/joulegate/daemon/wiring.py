"""The one place that names every part and puts them together, from start to shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

from joulegate.config import Settings
from joulegate.daemon.advising import Advising
from joulegate.daemon.choice import Chosen, open_source
from joulegate.daemon.ingest import HttpIngest, LocalSink, SocketIngest
from joulegate.daemon.loop import MeterLoop
from joulegate.daemon.site import Carbon, local_views
from joulegate.http.app import create_app
from joulegate.http.parts import Parts, ThrottleParts
from joulegate.http.server import bind, new_event_loop, serve
from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.policy import IdlePolicy
from joulegate.metering.snapshot import Snapshot
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.socket_server import SocketServer, Ticket
from joulegate.stores.fault import LedgerFault
from joulegate.stores.ledger import Ledger, system_boot_id
from joulegate.stores.reader import LedgerReader

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
LOCAL_CLOSE_S = 1.0
LOCAL_HOLD_S = 0.3
"""In one process every edge is known at once, so that figures are final soon."""


def version() -> str:
    """The installed version."""
    try:
        return metadata.version("joulegate")
    except metadata.PackageNotFoundError:
        return "unknown"


def host_meter(settings: Settings, *, hold_s: float | None = None) -> HostMeter:
    """The meter of this host, on the clocks of this moment."""
    metering = settings.metering
    options = Options(
        idle_policy=IdlePolicy(metering.idle_policy),
        foreign_tolerance=metering.foreign_tolerance,
        lag_s=None if metering.lag_ms is None else metering.lag_ms / 1000.0,
        hold_s=metering.hold_s if hold_s is None else hold_s,
        slots=metering.slots,
    )
    return HostMeter(options, origin_s=time.time() - time.monotonic(), boot_id=system_boot_id())


@dataclass(frozen=True, slots=True)
class SnapshotOf:
    """The loop's newest snapshot, for readers."""

    loop: MeterLoop

    def snapshot(self) -> Snapshot | None:
        """One load of a reference."""
        return self.loop.snapshot


def local_meter(settings: Settings, *, state_dir: Path | None = None) -> Meter:
    """A meter in this very process, with a ledger only where ``state_dir`` is given; raises ``SourceUnavailable``."""
    chosen = open_source(settings)
    try:
        ledger = None if state_dir is None else Ledger(state_dir)
        meter = host_meter(settings, hold_s=LOCAL_HOLD_S)
        loop = MeterLoop(chosen.source, meter, ledger, faults=(LedgerFault,))
    except BaseException:
        chosen.source.close()
        raise

    def close() -> None:
        loop.stop(LOCAL_CLOSE_S)
        chosen.source.close()
        if ledger is not None:
            ledger.close()

    loop.start()
    views = local_views(settings, chosen.source.devices)
    return Meter(LocalSink(loop, dict(os.environ), close, None if views is None else views.of_request))


REFERENCE_ENTRIES = 1000
"""So many of the newest requests tell what a model costs here."""


class Daemon:
    """``joulegate run``: ledger, source, loop, socket and HTTP, started in this order and stopped in the reverse."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._stop: asyncio.Event | None = None
        self._reader: LedgerReader | None = None

    def _recent_entries(self) -> Sequence[RequestEntry]:
        """The newest final requests: what this service measured itself."""
        if self._reader is None:
            return ()
        try:
            return self._reader.requests(REFERENCE_ENTRIES, status=Status.FINAL).items
        except LedgerFault:
            return ()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; raises the one-line faults of its parts.

        What can refuse without leaving a trace is asked first: the port, then the source, then the ledger's folder.
        """
        if self._settings.http.port:
            bind(self._settings.http.host, self._settings.http.port).close()
        chosen = open_source(self._settings)
        try:
            carbon = Carbon(self._settings, chosen.source.devices, self._recent_entries)
            ledger = Ledger(self._settings.state_dir)
            try:
                loop = new_event_loop()
                try:
                    asyncio.set_event_loop(loop)
                    loop.run_until_complete(self._serve(ledger, chosen, carbon))
                finally:
                    loop.run_until_complete(loop.shutdown_asyncgens())
                    loop.run_until_complete(loop.shutdown_default_executor())
                    asyncio.set_event_loop(None)
                    loop.close()
            finally:
                ledger.close()
        finally:
            chosen.source.close()

    async def _serve(self, ledger: Ledger, chosen: Chosen, carbon: Carbon) -> None:
        stop = self._stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        servers: list[SocketServer] = []

        def publish(entries: Sequence[RequestEntry]) -> None:
            advising.finished(entries)
            seen = carbon.views.with_co2e(entries)
            for server in servers:
                server.publish(seen)

        reader = self._reader = LedgerReader(self._settings.state_dir)
        advising = Advising(
            self._settings,
            snapshot=lambda: meter_loop.snapshot,
            grid=lambda: carbon.monitor.state,
            views=carbon.views,
            ledger=reader,
            version=version(),
        )
        meter_loop = MeterLoop(
            chosen.source,
            host_meter(self._settings),
            ledger,
            faults=(LedgerFault,),
            publish=publish,
            began=advising.began,
        )
        ingest = SocketIngest(meter_loop)
        socket_server = SocketServer(self._settings.socket.path, ingest, on_lost=ingest.lost)
        ingest.acknowledge = _batched(socket_server)
        meter_loop.metered_pids = socket_server.peer_pids
        servers.append(socket_server)
        await socket_server.start()
        meter_loop.start()
        carbon.start()
        advising.start()
        try:
            await serve(
                create_app(self._parts(meter_loop, reader, carbon, advising.parts(stop))),
                self._settings.http.host,
                self._settings.http.port,
                stop=stop,
                ready=lambda port: self._announce(chosen, port),
            )
        finally:
            await advising.stop()
            await socket_server.close()
            await asyncio.to_thread(meter_loop.stop)
            await asyncio.to_thread(carbon.stop)
            reader.close()

    def _parts(self, meter_loop: MeterLoop, reader: LedgerReader, carbon: Carbon, throttle: ThrottleParts) -> Parts:
        http = self._settings.http
        guarded = _is_loopback(http.host) and "*" not in http.hosts
        hosts = (*LOOPBACK_NAMES, http.host, *(name.lower() for name in http.hosts)) if guarded else ()
        return Parts(
            snapshots=SnapshotOf(meter_loop),
            ledger=reader,
            spans=HttpIngest(meter_loop),
            ledger_fault=LedgerFault,
            grid=carbon,
            carbon=carbon.views,
            throttle=throttle,
            hosts=hosts,
            version=version(),
        )

    def _announce(self, chosen: Chosen, port: int) -> None:
        for sensor in chosen.source.sensors():
            self._say(f"{sensor.device}: {sensor.status.value}: {sensor.why}")
        self._say(f"ledger in {self._settings.state_dir}, pipelines at {self._settings.socket.path}")
        self._say(f"listening on http://{_shown_host(self._settings.http.host)}:{port}")


def _batched(server: SocketServer) -> Callable[[list[Ticket]], None]:
    def acknowledge(tickets: list[Ticket]) -> None:
        server.acknowledge(tickets)

    return acknowledge


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host

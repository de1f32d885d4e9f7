"""The daemon's inside over a counter that outlives it: 100 W since the machine's boot, as a board's own counter would.

``python -m tests.e2e.counter_daemon STATE_DIR`` serves the socket until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from joulegate.daemon.ingest import SocketIngest
from joulegate.daemon.loop import MeterLoop
from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor
from joulegate.pipelines.socket_server import SocketServer
from joulegate.stores import Ledger, LedgerFault
from joulegate.stores.ledger import system_boot_id

POWER_W = 100


class BootCounter:
    """Implements ``daemon.ports.Source``: one device whose counter is a function of the machine's uptime."""

    name = "boot counter"

    def open(self) -> None:
        """Nothing to do."""

    def devices(self) -> Sequence[Device]:
        """One."""
        return [Device("GPU-a", "boot counter", Method.COUNTER, Quality.MEASURED, lag_s=0.0)]

    def sensors(self) -> Sequence[Sensor]:
        """Nothing to say."""
        return ()

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """The counter now."""
        return [Reading("GPU-a", now_s, wall_s, energy_mj=int(now_s * POWER_W * 1000), power_w=float(POWER_W))]

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """None."""
        return {}

    def processes(self) -> Sequence[GpuProcess]:
        """None."""
        return ()

    def close(self) -> None:
        """Nothing to do."""


async def serve(state_dir: Path) -> None:
    """Run until killed."""
    ledger = Ledger(state_dir)
    meter = HostMeter(Options(hold_s=0.1), origin_s=time.time() - time.monotonic(), boot_id=system_boot_id())
    servers: list[SocketServer] = []
    loop = MeterLoop(
        BootCounter(),
        meter,
        ledger,
        faults=(LedgerFault,),
        publish=lambda entries: [server.publish(entries) for server in servers],
        tick_s=0.05,
    )
    ingest = SocketIngest(loop)
    server = SocketServer(state_dir / "joulegate.sock", ingest, on_lost=ingest.lost)
    ingest.acknowledge = server.acknowledge
    servers.append(server)
    await server.start()
    loop.start()
    print("listening on http://none", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))

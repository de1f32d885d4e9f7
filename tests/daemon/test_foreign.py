"""Evidence beside unattributed energy: who else is on the device, and never a pipeline that is metered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.daemon.parts import Plant, PlantSource

from joulegate.daemon.ingest import SocketIngest
from joulegate.daemon.loop import MeterLoop
from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.reading import GpuProcess
from joulegate.pipelines.socket_server import SocketServer

PIPELINE, STRANGER = 4711, 4712


class Crowded(PlantSource):
    """Two processes are on the board."""

    def processes(self) -> Sequence[GpuProcess]:
        """A pipeline and a stranger."""
        return (GpuProcess("GPU-a", PIPELINE, "pipeline"), GpuProcess("GPU-a", STRANGER, "stranger"))


def test_a_metered_pipeline_is_not_a_stranger() -> None:
    """While energy is unattributed, the stranger is named and the process whose requests are metered is not."""
    loop = MeterLoop(Crowded(Plant(), 1000.0), HostMeter(Options(), origin_s=0.0), None)
    loop.metered_pids = lambda: {PIPELINE}
    loop.meter.devices["GPU-a"].unattributed_lately = True
    loop.step(1000.0, 1000.0)
    assert loop.snapshot is not None
    assert [process.pid for process in loop.snapshot.devices["GPU-a"].processes] == [STRANGER]


async def test_the_server_knows_its_peers(tmp_path: Path) -> None:
    """A connected process is known by the pid that the kernel gives, and forgotten when it hangs up."""
    loop = MeterLoop(PlantSource(Plant(), 1000.0), HostMeter(Options(), origin_s=0.0), None)
    server = SocketServer(tmp_path / "s.sock", SocketIngest(loop))
    await server.start()
    try:
        assert server.peer_pids() == frozenset()
        _, writer = await asyncio.open_unix_connection(str(server.path))
        await until(lambda: server.peer_pids() == {os.getpid()})
        writer.close()
        await writer.wait_closed()
        await until(lambda: server.peer_pids() == frozenset())
    finally:
        await server.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for ``holds``, ten seconds at most."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true")

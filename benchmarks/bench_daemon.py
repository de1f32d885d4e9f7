"""What an idle daemon costs: CPU share of one core and resident memory, for the real ``joulegate run``.

    python benchmarks/bench_daemon.py [--seconds 30] [--json]

The twin's own simulation of eight boards is in its figure; ``scripted`` is the daemon's loop over eight devices whose
readings cost nothing (twenty a second each, as NVML's), which is what sampling and metering cost the software. The bars
are under 1 % of a core for sampling eight devices, and under 120 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor

ENTRY_POINT = "import sys; from joulegate.cli.app import main; sys.exit(main())"
CPU_BAR, RSS_BAR_MIB = 0.01, 120.0
WARM_UP_S = 5.0
POLL_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Scripted:
    """Eight devices of 100 W whose readings are made when they are asked for."""

    name = "scripted"

    def __init__(self) -> None:
        self._next_s = time.monotonic()

    def open(self) -> None:
        """Nothing to do."""

    def devices(self) -> Sequence[Device]:
        """Eight."""
        return [
            Device(f"GPU-{n}", "scripted", Method.COUNTER, Quality.MEASURED, step_s=0.1, lag_s=0.1) for n in range(8)
        ]

    def sensors(self) -> Sequence[Sensor]:
        """None."""
        return ()

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """Every poll that came due; the counter moves with every second one."""
        readings = []
        while self._next_s <= now_s:
            energy_mj = int(self._next_s / 0.1) * 10_000
            readings += [
                Reading(f"GPU-{n}", self._next_s, wall_s, energy_mj, 100.0, temperature_c=40.0, utilization=0.0)
                for n in range(8)
            ]
            self._next_s += POLL_S
        return readings

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """None."""
        return {}

    def processes(self) -> Sequence[GpuProcess]:
        """None."""
        return ()

    def close(self) -> None:
        """Nothing to do."""


def serve_scripted(folder: Path) -> None:
    """The loop over ``Scripted`` with a real ledger, until stdin closes."""
    from joulegate.config import load
    from joulegate.daemon.loop import MeterLoop
    from joulegate.daemon.wiring import host_meter
    from joulegate.stores import Ledger, LedgerFault

    loop = MeterLoop(
        Scripted(), host_meter(load(environ={"HOME": "/"}).settings), Ledger(folder), faults=(LedgerFault,)
    )
    loop.start()
    print("listening", file=sys.stderr, flush=True)
    sys.stdin.read()
    loop.stop()


def measure(name: str, command: Sequence[str], environ: Mapping[str, str], seconds: float) -> dict[str, object]:
    """CPU share and memory of an idle process between its start and its end."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    ) as daemon:
        assert daemon.stderr is not None
        while "listening" not in (line := daemon.stderr.readline()):
            assert line, "the daemon did not start"
        time.sleep(WARM_UP_S)
        began_s, cpu_s = time.monotonic(), _cpu_s(daemon.pid)
        time.sleep(seconds)
        share = (_cpu_s(daemon.pid) - cpu_s) / (time.monotonic() - began_s)
        rss_mib = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20
        daemon.terminate()
        daemon.communicate()
    return {
        "what": name, "cpu_share": share, "rss_mib": rss_mib, "cpu_bar": CPU_BAR, "rss_bar_mib": RSS_BAR_MIB,
        "met": share < CPU_BAR and rss_mib < RSS_BAR_MIB,
    }  # fmt: skip


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scripted", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scripted is not None:
        serve_scripted(options.scripted)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source, environ in (
            ("daemon, host model", "model", {}),
            ("daemon, twin of 8 boards", "twin", {"JOULEGATE_TWIN__GPUS": "8"}),
        ):
            state = str(Path(folder) / source)
            run = ["-c", ENTRY_POINT, "run", "--source", source, "--port", "0", "--state-dir", state]
            rows.append(measure(name, run, environ, options.seconds))
        scripted = [__file__, "--scripted", str(Path(folder) / "scripted")]
        rows.append(measure("loop, scripted 8 devices", scripted, {}, options.seconds))
    if options.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            verdict = "met" if row["met"] else "MISSED"
            print(f"{row['what']:<28}{row['cpu_share']:>8.2%} of a core{row['rss_mib']:>8.1f} MiB  {verdict}")
    return 0 if all(row["met"] for row in rows if "twin" not in str(row["what"])) else 1


if __name__ == "__main__":
    sys.exit(main())

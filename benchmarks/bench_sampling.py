"""What sampling costs: CPU share of one core and memory, with simulated GPUs behind NVML's ABI.

Run: PYTHONPATH=agent python benchmarks/bench_sampling.py [--devices 8] [--seconds 20] [--json]
The bar is under 1 % of one core for 8 devices at the default rate. A stand-in's call is a function call, a real one
goes into the driver: this is the software's own cost, a lower bound. The measured process only samples and drains.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BAR = 0.01
_WARM_UP_S = 3.0
_DRAIN_S = 0.1


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(seconds: float) -> dict[str, float]:
    """Sample this process's NVML for ``seconds`` after the steps are learned; returns the figures."""
    from joulegate.sources.nvml import NvmlSource

    bare_mib = _rss_mib()
    source = NvmlSource()
    source.open()
    time.sleep(_WARM_UP_S)
    source.drain(time.monotonic(), time.time())
    cpu_s, start_s, readings = _cpu_s(), time.monotonic(), 0
    while time.monotonic() - start_s < seconds:
        time.sleep(_DRAIN_S)
        readings += len(source.drain(time.monotonic(), time.time()))
    elapsed_s = time.monotonic() - start_s
    used_s = _cpu_s() - cpu_s
    devices = source.devices()
    source.close()
    return {
        "devices": len(devices),
        "seconds": elapsed_s,
        "readings_per_s": readings / elapsed_s,
        "cpu_share": used_s / elapsed_s,
        "us_per_reading": used_s / max(readings, 1) * 1e6,
        "rss_mib": _rss_mib(),
        "rss_over_import_mib": _rss_mib() - bare_mib,
        "step_ms": 1e3 * max(device.step_s or 0.0 for device in devices),
    }


def main() -> int:
    """Start the stand-in and the measured process, print the figures; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--generation", default="h100")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.seconds)))
        return 0
    from tests.nvml.stand_in import StandIn, build_library

    with tempfile.TemporaryDirectory() as folder:
        stand_in = StandIn(build_library(Path(folder)), Path(folder) / "gpus")
        for number in range(options.devices):
            stand_in.add(options.generation, power_w=100.0 + 50 * number)
        child = subprocess.run(
            [sys.executable, __file__, "--measure", "--seconds", str(options.seconds)],
            env={**stand_in.environment, "PYTHONPATH": str(ROOT / "agent")},
            capture_output=True,
            text=True,
            check=True,
        )
        stand_in.close()
    found = json.loads(child.stdout)
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['devices']:.0f} devices, {found['readings_per_s']:.0f} readings/s over {found['seconds']:.0f} s: "
            f"{found['cpu_share']:.2%} of one core (bar {BAR:.0%}), {found['us_per_reading']:.0f} us a reading, "
            f"RSS {found['rss_mib']:.0f} MiB"
        )
    return int(found["cpu_share"] >= BAR)


if __name__ == "__main__":
    sys.exit(main())

"""A client process: the NVML source under line commands, because ``pynvml`` keeps its library for a process's life.

Run as a script it answers one JSON line on standard output for each JSON line ``[command, ...]`` on standard input.
As a module it gives tests ``Client``, which starts that script with a stand-in's environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

AGENT = Path(__file__).parents[2] / "agent"


class Client:
    """The source in a process of its own. Use as a context manager."""

    def __init__(self, environment: dict[str, str], **options: Any) -> None:
        """Start the process; ``options`` are those of ``NvmlSource``."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": str(AGENT), "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()

    def ask(self, *command: object) -> Any:
        """Send one command and return its answer."""
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client died at {command}"
        return json.loads(line)

    def open(self) -> None:
        """Open the source; fails the test when it is not available."""
        assert self.ask("open") is None

    def drain(self, device: str | None = None) -> list[dict]:
        """Readings since the last drain, of one device or all."""
        return [reading for reading in self.ask("drain") if device in (None, reading["device"])]

    def until(self, wanted: Callable[[], Any], timeout_s: float = 12.0) -> Any:
        """Ask again and again until ``wanted`` gives something true; that is returned."""
        until_s = time.monotonic() + timeout_s
        while True:
            found = wanted()
            if found:
                return found
            assert time.monotonic() < until_s, "waited in vain"
            time.sleep(0.05)

    def device(self, uuid: str) -> dict:
        """One device as the source describes it now."""
        return next(device for device in self.ask("devices") if device["id"] == uuid)

    def sensor(self, uuid: str) -> dict:
        """One device's sensor line."""
        return next(sensor for sensor in self.ask("sensors") if sensor["device"] == uuid)

    def up(self, uuid: str) -> dict | None:
        """The newest reading of a device in this drain, if it is up."""
        readings = self.drain(uuid)
        return readings[-1] if readings and readings[-1]["up"] else None

    def down(self, uuid: str) -> dict | None:
        """The newest reading of a device in this drain, if it is down."""
        readings = self.drain(uuid)
        return readings[-1] if readings and not readings[-1]["up"] else None


def _forked(source: Any) -> dict[str, Any]:
    """What a forked child sees of the parent's source, and what it measures with its own."""
    from joulegate.sources.nvml import NvmlSource

    time.sleep(0.2)  # readings wait in the parent's queue when it forks
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        inherited = len(source.drain(time.monotonic(), time.time()))
        source.close()
        own = NvmlSource()
        own.open()
        time.sleep(0.3)
        readings = own.drain(time.monotonic(), time.time())
        own.close()
        answer = {"inherited": inherited, "own": sum(1 for one in readings if one.up and one.energy_mj is not None)}
        os.write(send, json.dumps(answer).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        answer = json.loads(pipe.read() or "{}")
    os.waitpid(child, 0)
    return answer


def _serve(options: dict[str, Any]) -> None:
    from joulegate.sources.nvml import NvmlSource, NvmlUnavailable
    from joulegate.sources.nvml.gpu import Rates

    rates = Rates(**options.pop("rates", {}))
    source = NvmlSource(
        rates=rates,
        own_pids=lambda: (options.get("own_pid", os.getpid()),),
        allowance_s=options.get("allowance_s", 3.0),
    )

    def opened() -> str | None:
        try:
            source.open()
        except NvmlUnavailable as missing:
            return str(missing)
        return None

    commands: dict[str, Callable[[], Any]] = {
        "open": opened,
        "drain": lambda: [dataclasses.asdict(one) for one in source.drain(time.monotonic(), time.time())],
        "devices": lambda: [dataclasses.asdict(one) for one in source.devices()],
        "sensors": lambda: [dataclasses.asdict(one) for one in source.sensors()],
        "errors": lambda: {device: dict(counts) for device, counts in source.errors().items()},
        "processes": lambda: [dataclasses.asdict(one) for one in source.processes()],
        "fork": lambda: _forked(source),
        "close": source.close,
    }
    for line in sys.stdin:
        print(json.dumps(commands[json.loads(line)[0]]()), flush=True)
    source.close()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))

"""The daemon under test: a real ``joulegate run`` in a process of its own, asked over real HTTP."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx

AGENT = Path(__file__).parents[2] / "agent"
CALL = "import sys; from joulegate.cli.app import main; sys.exit(main())"


def shell(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a ``joulegate`` command to its end."""
    return subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        env={**environment, "PYTHONPATH": str(AGENT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Service:
    """``joulegate run`` with ``options``. A context manager: it is up inside, and ends by SIGTERM."""

    def __init__(self, environment: dict[str, str], state_dir: Path, *options: str) -> None:
        self.lines: list[str] = []
        self.state_dir = state_dir
        self.process = subprocess.Popen(
            [sys.executable, "-c", CALL, "run", "--port", "0", "--state-dir", str(state_dir), *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": str(AGENT)},
        )
        self._port: str | None = None
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, name="service", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self._listening.wait(60)
        if self._port is None:
            self._end()
            raise AssertionError("it never listened: " + "\n".join(self.lines))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", trust_env=False, timeout=20)
        self.until(lambda: self.http.get("/v1/devices").status_code == 200)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        assert self._end() == 0, "\n".join(self.lines)

    def _end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)
            self.process.stderr.close()

    def get(self, path: str) -> Any:
        """The JSON answer of a path."""
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def device(self, uuid: str) -> dict:
        """One device as ``/v1/devices`` shows it now."""
        return next(device for device in self.get("/v1/devices")["devices"] if device["id"] == uuid)

    def request(self, request_id: str) -> dict:
        """One entry of the ledger, once it is final."""
        return self.until(lambda: self._final(request_id))

    def series(self, gpu_uuid: str) -> set[str]:
        """Names of the families in ``/metrics`` that have a series of this device."""
        lines = self.http.get("/metrics").text.splitlines()
        return {line.partition("{")[0] for line in lines if f'gpu_uuid="{gpu_uuid}"' in line}

    def until(self, wanted: Callable[[], Any], timeout_s: float = 40.0) -> Any:
        """Ask again and again until ``wanted`` gives something true; that is returned."""
        until_s = time.monotonic() + timeout_s
        while True:
            found = wanted()
            if found:
                return found
            assert time.monotonic() < until_s, "waited in vain; " + "\n".join(self.lines)
            time.sleep(0.05)

    def _final(self, request_id: str) -> dict | None:
        answer = self.http.get(f"/v1/requests/{request_id}")
        return answer.json() if answer.status_code == 200 and answer.json()["status"] == "final" else None

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self._port = found[1]
                self._listening.set()
        self._listening.set()

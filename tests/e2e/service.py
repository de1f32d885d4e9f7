"""A real ``joulegate run`` in a process of its own, and what a client may ask it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx

ROOT = Path(__file__).resolve().parents[2]
ENTRY_POINT = "import sys; from joulegate.cli.app import main; sys.exit(main())"
PATIENCE_S = 30.0


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, and with the package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOULEGATE_")}
    return {**kept, "PYTHONPATH": f"{ROOT / 'agent'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", **more}


def run_command(*arguments: str, timeout_s: float = PATIENCE_S, **env: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    command = [sys.executable, "-c", ENTRY_POINT, *arguments]
    return subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, timeout=timeout_s, check=False
    )


class Service:
    """``joulegate run`` (or another program that says where it listens) from its start to its end."""

    def __init__(self, state_dir: Path, *arguments: str, command: Sequence[str] = (), **env: str) -> None:
        run = ["-c", ENTRY_POINT, "run", "--port", "0", "--state-dir", str(state_dir), *arguments]
        self.state_dir = state_dir
        self.socket = state_dir / "joulegate.sock"
        self.log = state_dir.parent / f"{state_dir.name}.log"
        self._said_before = len(self.log.read_text()) if self.log.exists() else 0
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(command or run)],
                env=environment(**env),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ready(self) -> Self:
        """Wait until it listens."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            found = re.findall(r"listening on (http://\S+)", self.said())
            if found:
                self.url = found[-1]
                return self
            assert self.process.poll() is None, f"exit {self.process.returncode}: {self.said()}"
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.said()}")

    def said(self) -> str:
        """Its stderr."""
        return self.log.read_text()[self._said_before :] if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def get(self, path: str) -> Any:
        """JSON of a 200 answer."""
        answer = httpx.get(self.url + path, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, *spans: dict[str, object], timeout_s: float = 20.0) -> httpx.Response:
        """``POST /v1/spans``."""
        content = json.dumps({"spans": spans})
        return httpx.post(
            self.url + "/v1/spans", content=content, headers={"Content-Type": "application/json"}, timeout=timeout_s
        )

    def until(self, path: str, holds: Any, patience_s: float = PATIENCE_S) -> Any:
        """Ask until ``holds(body)``."""
        until_s = time.monotonic() + patience_s
        while True:
            answer = httpx.get(self.url + path, timeout=20)
            body = answer.json() if "json" in answer.headers["content-type"] else answer.text
            if holds(body):
                return body
            assert time.monotonic() < until_s, f"{path}: {body}"
            time.sleep(0.05)

    def requests(self) -> dict[str, dict[str, Any]]:
        """Every request by id."""
        found: dict[str, dict[str, Any]] = {}
        cursor = ""
        while True:
            page = self.get(f"/v1/requests?limit=1000{cursor}")
            for item in page["items"]:
                assert item["request_id"] not in found
                found[item["request_id"]] = item
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

"""The port: an observation in, a recommendation out, both as design 5.4 has them; and the real one behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.throttle.gateway import TIERS

Observation = dict[str, Any]
Recommendation = dict[str, Any]
FREE_FLOOR = 0.02
PATIENCE_S = 10.0


class ControllerFault(Exception):
    """The controller under test broke the contract; the message says how."""


class Controller(Protocol):
    """Anything that can be judged."""

    def advise(self, observation: Observation) -> Recommendation:
        """The newest recommendation; called once a second of the simulated hour."""

    def close(self) -> None:
        """Let go of what it holds."""


def configuration(actuators: Sequence[str]) -> str:
    """The TOML that the plant gives to ``joulegate advise``: three tiers, a floor for the free one."""
    lines = ["[throttle]", f"actuators = {json.dumps(list(actuators))}"]
    for name in TIERS:
        floor = FREE_FLOOR if name == TIERS[-1] else 0.0
        lines += ["[[throttle.tiers]]", f'name = "{name}"', f"floor = {floor}"]
    return "\n".join(lines) + "\n"


class Advise:
    """``joulegate advise`` as a child process, one JSON line each way."""

    def __init__(self, actuators: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="plant-")
        config = Path(self._folder.name, "advise.toml")
        config.write_text(configuration(actuators), encoding="utf-8")
        self._errors = Path(self._folder.name, "errors")
        with self._errors.open("wb") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "joulegate", "advise", "--config", str(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def advise(self, observation: Observation) -> Recommendation:
        """Its answer to one line; ControllerFault when there is none or it is no object."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(observation).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
        except (OSError, ValueError):
            raise ControllerFault(f"joulegate advise gave no line for t={observation['t']}: {self._said()}") from None
        if not isinstance(answer, dict):
            raise ControllerFault(f"joulegate advise gave no object for t={observation['t']}")
        return answer

    def close(self) -> None:
        """End the child's input and wait for it; a child that does not end is killed."""
        assert self._child.stdout is not None
        try:
            self._child.communicate(timeout=PATIENCE_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._child.kill()
            self._child.communicate()
        self._folder.cleanup()

    def _said(self) -> str:
        try:
            self._child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "it is still running"
        last = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return f"exit {self._child.returncode}: {''.join(last) or 'no message'}"

"""``joulegate advise`` as a process: a conversation line by line, or a whole file at once."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.throttle_contract.promises import Json, strict_json

PATIENCE_S = 30.0
COMMAND = (sys.executable, "-m", "joulegate", "advise")

CONFIG = """
[throttle]
actuators = ["rate", "power_cap"]
[[throttle.tiers]]
name = "pro"
floor = 0.0
[[throttle.tiers]]
name = "plus"
floor = 0.0
[[throttle.tiers]]
name = "free"
floor = 0.02
quota = "3/day"
"""


def environment() -> dict[str, str]:
    """Ours, with this interpreter's way to the package and no setting of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JOULEGATE_")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """A configuration file."""
    path = folder / "advise.toml"
    path.write_text(text)
    return path


def batch(config: Path, data: bytes, options: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    """The whole input at once."""
    return subprocess.run(
        [*COMMAND, "--config", str(config), *options],
        input=data,
        capture_output=True,
        timeout=PATIENCE_S * 2,
        env=environment(),
        check=False,
    )


def advise(config: Path, observations: Iterable[Any]) -> list[Json]:
    """Recommendations for observations, one process."""
    done = batch(config, "".join(json.dumps(seen) + "\n" for seen in observations).encode())
    assert done.returncode == 0, done.stderr
    return [strict_json(line) for line in done.stdout.decode().splitlines()]


class Conversation:
    """One process that is asked line by line; each answer must come before the next question."""

    def __init__(self, config: Path) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            [*COMMAND, "--config", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        self.buffer = b""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ask(self, line: bytes) -> Json:
        """One line in, one line out."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return strict_json(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
            assert ready, "no answer to a line: not flushed, or stuck"
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            assert chunk, "it ended instead of answering"
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def end(self) -> tuple[int, bytes]:
        """Close its input; exit status and what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors

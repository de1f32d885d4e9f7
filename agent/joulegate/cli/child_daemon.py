"""A daemon of one's own, as a child process, for commands that need one for a while."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from joulegate.cli.faults import UserFault

READY_S = 30.0
STOP_S = 15.0
_LISTENING = re.compile(r"listening on (http://\S+)")


class ChildDaemon:
    """Runs ``joulegate run`` on a free port with its state in ``state_dir``; ends it when the block is left."""

    def __init__(self, state_dir: Path, *, source: str, settings: Mapping[str, str] | None = None) -> None:
        """``settings`` are ``JOULEGATE_*`` variables; those of this process are not passed on."""
        self.state_dir = state_dir
        self.socket = state_dir / "joulegate.sock"
        self.url = ""
        self.said: list[str] = []
        self._ready = threading.Event()
        self._command = [
            *(sys.executable, "-m", "joulegate", "run", "--port", "0"),
            *("--source", source, "--state-dir", str(state_dir)),
        ]
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("JOULEGATE_")}
        environ |= {**self._settings, "JOULEGATE_SOCKET": str(self.socket)}
        self._process = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ
        )
        threading.Thread(target=self._listen, name="joulegate-child", daemon=True).start()
        self._ready.wait(READY_S)
        if not self.url:
            self._end()
            why = self.said[-1] if self.said else f"it did not answer within {READY_S:g} s"
            raise UserFault(f"the daemon did not start: {why}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _listen(self) -> None:
        process = self._process
        if process is None or process.stderr is None:
            return
        for line in process.stderr:
            self.said.append(line.strip().removeprefix("joulegate: "))
            found = _LISTENING.search(line)
            if found:
                self.url = found.group(1)
                self._ready.set()
        self._ready.set()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

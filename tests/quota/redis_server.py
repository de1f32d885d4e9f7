"""A real redis-server of one test: its own port, no persistence, killed and brought back at will."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

PATIENCE_S = 10.0


class RedisServer:
    """Debian's redis-server on loopback with its data in ``folder``."""

    def __init__(self, program: str, port: int, folder: Path) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._port = port
        self._command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", "--loglevel", "warning", "--daemonize", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it, empty, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + PATIENCE_S
        while self._answer(b"PING\r\n") != b"+PONG\r\n":
            assert self._process.poll() is None, "redis-server ended by itself"
            assert time.monotonic() < deadline_s, "redis-server does not answer"
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def keys(self) -> list[str]:
        """Every key it holds."""
        lines = self._answer(b"KEYS *\r\n").decode().split("\r\n")
        return sorted(line for line in lines[1:] if line and not line.startswith("$"))

    def longest_ttl_s(self) -> float:
        """The longest time that a key has left; ``inf`` for one that would stay for ever."""
        answers = [int(self._answer(f"PTTL {key}\r\n".encode()).strip(b":\r\n")) for key in self.keys()]
        return max(answer / 1000 if answer >= 0 else float("inf") for answer in answers)

    def say(self, line: str) -> bytes:
        """Its answer to one inline command."""
        return self._answer(line.encode() + b"\r\n")

    def _answer(self, line: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=2.0) as connection:
                connection.sendall(line)
                return connection.recv(1 << 20)
        except OSError:
            return b""

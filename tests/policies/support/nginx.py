"""A real nginx in the foreground, with a prefix of its own, running the sample with this test's addresses."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

POLICIES = Path(__file__).resolve().parents[3] / "dashboards" / "policies"
PATIENCE_S = 10.0
MAIN = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log info;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include joulegate.conf;
}
"""


class Nginx:
    """nginx with the sample in ``dashboards/policies/nginx``; ``addresses`` replaces what is written there."""

    def __init__(self, program: str, prefix: Path, port: int, addresses: Mapping[str, str]) -> None:
        prefix.mkdir()
        sample = (POLICIES / "nginx" / "joulegate.conf").read_text()
        for written, ours in {"127.0.0.1:8080": f"127.0.0.1:{port}", **addresses}.items():
            assert sample.count(written) == 1, written
            sample = sample.replace(written, ours)
        (prefix / "joulegate.conf").write_text(sample)
        keys = (POLICIES / "nginx" / "joulegate-keys.map").read_text()
        (prefix / "joulegate-keys.map").write_text(keys)
        # Started as root, nginx hands its workers to "nobody", who may not enter a test's folder.
        user = "user root;\n" if prefix.owner() == "root" else ""
        (prefix / "nginx.conf").write_text(user + MAIN)
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._log = prefix / "error.log"
        self._command = [program, "-p", str(prefix), "-c", "nginx.conf", "-e", "error.log"]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, self.said()
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
            except OSError:
                assert time.monotonic() < until_s, self.said()
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def said(self) -> str:
        """Its error log."""
        return self._log.read_text() if self._log.exists() else "no log"

"""DNS that swallows every question, made with Linux namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import joulegate

HERE = Path(__file__).parent


def test_a_black_holed_name_server_holds_up_nobody(tmp_path: Path, require_program: Callable[[str, str], str]):
    """While the resolver waits for an answer that never comes, states are read, and the process ends without it."""
    unshare = require_program("unshare", "util-linux")
    namespaces = [unshare, "--map-root-user", "--net", "--mount"]
    if subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel or container does not give out namespaces")
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")
    script = f"mount --bind {resolv} /etc/resolv.conf && exec {sys.executable} {HERE / 'black_hole.py'}"
    done = subprocess.run(
        [*namespaces, "sh", "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(joulegate.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "asked": True,
        "labels": ["missing"],
        "second": False,
        "hanging": ["joulegate-grid"],
    }

"""What every test can ask for: programs and modules that may be missing, a free port, a check for leaks."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

# Before anything imports torch or numpy: two workers with two spinning threads each take a hundred times as long.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import psutil
import pytest
from hypothesis import HealthCheck, settings

IN_CI = os.environ.get("CI") == "true"
LEAK_PATIENCE_S = 5.0

SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("workstation", deadline=None, max_examples=50, suppress_health_check=SLOW_IS_FINE)
settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, print_blob=True, suppress_health_check=SLOW_IS_FINE
)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=SLOW_IS_FINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "workstation"))


@pytest.fixture(scope="session")
def require_program() -> Callable[[str, str], str]:
    """``require_program(name, package)``: its path; without it a skip with the reason, or with CI=true a failure."""

    def require(name: str, package: str) -> str:
        path = shutil.which(name)
        return path or _lacking(f"no program {name} here: apt-get install {package}")

    return require


@pytest.fixture(scope="session")
def require_module() -> Callable[[str, str], ModuleType]:
    """``require_module(name, extra)``: the module; without it a skip with the reason, or with CI=true a failure."""

    def require(name: str, extra: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            return _lacking(f"no module {name} here: pip install 'joulegate[{extra}]'")

    return require


def _lacking(reason: str) -> NoReturn:
    if IN_CI:
        pytest.fail(f"{reason} (CI installs everything)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """``free_port()``: a TCP port of 127.0.0.1 that nothing listened on a moment ago; a new one at each call."""
    given: set[int] = set()

    def port() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                number: int = probe.getsockname()[1]
            if number not in given:
                given.add(number)
                return number

    return port


@pytest.fixture
def no_leaks(tmp_path: Path) -> Iterator[None]:
    """The test leaves no thread, no child process and no unix socket below ``tmp_path`` behind."""
    threads, children = set(threading.enumerate()), _children()
    yield
    deadline_s = time.monotonic() + LEAK_PATIENCE_S
    while True:
        left = [
            *(f"thread {thread.name}" for thread in set(threading.enumerate()) - threads),
            *(f"process {pid}: {line}" for pid, line in _children().items() if pid not in children),
            *(f"socket {path}" for path in tmp_path.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)),
        ]
        if not left or time.monotonic() > deadline_s:
            break
        time.sleep(0.02)
    assert not left, f"left behind: {', '.join(left)}"


@pytest.fixture(autouse=True, scope="session")
def _nothing_runs_on() -> Iterator[None]:
    """The session leaves no child process behind, whichever test started it."""
    yield
    left = _children()
    assert not left, f"left running: {left}"


def _children() -> dict[int, str]:
    """Living child processes by pid, but for multiprocessing's own helper, which ends with its parent."""
    lines = {}
    for child in psutil.Process().children():
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if child.status() != psutil.STATUS_ZOMBIE and "multiprocessing.resource_tracker" not in line:
            lines[child.pid] = line
    return lines

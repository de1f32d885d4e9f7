"""What cannot start says why in one line, exits 2, prints nothing to stdout and leaves nothing half-written."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.daemon.parts import check_books
from tests.e2e.service import Service, run_command
from tests.e2e.test_kill import rfc3339

ALL_TIME = "/v1/energy?from=2020-01-01T00:00:00Z&to=2035-01-01T00:00:00Z"
DISK_KIB = 400


def refused(*arguments: str, **env: str) -> str:
    """The one line of a run that cannot start."""
    done = run_command("run", *arguments, **env)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("joulegate: ")
    return lines[0]


def test_port_in_use(tmp_path: Path) -> None:
    """A taken port is named, and no ledger is made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused("--source", "twin", "--port", port, "--state-dir", str(tmp_path / "state"))
    assert f"port {port}" in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [("replay:/nowhere/log.csv", "/nowhere/log.csv"), ("replai", '"replai" is not a source'), ("nvml", "NVML")],
)
def test_a_source_that_cannot_be_used(source: str, said: str, tmp_path: Path) -> None:
    """An unknown source, a tape that is not there, a driver that is not there: each is said, and no ledger is made."""
    if source == "nvml" and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    line = refused("--source", source, "--port", "0", "--state-dir", str(tmp_path / "state"))
    assert said in line
    assert not (tmp_path / "state").exists()


def test_bad_settings(tmp_path: Path) -> None:
    """A settings file that cannot be read, and a fault of the twin on a device that is not there, are one line."""
    state = ("--port", "0", "--state-dir", str(tmp_path / "state"))
    assert "absent.toml" in refused("--config", str(tmp_path / "absent.toml"), *state)
    line = refused("--source", "twin", *state, JOULEGATE_TWIN__FAULTS="lost@3:twin-9")
    assert "'twin-9'" in line
    assert not (tmp_path / "state").exists()


def test_socket_path_too_long(tmp_path: Path) -> None:
    """A socket path that the kernel cannot take is refused with its length, before anything is written."""
    state = tmp_path / ("x" * 60) / ("y" * 60)
    line = refused("--source", "twin", "--port", "0", "--state-dir", str(state))
    assert "socket.path" in line
    assert "bytes" in line
    assert not state.exists()


def test_a_second_daemon_on_the_same_folder(tmp_path: Path) -> None:
    """The second daemon is refused and the first one goes on."""
    state = tmp_path / "state"
    with Service(state, "--source", "twin") as first:
        first.ready()
        line = refused("--source", "twin", "--port", "0", "--state-dir", str(state))
        assert str(state) in line
        assert first.get("/healthz")["status"] == "ok"
        assert first.socket.exists()
        assert first.stop() == 0
    assert not first.socket.exists()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of ``DISK_KIB``, or read-only where the test says so."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = getattr(request, "param", f"size={DISK_KIB}k")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("small_disk", ["size=400k,ro"], indirect=True)
def test_a_read_only_folder(small_disk: Path) -> None:
    """A read-only state folder is refused and nothing is written."""
    line = refused("--source", "twin", "--port", "0", "--state-dir", str(small_disk / "state"))
    assert "read-only" in line.lower() or "Read-only" in line
    assert list(small_disk.iterdir()) == []


def fill(folder: Path, leave_kib: int = 0) -> Path:
    """Leave no room but ``leave_kib``."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"\0" * 1024)
        except OSError:
            pass
        size = filler.tell()
        filler.truncate(max(0, size - leave_kib * 1024))
    return file


def test_a_full_disk_at_the_start(small_disk: Path) -> None:
    """A disk that is full at the start is said in one line; with room the same folder works."""
    filler = fill(small_disk)
    line = refused("--source", "twin", "--port", "0", "--state-dir", str(small_disk / "state"))
    assert "full" in line
    filler.unlink()
    with Service(small_disk / "state", "--source", "twin") as service:
        service.ready()
        assert service.stop() == 0


def test_a_disk_that_fills_while_running(small_disk: Path, tmp_path: Path) -> None:
    """While the disk is full it is said and nothing is acknowledged; with room what was acknowledged is all there."""
    state = small_disk / "state"
    acknowledged: list[str] = []

    def post(service: Service, request_id: str) -> int:
        now_s = time.time()
        span = {"request_id": request_id, "started": rfc3339(now_s - 0.3), "ended": rfc3339(now_s), "tenant": "t" * 200}
        try:
            answer = service.post(span, timeout_s=1.0)
        except httpx.TimeoutException:
            return 0
        if answer.status_code == 202:
            acknowledged.append(request_id)
        return answer.status_code

    with Service(state, "--source", "twin", JOULEGATE_METERING__HOLD_S="0.2") as service:
        service.ready()
        for number in range(5):
            assert post(service, f"before-{number}") == 202
        filler = fill(small_disk)
        body = service.until("/readyz", lambda body: body.get("status") == 503)
        assert "full" in str(body)
        service.until("/metrics", lambda text: "joulegate_agent_ledger_up 0.0" in text)
        before = service.get(ALL_TIME)["totals"]["device_mj"]
        assert service.get("/healthz")["status"] == "ok"
        assert post(service, "while-full") != 202
        filler.unlink()
        service.until("/readyz", lambda body: body.get("ready") is True)
        for number in range(5):
            assert post(service, f"after-{number}") == 202
        wanted = set(acknowledged)
        service.until("/v1/requests?limit=100", lambda body: wanted <= {i["request_id"] for i in body["items"]})
        assert service.get(ALL_TIME)["totals"]["device_mj"] >= before
        service.until("/v1/requests?limit=100", lambda body: {i["status"] for i in body["items"]} == {"final"})
        assert service.stop() == 0
    pending_mj, energies = check_books(state)
    assert pending_mj == 0
    assert wanted <= set(energies)

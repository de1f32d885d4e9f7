"""A machine without the NVIDIA driver: what ``joulegate run`` says and does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.nvml.stand_in import StandIn
from tests.nvml_e2e.service import Service, shell

NO_DRIVER = {**os.environ, "LD_LIBRARY_PATH": "/nowhere"}

needs_no_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")


def _run(environment: dict[str, str], folder: Path):
    return shell("run", "--source", "nvml", "--port", "0", "--state-dir", str(folder), environment=environment)


@needs_no_gpu
def test_a_daemon_that_is_told_to_use_nvml_does_not_start_without_it(tmp_path: Path):
    """``run --source nvml`` without a driver: exit 2, one line that says what is missing and what to do."""
    done = _run(NO_DRIVER, tmp_path / "state")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "libnvidia-ml.so.1 was not found" in line
    assert "install the NVIDIA driver" in line
    assert not (tmp_path / "state" / "joulegate.sock").exists()


@pytest.mark.parametrize(
    ("code", "why"), [(9, "driver is not loaded"), (18, "different versions"), (4, "refuses it to this user")]
)
def test_a_driver_that_cannot_be_used_is_one_line_too(stand_in: StandIn, tmp_path: Path, code: int, why: str):
    """A driver that is not loaded, of another version, or forbidden: exit 2 and its own reason in one line."""
    stand_in.add("h100")
    stand_in.fail_host("nvmlInitWithFlags", code)
    done = _run(stand_in.environment, tmp_path / "state")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert why in line
    assert "Traceback" not in done.stderr


@needs_no_gpu
def test_a_daemon_left_to_choose_takes_the_next_source(tmp_path: Path):
    """``run --source auto`` without a driver serves what the machine has instead, and calls none of it the GPU's."""
    with Service(NO_DRIVER, tmp_path / "state", "--source", "auto") as service:
        found = service.get("/v1/devices")
        assert found["source"] in {"rapl", "model"}
        assert {device["method"] for device in found["devices"]} == {found["source"]}
        assert {device["scope"] for device in found["devices"]}.isdisjoint({"gpu", "module", "board"})

"""``joulegate doctor`` as a person and a script meet it, with no GPU, with simulated ones, and with broken ones."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.nvml.conftest import library, stand_in
from tests.nvml.stand_in import StandIn

__all__ = ["library", "stand_in"]

AGENT = Path(__file__).parents[2] / "agent"
CALL = "import sys; from joulegate.cli.app import main; sys.exit(main())"
NO_DRIVER = {**os.environ, "LD_LIBRARY_PATH": "/nowhere", "PYTHONPATH": str(AGENT)}
FIELDS = {"device", "name", "status", "method", "why", "fix", "details"}

needs_no_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")


def doctor(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as ``pynvml`` keeps its library for a process's life."""
    return subprocess.run(
        [sys.executable, "-c", CALL, "doctor", *arguments],
        env={**environment, "PYTHONPATH": str(AGENT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def sensors(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    """The sensors of a JSON answer, by device."""
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert all(set(sensor) == FIELDS for sensor in answer["sensors"])
    return {sensor["device"]: sensor for sensor in answer["sensors"]}


def fleet(stand_in: StandIn) -> StandIn:
    """One GPU of each kind that reads differently: well, without a counter, lying, lost."""
    stand_in.add("h100", power_w=120.0)
    stand_in.add("pascal", power_w=200.0)
    stand_in.add("a100", power_w=300.0)
    stand_in.add("ada")
    stand_in.set(2, instant_w=520.0)
    stand_in.lose(3)
    return stand_in


def test_gpus_are_measured_and_say_how_well(stand_in: StandIn):
    """With GPUs: method, step and cross-check of each, what is wrong with those that are, and exit 0."""
    done = doctor(fleet(stand_in).environment, "--json", "--source", "nvml")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"], answer["source"]) == (0, True, "nvml")
    well, power, lying = (sensors(done)[stand_in.uuid(gpu)] for gpu in range(3))
    assert (well["status"], well["method"], well["fix"]) == ("MEASURED", "counter", "")
    assert 80 <= int(re.search(r"steps of (\d+) ms", well["why"])[1]) <= 120
    assert "the counter gave" in well["details"]["self_check"]
    assert well["name"] == "NVIDIA H100 80GB HBM3"
    assert (power["status"], power["method"]) == ("MEASURED", "instant")
    assert "integrated every" in power["why"]
    assert "disagree" in lying["why"]
    assert "external meter" in lying["fix"]
    lost = next(sensor for sensor in answer["sensors"] if sensor["status"] == "MISSING")
    assert lost["method"] is None
    assert "fallen off the bus" in lost["why"]
    assert "dmesg" in lost["fix"]


def test_the_page_fits_eighty_columns_and_says_what_to_do(stand_in: StandIn):
    """Without --json each sensor is a short block of lines under its status, and the last line is the verdict."""
    done = doctor(fleet(stand_in).environment, "--source", "nvml")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")] == [
        "MEASURED",
        "MEASURED",
        "MEASURED",
        "MISSING",
        "Source",
    ]
    assert lines[-1] == "Source nvml: 3 of 4 measured."
    text = " ".join(done.stdout.split())
    for words in ("steps of", "check over", "do compare with an external meter", "do look for an Xid"):
        assert words in text
    assert stand_in.uuid(0) in text


def test_a_refused_call_says_which_right_is_lacking(stand_in: StandIn):
    """A GPU that refuses a call to this user is measured all the same, names the call and the right it takes."""
    gpu = stand_in.add("h100")
    stand_in.fail(gpu, "nvmlDeviceGetMemoryInfo", 4)
    sensor = sensors(doctor(stand_in.environment, "--json"))[stand_in.uuid(gpu)]
    assert sensor["status"] == "MEASURED"
    assert "not permitted to this user: MemoryInfo" in sensor["why"]
    assert "/dev/nvidia" in sensor["fix"]


@needs_no_gpu
def test_without_a_driver_the_source_asked_for_is_missing():
    """--source nvml without a driver: MISSING with the reason and the fix, ok false, exit 1, no traceback."""
    done = doctor(NO_DRIVER, "--json", "--source", "nvml")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"], answer["source"]) == (1, False, None)
    assert {**sensors(done)["nvml"], "details": None} == {
        "device": "nvml",
        "name": None,
        "status": "MISSING",
        "method": None,
        "why": "libnvidia-ml.so.1 was not found",
        "fix": "install the NVIDIA driver; in a container start it with the NVIDIA runtime",
        "details": None,
    }


@needs_no_gpu
def test_without_a_driver_the_next_source_is_taken():
    """--source auto falls through: NVML stays in the list as MISSING with its fix, beside the source in use."""
    done = doctor(NO_DRIVER, "--json", "--source", "auto")
    answer = json.loads(done.stdout)
    found = sensors(done)
    assert answer["source"] in {"rapl", "model"}
    assert found["nvml"]["status"] == "MISSING"
    assert "NVIDIA driver" in found["nvml"]["fix"]
    used = answer["sensors"][0]
    assert used["status"] == ("MEASURED" if answer["source"] == "rapl" else "MODELLED")
    assert answer["ok"] == (answer["source"] == "rapl")
    assert done.returncode == (0 if answer["ok"] else 1)


def test_a_model_is_no_measurement():
    """A host that is only modelled is MODELLED, says so in its verdict, and exits 1: nothing measures it."""
    done = doctor(NO_DRIVER, "--source", "model")
    assert done.returncode == 1
    assert done.stdout.startswith("MODELLED ")
    assert done.stdout.splitlines()[-1].endswith("every figure would be a model's.")


def test_a_simulated_gpu_is_never_called_measured():
    """The twin works as asked, exit 0, and every one of its devices is SIMULATED."""
    done = doctor(NO_DRIVER, "--json", "--source", "twin")
    assert done.returncode == 0
    assert {sensor["status"] for sensor in sensors(done).values()} == {"SIMULATED"}
    assert {sensor["method"] for sensor in sensors(done).values()} == {"simulated"}


def test_a_recording_that_is_not_there_is_missing(tmp_path: Path):
    """--source replay:FILE of a missing file: MISSING with the file's name, exit 1."""
    done = doctor(NO_DRIVER, "--json", "--source", f"replay:{tmp_path / 'none.csv'}")
    assert done.returncode == 1
    (sensor,) = sensors(done).values()
    assert sensor["status"] == "MISSING"
    assert "none.csv" in sensor["why"]


def test_a_hint_is_shown_on_a_terminal_and_wiped():
    """While it looks, a terminal gets one line on stderr that is gone at the end; a pipe gets none."""
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", CALL, "doctor", "--json", "--source", "twin"],
        env=NO_DRIVER,
        stdout=subprocess.PIPE,
        stderr=follower,
        check=False,
        timeout=60,
    )
    os.close(follower)
    shown = os.read(leader, 4096).decode()
    os.close(leader)
    assert json.loads(done.stdout)["ok"] is True
    hint, blank, rest = shown.split("\r")
    assert hint.startswith("looking at the sensors")
    assert (blank.strip(), len(blank), rest) == ("", len(hint), "")

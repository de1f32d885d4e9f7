"""Run the meter on recorded data: as the command a user types, or the same command inside this process (fast)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENTRY_POINT = "import sys; from joulegate.cli.app import main; sys.exit(main())"


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def run_command(*arguments: str, cwd: Path | None = None, timeout_s: float = 120) -> Finished:
    """Run ``joulegate`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "agent"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", ENTRY_POINT, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_in_process(*arguments: str) -> Finished:
    """Run ``joulegate`` in this process: same code, same text, no start-up."""
    from joulegate.cli.app import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    out.seek(0)
    err.seek(0)
    return Finished(code, out.read(), err.read())


def attribute(readings_csv: str, spans_csv: str, *options: str, own_process: bool = False) -> dict[str, Any]:
    """Run ``joulegate attribute`` on the two texts and return its JSON; any failure fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        readings, spans = Path(folder, "readings.csv"), Path(folder, "spans.csv")
        readings.write_text(readings_csv)
        spans.write_text(spans_csv)
        run = run_command if own_process else run_in_process
        done = run("attribute", "--readings", str(readings), "--spans", str(spans), "--json", *options)
    assert done.code == 0, f"exit {done.code}: {done.stderr}"
    result = json.loads(done.stdout, parse_constant=_no_constant)
    assert isinstance(result, dict)
    return result


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON, and no figure is {name}")


def requests_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The requests of a result by id."""
    return {request["request_id"]: request for request in result["requests"]}


def check_laws(result: dict[str, Any]) -> None:
    """Law 1 exactly, per device and epoch, the books of requests against those of devices, and missing against zero."""
    booked = dict.fromkeys(result["devices"], 0)
    for request in result["requests"]:
        energy_mj = request["energy_mj"]
        if energy_mj is None:
            assert request["quality"] == "missing", request
            assert all(value is None for value in request["devices"].values()), request
            continue
        assert request["quality"] != "missing", request
        assert isinstance(energy_mj, int), request
        assert energy_mj >= 0, request
        seen = {device: value for device, value in request["devices"].items() if value is not None}
        assert seen, request
        assert all(isinstance(value, int) and value >= 0 for value in seen.values()), request
        assert sum(seen.values()) == energy_mj, request
        for device, value in seen.items():
            booked[device] += value
    for name, device in result["devices"].items():
        assert booked[name] == device["requests_mj"], (name, booked[name], device)
        _check_account(device)
        assert device["estimated_mj"] >= 0
        for epoch in device["epochs"]:
            _check_account(epoch)
            assert epoch["start_s"] <= epoch["end_s"]
        for key in ("counter_delta_mj", "requests_mj", "idle_mj", "unattributed_mj"):
            assert sum(epoch[key] for epoch in device["epochs"]) == device[key], (name, key)


def _check_account(account: dict[str, Any]) -> None:
    parts = [account[key] for key in ("requests_mj", "idle_mj", "unattributed_mj")]
    assert all(isinstance(part, int) and part >= 0 for part in (*parts, account["counter_delta_mj"])), account
    assert sum(parts) == account["counter_delta_mj"], account

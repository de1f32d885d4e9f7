"""``joulegate demo`` as a newcomer runs it: real images, real daemon, figures that close."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from joulegate.cli.demo import plan_jobs


def test_a_plan_is_the_same_again() -> None:
    """The same seed gives the same requests, another seed gives others."""
    assert plan_jobs(12, 3) == plan_jobs(12, 3)
    assert plan_jobs(12, 3) != plan_jobs(12, 4)


@pytest.mark.server
def test_every_image_has_its_joules(tmp_path: Path, require_module) -> None:
    """Each request comes back final with joules, an uncertainty and a source, and the accounts close to 0 mJ."""
    require_module("diffusers", "diffusers")
    done = subprocess.run(
        [sys.executable, "-m", "joulegate", "demo", "--requests", "5", "--json", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["requests"]) == 5
    for request in result["requests"]:
        assert request["status"] == "final"
        assert request["energy_j"] > 0
        assert request["uncertainty_j"]["measurement"] > 0
        assert request["quality"] in ("measured", "apportioned", "modelled", "default")
        assert request["method"] in ("counter", "instant", "average", "rapl", "model")
        assert sum(use["energy_mj"] for use in request["devices"].values()) == request["energy_mj"]
    totals = result["energy"]
    assert totals["device_mj"] == totals["requests_mj"] + totals["idle_mj"] + totals["unattributed_mj"]
    assert totals["requests_mj"] >= sum(request["energy_mj"] for request in result["requests"])
    assert Path(result["contact_sheet"]).read_bytes().startswith(b"\x89PNG")


def test_missing_diffusers_is_one_line(tmp_path: Path) -> None:
    """Where diffusers is not installed the demo says what to install, and makes nothing."""
    hidden = tmp_path / "hidden" / "diffusers"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'diffusers'\", name='diffusers')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "joulegate", "demo", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden.parent), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "joulegate[diffusers]" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "state").exists()

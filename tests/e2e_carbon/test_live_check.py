"""``joulegate doctor --live``: the real client asks the configured provider, here a simulator that says so."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.e2e.service import run_command
from tests.grid.simulators import ElectricityMapsSimulator, hourly


def test_live_check_names_each_answer(tmp_path: Path) -> None:
    """Each kind of answer of the provider is one line, and a simulator is named as one."""
    now_s = time.time()
    hour_s = now_s - now_s % 3600
    with ElectricityMapsSimulator(now_s, {"DE": hourly(hour_s - 24 * 3600, [200.0] * 49)}) as simulator:
        file = tmp_path / "joulegate.toml"
        file.write_text(f'[grid]\nprovider = "electricity-maps"\nzone = "DE"\nbase_url = "{simulator.base_url}"\n')
        done = run_command(
            "doctor", "--source", "twin", "--live", "--json", "--config", str(file), JOULEGATE_GRID__TOKEN="right-token"
        )
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)["grid"]
    assert len(lines) == 3
    assert any("latest: ok" in line and "simulat" in line for line in lines), lines


def test_live_check_without_a_provider(tmp_path: Path) -> None:
    """Without a provider it says what to set and asks nobody."""
    done = run_command("doctor", "--source", "twin", "--live", "--json")
    assert "grid.provider" in json.loads(done.stdout)["grid"][0]

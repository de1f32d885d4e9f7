"""docs/throttle.md is true: its configuration loads, its line is an observation, and its commands run as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.advise.recordings import CALL, ROOT, environment
from tests.e2e.service import Service

from joulegate.config import load_settings

PAGE = (ROOT / "docs" / "throttle.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    """Blocks of the page in this language."""
    return [text for language, text in BLOCKS if language == kind]


def in_shell(script: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run lines of the page with ``joulegate`` on the path, and stop at the first that fails."""
    program = folder / "bin" / "joulegate"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(CALL)} "$@"\n')
    program.chmod(0o755)
    env = environment() | more
    env["PATH"] = f"{program.parent}{os.pathsep}{env['PATH']}"
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_every_block_is_looked_at():
    """There is no block in a language that no test runs."""
    assert {kind for kind, _ in BLOCKS} == {"sh", "toml", "json"}
    assert [len(blocks(kind)) for kind in ("sh", "toml", "json")] == [3, 1, 1]


def test_the_commands_in_virtual_time(tmp_path: Path):
    """The configuration, the observation and the commands of ``advise`` work together."""
    (tmp_path / "advise.toml").write_text(blocks("toml")[0])
    (tmp_path / "observations.jsonl").write_text(blocks("json")[0])
    tiers = load_settings(tmp_path / "advise.toml", environ={}).throttle.tiers
    assert [tier.name for tier in tiers] == ["pro", "free"]
    done = in_shell(blocks("sh")[1], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads((tmp_path / "recommendations.jsonl").read_text())
    assert answer["t"] == 12.0
    assert "BAD_INPUT" not in {reason["code"] for reason in answer["reasons"]}
    assert "1 of 1 decisions are the same bit for bit" in done.stdout


@pytest.mark.server
@pytest.mark.xdist_group("daemon_throttle")
def test_the_questions_to_a_daemon(tmp_path: Path, require_program: Callable[[str, str], str]):
    """Every question is answered as the page says, and what was downloaded verifies."""
    require_program("curl", "curl")
    config = tmp_path / "joulegate.toml"
    config.write_text(blocks("toml")[0])
    with Service(tmp_path / "state", "--source", "twin", "--config", str(config)) as service:
        service.ready().until("/v1/throttle", lambda body: "state" in body)
        first, _, last = (block.replace("http://127.0.0.1:9288", service.url) for block in blocks("sh"))
        asked = in_shell(first.replace("curl -s", "curl -sS --fail-with-body"), tmp_path)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        assert "\n200\n" in asked.stdout.replace("}200", "}\n200")
        done = in_shell(last, tmp_path, JOULEGATE_STATE_DIR=str(service.state_dir))
        assert done.returncode == 0, done.stdout + done.stderr
        assert service.stop() == 0


def test_every_member_is_explained():
    """Each member of a recommendation is named on the page."""
    from joulegate.throttle.adviser import Adviser
    from joulegate.throttle.settings import ThrottleSettings

    members = set(Adviser(ThrottleSettings()).advise(None).wire())
    silent = {"schema", "decision_id", "t", "poll_after_s"}
    missing = {member for member in members - silent if f"`{member}`" not in PAGE}
    assert not missing

"""The tool that makes the shipped processor table."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "build_cpu_table.py"


@pytest.fixture
def tool() -> ModuleType:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("build_cpu_table", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_cpu_table"] = module
    spec.loader.exec_module(module)
    return module


def test_rows_without_a_usable_power_are_left_out_and_named(tool: ModuleType) -> None:
    """Garbage, zero and contradicting powers are listed, not guessed."""
    table = tool.read("Name,TDP\nB  1,65\nA,27.29.5\nC,0.0\nD,nan\nB 1,70\nE,95.0\n")
    assert table.rows == (("B 1", 65.0), ("E", 95.0))
    assert table.unusable == ("A (27.29.5)", "C (0.0)", "D (nan)", "B 1 (70)")


def test_the_file_carries_its_provenance(tool: ModuleType, tmp_path: Path) -> None:
    """Source, version, licence, citation, date and the source's hash stand above the rows."""
    raw = b"Name,TDP\nE,95.0\n"
    text = tool.render(tool.read(raw.decode()), raw, "2026-01-02")
    assert hashlib.sha256(raw).hexdigest() in text
    assert text.endswith("name,tdp_w\nE,95\n")
    assert "# retrieved: 2026-01-02\n" in text
    tool.write(tmp_path / "data" / "cpu_power.csv", text)
    assert (tmp_path / "data" / "cpu_power.csv").read_text() == text
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cpu_power.csv"]


def test_the_shipped_file_was_made_by_this_tool(tool: ModuleType) -> None:
    """Version and licence in the shipped file are the tool's, and the licence text lies beside it."""
    text = tool.TARGET.read_text(encoding="utf-8")
    assert f"codecarbon {tool.VERSION}" in text
    assert f"# citation: {tool.CITATION}" in text
    assert tool.TARGET.with_suffix(".LICENSE").read_text(encoding="utf-8").startswith("MIT License")

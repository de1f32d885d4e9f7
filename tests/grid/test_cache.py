"""The cache on disk: what it keeps, and that nothing in its folder can harm or mislead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.grid.conftest import NOW_S

from joulegate.sources.grid.cache import DiskCache
from joulegate.sources.grid.intensity import FactorType, Intensity, Label, Place, Signal

DE = Place("DE", "DEU")
POINT = Intensity(
    g_per_kwh=312.5,
    place="DE",
    source="em",
    label=Label.LIVE,
    start_s=NOW_S - 1200.0,
    end_s=NOW_S + 2400.0,
    signal=Signal.AVERAGE,
    emission_factor_type=FactorType.LIFECYCLE,
    is_estimated=True,
    updated_s=NOW_S - 60.0,
    fetched_s=NOW_S,
    why="estimated",
    simulated=True,
)


def test_what_is_stored_is_restored_as_cached(tmp_path: Path):
    """Every field comes back, with the label of where it comes from now."""
    DiskCache(tmp_path / "cache").store("em", DE, "newest", [POINT])
    assert DiskCache(tmp_path / "cache").load("em", DE, "newest", NOW_S) == (replace(POINT, label=Label.CACHED),)


def test_another_question_has_no_answer(tmp_path: Path):
    """Another source, zone or kind of answer never gets this one's points."""
    cache = DiskCache(tmp_path)
    cache.store("em", DE, "newest", [POINT])
    for source, place, kind in (
        ("em at 127.0.0.1", DE, "newest"),
        ("em", Place("FR"), "newest"),
        ("em", DE, "history"),
    ):
        assert cache.load(source, place, kind, NOW_S) == ()
    assert not cache.faults


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("312.5", "-312.5"),
        lambda text: text.replace("312.5", "NaN"),
        lambda text: text.replace("312.5", '"312.5"'),
        lambda text: text.replace('"zone": "DE"', '"zone": "FR"'),
        lambda text: text.replace('"signal": "average"', '"signal": "mean"'),
        lambda text: text.replace(str(NOW_S), str(NOW_S + 1e6)),
        lambda text: json.dumps([text]),
        lambda text: "[" * 100_000,
        lambda text: " " * (1024 * 1024 + 1) + text,
        lambda text: text.replace('"points": [{', '"points": [[], {'),
    ],
)
def test_spoiled_files_are_counted_and_not_used(spoil: object, tmp_path: Path):
    """A file that is cut, changed, from the future or of another place is as good as none; the next answer mends it."""
    cache = DiskCache(tmp_path)
    cache.store("em", DE, "newest", [POINT])
    (file,) = tmp_path.iterdir()
    file.write_text(spoil(file.read_text()))  # type: ignore[operator]
    assert cache.load("em", DE, "newest", NOW_S) == ()
    assert cache.faults == {"cache_corrupt": 1}
    cache.store("em", DE, "newest", [POINT])
    assert cache.load("em", DE, "newest", NOW_S)


def test_a_folder_that_cannot_be_used_is_counted(tmp_path: Path):
    """Where the folder is a file, nothing is kept and nobody is stopped."""
    (tmp_path / "cache").write_text("")
    cache = DiskCache(tmp_path / "cache")
    cache.store("em", DE, "newest", [POINT])
    assert cache.load("em", DE, "newest", NOW_S) == ()
    assert cache.faults["cache_unwritable"] == 1
    assert cache.faults["cache_unreadable"] == 1


def test_the_folder_is_bounded(tmp_path: Path):
    """Old files make room, files of others stay, nothing temporary is left, and too much is not kept at all."""
    (tmp_path / "ledger.db").write_text("not ours")
    cache = DiskCache(tmp_path, max_files=4)
    for number in range(10):
        cache.store("em", Place(f"Z{number}"), "newest", [replace(POINT, place=f"Z{number}")])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len([name for name in names if name.startswith("grid-")]) == 4
    assert "ledger.db" in names
    assert not [name for name in names if name.endswith(".tmp")]
    assert cache.load("em", Place("Z9"), "newest", NOW_S)
    cache.store("em", DE, "history", [POINT] * 20_000)
    assert cache.faults["cache_too_large"] == 1

"""Answers on disk, with the time they were fetched: what is left when the network is gone, also after a restart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from joulegate.sources.grid.intensity import FactorType, Intensity, Label, Place, Signal, believable

_SCHEMA = 1
_MAX_FILE_BYTES = 1024 * 1024
_MAX_FILES = 48
_CLOCK_SLACK_S = 300.0


class DiskCache:
    """A folder of small JSON files, one for each source, place and kind of answer.

    It never raises: what cannot be read or written is counted in ``faults`` and is as good as not there. A file is
    replaced in one step. Names are hashes of source, place and kind; no token has a part in name or content.
    """

    def __init__(self, folder: Path, *, max_files: int = _MAX_FILES) -> None:
        self._folder = folder
        self._max_files = max_files
        self.faults: Counter[str] = Counter()

    def load(self, source: str, place: Place, kind: str, now_s: float) -> tuple[Intensity, ...]:
        """The points kept for this question, or none."""
        path = self._path(source, place, kind)
        try:
            with path.open("rb") as file:
                message = json.loads(file.read(_MAX_FILE_BYTES))
            points = tuple(_point(item) for item in _checked(message, source, place, kind, now_s))
        except FileNotFoundError:
            return ()
        except OSError:
            self.faults["cache_unreadable"] += 1
            return ()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.faults["cache_corrupt"] += 1
            return ()
        return points

    def store(self, source: str, place: Place, kind: str, points: Sequence[Intensity]) -> None:
        """Keep ``points``; old files make room."""
        message = {**_question(source, place, kind), "points": [asdict(point) for point in points]}
        text = json.dumps(message, allow_nan=False)
        if len(text) > _MAX_FILE_BYTES:
            self.faults["cache_too_large"] += 1
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._replace(self._path(source, place, kind), text)
            self._prune()
        except OSError:
            self.faults["cache_unwritable"] += 1

    def _replace(self, path: Path, text: str) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".grid-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def _prune(self) -> None:
        files = [path for path in self._folder.iterdir() if path.name.startswith(("grid-", ".grid-"))]
        excess = len(files) - self._max_files
        if excess > 0:
            for path in sorted(files, key=lambda path: path.stat().st_mtime)[:excess]:
                path.unlink(missing_ok=True)

    def _path(self, source: str, place: Place, kind: str) -> Path:
        key = json.dumps(_question(source, place, kind), sort_keys=True)
        return self._folder / f"grid-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _question(source: str, place: Place, kind: str) -> dict[str, Any]:
    return {"schema": _SCHEMA, "source": source, "zone": place.zone, "kind": kind}


def _checked(message: Any, source: str, place: Place, kind: str, now_s: float) -> list[Any]:
    """The points of ``message``; raises ``ValueError`` where it answers another question or comes from the future."""
    question = _question(source, place, kind)
    points = message["points"]
    if {name: message[name] for name in question} != question or not isinstance(points, list):
        raise ValueError("not an answer to this question")
    if any(item["source"] != source or item["fetched_s"] > now_s + _CLOCK_SLACK_S for item in points):
        raise ValueError("of another source, or fetched in the future")
    return points


def _point(item: Mapping[str, Any]) -> Intensity:
    value = item["g_per_kwh"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not believable(value):
        raise ValueError("no grid has this intensity")
    moments = {name: item[name] for name in ("start_s", "end_s", "fetched_s")}
    if any(isinstance(moment, bool) or not isinstance(moment, int | float) for moment in moments.values()):
        raise ValueError("a point has no times")
    updated_s = item["updated_s"]
    return Intensity(
        g_per_kwh=float(value),
        place=str(item["place"]),
        source=str(item["source"]),
        label=Label.CACHED,
        signal=None if item["signal"] is None else Signal(item["signal"]),
        emission_factor_type=None if item["emission_factor_type"] is None else FactorType(item["emission_factor_type"]),
        is_estimated=None if item["is_estimated"] is None else bool(item["is_estimated"]),
        updated_s=None if updated_s is None else float(updated_s),
        why=str(item["why"]),
        simulated=bool(item["simulated"]),
        **{name: float(moment) for name, moment in moments.items()},
    )

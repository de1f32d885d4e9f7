"""What ``--verify`` is given: a folder of segments, one segment, or what was downloaded from the endpoint."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from joulegate.stores.trail import FOLDER
from joulegate.stores.trail_files import LINE_BYTES, bounded_lines, open_either, read_fault, segments_of, unpacked

WHOLE_BYTES = 256 * 1024 * 1024
"""The most of a file that is not JSON Lines and has to be read whole."""


@dataclass(frozen=True, slots=True)
class Given:
    """One record with where it stands, or ``why`` there is none; ``torn`` is a half written end."""

    where: str
    record: object = None
    why: str | None = None
    torn: bool = False


def given_in(path: Path) -> Iterator[Given]:
    """Everything in a file, or in a folder's segments in their order; raises ``TrailFault``.

    A state folder stands for the folder of its trail. Packed files are unpacked.
    """
    if not path.is_dir():
        yield from _given_in_file(path)
        return
    inner = path / FOLDER
    for segment in segments_of(inner if inner.is_dir() else path):
        yield from _given_in_file(segment.path)


def _given_in_file(path: Path) -> Iterator[Given]:
    try:
        with open_either(path) as file:
            yield from _given(file, path.name)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise read_fault(path, error) from error


def given_on(stream: BufferedReader) -> Iterator[Given]:
    """Everything on standard input; raises ``TrailFault``."""
    try:
        with unpacked(stream) as file:
            yield from _given(file, "-")  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise read_fault(Path("standard input"), error) from error


def _given(file: BufferedReader, name: str) -> Iterator[Given]:
    """JSON Lines of records or pages; or one page or list over many lines."""
    for number, line in enumerate(bounded_lines(file), start=1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            yield from _records(json.loads(line), where)
        except (ValueError, RecursionError):
            if number == 1 and line.strip() in {b"{", b"["}:
                yield from _whole(line + file.read(WHOLE_BYTES), name)
                return
            torn = not line.endswith(b"\n") and len(line) < LINE_BYTES
            yield Given(where, why="it is not JSON", torn=torn)


def _whole(content: bytes, name: str) -> Iterator[Given]:
    try:
        yield from _records(json.loads(content), name)
    except (ValueError, RecursionError):
        yield Given(name, why="it is neither JSON Lines nor JSON")


def _records(value: object, where: str) -> Iterator[Given]:
    """A record, or what a page or list of them holds."""
    items = value.get("items") if isinstance(value, dict) and "kind" not in value else value
    if not isinstance(items, list):
        yield Given(where, value)
        return
    for index, item in enumerate(items):
        yield Given(f"{where} item {index}", item)

"""Segments of the audit trail on disk: their names, their order, their lines, and what is mended when one is opened."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

PLAIN, PACKED, UNFINISHED = ".jsonl", ".jsonl.gz", ".part"
KINDS = ("base", "decision")
LINE_BYTES = 64 * 1024 * 1024
"""No record is longer; what is longer is not read into memory."""

_NAME = re.compile(r"decisions-(\d{12,18})\.jsonl(\.gz)?")
_BEGINS = re.compile(rb'\{"sequence":(\d{1,18}),')
_GZIP = b"\x1f\x8b"
_PACK_LEVEL = 6


class TrailFault(Exception):
    """The audit trail cannot be read or written now; the text is one line: what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the trail; ``first`` is the sequence of its first record."""

    path: Path
    first: int

    @property
    def packed(self) -> bool:
        """Whether it is finished and compressed."""
        return self.path.name.endswith(".gz")


def segment_path(folder: Path, first: int) -> Path:
    """Where the segment that begins with this sequence is written."""
    return folder / f"decisions-{first:012d}{PLAIN}"


def segments_of(folder: Path) -> list[Segment]:
    """Segments, oldest first; none where there is no folder. Raises ``TrailFault``."""
    found: dict[int, Segment] = {}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise read_fault(folder, error) from error
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            # A packed one sorts after its plain original and is whole: it was renamed when it was.
            found[int(match[1])] = Segment(folder / name, int(match[1]))
    return [found[first] for first in sorted(found)]


def lines_of(segment: Segment) -> Iterator[bytes]:
    """Lines without their newlines; a last one that has none is left out. Raises ``TrailFault``.

    A plain segment that was packed meanwhile is read where it is now; one that was dropped has no lines.
    """
    paths = [segment.path] if segment.packed else [segment.path, segment.path.with_name(segment.path.name + ".gz")]
    for path in paths:
        try:
            with open_either(path) as file:
                for line in bounded_lines(file):
                    if line.endswith(b"\n"):
                        yield line[:-1]
            return
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error) as error:
            raise read_fault(path, error) from error


@contextmanager
def open_either(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file or pipe, unpacked where it is packed."""
    with path.open("rb") as file, unpacked(file) as plain:
        yield plain


@contextmanager
def unpacked(file: BufferedReader) -> Iterator[BinaryIO]:
    """The bytes behind an open file, unpacked where it is packed."""
    if file.peek(2)[:2] != _GZIP:
        yield file
        return
    with gzip.GzipFile(fileobj=file) as plain:
        yield cast("BinaryIO", plain)


def bounded_lines(file: BinaryIO, most_bytes: int = LINE_BYTES) -> Iterator[bytes]:
    """Lines of at most ``most_bytes``; a longer one comes in pieces, of which only the last ends with a newline."""
    while line := file.readline(most_bytes):
        yield line


def sequence_of(line: bytes) -> int | None:
    """The sequence that a line of ours begins with, without parsing the rest."""
    match = _BEGINS.match(line)
    return None if match is None else int(match[1])


def record_of(line: bytes) -> Mapping[str, Any] | None:
    """The record on a line, or ``None`` for what is none; whether its hash holds is not looked at."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("kind") not in KINDS or not isinstance(record.get("hash"), str):
        return None
    return record if type(record.get("sequence")) is int else None


@dataclass(frozen=True, slots=True)
class Mended:
    """What ``mend`` found: the records of the last segment, and the bytes that it cut off behind them."""

    records: tuple[Mapping[str, Any], ...]
    cut_bytes: int


def mend(segment: Segment) -> Mended:
    """Cut off what a kill or a power cut left half written at the end of a plain segment; raises ``OSError``.

    Only what is no record is cut, and only at the end. Other damage stays, for ``--verify`` to name.
    """
    content = segment.path.read_bytes()
    end = len(content)
    while end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        if content[end - 1 : end] == b"\n" and record_of(content[begin : end - 1]) is not None:
            break
        end = begin
    if end < len(content):
        os.truncate(segment.path, end)
    records = (record_of(line) for line in content[:end].split(b"\n"))
    return Mended(tuple(record for record in records if record is not None), len(content) - end)


def pack(segment: Segment) -> Segment:
    """Compress a finished segment and put it in the place of the plain one, in one step; raises ``OSError``."""
    target = segment.path.with_name(segment.path.name + ".gz")
    unfinished = target.with_name(target.name + UNFINISHED)
    try:
        with segment.path.open("rb") as plain, unfinished.open("wb") as file:
            with gzip.GzipFile("", "wb", _PACK_LEVEL, file, mtime=0) as packed:
                while piece := plain.read(1 << 16):
                    packed.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    segment.path.unlink(missing_ok=True)
    return Segment(target, segment.first)


def tidy(folder: Path) -> None:
    """Remove what a kill left: half a compressed segment, and a plain one whose compressed one is whole."""
    for path in folder.glob(f"decisions-*{UNFINISHED}"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"decisions-*{PLAIN}"):
        if path.with_name(path.name + ".gz").exists():
            path.unlink(missing_ok=True)


def read_fault(path: Path, error: Exception) -> TrailFault:
    """The fault that says that ``path`` cannot be read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    return TrailFault(f"{path}: the audit trail cannot be read ({reason}); check its owner, mode and disk")

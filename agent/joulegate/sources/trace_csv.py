"""The strict CSV reader of recorded readings and request logs (the contract of ``joulegate attribute``).

A file is right as a whole or it is refused at its first fault, with file, line (the header is line 1) and column. An
empty cell of an optional column is a missing value and never 0. Columns come in any order, unknown ones are ignored.
Numbers are decimal text as ``float`` reads it, without underscores; whole numbers may be written ``12.0`` or ``1e6``.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from joulegate.sources.fault import SourceFault

MAX_COUNT = 2**63
"""Largest whole number that is read, far above any counter: 2**63 mJ is 292 years at 1 MW."""

_MAX_DIGITS = len(str(MAX_COUNT))
_SHOWN_CHARACTERS = 40


class TraceFault(SourceFault):
    """A recorded file that cannot be used; reads ``spans.csv:17: end_s: 3.2 is before start_s 4.0``.

    ``line`` is ``None`` where the file cannot be read at all, ``column`` where the fault is not in one column.
    """

    def __init__(self, file: str, line: int | None, column: str | None, problem: str) -> None:
        """Compose the line from its parts."""
        where = file if line is None else f"{file}:{line}"
        super().__init__(": ".join(part for part in (where, column, problem) if part))
        self.file = file
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class DeviceTrace:
    """One device's readings as columns of equal length, ``t_s`` strictly rising; ``None`` is a missing value.

    A column that the file does not have is ``None`` as a whole. ``extras`` holds the extra columns that were asked for
    and are there; ``lines`` gives the file's line of each reading.
    """

    device: str
    lines: Sequence[int]
    t_s: Sequence[float]
    energy_mj: Sequence[int | None] | None
    power_w: Sequence[float | None] | None
    extras: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Trace:
    """A readings file: its devices in the order of their first row."""

    file: str
    devices: Mapping[str, DeviceTrace]


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One row of a spans file. ``start_s`` is ``None`` only where slots were passed: then the start is to be inferred.

    Of ``images``, ``steps``, ``width`` and ``height``, ``None`` is "not given" (counts as 1); 0 is kept as 0.
    """

    line: int
    request_id: str
    devices: tuple[str, ...]
    start_s: float | None
    end_s: float
    power_class: str = ""
    images: int | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    batch_id: str | None = None
    arrived_s: float | None = None


class _BadCell(Exception):
    """What is wrong with a cell; the caller knows file, line and column."""


def read_trace(path: Path | str, extras: Collection[str] = ()) -> Trace:
    """Read ``device,t_s`` with ``energy_mj`` or ``power_w`` or both, and what it has of ``extras``.

    ``extras`` are names of ``EXTRA_COLUMNS``. Raises ``TraceFault``. Reads 10^6 rows in about two seconds.
    """
    file = str(path)
    rows = _Rows(file)
    header = rows.header(("device", "t_s"))
    if "energy_mj" not in header and "power_w" not in header:
        raise TraceFault(file, 1, "energy_mj", "column is missing (energy_mj or power_w is needed)")
    wanted = [name for name in ("energy_mj", "power_w", *extras) if name in header]
    plan = tuple((position, header[name], name, _CELLS[name]) for position, name in enumerate(wanted))
    tables: dict[str, _Table] = {}
    device_index, t_index = header["device"], header["t_s"]
    for line, row in rows:
        device = row[device_index]
        table = tables.get(device)
        if table is None:
            table = tables[device] = _Table(_device_id(file, line, device), [[] for _ in plan])
        table.add_time(file, line, row[t_index])
        for position, index, name, parse in plan:
            cell = row[index]
            try:
                table.values[position].append(parse(cell) if cell else None)
            except _BadCell as bad:
                raise TraceFault(file, line, name, str(bad)) from None
    if not tables:
        raise TraceFault(file, 2, None, "there is no reading after the header")
    return Trace(file, {device: table.frozen(wanted) for device, table in tables.items()})


def read_spans(path: Path | str, devices: Collection[str] | None = None, slots: int | None = None) -> list[SpanRow]:
    """Read ``request_id,devices,start_s,end_s`` and the optional columns, one ``SpanRow`` a row, in the file's order.

    ``devices`` are those that readings know (``None``: any). With ``slots``, ``start_s`` may be empty or absent where
    ``arrived_s`` is given. Raises ``TraceFault``; a file with a header and no rows gives an empty list.
    """
    file = str(path)
    rows = _Rows(file)
    required = ("request_id", "devices", "end_s") if slots else ("request_id", "devices", "start_s", "end_s")
    header = rows.header(required)
    if "start_s" not in header and "arrived_s" not in header:
        raise TraceFault(file, 1, "start_s", "column is missing (start_s or arrived_s is needed)")
    known = None if devices is None else frozenset(devices)
    spans: list[SpanRow] = []
    first_lines: dict[str, int] = {}
    batches: dict[str, SpanRow] = {}
    cells = _Cells(file, header, known)
    for line, row in rows:
        cells.turn_to(line, row)
        span = _span(cells, inferred_start=slots is not None)
        first_line = first_lines.setdefault(span.request_id, line)
        if first_line != line:
            raise TraceFault(file, line, "request_id", f"{_shown(span.request_id)} is already on line {first_line}")
        if span.batch_id is not None:
            _check_batch(file, batches.setdefault(span.batch_id, span), span)
        spans.append(span)
    return spans


class _Rows:
    """The rows of a CSV file with the line on which each starts; what is not CSV becomes a ``TraceFault``."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._names: list[str] = []
        self._lines = self._read()

    def header(self, required: Sequence[str]) -> dict[str, int]:
        """Column name -> index; refuses a missing header, a repeated column and a missing required one."""
        _, cells = next(self._lines, (1, []))
        names = [cell.strip() for cell in cells]
        if not any(names):
            raise TraceFault(self._file, 1, None, f"there is no header (needed: {', '.join(required)})")
        for index, name in enumerate(names):
            if name and name in names[:index]:
                raise TraceFault(self._file, 1, name, "column is there twice")
        for name in required:
            if name not in names:
                raise TraceFault(self._file, 1, name, "column is missing")
        self._names = names
        return {name: index for index, name in enumerate(names) if name}

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        width = len(self._names)
        blank_line = 0
        for line, row in self._lines:
            if len(row) == width and not blank_line:
                yield line, row
            elif not row:
                blank_line = blank_line or line
            elif blank_line:
                raise TraceFault(self._file, blank_line, None, "the line is empty and rows follow it")
            else:
                first_missing = self._names[len(row)] if len(row) < width else None
                raise TraceFault(self._file, line, first_missing, f"{len(row)} cells where the header has {width}")

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        before = 0
        try:
            with Path(self._file).open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, strict=True)
                for row in reader:
                    yield before + 1, row
                    before = reader.line_num
        except OSError as error:
            raise TraceFault(self._file, None, None, f"cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise TraceFault(self._file, _undecodable_line(self._file), None, "is not UTF-8 text") from None
        except csv.Error as error:
            raise TraceFault(self._file, before + 1, None, f"is not CSV: {error}") from None


class _Table:
    """One device's columns while they grow."""

    __slots__ = ("device", "last_t_s", "lines", "t_s", "values")

    def __init__(self, device: str, values: list[list[float | None]]) -> None:
        self.device = device
        self.values = values
        self.lines: list[int] = []
        self.t_s: list[float] = []
        self.last_t_s = -1.0

    def add_time(self, file: str, line: int, cell: str) -> None:
        """Append the time of a row, which must be after the device's last."""
        try:
            t_s = _amount(cell)
        except _BadCell as bad:
            raise TraceFault(file, line, "t_s", str(bad)) from None
        if t_s is None:
            raise TraceFault(file, line, "t_s", "is empty")
        if t_s <= self.last_t_s:
            problem = f"{cell.strip()} is not after {self.t_s[-1]:.15g} of line {self.lines[-1]} (device {self.device})"
            raise TraceFault(file, line, "t_s", problem)
        self.last_t_s = t_s
        self.t_s.append(t_s)
        self.lines.append(line)

    def frozen(self, names: Sequence[str]) -> DeviceTrace:
        """The finished columns."""
        columns: dict[str, list[float | None]] = dict(zip(names, self.values, strict=True))
        energy_mj: list[int | None] | None = columns.pop("energy_mj", None)  # type: ignore[assignment]
        power_w = columns.pop("power_w", None)
        return DeviceTrace(self.device, self.lines, self.t_s, energy_mj, power_w, columns)


class _Cells:
    """The row of a spans file that is being read, by column name."""

    __slots__ = ("_checked", "_file", "_header", "_known", "_row", "line")

    def __init__(self, file: str, header: Mapping[str, int], known: frozenset[str] | None) -> None:
        self.line = 1
        self._file = file
        self._header = header
        self._known = known
        self._row: list[str] = []
        self._checked: dict[str, tuple[str, ...]] = {}

    def turn_to(self, line: int, row: list[str]) -> None:
        """Read this row from now on."""
        self.line = line
        self._row = row

    def text(self, name: str) -> str:
        """The cell as it is, empty where the column is absent."""
        index = self._header.get(name)
        return "" if index is None else self._row[index]

    def amount(self, name: str) -> float | None:
        """A finite number from 0 on, or ``None`` where the cell is empty or the column absent."""
        cell = self.text(name)
        try:
            return _amount(cell) if cell else None
        except _BadCell as bad:
            raise self.fault(name, str(bad)) from None

    def count(self, name: str) -> int | None:
        """A whole number from 0 on, or ``None``."""
        cell = self.text(name)
        try:
            return _count(cell) if cell else None
        except _BadCell as bad:
            raise self.fault(name, str(bad)) from None

    def devices(self) -> tuple[str, ...]:
        """The devices of the row, each known and named once."""
        cell = self.text("devices")
        devices = self._checked.get(cell)
        if devices is None:
            devices = self._checked[cell] = self._split(cell)
        return devices

    def fault(self, name: str, problem: str) -> TraceFault:
        """A fault of this row."""
        return TraceFault(self._file, self.line, name, problem)

    def _split(self, cell: str) -> tuple[str, ...]:
        devices = tuple(cell.split("|"))
        for index, device in enumerate(devices):
            if not device.strip():
                raise self.fault("devices", "a device is empty" if len(devices) > 1 else "is empty")
            if device in devices[:index]:
                raise self.fault("devices", f"{_shown(device)} is named twice")
            if self._known is not None and device not in self._known:
                raise self.fault("devices", f"{_shown(device)} has no readings")
        return devices


def _span(cells: _Cells, *, inferred_start: bool) -> SpanRow:
    request_id = cells.text("request_id")
    if not request_id.strip():
        raise cells.fault("request_id", "is empty")
    arrived_s, start_s, end_s = cells.amount("arrived_s"), cells.amount("start_s"), cells.amount("end_s")
    if end_s is None:
        raise cells.fault("end_s", "is empty")
    if start_s is None:
        _check_inferable(cells, arrived_s, inferred_start=inferred_start)
    for name, begin_s in (("start_s", start_s), ("arrived_s", arrived_s)):
        if begin_s is not None and end_s < begin_s:
            raise cells.fault("end_s", f"{cells.text('end_s').strip()} is before {name} {cells.text(name).strip()}")
    return SpanRow(
        line=cells.line,
        request_id=request_id,
        devices=cells.devices(),
        start_s=start_s,
        end_s=end_s,
        power_class=sys.intern(cells.text("class")),
        images=cells.count("images"),
        steps=cells.count("steps"),
        width=cells.count("width"),
        height=cells.count("height"),
        batch_id=cells.text("batch_id") or None,
        arrived_s=arrived_s,
    )


def _check_inferable(cells: _Cells, arrived_s: float | None, *, inferred_start: bool) -> None:
    if not inferred_start:
        raise cells.fault("start_s", "is empty (only with arrived_s and --slots can it be inferred)")
    if arrived_s is None:
        raise cells.fault("start_s", "is empty and so is arrived_s: one of them is needed")


def _check_batch(file: str, first: SpanRow, span: SpanRow) -> None:
    """Members of a batch are one use of the devices, so what says where and when must agree."""
    pairs = (
        ("devices", sorted(first.devices), sorted(span.devices)),
        ("start_s", first.start_s, span.start_s),
        ("end_s", first.end_s, span.end_s),
        ("class", first.power_class, span.power_class),
    )
    for column, theirs, ours in pairs:
        if theirs != ours:
            problem = f"differs from line {first.line}, which is of the same batch {_shown(first.batch_id or '')}"
            raise TraceFault(file, span.line, column, problem)


def _device_id(file: str, line: int, cell: str) -> str:
    if not cell.strip():
        raise TraceFault(file, line, "device", "is empty")
    if "|" in cell:
        raise TraceFault(file, line, "device", f"{_shown(cell)} contains |, which separates devices in spans")
    return cell


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= _SHOWN_CHARACTERS else cell[:_SHOWN_CHARACTERS] + "...")


def _finite(cell: str) -> float | None:
    """A finite number; ``None`` where the cell is blank."""
    try:
        value = float(cell)
    except ValueError:
        if not cell.strip():
            return None
        raise _BadCell(f"{_shown(cell)} is not a number") from None
    if "_" in cell or not cell.isascii():
        raise _BadCell(f"{_shown(cell)} is not a number")
    if not math.isfinite(value):
        raise _BadCell(f"{cell.strip()} is not finite")
    return value


def _amount(cell: str) -> float | None:
    """A finite number from 0 on; ``None`` where the cell is blank."""
    value = _finite(cell)
    if value is not None and value < 0:
        raise _BadCell(f"{cell.strip()} is negative")
    return value


def _share(cell: str) -> float | None:
    """A number from 0 to 1; ``None`` where the cell is blank."""
    value = _amount(cell)
    if value is not None and value > 1:
        raise _BadCell(f"{cell.strip()} is over 1 (a share from 0 to 1 is meant)")
    return value


def _count(cell: str) -> int | None:
    """A whole number from 0 to ``MAX_COUNT``, exactly; ``None`` where the cell is blank."""
    if cell.isdecimal() and cell.isascii() and len(cell) <= _MAX_DIGITS:
        value = int(cell)
    elif _amount(cell) is None:
        return None
    else:
        value = _whole(cell)
    if value > MAX_COUNT:
        raise _BadCell(f"{_shown(cell.strip())} is over 2^63")
    return value


def _whole(cell: str) -> int:
    """``12.0`` and ``1e6`` as whole numbers, by decimal arithmetic: a float is not exact above 2^53."""
    try:
        number = Decimal(cell.strip())
    except InvalidOperation:
        raise _BadCell(f"{_shown(cell)} is not a number") from None
    if number > MAX_COUNT:
        return MAX_COUNT + 1
    if number != number.to_integral_value():
        raise _BadCell(f"{cell.strip()} is not a whole number")
    return int(number)


def _undecodable_line(file: str) -> int:
    with Path(file).open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1


_CELLS: Mapping[str, Callable[[str], float | None]] = {
    "energy_mj": _count,
    "power_w": _amount,
    "power_average_w": _amount,
    "temperature_c": _finite,
    "memory_temperature_c": _finite,
    "utilization": _share,
    "memory_used_bytes": _count,
    "power_limit_w": _amount,
    "sm_clock_mhz": _amount,
    "clock_events": _count,
}

EXTRA_COLUMNS = tuple(name for name in _CELLS if name not in {"energy_mj", "power_w"})
"""Columns a replay understands beyond the contract of ``joulegate attribute``; names and units as in ``Reading``."""

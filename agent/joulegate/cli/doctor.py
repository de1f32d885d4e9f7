"""``joulegate doctor``: is each device measured, why (not), and what to do about it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from joulegate.config import Settings
    from joulegate.daemon.choice import Chosen
    from joulegate.metering.reading import Device, Sensor

_WATCHED_S = 2.5
_LEAST_WATCHED_S = 0.3
_POLL_S = 0.05
_NARROWEST, _WIDEST = 50, 100
_INDENT = 11


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was looked at: the sensors of the source in use, those of sources that do not work, and devices by id."""

    used: Sequence[Sensor]
    unusable: Sequence[Sensor]
    source: str | None
    devices: Mapping[str, Device]
    watched_s: float

    @property
    def ok(self) -> bool:
        """Whether something measures, or simulates because it was asked to; a model alone is no measurement."""
        return any(sensor.status.value in ("MEASURED", "SIMULATED") for sensor in self.used)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """Every sensor, those in use first."""
        return (*self.used, *self.unusable)


def command(
    config: Annotated[Path | None, typer.Option("--config", help="Settings in TOML.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="auto, nvml, rapl, model, twin or replay:FILE.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also ask the configured grid provider, over the network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Look at every sensor, watch it for a moment, and say what its figures would be worth. Exit 1: none measures."""
    from joulegate.config import load

    settings = load(config, {"source": source}).settings
    asked = _ask_grid(settings) if live else []
    found = _look(settings)
    if as_json:
        typer.echo(json.dumps(_as_json(found) | ({"grid": asked} if live else {}), indent=2))
    else:
        typer.echo("\n".join([*_page(found, _width()), *asked]))
    return 0 if found.ok else 1


def _ask_grid(settings: Settings) -> list[str]:
    from joulegate.sources.grid.live import check_live

    return check_live(settings.grid)


def _width() -> int:
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((80, 24)).columns))


def _look(settings: Settings) -> _Findings:
    from joulegate.daemon.choice import AUTOMATIC, open_source
    from joulegate.daemon.ports import SourceUnavailable

    with _hint("looking at the sensors for a moment ..."):
        try:
            chosen = open_source(settings)
        except SourceUnavailable:
            names = AUTOMATIC if settings.source == "auto" else (settings.source,)
            return _Findings((), [sensor for name in names for sensor in _unusable(name, settings)], None, {}, 0.0)
        try:
            watched_s = _watch(chosen)
            devices = {device.id: device for device in chosen.source.devices()}
            return _Findings(chosen.source.sensors(), chosen.missing, chosen.source.name, devices, watched_s)
        finally:
            chosen.source.close()


def _unusable(name: str, settings: Settings) -> Sequence[Sensor]:
    """Why a source cannot be used, in its own words: it has them only after it was tried."""
    from joulegate.daemon.choice import make_source
    from joulegate.metering.reading import Sensor, SensorStatus
    from joulegate.sources.fault import SourceFault
    from joulegate.sources.nvml.source import NvmlUnavailable

    source = make_source(name, settings)
    try:
        source.open()
    except (NvmlUnavailable, SourceFault) as fault:
        return source.sensors() or (Sensor(name, SensorStatus.MISSING, None, str(fault)),)
    finally:
        source.close()
    return source.sensors() or (Sensor(name, SensorStatus.MISSING, None, "no device was found"),)


def _watch(chosen: Chosen) -> float:
    """Let the sensors tell their steps and check themselves; returns how long that took, in seconds."""
    import time

    began_s = time.monotonic()
    while True:
        chosen.source.drain(time.monotonic(), time.time())
        watched_s = time.monotonic() - began_s
        if watched_s >= _WATCHED_S or (watched_s >= _LEAST_WATCHED_S and all(map(_told, chosen.source.sensors()))):
            return watched_s
        time.sleep(_POLL_S)


def _told(sensor: Sensor) -> bool:
    """Whether longer watching would tell nothing more: only a counter is checked against something else."""
    return sensor.method is None or sensor.method.value != "counter" or "self_check" in sensor.details


@contextmanager
def _hint(text: str) -> Iterator[None]:
    """Show on a terminal what takes so long, and wipe it away."""
    shown = sys.stderr.isatty()
    if shown:
        sys.stderr.write(f"{text}\r")
        sys.stderr.flush()
    try:
        yield
    finally:
        if shown:
            sys.stderr.write(" " * len(text) + "\r")
            sys.stderr.flush()


def _as_json(found: _Findings) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "source": found.source,
        "watched_s": round(found.watched_s, 3),
        "sensors": [
            {
                "device": sensor.device,
                "name": found.devices[sensor.device].name if sensor.device in found.devices else None,
                "status": sensor.status.value,
                "method": _method(sensor),
                "why": sensor.why,
                "fix": sensor.fix,
                "details": dict(sensor.details),
            }
            for sensor in found.sensors
        ],
    }


def _method(sensor: Sensor) -> str | None:
    """What is missing has no method, even where its source could only have one."""
    return None if sensor.method is None or sensor.status.value == "MISSING" else sensor.method.value


def _page(found: _Findings, width: int) -> Iterator[str]:
    for sensor in found.sensors:
        device = found.devices.get(sensor.device)
        yield f"{sensor.status.value:{_INDENT}}{_title(sensor, device)}"
        yield from _told_of(sensor, device, width)
        yield ""
    yield from textwrap.wrap(_verdict(found), width)


def _title(sensor: Sensor, device: Device | None) -> str:
    if device is None:
        return sensor.device
    return device.name if device.index is None or device.scope == "host" else f"{device.index}: {device.name}"


def _told_of(sensor: Sensor, device: Device | None, width: int) -> Iterator[str]:
    """The lines below a sensor's title: its id, how it is known, the cross-check, errors, and what to do."""
    margin = " " * _INDENT

    def block(label: str, text: str) -> Iterator[str]:
        first = f"{margin}{label:8}"
        yield from textwrap.wrap(
            text, width, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False
        )

    if device is not None and device.id != _title(sensor, device):
        yield from block("id", device.id)
    method = _method(sensor)
    if method is not None:
        yield from block("method", method)
    how, *notes = sensor.why.split("; ")
    yield from block("why" if sensor.status.value == "MISSING" else "how", how)
    check = str(sensor.details.get("self_check", ""))
    for note in notes:
        yield from block("note", note)
    if check and check not in sensor.why:
        yield from block("check", check)
    errors = sensor.details.get("errors")
    if isinstance(errors, Mapping) and errors:
        yield from block("errors", ", ".join(f"{name} x {count}" for name, count in errors.items()))
    if sensor.fix:
        yield from block("do", sensor.fix)


def _verdict(found: _Findings) -> str:
    if found.source is None:
        return "Nothing can be metered here: no source works."
    statuses = [sensor.status.value for sensor in found.used]
    if "MEASURED" in statuses:
        return f"Source {found.source}: {statuses.count('MEASURED')} of {len(statuses)} measured."
    if "SIMULATED" in statuses:
        return f"Source {found.source}: every figure is simulated, no hardware stands behind it."
    if "MODELLED" in statuses:
        return f"Source {found.source}: nothing is measured here, every figure would be a model's."
    return f"Source {found.source}: nothing answers."

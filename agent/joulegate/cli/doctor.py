"""``joulegate doctor``: is each device measured, why (not), and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from joulegate.metering.reading import Sensor

_WATCHED_S = 2.5
_POLL_S = 0.05


def command(
    config: Annotated[Path | None, typer.Option("--config", help="Settings in TOML.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="auto, nvml, rapl, model, twin or replay:FILE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Look at every sensor, watch it for a moment, and say what its figures would be worth. Exit 1: none measures."""
    from joulegate.config import load

    settings = load(config, {"source": source}).settings
    sensors, found = _look(settings)
    ok = any(sensor.status.value in ("MEASURED", "SIMULATED") for sensor in sensors)
    if as_json:
        lines = [_as_json(sensor) for sensor in sensors]
        typer.echo(json.dumps({"ok": ok, "source": found, "sensors": lines}, indent=2))
    else:
        _show(sensors, found)
    return 0 if ok else 1


def _look(settings: Any) -> tuple[Sequence[Sensor], str | None]:
    import time

    from joulegate.daemon.choice import AUTOMATIC, make_source, open_source, sensors_of
    from joulegate.daemon.ports import SourceUnavailable

    try:
        chosen = open_source(settings)
    except SourceUnavailable:
        names = AUTOMATIC if settings.source == "auto" else (settings.source,)
        return [sensor for name in names for sensor in make_source(name, settings).sensors()], None
    try:
        until_s = time.monotonic() + _WATCHED_S
        while time.monotonic() < until_s:
            chosen.source.drain(time.monotonic(), time.time())
            time.sleep(_POLL_S)
        return sensors_of(chosen), chosen.source.name
    finally:
        chosen.source.close()


def _as_json(sensor: Sensor) -> dict[str, Any]:
    return {
        "device": sensor.device,
        "status": sensor.status.value,
        "method": None if sensor.method is None else sensor.method.value,
        "why": sensor.why,
        "fix": sensor.fix,
        "details": dict(sensor.details),
    }


def _show(sensors: Sequence[Sensor], found: str | None) -> None:
    for sensor in sensors:
        method = "" if sensor.method is None else f" by {sensor.method.value}"
        typer.echo(f"{sensor.status.value:9} {sensor.device}{method}: {sensor.why}")
        if sensor.fix:
            typer.echo(f"          do: {sensor.fix}")
    typer.echo("no source can be used here" if found is None else f"source in use: {found}")

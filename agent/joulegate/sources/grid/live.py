"""Asking the configured provider once, for ``joulegate doctor --live`` and for a fault that should stop a start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from joulegate.metering.wire import rfc3339
from joulegate.sources.grid.choice import make_grid_source
from joulegate.sources.grid.fault import MENDABLE, FaultKind, GridFault
from joulegate.sources.grid.http_client import Limits
from joulegate.sources.grid.intensity import Intensity, Place
from joulegate.sources.grid.options import GridOptions
from joulegate.sources.grid.ports import GridSource, WallClock

_HOURS_ASKED_S = 3 * 3600.0
_DAY_S = 86_400.0


def check_live(settings: object, clock: WallClock = time.time, limits: Limits | None = None) -> list[str]:
    """One line for each kind of answer of the provider in ``settings`` (a ``[grid]`` table); ``ok`` or why not.

    Goes through the network with the operator's key, which no test of ours does. Raises ``GridOptionsFault``.
    """
    options = GridOptions.of(settings)
    source = make_grid_source(options, clock, limits)
    if source is None:
        return ["grid: no provider is configured; set grid.provider, grid.zone and the token"]
    place, now_s = Place(options.zone, options.country), clock()
    asked: dict[str, Callable[[], Sequence[Intensity]]] = {
        "latest": lambda: [source.latest(place)],
        "history": lambda: source.history(place, now_s - _HOURS_ASKED_S, now_s),
        "forecast": lambda: source.forecast(place, _DAY_S),
    }
    try:
        return [f"{source.name} {place.zone} {what}: {_outcome(ask)}" for what, ask in asked.items()]
    finally:
        source.close()


def _outcome(ask: Callable[[], Sequence[Intensity]]) -> str:
    begun_s = time.monotonic()
    try:
        points = ask()
    except GridFault as fault:
        word = "not offered" if fault.kind is FaultKind.UNSUPPORTED else "failed"
        return f"{word}: {fault}"
    took_s = time.monotonic() - begun_s
    last = points[-1]
    made_up = ", simulated" if last.simulated else ""
    return (
        f"ok, {len(points)} point(s) of the expected shape, the last {last.g_per_kwh:.0f} g/kWh "
        f"from {rfc3339(last.start_s)}{made_up}, in {took_s:.2f} s"
    )


def start_fault(options: GridOptions, *, clock: WallClock = time.time, wait_s: float = 5.0) -> str | None:
    """The line to stop a start with: a wrong token or an unknown zone. Trouble of the network stops nothing.

    Waits at most ``wait_s``, whatever the resolver does. Raises ``GridOptionsFault`` for what needs no asking.
    """
    source = make_grid_source(replace(options, attempts=1), clock)
    if source is None:
        return None
    found: list[str] = []
    asking = threading.Thread(target=_find, args=(source, options, found), name="joulegate-grid-start", daemon=True)
    asking.start()
    asking.join(wait_s)
    source.close()
    return found[0] if found else None


def _find(source: GridSource, options: GridOptions, found: list[str]) -> None:
    try:
        source.latest(Place(options.zone, options.country))
    except GridFault as fault:
        if fault.kind in MENDABLE:
            found.append(str(fault))

"""``joulegate grid``: how clean the electricity is now, what is expected, and when work that can wait should run.

Exit 0: there is a figure for now, whatever its label. Exit 1: it is missing. Exit 2: the options cannot be used, the
token is refused or the zone is not known to the provider.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulegate.cli.faults import EXIT_CHECKED_BAD, UserFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from joulegate.sources.grid.intensity import Intensity
    from joulegate.sources.grid.options import GridOptions
    from joulegate.sources.grid.ports import StaticSet
    from joulegate.sources.grid.state import GridState
    from joulegate.sources.grid.window import Window

_HOUR_S = 3600.0
_BAR_CELLS = 40
_DURATION = re.compile(r"(?:(?P<h>\d{1,3})h)?(?:(?P<m>\d{1,4})m(?:in)?)?(?:(?P<s>\d{1,6})s)?")


def command(
    config: Annotated[Path | None, typer.Option("--config", help="Settings in TOML.")] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", help="electricity-maps, watttime, gb-carbon-intensity or entsoe.")
    ] = None,
    zone: Annotated[str | None, typer.Option("--zone", help="The place in the provider's words, such as DE.")] = None,
    country: Annotated[
        str | None, typer.Option("--country", help="ISO 3166-1 alpha-3, such as DEU, for the yearly figure.")
    ] = None,
    hours: Annotated[int, typer.Option("--hours", min=1, max=72, help="How far to look ahead.")] = 24,
    duration: Annotated[str, typer.Option("--duration", help="How long the work takes: 1h, 90m, 1h30m.")] = "1h",
    token_file: Annotated[Path | None, typer.Option("--token-file", help="A file that holds the token.")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Another address of the provider.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say how clean the electricity is now and when it will be cleanest. Exit 1: no figure for now is known."""
    from joulegate.config import load
    from joulegate.sources.grid.choice import make_monitor
    from joulegate.sources.grid.options import GridOptions

    # What goes wrong is told with the figure; without a handler it would be told a second time.
    logging.getLogger("joulegate.sources.grid").addHandler(logging.NullHandler())
    duration_s = _seconds(duration, hours)
    settings = load(config).settings
    flags = {
        "provider": provider,
        "zone": zone,
        "country": country,
        "token": _token(token_file),
        "base_url": base_url,
    }
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    options: GridOptions = replace(GridOptions.of(settings.grid, country=settings.site.country), **given)
    monitor = make_monitor(
        options,
        factors=_factors(options, settings.state_dir),
        state_dir=settings.state_dir,
        clock=time.time,
        horizon_s=hours * _HOUR_S,
    )
    try:
        state = monitor.refresh()
    finally:
        monitor.close()
    return _tell(state, time.time(), duration_s=duration_s, within_s=hours * _HOUR_S, as_json=as_json)


def _factors(options: GridOptions, state_dir: Path) -> StaticSet | None:
    from joulegate.sources.grid.static import CountryFactors
    from joulegate.stores.factor_sets import FactorSets

    return None if options.country is None else CountryFactors(FactorSets(state_dir).in_use())


def _seconds(text: str, hours: int) -> float:
    found = _DURATION.fullmatch(text.strip())
    if not text.strip() or found is None:
        raise UserFault(f"option --duration: {text!r} is not a length of time; give one such as 1h, 90m or 1h30m")
    parts = {unit: int(count or 0) for unit, count in found.groupdict().items()}
    duration_s = parts["h"] * _HOUR_S + parts["m"] * 60.0 + parts["s"]
    if not 0.0 < duration_s <= hours * _HOUR_S:
        raise UserFault(f"option --duration: {text} does not fit into the next {hours} h; give less, or more --hours")
    return duration_s


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise UserFault(f"{file}: is not text; give --token-file a file that holds the token") from None
    if not text:
        raise UserFault(f"{file}: is empty; give --token-file a file that holds the token")
    return text


def _tell(state: GridState, now_s: float, *, duration_s: float, within_s: float, as_json: bool) -> int:
    from joulegate.sources.grid.fault import MENDABLE
    from joulegate.sources.grid.intensity import Label
    from joulegate.sources.grid.wire import grid_to_wire

    if state.newest.fault_kind in MENDABLE:
        raise UserFault(state.newest.fault or "")
    now = state.intensity(now_s)
    if as_json:
        message = grid_to_wire(state, now_s, duration_s=duration_s, within_s=within_s)
        typer.echo(json.dumps(message, indent=2, allow_nan=False))
    else:
        _print(state, now, now_s, duration_s, within_s)
    return EXIT_CHECKED_BAD if now.label is Label.MISSING else 0


def _print(state: GridState, now: Intensity, now_s: float, duration_s: float, within_s: float) -> None:
    from rich.console import Console, Group
    from rich.text import Text

    window, why = state.best_window(now_s, duration_s, now_s + within_s)
    outlook = state.outlook(now_s)
    lines: list[Text] = [Text(_now_line(now))]
    if now.why:
        lines.append(Text(f"          {now.why}"))
    age = "" if outlook.age_s is None else f", fetched {_ago(outlook.age_s)}"
    lines.append(Text(f"forecast  {outlook.label.value}{age}" + (f": {outlook.why}" if outlook.why else "")))
    lines += _chart(outlook.points, now_s, now_s + within_s, window)
    lines.append(Text(_best_line(window, why, now_s, forecast=bool(outlook.points))))
    Console(highlight=False, soft_wrap=True).print(Group(*lines))


def _now_line(now: Intensity) -> str:
    if now.g_per_kwh is None:
        return "now       missing"
    kind = [] if now.signal is None else [now.signal.value]
    kind += [] if now.emission_factor_type is None else [now.emission_factor_type.value]
    period = "" if now.start_s is None or now.end_s is None else f" for {_span(now.start_s, now.end_s)}"
    age = "" if now.age_s is None else f", age {_length(now.age_s)}"
    marks = [now.label.value, *(["estimated"] if now.is_estimated else []), *(["simulated"] if now.simulated else [])]
    return (
        f"now       {now.g_per_kwh:.0f} g/kWh in {now.place}{period} ({', '.join(marks)}{age}; "
        f"{', '.join([*kind, now.source])})"
    )


def _best_line(window: Window | None, why: str, now_s: float, *, forecast: bool) -> str:
    if window is None:
        return f"best      not known: {why}" if forecast else "best      not known without a forecast"
    wait_s = window.start_s - now_s
    when = "now" if wait_s < 60.0 else f"{_span(window.start_s, window.end_s)}, in {_length(wait_s)}"
    saving = "" if window.saving_fraction is None else f", {window.saving_fraction:.0%} below starting now"
    return f"best      {_length(window.end_s - window.start_s)} from {when}: {window.g_per_kwh:.0f} g/kWh{saving}"


def _chart(points: tuple[Intensity, ...], from_s: float, to_s: float, window: Window | None) -> Iterator[Text]:
    """One bar an hour; an hour that the forecast lacks says so."""
    from rich.text import Text

    from joulegate.sources.grid.window import Timeline

    if not points:
        return
    line = Timeline(points)
    first_s = from_s // _HOUR_S * _HOUR_S
    starts_s = [first_s + _HOUR_S * hour for hour in range(round((to_s - first_s) / _HOUR_S))]
    means = {start_s: line.mean(max(start_s, from_s), start_s + _HOUR_S)[0] for start_s in starts_s}
    most = max((mean for mean in means.values() if mean is not None), default=0.0)
    for start_s, mean in means.items():
        best = window is not None and window.start_s < start_s + _HOUR_S and window.end_s > start_s
        if mean is None:
            yield Text(f"  {_clock(start_s)}  not known", style="dim")
            continue
        cells = round(_BAR_CELLS * mean / most) if most else 0
        mark = "  <- best" if best else ""
        yield Text(f"  {_clock(start_s)}  {'█' * cells} {mean:.0f}{mark}", style="green" if best else "")


def _local(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s).astimezone()


def _clock(wall_s: float) -> str:
    return _local(wall_s).strftime("%a %H:%M")


def _span(start_s: float, end_s: float) -> str:
    return f"{_clock(start_s)}-{_local(end_s).strftime('%H:%M %z')}"


def _ago(age_s: float) -> str:
    return "just now" if age_s < 60.0 else f"{_length(age_s)} ago"


def _length(length_s: float) -> str:
    minutes = round(length_s / 60.0)
    if length_s < 60.0:
        return f"{length_s:.0f} s"
    hours, rest = divmod(minutes, 60)
    return " ".join([*([f"{hours} h"] if hours else []), *([f"{rest} min"] if rest or not hours else [])])

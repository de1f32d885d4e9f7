"""``joulegate attribute``: the meter on recorded data, the same code as live."""

from __future__ import annotations

import csv
import gc
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulegate.cli.faults import UserFault
from joulegate.cli.output import deliver

if TYPE_CHECKING:
    from joulegate.metering.recorded import Attribution, DeviceFigures, RequestFigures

POLICIES = ("separate", "reserved", "usage", "marginal")
POWER_KINDS = ("instant", "average")
CHUNK = 1000
"""Requests that are turned into JSON together: a million of them never lie in memory as dictionaries."""

CSV_COLUMNS = ("request_id", "energy_mj", "u_measurement_mj", "u_allocation_mj", "method", "quality", "devices")


def command(
    readings: Annotated[Path, typer.Option("--readings", help="CSV: device,t_s,energy_mj and/or power_w.")],
    spans: Annotated[Path, typer.Option("--spans", help="CSV: request_id,devices,start_s,end_s, optional columns.")],
    idle_policy: Annotated[str, typer.Option(help="Who pays for idle time: " + ", ".join(POLICIES) + ".")] = "separate",
    lag_ms: Annotated[str, typer.Option(help="How late the counter is, in ms, or auto to learn it.")] = "auto",
    slots: Annotated[
        int | None, typer.Option(help="Requests the server works on at once; infers starts that are empty.")
    ] = None,
    power_kind: Annotated[str, typer.Option(help="What power_w is: instant or average.")] = "instant",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of to stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, one row a request.")] = False,
) -> None:
    """Give each request of a log its joules, from a log of readings; sums close to the millijoule."""
    from joulegate.metering.policy import IdlePolicy
    from joulegate.metering.reading import Method
    from joulegate.metering.recorded import Options, attribute
    from joulegate.sources.trace_csv import read_spans, read_trace

    _check(idle_policy, power_kind, slots, as_json=as_json, as_csv=as_csv)
    options = Options(IdlePolicy(idle_policy), _lag_s(lag_ms), slots, Method(power_kind))
    with _no_collector():
        trace = read_trace(readings)
        rows = read_spans(spans, devices=trace.devices.keys(), slots=slots)
        result = attribute(trace.devices, rows, options)
        del trace, rows
    for figures in result.devices.values():
        for warning in figures.warnings:
            typer.echo(f"joulegate: {figures.device}: {warning}", err=True)
    if as_csv:
        deliver(_csv(result), output)
    elif as_json or output is not None:
        deliver(json_text(result), output)
    else:
        _show(result)


def _check(idle_policy: str, power_kind: str, slots: int | None, *, as_json: bool, as_csv: bool) -> None:
    if idle_policy not in POLICIES:
        raise UserFault(f"--idle-policy: {idle_policy!r} is not one of {', '.join(POLICIES)}")
    if power_kind not in POWER_KINDS:
        raise UserFault(f"--power-kind: {power_kind!r} is not one of {', '.join(POWER_KINDS)}")
    if slots is not None and slots < 1:
        raise UserFault(f"--slots: {slots} is too few; a server works on at least one request")
    if as_json and as_csv:
        raise UserFault("--json and --csv: choose one")


def _lag_s(lag_ms: str) -> float | None:
    if lag_ms == "auto":
        return None
    try:
        lag = float(lag_ms)
    except ValueError:
        lag = -1.0
    if not 0 <= lag <= 60_000:
        raise UserFault(f"--lag-ms: {lag_ms!r} is neither auto nor a number from 0 to 60000")
    return lag / 1000.0


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without the collector of cycles: millions of records are made here and no cycle, so it would only search."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def json_text(result: Attribution) -> str:
    """The contract of ``attribute --json`` as one line; energies are whole millijoules."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    devices = encode({device: _device(figures) for device, figures in result.devices.items()})
    chunks = [
        encode([_request(request) for request in result.requests[begin : begin + CHUNK]])[1:-1]
        for begin in range(0, len(result.requests), CHUNK)
    ]
    return f'{{"devices":{devices},"requests":[{",".join(chunks)}]}}\n'


def _device(figures: DeviceFigures) -> dict[str, Any]:
    return {
        "counter_delta_mj": figures.counter_delta_mj,
        "requests_mj": figures.requests_mj,
        "idle_mj": figures.idle_mj,
        "unattributed_mj": figures.unattributed_mj,
        "estimated_mj": figures.estimated_mj,
        "lag_ms": round(figures.lag_s * 1000.0, 3),
        "lag_known": figures.lag_known,
        "step_ms": None if figures.step_s is None else round(figures.step_s * 1000.0, 3),
        "idle_w": None if figures.idle_w is None else round(figures.idle_w, 3),
        "dynamic_w": {name: round(watts, 3) for name, watts in figures.dynamic_w.items()},
        "calibrated": figures.calibrated,
        "method": figures.method.value,
        "warnings": list(figures.warnings),
        "epochs": [
            {
                "start_s": epoch.start_s,
                "end_s": epoch.end_s,
                "counter_delta_mj": epoch.counter_delta_mj,
                "requests_mj": epoch.requests_mj,
                "idle_mj": epoch.idle_mj,
                "unattributed_mj": epoch.unattributed_mj,
            }
            for epoch in figures.epochs
        ],
    }


def _request(request: RequestFigures) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "energy_mj": request.energy_mj,
        "u_measurement_mj": request.u_measurement_mj,
        "u_allocation_mj": request.u_allocation_mj,
        "method": None if request.method is None else request.method.value,
        "quality": request.quality.value,
        "devices": dict(request.devices),
        "start_s": request.start_s,
        "start_source": request.start_source.value,
        "queue_s": request.queue_s,
        "flags": list(request.flags),
    }


def _csv(result: Attribution) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for request in result.requests:
        fields = _request(request)
        fields["devices"] = "|".join(f"{device}={mj}" for device, mj in request.devices.items())
        writer.writerow(["" if fields[name] is None else fields[name] for name in CSV_COLUMNS])
    return text.getvalue()


def _show(result: Attribution) -> None:
    """Tables for a person: the requests, and the closing line of law 1 for each device."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from joulegate.units import format_energy

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("request", "energy", "U (k=2)", "method", "quality", "notes"):
        table.add_column(name, justify="right" if name in ("energy", "U (k=2)") else "left")
    for request in result.requests:
        spread = None
        if request.u_measurement_mj is not None and request.u_allocation_mj is not None:
            spread = (request.u_measurement_mj**2 + request.u_allocation_mj**2) ** 0.5
        table.add_row(
            request.request_id,
            format_energy(request.energy_mj),
            format_energy(spread),
            "" if request.method is None else request.method.value,
            request.quality.value,
            ", ".join(request.flags),
        )
    console = Console()
    console.print(table)
    for figures in result.devices.values():
        console.print(closing_line(figures), highlight=False, soft_wrap=True)


def closing_line(figures: DeviceFigures) -> str:
    """Law 1 in one line: requests + idle + unattributed = counter delta, and what is left over (0 mJ)."""
    left = figures.counter_delta_mj - figures.requests_mj - figures.idle_mj - figures.unattributed_mj
    return (
        f"{figures.device}: requests {figures.requests_mj} + idle {figures.idle_mj} + unattributed "
        f"{figures.unattributed_mj} = counter {figures.counter_delta_mj} mJ (left over: {left} mJ; estimated outside "
        f"the law: {figures.estimated_mj} mJ)"
    )

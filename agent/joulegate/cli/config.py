"""``joulegate config``: the settings in force, and whether a file is fit to be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from joulegate.cli import faults
from joulegate.cli.examples import example
from joulegate.config import ConfigFault, load, render

command = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=False)

ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@command.command(epilog=example("joulegate config show > joulegate.toml"))
def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print the settings in force, as TOML that can be used as a file."""
    loaded = load(config)
    _warn(loaded.warnings)
    typer.echo(loaded.settings.model_dump_json(indent=2) if as_json else render(loaded.settings), nl=as_json)


@command.command(epilog=example("joulegate config check --config joulegate.toml"))
def check(config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Say every fault of a file and the environment; exit 1 when there is one."""
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    try:
        warnings = load(config).warnings
    except ConfigFault as fault:
        lines = fault.lines
    if as_json:
        typer.echo(json.dumps({"ok": not lines, "faults": lines, "warnings": warnings}))
        return faults.EXIT_CHECKED_BAD if lines else 0
    if lines:
        raise faults.UserFault(*lines, exit_code=faults.EXIT_CHECKED_BAD)
    _warn(warnings)
    typer.echo(f"{config or 'environment and defaults'}: no fault found")
    return 0


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        typer.echo(f"joulegate: {warning}", err=True)

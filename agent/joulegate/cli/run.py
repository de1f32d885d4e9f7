"""``joulegate run``: the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path | None, typer.Option("--config", help="Settings in TOML.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on (9288); 0 takes a free one.")] = None,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Folder of the ledger and the socket.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="auto, nvml, rapl, model, twin or replay:FILE.")
    ] = None,
) -> None:
    """Meter this host until it is stopped: readings and spans in; ledger, HTTP and metrics out."""
    from joulegate.config import load
    from joulegate.daemon.wiring import Daemon

    flags: dict[str, object] = {
        "http.host": host,
        "http.port": port,
        "state_dir": None if state_dir is None else str(state_dir),
        "source": source,
    }
    loaded = load(config, flags)
    for warning in loaded.warnings:
        typer.echo(f"joulegate: {warning}", err=True)
    Daemon(loaded.settings, lambda line: typer.echo(line, err=True)).run()

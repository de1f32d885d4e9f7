"""``joulegate version``: what is installed, for a bug report or a script."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Annotated, Any

import typer

HTTP_VERSION = 1
"""The number in the paths of the HTTP contract, ``/v1``."""
LIBRARIES = (
    "numpy",
    "nvidia-ml-py",
    "pydantic",
    "fastapi",
    "uvicorn",
    "prometheus-client",
    "influxdb-client",
    "torch",
    "diffusers",
    "transformers",
)


def own_version() -> str:
    """The installed version, or ``unknown`` in a tree that is not installed."""
    return _installed("joulegate") or "unknown"


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the versions of Joulegate, Python, the platform, the libraries it stands on and its data formats."""
    from joulegate.stores.schema import STEPS

    facts: dict[str, Any] = {
        "version": own_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _installed(name) for name in LIBRARIES},
        "schemas": {"http": HTTP_VERSION, "ledger": len(STEPS)},
    }
    typer.echo(json.dumps(facts, indent=2) if as_json else _lines(facts))


def _lines(facts: dict[str, Any]) -> str:
    rows = {name: facts[name] for name in ("python", "platform")}
    rows |= {f"{name} schema": version for name, version in facts["schemas"].items()}
    rows |= {name: version or "not installed" for name, version in facts["libraries"].items()}
    width = max(map(len, rows))
    return "\n".join([f"joulegate {facts['version']}", *(f"{name:{width}}  {value}" for name, value in rows.items())])


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None

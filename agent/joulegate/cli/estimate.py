"""``joulegate estimate``: what a request will cost before it runs, and what that figure rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulegate.cli.faults import EXIT_CHECKED_BAD

if TYPE_CHECKING:
    from joulegate.metering.prior import Estimate


def command(
    model: Annotated[str, typer.Option("--model", help="The image model: a name, an alias or a repository path.")],
    gpu: Annotated[str, typer.Option("--gpu", help="The GPU: a product name or what the driver calls it.")],
    images: Annotated[int, typer.Option("--images", help="Images in the request.")] = 1,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Denoising steps; the model's usual ones if left out.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels; the model's usual size if left out.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels; goes with --width.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs that work on each image together, up to 8.")] = 1,
    params: Annotated[
        float | None, typer.Option("--params", help="Parameters of a model that is not known, such as 12e9.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings in TOML; [site] gives the CO2e.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say what a request will take in joules of its GPUs, with a range for nine requests in ten, before it runs.

    Exit 1: nothing can be said of this model or GPU, and the line says why and names the nearest known ones.
    Exit 2: the question itself is wrong.
    """
    from joulegate.config import load
    from joulegate.daemon.site import estimate_here
    from joulegate.metering.prior import estimate

    answer = estimate(model, gpu, images, steps, width, height, gpus=gpus, params=params)
    told = estimate_here(answer, load(config).settings)
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False))
    elif answer.energy_j is not None:
        _show(answer, images, told)
    if answer.energy_j is None:
        typer.echo(f"joulegate: no estimate: {answer.why}", err=True)
        return EXIT_CHECKED_BAD
    return 0


def _show(answer: Estimate, images: int, told: dict[str, Any]) -> None:
    from joulegate.units import format_energy, format_mass, mj_from_j

    if answer.energy_j is None or answer.prior is None:
        return
    low, central, high = (
        [format_energy(mj_from_j(value / share)) for share in (1, images)]
        for value in (answer.energy_j.low, answer.energy_j.central, answer.energy_j.high)
    )
    typer.echo(f"{'':12}{'low':>10}{'central':>10}{'high':>10}")
    for row, label in enumerate(("request", "an image")):
        typer.echo(f"{label:12}{low[row]:>10}{central[row]:>10}{high[row]:>10}")
    typer.echo(f"prior {answer.prior.value}: {answer.why}.")
    if answer.assumed:
        typer.echo(f"assumed: {'; '.join(answer.assumed)}.")
    co2e_g = told["co2e_g"]
    if co2e_g is None:
        typer.echo(f"CO2e is missing: {told['co2e_why']}.")
    else:
        masses = {name: format_mass(co2e_g[name]) for name in ("low", "central", "high")}
        typer.echo(f"CO2e {masses['central']} ({masses['low']} to {masses['high']}), {co2e_g['tier']}.")

"""``joulegate demo``: a real diffusers pipeline makes images, and every image has its joules."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import sleep, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulegate.cli.child_daemon import ChildDaemon
from joulegate.cli.faults import UserFault

if TYPE_CHECKING:
    from rich.console import Console

    from joulegate.pipelines.meter import Meter
    from joulegate.pipelines.request import Request

MODEL = "digits"
STEP_CHOICES = (4, 8, 16)
IMAGE_CHOICES = (1, 2, 4)
TIERS = ("free", "plus", "pro")
SETTLE_S = 6.0
"""The idle machine is watched this long first: without its idle power nothing could be said of the images."""
RESULT_S = 30.0
SHEET_COLUMNS, SHEET_SCALE = 12, 4


@dataclass(frozen=True, slots=True)
class Job:
    """One request of the demonstration."""

    prompt: str
    images: int
    steps: int
    tier: str
    seed: int


@dataclass(frozen=True, slots=True)
class Made:
    """A finished job: its pictures and the request that metered it."""

    job: Job
    pictures: Sequence[Any]
    request: Request


def command(
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, max=1000, help="How many requests.")] = 24,
    workers: Annotated[int, typer.Option("--workers", min=1, max=16, help="How many run at once.")] = 2,
    source: Annotated[str, typer.Option("--source", help="auto, nvml, rapl, model or twin.")] = "auto",
    out: Annotated[Path, typer.Option("--out", help="Folder for the contact sheet and the ledger.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Makes the images the same again.")] = 0,
    country: Annotated[
        str | None, typer.Option("--country", help="Where the machine stands (DEU), for CO2e; missing without it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the finished requests as JSON.")] = False,
) -> None:
    """Generate images with a tiny Stable Diffusion model and say what each cost, how sure that is, and how it is known.

    Everything is real but the size: diffusers, a trained model, concurrent requests, the daemon with its ledger and
    HTTP. On a machine with an NVIDIA GPU the same command measures it.
    """
    from rich.console import Console

    console = Console(stderr=as_json)
    out.mkdir(parents=True, exist_ok=True)
    jobs = plan_jobs(requests, seed)
    with console.status("loading the pipeline"):
        pipes = load_pipes(workers)
    began_wall_s = int(time())
    place = {} if country is None else {"JOULEGATE_SITE__COUNTRY": country}
    with ChildDaemon(out / "state", source=source, settings=place) as daemon:
        _introduce(console, daemon, pipes[0])
        made = _generate(console, daemon, pipes, jobs)
        sheet = out / "contact-sheet.png"
        save_sheet([picture for one in made for picture in one.pictures], sheet)
        entries = _collect(console, daemon, made)
        energy = _get(f"{daemon.url}/v1/energy?from={began_wall_s}")
    if as_json:
        typer.echo(json.dumps({"requests": entries, "energy": energy["totals"], "contact_sheet": str(sheet)}))
        return
    _report(console, entries, energy["totals"])
    console.print(f"images: {sheet}", highlight=False)
    console.print(f"ledger: {out / 'state'}; look again: joulegate run --state-dir {out / 'state'}", highlight=False)


def plan_jobs(count: int, seed: int) -> list[Job]:
    """A mix of prompts, step counts, batch sizes and tiers that depends on nothing but ``seed``."""
    from joulegate.pipelines.digits import PROMPTS

    rng = random.Random(seed)  # noqa: S311 - a repeatable mix, not a secret
    return [
        Job(
            PROMPTS[index % len(PROMPTS)],
            rng.choice(IMAGE_CHOICES),
            STEP_CHOICES[index % len(STEP_CHOICES)],
            rng.choice(TIERS),
            seed=1000 * seed + index,
        )
        for index in range(count)
    ]


def load_pipes(workers: int) -> list[Any]:
    """One pipeline a worker; they share their weights. On the GPU where there is one."""
    from joulegate.pipelines.digits import clone, load_pipeline

    try:
        first = load_pipeline()
    except ModuleNotFoundError as missing:
        raise UserFault(str(missing)) from None
    import torch

    if torch.cuda.is_available():
        first.to("cuda")
    return [first, *(clone(first) for _ in range(workers - 1))]


def _introduce(console: Console, daemon: ChildDaemon, pipe: Any) -> None:
    console.print("[bold]sensor[/bold]")
    for line in daemon.said[:-2]:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    console.print(f"[bold]pipeline[/bold] {type(pipe).__name__} on {pipe.device}, our own digit model, 16 x 16 pixels")
    console.print(f"[bold]daemon[/bold] {daemon.url}", highlight=False)
    with console.status(f"watching the idle machine for {SETTLE_S:g} s"):
        sleep(SETTLE_S)


def _generate(console: Console, daemon: ChildDaemon, pipes: Sequence[Any], jobs: Sequence[Job]) -> list[Made]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from joulegate.pipelines.meter import Meter
    from joulegate.pipelines.socket_client import SocketSink

    free: SimpleQueue[Any] = SimpleQueue()
    for pipe in pipes:
        free.put(pipe)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    meter = Meter(SocketSink(daemon.socket))
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(len(pipes)) as pool:
        bar = progress.add_task("generating", total=len(jobs))
        futures = [pool.submit(make, job, free, meter) for job in jobs]
        for future in futures:
            future.add_done_callback(lambda _done: progress.advance(bar))
        return [future.result() for future in futures]


def make(job: Job, free: SimpleQueue[Any], meter: Meter) -> Made:
    """Generate one job's images on a free pipeline, metered; waiting for a pipeline costs it nothing."""
    import torch

    from joulegate.pipelines.digits import SIZE

    pipe = free.get()
    try:
        generator = torch.Generator("cpu").manual_seed(job.seed)
        with meter.request(
            MODEL, images=job.images, steps=job.steps, width=SIZE, height=SIZE, tier=job.tier
        ) as request:
            result = pipe(
                job.prompt,
                num_images_per_prompt=job.images,
                num_inference_steps=job.steps,
                height=SIZE,
                width=SIZE,
                generator=generator,
            )
        return Made(job, result.images, request)
    finally:
        free.put(pipe)


def save_sheet(pictures: Sequence[Any], path: Path) -> None:
    """All pictures side by side, enlarged without smoothing."""
    from PIL import Image

    if not pictures:
        return
    width, height = (SHEET_SCALE * size for size in pictures[0].size)
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (index % columns * width, index // columns * height))
    sheet.save(path)


def _collect(console: Console, daemon: ChildDaemon, made: Sequence[Made]) -> list[dict[str, Any]]:
    """The final record of each request, as the daemon serves it."""
    entries = []
    with console.status("waiting until the counter has passed the last image"):
        for one in made:
            request_id = one.request.request_id
            try:
                one.request.result(timeout=RESULT_S)
            except TimeoutError:
                raise UserFault(f"request {request_id} did not become final; is the daemon alive?") from None
            entries.append({**_get(f"{daemon.url}/v1/requests/{request_id}"), "prompt": one.job.prompt})
    return entries


def _get(url: str) -> Any:
    import httpx

    answer = httpx.get(url, timeout=10.0)
    answer.raise_for_status()
    return answer.json()


def _report(console: Console, entries: Sequence[dict[str, Any]], totals: dict[str, int]) -> None:
    from rich import box
    from rich.table import Table

    from joulegate.units import format_energy

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, right in COLUMNS:
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for entry in entries:
        u = entry["uncertainty_j"]
        spread_mj = None if u is None else 1000 * (u["measurement"] ** 2 + u["allocation"] ** 2) ** 0.5
        energy_mj = entry["energy_mj"]
        per_image = None if energy_mj is None else energy_mj / entry["images"]
        table.add_row(
            entry["request_id"].rsplit("-", 1)[-1],
            entry["prompt"].removeprefix("a handwritten "),
            str(entry["images"]),
            str(entry["steps"]),
            format_energy(energy_mj),
            format_energy(spread_mj),
            format_energy(per_image),
            _grams(entry["co2e_g"]),
            f"{entry['method'] or 'no reading'}, {entry['quality']}",
        )
    console.print(table)
    why = _why_no_co2e(entries)
    if why:
        console.print(f"CO2e is missing: {why}", highlight=False, soft_wrap=True)
    _by_steps(console, entries)
    for view, name, label in (("water_l", "onsite", "on-site water"), ("cost", "electricity", "electricity")):
        figures = [(entry[view] or {}).get(name) for entry in entries]
        known = [figure for figure in figures if figure is not None]
        if known and len(known) == len(figures):
            total = sum(figure["central"] for figure in known)
            console.print(f"{label} of all requests: {total:.3g} {known[0]['unit']}", highlight=False)
    left_mj = totals["device_mj"] - totals["requests_mj"] - totals["idle_mj"] - totals["unattributed_mj"]
    console.print(
        f"law 1: requests {format_energy(totals['requests_mj'])} + idle {format_energy(totals['idle_mj'])} + "
        f"unattributed {format_energy(totals['unattributed_mj'])} = device {format_energy(totals['device_mj'])}; "
        f"left over: {left_mj} mJ",
        highlight=False,
        soft_wrap=True,
    )


COLUMNS = (
    ("#", True),
    ("digit", False),
    ("images", True),
    ("steps", True),
    ("energy", True),
    ("U (k=2)", True),
    ("per image", True),
    ("CO2e", True),
    ("known by", False),
)


def _grams(co2e: dict[str, Any] | None) -> str:
    from joulegate.units import format_mass

    figure = None if co2e is None else co2e["location_based"]
    return "missing" if figure is None else format_mass(figure["central"])


def _why_no_co2e(entries: Sequence[dict[str, Any]]) -> str | None:
    """The reason, once, where any request has no location-based CO2e."""
    for entry in entries:
        if entry["co2e_g"] is not None and entry["co2e_g"]["location_based"] is None:
            return str(entry["co2e_g"]["why_missing"]["location_based"])
    return None


def _by_steps(console: Console, entries: Sequence[dict[str, Any]]) -> None:
    from joulegate.units import format_energy

    known = [entry for entry in entries if entry["energy_mj"] is not None]
    for steps in sorted({entry["steps"] for entry in known}):
        mine = [entry for entry in known if entry["steps"] == steps]
        mean_mj = sum(entry["energy_mj"] for entry in mine) / sum(entry["images"] for entry in mine)
        console.print(f"{steps:3} steps: {format_energy(mean_mj)} an image on average", highlight=False)

"""Tests of ``GET /metrics``, read back with the parsers of prometheus_client and promtool."""

import asyncio
import math
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.http.stand_ins import H100, NOON_S, World, entry, reading, snapshot, state

from joulegate.http.metrics import MAX_MODELS, MAX_TIERS, wants_openmetrics
from joulegate.http.names import BoundedNames
from joulegate.metering.batch import add_entry
from joulegate.metering.reading import CLOCK_EVENTS, Device, Method, Quality
from joulegate.metering.snapshot import AgentState, DeviceTotals, RequestTotals
from joulegate.metering.span import Work

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
GPU = {"gpu": "0", "gpu_uuid": "GPU-h100", "gpu_name": "NVIDIA H100 80GB HBM3", "quality": "measured"}
COUNTED = GPU | {"scope": "gpu", "method": "counter"}


def series_of(families: Iterable) -> Series:
    """Every sample by name and labels; a series that is there twice is a fault."""
    found: Series = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


async def scrape(client: httpx.AsyncClient) -> Series:
    """One scrape in the text format."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return series_of(parse_text(answer.text))


def value(series: Series, name: str, **labels: str) -> float | None:
    """The series with exactly these labels."""
    return series.get((name, frozenset(labels.items())))


def names_with(series: Series, **labels: str) -> set[str]:
    """Names of all series that have these labels among theirs."""
    return {name for name, found in series if found >= frozenset(labels.items())}


def full() -> tuple[RequestTotals, ...]:
    """Totals as the ledger keeps them: two requests of 3 J an image, one of 400 J an image, one without a figure."""
    cheap = add_entry(add_entry(None, entry(1)), entry(2))
    cheap = add_entry(cheap, entry(3, energy_mj=800_000))
    missing = add_entry(None, entry(4, energy_mj=None, quality=Quality.MISSING))
    return (cheap, missing, add_entry(None, entry(5, model=None, tier=None, work=Work())))


async def test_device_series_carry_the_names_ops_know(world: World, client: httpx.AsyncClient) -> None:
    """Energy, power, temperatures, headroom, limits and the accounts of a device are all there, in base units."""
    world.shelf.newest = snapshot(state())
    series = await scrape(client)
    for name, expected in {
        "joulegate_gpu_joules_total": 10.0,
        "joulegate_gpu_requests_joules_total": 7.0,
        "joulegate_gpu_idle_joules_total": 2.5,
        "joulegate_gpu_unattributed_joules_total": 0.5,
        "joulegate_gpu_estimated_joules_total": 0.04,
        "joulegate_gpu_info": 1.0,
    }.items():
        assert value(series, name, **COUNTED) == expected, name
    assert value(series, "joulegate_gpu_watts", **COUNTED | {"method": "instant"}) == 652.1
    for name, expected in {
        "joulegate_gpu_headroom_celsius": 16.0,
        "joulegate_gpu_power_limit_watts": 700.0,
        "joulegate_gpu_utilization_ratio": 0.97,
        "joulegate_gpu_memory_used_bytes": 3e10,
        "joulegate_gpu_idle_watts": 95.0,
        "joulegate_gpu_up": 1.0,
        "joulegate_gpu_age_seconds": 0.4,
    }.items():
        assert value(series, name, **GPU) == expected, name
    assert value(series, "joulegate_gpu_celsius", **GPU, sensor="die") == 71
    assert value(series, "joulegate_gpu_celsius", **GPU, sensor="memory") == 80
    errors = {name: GPU[name] for name in ("gpu", "gpu_uuid", "gpu_name")}
    assert value(series, "joulegate_gpu_errors_total", **errors, code="NVML_ERROR_TIMEOUT") == 3
    assert value(series, "joulegate_gpu_clock_event_seconds_total", **GPU, clock_event="sw_thermal") == 0.25


async def test_missing_is_an_absent_series(world: World, client: httpx.AsyncClient) -> None:
    """What a device does not say, and what is no number, has no series; nothing is NaN."""
    bare = reading(power_w=math.nan, power_average_w=None, temperature_c=None, utilization=math.inf)
    blind = state(
        reading=bare,
        totals=DeviceTotals(),
        quality=Quality.MISSING,
        idle_w=None,
        clock_event_s={"sw_thermal": math.nan},
    )
    world.shelf.newest = snapshot(blind)
    series = await scrape(client)
    present = names_with(series, gpu_uuid=H100.id)
    absent = {"watts", "headroom_celsius", "utilization_ratio", "idle_watts", "joules_total", "idle_joules_total"}
    assert not present & {f"joulegate_gpu_{name}" for name in absent}
    assert value(series, "joulegate_gpu_celsius", **GPU, sensor="die") is None
    assert value(series, "joulegate_gpu_celsius", **GPU, sensor="memory") == 80
    assert all(math.isfinite(figure) for figure in series.values())


@pytest.mark.parametrize("silence", ["lost", "stale"])
async def test_lost_device_is_down_and_keeps_its_totals(world: World, client: httpx.AsyncClient, silence: str) -> None:
    """A lost or stale device has up 0, its age and its totals, and no present; the other device is untouched."""
    other = replace(H100, id="GPU-other", index=1)
    old = {"up": False} if silence == "lost" else {"age_s": 11.0}
    world.shelf.newest = snapshot(state(**old), state(other))
    series = await scrape(client)
    present = names_with(series, gpu_uuid=H100.id)
    assert value(series, "joulegate_gpu_up", **GPU) == 0
    assert value(series, "joulegate_gpu_joules_total", **COUNTED) == 10
    assert "joulegate_gpu_age_seconds" in present
    assert not present & {"joulegate_gpu_watts", "joulegate_gpu_celsius", "joulegate_gpu_utilization_ratio"}
    assert value(series, "joulegate_gpu_watts", **COUNTED | {"method": "instant", "gpu": "1", "gpu_uuid": other.id})


async def test_one_broken_device_blanks_no_other(world: World, client: httpx.AsyncClient) -> None:
    """A device that cannot be shown is left out and counted; a scrape still answers with the other."""
    broken = state(replace(H100, id="GPU-broken", index=1), errors=None)
    world.shelf.newest = snapshot(broken, state())
    series = await scrape(client)
    assert names_with(series, gpu_uuid="GPU-broken") == set()
    assert value(series, "joulegate_gpu_watts", **COUNTED | {"method": "instant"}) == 652.1
    assert value(series, "joulegate_agent_scrape_faults_total") == 1


@pytest.mark.parametrize(
    ("method", "quality"), [(Method.SIMULATED, Quality.SIMULATED), (Method.MODEL, Quality.MODELLED)]
)
async def test_stand_ins_are_never_shown_as_measured(
    world: World, client: httpx.AsyncClient, method: Method, quality: Quality
) -> None:
    """Each energy, power and temperature series of a simulated or modelled device says so in its labels."""
    world.shelf.newest = snapshot(state(Device("twin-0", "twin", method, quality, scope="host")))
    series = await scrape(client)
    for name, labels in series:
        if ("gpu_uuid", "twin-0") in labels and name != "joulegate_gpu_errors_total":
            assert ("quality", quality) in labels, name
            if "joules" in name or name == "joulegate_gpu_watts":
                assert {("method", method), ("scope", "host")} <= labels, name


async def test_measured_device_that_is_missing_now_keeps_its_series(world: World, client: httpx.AsyncClient) -> None:
    """The total of a device without a reading now stays in the series it had, so that no counter jumps."""
    world.shelf.newest = snapshot(state(up=False, quality=Quality.MISSING))
    assert value(await scrape(client), "joulegate_gpu_joules_total", **COUNTED) == 10


async def test_histogram_is_per_image_and_cumulative(world: World, client: httpx.AsyncClient) -> None:
    """Each image counts once at the joules an image cost, buckets cumulate, and the sum is the energy."""
    world.shelf.newest = snapshot(requests=full())
    series = await scrape(client)
    labels = {"model": "sdxl", "tier": "free", "quality": "measured"}
    bucket = {
        bound: value(series, "joulegate_request_joules_bucket", **labels, le=bound)
        for bound in ("100.0", "250.0", "500.0", "50000.0", "+Inf")
    }
    assert bucket == {"100.0": 4, "250.0": 4, "500.0": 6, "50000.0": 6, "+Inf": 6}
    assert value(series, "joulegate_request_joules_count", **labels) == 6
    assert value(series, "joulegate_request_joules_sum", **labels) == 812.0
    assert value(series, "joulegate_requests_total", **labels) == 3
    assert value(series, "joulegate_images_total", **labels) == 6


async def test_requests_without_a_figure_are_counted_and_not_zero(world: World, client: httpx.AsyncClient) -> None:
    """Requests of missing quality count as requests and are in no histogram."""
    world.shelf.newest = snapshot(requests=full())
    series = await scrape(client)
    labels = {"model": "sdxl", "tier": "free", "quality": "missing"}
    assert value(series, "joulegate_requests_total", **labels) == 1
    assert names_with(series, quality="missing") == {"joulegate_requests_total", "joulegate_images_total"}


async def test_outside_names_are_bounded(world: World, client: httpx.AsyncClient) -> None:
    """Models and tiers beyond the bound share ``other``, no request is lost, and the folded names are counted."""
    one = full()[0]
    rows = [replace(one, model=f"m{number}", tier=f"t{number % (MAX_TIERS + 5)}") for number in range(MAX_MODELS + 50)]
    world.shelf.newest = snapshot(requests=rows)
    series = await scrape(client)
    counts = {labels: figure for (name, labels), figure in series.items() if name == "joulegate_requests_total"}
    models = {dict(labels)["model"] for labels in counts}
    assert len(models) == MAX_MODELS + 1
    assert len({dict(labels)["tier"] for labels in counts}) == MAX_TIERS + 1
    assert sum(counts.values()) == 3 * len(rows)
    assert value(series, "joulegate_agent_folded_names", label="model") == 50
    assert value(series, "joulegate_agent_folded_names", label="tier") == 5


def test_kept_name_stays_kept() -> None:
    """A name that had its own series keeps it when new names crowd in before it."""
    names = BoundedNames(2)
    assert [names.label(name) for name in ("a", "b", "c")] == ["a", "b", "other"]
    assert [names.label(name) for name in ("d", "c", "b", "a")] == ["other", "other", "b", "a"]
    assert names.folded(["a", "c", "d", "d"]) == 2


@pytest.mark.parametrize("name", ['a"b\\c\nd', "\ud800", "ünï", "x" * 1_000, ""])
async def test_names_from_outside_cannot_spoil_a_scrape(world: World, client: httpx.AsyncClient, name: str) -> None:
    """Quotes, line ends, lone surrogates and very long names leave a scrape that can be read."""
    world.shelf.newest = snapshot(state(replace(H100, name=name)), requests=[replace(full()[0], model=name)])
    for headers in ({}, OPENMETRICS):
        answer = await client.get("/metrics", headers=headers)
        assert answer.status_code == 200
        found = series_of((parse_openmetrics if headers else parse_text)(answer.text))
        assert any(labels >= {("gpu_uuid", H100.id)} for _, labels in found)


async def test_agent_reports_on_itself(world: World, client: httpx.AsyncClient) -> None:
    """What the agent dropped, how late it is and what it costs has series; a failing ledger is ledger_up 0."""
    agent = AgentState(
        NOON_S, 5, 4, 3, 2, 1, loop_s=0.01, ledger_error="full", ledger_backlog=6, cpu_s=7.5, rss_bytes=8
    )
    world.shelf.newest = snapshot(agent=agent)
    world.clock.advance(1.5)
    series = await scrape(client)
    for name, expected in {
        "readings_total": 5, "requests_finished_total": 4, "requests_pending": 3, "spans_late_total": 2,
        "messages_dropped_total": 1, "loop_seconds": 0.01, "ledger_up": 0, "ledger_backlog": 6,
        "cpu_seconds_total": 7.5, "resident_memory_bytes": 8, "start_time_seconds": NOON_S, "snapshot_age_seconds": 1.5,
    }.items():  # fmt: skip
        assert value(series, "joulegate_agent_" + name) == expected, name
    assert value(series, "joulegate_agent_info", version="1.2.3", source="nvml") == 1


async def test_before_the_first_snapshot(client: httpx.AsyncClient) -> None:
    """Before the first reading a scrape answers with what the agent knows of itself, and no device."""
    series = await scrape(client)
    assert value(series, "joulegate_agent_info", version="1.2.3", source="") == 1
    assert not any(name.startswith(("joulegate_gpu", "joulegate_request")) for name, _ in series)


async def test_openmetrics_says_the_same(world: World, client: httpx.AsyncClient) -> None:
    """OpenMetrics is given to those who ask for it, ends in EOF and has the same series as the text format."""
    world.shelf.newest = snapshot(state(), requests=full())
    answer = await client.get("/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.headers["vary"] == "Accept"
    assert answer.text.endswith("# EOF\n")
    assert series_of(parse_openmetrics(answer.text)) == await scrape(client)


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False), ("*/*", False), ("text/plain", False), ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=nonsense", True), ("application/openmetrics-text;q=0", False),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.5", False), ("Application/OpenMetrics-Text;q=x", False),
        (PROMETHEUS_3, True),
    ],
)  # fmt: skip
async def test_format_is_negotiated(client: httpx.AsyncClient, accept: str, expected: bool) -> None:
    """The format with the larger weight is given, and no Accept header makes a scrape fail."""
    assert wants_openmetrics(accept) is expected
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert ("openmetrics" in answer.headers["content-type"]) is expected


async def test_promtool_finds_nothing_to_say(
    world: World, client: httpx.AsyncClient, require_program: Callable[[str, str], str]
) -> None:
    """Promtool's linter accepts every name, type and help text."""
    promtool = require_program("promtool", "prometheus")
    events = dict.fromkeys(CLOCK_EVENTS, 1.0)
    world.shelf.newest = snapshot(state(clock_event_s=events), state(replace(H100, id="B", index=1)), requests=full())
    text = (await client.get("/metrics")).text
    lint = [promtool, "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, lint, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

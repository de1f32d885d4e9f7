"""``joulegate grid`` against a simulated provider: figures, labels, window, exit codes."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.grid.providers import TOKEN
from tests.grid.simulators import HOUR_S, ElectricityMapsSimulator, Reply, hourly

from joulegate.carbon.factors import Basis, Factor, FactorSet, Scope, Signal, Source, Unit
from joulegate.carbon.place import Place, PlaceKind
from joulegate.cli import faults
from joulegate.cli.grid import command
from joulegate.sources.grid.options import GridOptionsFault
from joulegate.stores.factor_sets import FactorSets


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOULEGATE_STATE_DIR", str(tmp_path / "state"))
        patch.setenv("COLUMNS", "100")
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A file with the token that the simulator wants."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path / "token"


def run(*arguments: str) -> int:
    """The exit code of the command; what it raises is what ``main`` would show."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command("grid")(command)
    try:
        outcome = typer.main.get_command(alone).main(list(arguments), standalone_mode=False)
    except (faults.UserFault, GridOptionsFault, OSError) as error:
        lines, code = faults.explain(error)
        raise typer.Exit(code) from AssertionError("\n".join(lines))
    return outcome if isinstance(outcome, int) else 0


def refusal(*arguments: str) -> str:
    """The lines of a usage fault (exit 2)."""
    with pytest.raises(typer.Exit) as caught:
        run(*arguments)
    assert caught.value.exit_code == faults.EXIT_USAGE
    return str(caught.value.__cause__)


def simulated(*, token: str = TOKEN) -> ElectricityMapsSimulator:
    """A provider with a clean pair of hours tonight."""
    now_s = time.time()
    begun_s = now_s // HOUR_S * HOUR_S
    values: list[float | None] = [400.0] * 60
    values[24 + 6 : 24 + 8] = [120.0, 100.0]
    return ElectricityMapsSimulator(now_s, {"DE": hourly(begun_s - 24 * HOUR_S, values)}, token=token)


def provider(simulator: ElectricityMapsSimulator, token_file: Path) -> tuple[str, ...]:
    """Options that lead to the simulator."""
    where = ("--provider", "electricity-maps", "--zone", "DE", "--base-url", simulator.base_url)
    return (*where, "--token-file", str(token_file))


def test_figures_chart_and_window(token_file: Path, capsys: pytest.CaptureFixture[str]):
    """It prints the figure of now with label, source and age, a bar an hour, and the best window with its saving."""
    with simulated() as simulator:
        assert run(*provider(simulator, token_file), "--duration", "2h") == 0
        name = f"electricity-maps at 127.0.0.1:{simulator.port}"
    out, err = capsys.readouterr()
    assert not err
    now, *bars, best = [line for line in out.splitlines() if not line.startswith("forecast")]
    assert now.startswith("now       400 g/kWh in DE for ")
    assert "(live, simulated, age 0 s; average, lifecycle, " + name in now
    assert [bar.split()[3].rstrip() for bar in bars[:24]] == ["400"] * 6 + ["120", "100"] + ["400"] * 16
    assert [number for number, bar in enumerate(bars) if bar.endswith("<- best")] == [6, 7]
    assert best.startswith("best      2 h from ")
    assert best.endswith(": 110 g/kWh, 72% below starting now")
    assert TOKEN not in out


def test_settings_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Provider and zone come from the file, the token from the environment, the country from the site; flags win."""
    monkeypatch.setenv("JOULEGATE_GRID__TOKEN", TOKEN)
    file = tmp_path / "joulegate.toml"
    with simulated() as simulator:
        file.write_text(
            f'[site]\ncountry = "DEU"\n[grid]\nprovider = "electricity-maps"\nzone = "DE"\n'
            f'base_url = "{simulator.base_url}"\n'
        )
        assert run("--config", str(file), "--json") == 0
        body = json.loads(capsys.readouterr().out)
        assert (body["now"]["label"], body["place"]) == ("live", {"zone": "DE", "country": "DEU"})
        assert "no zone of electricity-maps" in refusal("--config", str(file), "--zone", "Germany")


def test_json(token_file: Path, capsys: pytest.CaptureFixture[str]):
    """--json is the body of GET /v1/grid, for the duration that was asked for."""
    with simulated() as simulator:
        assert run(*provider(simulator, token_file), "--duration", "90m", "--hours", "10", "--json") == 0
    body: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert body["schema"] == "joulegate.grid/v1"
    assert (body["now"]["g_per_kwh"], body["now"]["label"], body["now"]["simulated"]) == (400.0, "live", True)
    assert body["best_window"]["duration_s"] == 5400.0
    assert body["best_window"]["g_per_kwh"] == pytest.approx((30 * 120 + 60 * 100) / 90)
    assert len(body["forecast"]["points"]) == 11


def test_an_hour_that_is_missing_is_not_drawn(token_file: Path, capsys: pytest.CaptureFixture[str]):
    """A missing hour says that it is not known."""
    with simulated() as simulator:
        begun_s = simulator.now_s // HOUR_S * HOUR_S
        simulator.values["DE"][begun_s + 3 * HOUR_S] = None
        assert run(*provider(simulator, token_file)) == 0
    assert capsys.readouterr().out.count("  not known") == 1


def test_no_place(capsys: pytest.CaptureFixture[str]):
    """With nothing configured the figure is missing, with what to set, and the exit code is 1."""
    assert run() == 1
    out, _ = capsys.readouterr()
    assert out.startswith("now       missing\n")
    assert "set grid.provider and grid.zone, or grid.country" in out
    assert run("--json") == 1
    now = json.loads(capsys.readouterr().out)["now"]
    assert (now["label"], now["g_per_kwh"]) == ("missing", None)
    assert "set grid.provider" in now["why"]


def test_a_country_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With a country the factor set in use answers exactly, labelled static, and no window is made up."""
    factor = Factor(
        place=Place(PlaceKind.COUNTRY, "DEU", "DEU", "Germany"),
        period="2023",
        value=380.9500123,
        low=300.0,
        high=400.0,
        unit=Unit.CO2E,
        signal=Signal.AVERAGE,
        scope=Scope.LIFE_CYCLE,
        basis=Basis.PRODUCTION,
        source=Source("World table", "7", "CC0-1.0", "World table, 2023", "https://example.org"),
    )
    FactorSets(tmp_path / "state").pin(FactorSet.of("test", [factor], built_at="2026-01-01", generator="test"))
    assert run("--country", "DEU", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["now"]["g_per_kwh"], body["now"]["label"]) == (380.9500123, "static")
    assert body["best_window"] is None
    assert run("--country", "DEU") == 0
    assert "381 g/kWh in DEU (static; average, lifecycle, World table (test-" in capsys.readouterr().out
    assert run("--country", "FRA") == 1


def test_an_outage_shows_what_was_cached(token_file: Path, capsys: pytest.CaptureFixture[str]):
    """After an outage the figure of before is shown as cached, with the reason."""
    with simulated() as simulator:
        arguments = provider(simulator, token_file)
        assert run(*arguments) == 0
        capsys.readouterr()
        simulator.always = Reply(500)
        assert run(*arguments) == 0
    out, _ = capsys.readouterr()
    assert re.search(r"\(cached, simulated, age \d+ s; average", out)
    assert "the server fails (500)" in out


def test_nobody_there(token_file: Path, capsys: pytest.CaptureFixture[str]):
    """With nobody at the address and nothing cached the figure is missing, exit 1."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        where = ("--provider", "gb-carbon-intensity", "--zone", "GB", "--base-url", url)
        assert run(*where) == 1
    assert "the connection was refused" in capsys.readouterr().out


def test_a_wrong_token_or_zone_is_a_usage_fault(token_file: Path, capsys: pytest.CaptureFixture[str]):
    """A refused token and a zone that the provider does not know are one line and exit 2, with stdout empty."""
    with simulated(token="another") as simulator:
        assert "the token is refused (401); check grid.token" in refusal(*provider(simulator, token_file))
    with simulated() as simulator:
        del simulator.values["DE"]
        assert "the zone is not known there (404); check grid.zone" in refusal(*provider(simulator, token_file))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--zone", "DE"), "grid.zone: a zone needs a provider"),
        (("--provider", "x"), "grid.provider: 'x' is not known"),
        (("--country", "XX"), "grid.country: 'XX' is not a country"),
        (("--duration", "soon"), "option --duration: 'soon' is not a length of time"),
        (("--duration", ""), "option --duration: '' is not a length of time"),
        (("--duration", "0m"), "option --duration: 0m does not fit"),
        (("--duration", "25h"), "option --duration: 25h does not fit into the next 24 h"),
        (("--token-file", "/nonexistent/token"), "/nonexistent/token: No such file or directory; check the path"),
    ],
)
def test_options_that_cannot_be_used(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]):
    """Each is one line that names the option or key, exit 2, with stdout empty."""
    line = refusal(*arguments)
    assert says in line
    assert "\n" not in line
    assert not capsys.readouterr().out


def test_token_files_that_hold_none(tmp_path: Path):
    """An empty file and one that is no text are named."""
    file = tmp_path / "token"
    for content, says in ((b" \n", "is empty"), (b"\xff\xfe", "is not text")):
        file.write_bytes(content)
        assert f"{file}: {says}" in refusal("--token-file", str(file))

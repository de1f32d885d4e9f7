"""``joulegate factors`` as a person and a script meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from tests.carbon.examples import FILES_OF_ONE

from joulegate.carbon.codecarbon import FILES
from joulegate.cli.app import main
from joulegate.stores.factor_sets import FactorSets, read_set, shipped_set

SHIPPED = shipped_set()
OWN = """
[[factors]]
place = "DEU"
period = "2024"
value = 300.0
scope = "direct"
basis = "consumption"
source = "An agency"
version = "2025"
licence = "CC BY 4.0"
citation = "An agency: factors of 2024"

[[factors]]
place = "aws/eu-central-1"
kind = "cloud_region"
country = "DEU"
period = "2024"
value = 310
low = 250
high = 400
scope = "direct"
basis = "not stated"
source = "An agency"
licence = "CC BY 4.0"
citation = "An agency: clouds of 2024"
"""


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(command, ...)``: exit code, stdout and stderr over one empty state folder."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["factors", *words, "--state-dir", str(tmp_path / "state")])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A TOML file with two factors of the operator."""
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    return path


def only_line(err: str) -> str:
    """The one line of stderr."""
    assert err.startswith("joulegate: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("joulegate: ").rstrip()


def test_show(run: Run):
    """Show prints the value with its range, unit, convention, source, licence and citation, and the set's id."""
    code, out, err = run("show", "DEU")
    assert (code, err) == (0, "")
    for text in (SHIPPED.id, "Germany", "380.9", "gCO2e/kWh", "average, life-cycle, production", "CC BY 4.0", "Ember"):
        assert text in out
    code, out, _ = run("show", "CAN/quebec", "--json")
    facts = json.loads(out)
    assert facts["hash"] == SHIPPED.hash
    assert facts["factors"][0]["note"].startswith("combustion only")


@pytest.mark.parametrize("place", ["germany", "deu", "US-VA", "quebec", "SE-SE3", "gcp/me-central1"])
def test_show_takes_other_spellings(place: str, run: Run):
    """A place is found by its code in any case, another code for it, or its name."""
    assert run("show", place)[0] == 0


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("DE", "did you mean DEU (Germany)?"),
        ("Frence", "did you mean FRA (France)?"),
        ("us-centrall", "did you mean gcp/us-central1 (Council Bluffs, USA)?"),
        ("qqqqqqqq", "give a code such as DEU, USA/virginia or SE3"),
    ],
)
def test_unknown_place(place: str, hint: str, run: Run):
    """An unknown place is one line with the nearest name, exit 2, and nothing on stdout."""
    code, out, err = run("show", place)
    assert (code, out) == (2, "")
    assert only_line(err) == f"{place}: no factor of such a place; {hint}"


def test_build_from_own_file_alone(run: Run, own: Path, tmp_path: Path):
    """A set of the operator's own factors is kept in the state folder under its id, and told by id and hash."""
    code, out, err = run("build", "--operator", str(own), "--without-codecarbon", "--built-at", "2026-11-24")
    assert code == 0
    name, digest, where = out.splitlines()
    made = read_set(Path(where.split(" in ")[1]))
    assert (name, digest) == (made.id, f"hash {made.hash}")
    assert where == f"2 factors in {tmp_path}/state/factors/{made.id}.json"
    assert made.built_at == "2026-11-24"
    assert all(one.entered for one in made.factors)
    assert "DEU: 380.95 (2023) becomes 300 gCO2e/kWh (2024)" not in err
    assert run("build", "--operator", str(own), "--without-codecarbon")[1] == out


def test_build_to_a_file_and_diff(run: Run, own: Path, tmp_path: Path):
    """A set built into a file is compared with the shipped one: what moved, came and went; exit 1."""
    file = tmp_path / "own.json"
    code, out, _ = run("build", "--operator", str(own), "--without-codecarbon", "--output", str(file), "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(file)
    assert not (tmp_path / "state").exists()
    code, out, err = run("diff", "shipped", str(file))
    assert (code, err) == (1, "")
    first, *rest = out.splitlines()
    assert first == "DEU: 380.9 (2023) -> 300 gCO2e/kWh (2024) (-21.2%), also low, high, scope, basis"
    assert "aws/eu-central-1: only in the new set, 310 gCO2e/kWh (2024)" in rest
    assert "USA: only in the old set, 369.5 gCO2e/kWh (2023)" in rest
    code, out, _ = run("diff", "shipped", str(file), "--json")
    facts = json.loads(out)
    assert facts["moves"][0]["relative"] == pytest.approx(300 / 380.95 - 1)
    assert facts["new"]["hash"] == read_set(file).hash
    assert run("diff", "shipped", SHIPPED.hash[:10])[0] == 0


def test_pin_and_clear(run: Run, own: Path, tmp_path: Path):
    """A pinned set is in use and marked in the list until the pin is cleared; a file is copied in when it is pinned."""
    file = tmp_path / "own.json"
    run("build", "--operator", str(own), "--without-codecarbon", "--output", str(file))
    made = read_set(file)
    assert run("pin", str(file)) == (0, f"now using {made.id}\n", "")
    file.unlink()
    assert FactorSets(tmp_path / "state").in_use() == made
    out = run("list", "--place", "DEU")[1].splitlines()
    assert [line[0] for line in out if line[:2] in {"* ", "  "} and "factors, built" in line] == [" ", "*"]
    assert "    DEU 2024: 300 (300 to 300) gCO2e/kWh; average, direct, consumption" in out
    rows = json.loads(run("list", "--json")[1])
    assert [(row["id"], row["in_use"]) for row in rows] == [(SHIPPED.id, False), (made.id, True)]
    assert "An agency" in run("show", "DEU")[1]
    assert run("pin", "--clear")[1] == f"now using the shipped set {SHIPPED.id}\n"
    assert run("pin", "--clear")[1] == f"still using the shipped set {SHIPPED.id}\n"
    assert run("show", "DEU", "--set", made.id)[0] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("pin",), "give either a SET or --clear; see 'joulegate factors pin --help'"),
        (("pin", "shipped", "--clear"), "give either a SET or --clear; see 'joulegate factors pin --help'"),
        (("pin", "nothing"), f"nothing: no such factor set or file; known are shipped, {SHIPPED.id}"),
        (("diff", "shipped", "none.json"), f"none.json: no such factor set or file; known are shipped, {SHIPPED.id}"),
        (("show", "DEU", "--set", "none"), f"none: no such factor set or file; known are shipped, {SHIPPED.id}"),
        (("build", "--without-codecarbon"), "nothing to build from: give --operator FILE, or leave"),
        (("build", "--operator", "none.toml", "--without-codecarbon"), "none.toml: No such file or directory; check"),
        (("build", "--built-at", "24.11.2026", "--without-codecarbon", "--operator", "x"), "--built-at: '24.11.2026'"),
        (("list", "--place", "ZZZ"), "ZZZ: no factor of such a place"),
    ],
)
def test_usage_faults(words: tuple[str, ...], line: str, run: Run):
    """Each wrong call is one line that says what to give, exit 2, and nothing on stdout."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert only_line(err).startswith(line)


def test_faults_of_the_operators_file(run: Run, own: Path, tmp_path: Path):
    """Every fault of the operator's file is a line of its own, nothing is written, exit 2."""
    own.write_text(OWN.replace("value = 300.0", "value = 3000.5").replace('licence = "CC BY 4.0"\n', ""))
    code, out, err = run("build", "--operator", str(own), "--without-codecarbon")
    assert (code, out) == (2, "")
    assert err.count(f"joulegate: {own}: factors[") == 2
    assert ".licence: missing; give the terms it is published under" in err
    assert not (tmp_path / "state").exists()
    own.write_text("[[factors]\n")
    code, out, err = run("build", "--operator", str(own), "--without-codecarbon")
    assert (code, out) == (2, "")
    assert only_line(err).startswith(f"{own}: not TOML: ")


def test_build_refuses_a_place_it_cannot_write(run: Run, own: Path, tmp_path: Path):
    """An output that cannot be written is one line with the path and the reason."""
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "file" / "x.json")
    code, out, err = run("build", "--operator", str(own), "--without-codecarbon", "--output", target)
    assert (code, out) == (2, "")
    assert only_line(err).startswith(f"{target}: cannot be written (")


def built_with(path: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """``factors build`` in a process whose module path begins with ``path``."""
    call = "import sys; from joulegate.cli.app import main; sys.exit(main())"
    folders = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", call, "factors", "build", "--state-dir", str(state)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """A folder with a codecarbon 9.9 of one country: its metadata and data files, and no code at all."""
    folder = tmp_path / "site"
    for name, text in FILES_OF_ONE.items():
        path = folder / "codecarbon" / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    about = folder / "codecarbon-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: codecarbon\nVersion: 9.9\nLicense-Expression: MIT\n")
    (folder / "codecarbon" / "__init__.py").write_text("raise SystemExit('imported')")
    return folder


def test_codecarbon_is_read_and_not_run(distribution: Path, tmp_path: Path):
    """Build reads the data files of the installed codecarbon without importing it, and names its version."""
    done = built_with(distribution, tmp_path / "state")
    assert done.returncode == 0, done.stderr
    made = read_set(Path(done.stdout.splitlines()[2].split(" in ")[1]))
    assert made.id.startswith("codecarbon-9.9-")
    assert [(one.place.code, one.value) for one in made.factors] == [("DEU", 380.95)]


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        ("rm codecarbon/data/cloud/impact.csv", "codecarbon 9.9 has no usable data/cloud/impact.csv (No such file"),
        (
            "echo { > codecarbon/data/private_infra/2023/canada_energy_mix.json",
            "codecarbon 9.9: data/private_infra",
        ),
        ("sed -i s/MIT/GPL/ codecarbon-9.9.dist-info/METADATA", "codecarbon 9.9 is under 'GPL', this joulegate knows"),
    ],
    ids=["missing", "other", "terms"],
)
def test_a_codecarbon_that_cannot_be_used(harm: str, line: str, distribution: Path, tmp_path: Path):
    """A codecarbon with missing or other files, or under other terms, is one line; nothing is written, exit 2."""
    subprocess.run(["sh", "-c", harm], cwd=distribution, check=True)
    done = built_with(distribution, tmp_path / "state")
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr).startswith(line)
    assert not (tmp_path / "state").exists()


def test_build_without_codecarbon_installed(tmp_path: Path):
    """Where codecarbon is not installed, build says how to get it, in a line."""
    if find_spec("codecarbon"):
        pytest.skip("codecarbon is installed here")
    done = built_with(tmp_path, tmp_path / "state")
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr) == "codecarbon is not installed here: pip install 'joulegate[factors]'"


@pytest.fixture
def installed(require_module: Callable[[str, str], ModuleType]) -> None:
    """Codecarbon is installed; it is looked for, not imported."""
    if find_spec("codecarbon") is None:
        require_module("codecarbon", "factors")


@pytest.mark.usefixtures("installed")
def test_build_from_codecarbon_and_own_file(run: Run, own: Path):
    """The operator's factors are added to codecarbon's, rule their places, and the build says what was left out."""
    code, out, err = run("build", "--operator", str(own))
    assert code == 0
    made = read_set(Path(out.splitlines()[2].split(" in ")[1]))
    assert made.id.startswith("codecarbon-")
    assert "+operator-" in made.id
    assert len(made.factors) == len(SHIPPED.factors) + 2
    assert "left out: CAF 2022: value 0" in err
    assert "codecarbon" not in sys.modules

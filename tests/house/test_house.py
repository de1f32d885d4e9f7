"""The rules of the house that a linter does not know: layers, names, locks, set-up."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
AGENT = ROOT / "agent"
PACKAGE = AGENT / "joulegate"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("core", "build", "test", "demo")
COMMENT_SHARE = 0.05
NOT_OURS = {".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "demo-output"}
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".c", ".h", ".sh", ".service", ".cfg", ""}


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def text_files() -> Iterator[Path]:
    """Every text file of the tree that is ours."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith(".egg-info")]
        yield from (Path(folder, name) for name in files if Path(name).suffix in TEXT)


def lint_imports(agent: Path) -> subprocess.CompletedProcess[str]:
    """Run the import lint of this pyproject over the package in ``agent``."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo", ROOT / "pyproject.toml"],
        cwd=agent,
        env={**os.environ, "PYTHONPATH": str(agent), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_one_way():
    """The package keeps every import contract."""
    done = lint_imports(AGENT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("metering/reading.py", "import joulegate.config", "One direction"),
        ("stores/fault.py", "import joulegate.http.problems", "One direction"),
        ("units.py", "import time", "Pure packages"),
        ("http/view.py", "import pynvml", "Only the NVML source"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str, contract: str, tmp_path: Path):
    """A back edge, a peer edge, a clock in a pure module and pynvml outside its source each break their contract."""
    shutil.copytree(
        PACKAGE, tmp_path / "joulegate", ignore=shutil.ignore_patterns("__pycache__", "data", "*.safetensors")
    )
    # Without this file, an installed joulegate would be searched as well: a namespace package has several homes.
    (tmp_path / "joulegate" / "__init__.py").touch()
    with (tmp_path / "joulegate" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [row for row in done.stdout.splitlines() if " BROKEN" in row]
    assert [row for row in broken if row.startswith(contract)], done.stdout


def test_pure_packages_are_under_the_contract():
    """A pure package that exists is named by the contract that keeps it pure."""
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["name"].startswith("Pure"))
    for name in ("metering", "carbon", "throttle"):
        assert not (PACKAGE / name).exists() or f"joulegate.{name}" in contract["source_modules"]


def test_comments_are_few():
    """Comments stay under five in a hundred lines: what code does is said by names, what it promises by docstrings."""
    comments = lines = 0
    for path in modules():
        with path.open("rb") as file:
            comments += sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))
        lines += sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())
    assert comments < COMMENT_SHARE * lines, f"{comments} comments in {lines} lines"


QUANTITIES = {
    "power",
    "energy",
    "temperature",
    "duration",
    "timeout",
    "delay",
    "interval",
    "period",
    "lag",
    "age",
    "freq",
}
CONTRACT_NAMES = {("result", "timeout"), ("result_async", "timeout")}
"""Names that the design fixes as they are."""


def unitless(tree: ast.Module) -> Iterator[str]:
    """Parameters and fields that hold a number, name a quantity and do not say its unit."""
    for node in ast.walk(tree):
        named: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [(a.arg, a.annotation) for a in arguments if (node.name, a.arg) not in CONTRACT_NAMES]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named = [(node.target.id, node.annotation)]
        for name, annotation in named:
            kind = ast.unparse(annotation) if annotation else ""
            if name.rsplit("_", 1)[-1] in QUANTITIES and {"int", "float"} & set(kind.replace("|", " ").split()):
                yield f"line {node.lineno}: {name}: {kind}"


def test_quantities_say_their_unit():
    """No number is called power, energy or timeout: its unit rides in the name (power_w, energy_mj, timeout_s)."""
    found = [f"{path.relative_to(ROOT)} {name}" for path in modules() for name in unitless(ast.parse(path.read_text()))]
    assert not found, "\n".join(found)
    assert list(unitless(ast.parse("def f(idle_power: float | None, power_w: float, lag: Lag) -> None: ...")))


def test_nothing_is_left_to_do():
    """No module carries a note about work that is missing."""
    words = ("TODO", "FIXME", "XXX", "NotImplementedError")
    found = [str(path) for path in modules() for word in words if word in path.read_text(encoding="utf-8")]
    assert not found


def test_no_file_knows_where_it_lies():
    """No file names this checkout's folder or this interpreter's: the tree works wherever it is cloned."""
    places = {str(place) for place in (ROOT, Path(sys.prefix)) if len(place.parts) > 2}
    for path in text_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not [place for place in places if place in text], path


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_and_name_no_index(lock: str):
    """Each line of a lock file is one pin, and pip's configuration alone decides where packages come from."""
    for line in (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or [clause.operator for clause in Requirement(line).specifier] == ["=="], line
        assert "://" not in line
        assert not line.startswith("-")


def pinned(*locks: str) -> dict[str, str]:
    """Name -> version over the given lock files."""
    pins = {}
    for lock in locks:
        for line in (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                requirement = Requirement(line)
                pins[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return pins


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("core", PYPROJECT["project"]["dependencies"]),
        ("build", [*PYPROJECT["dependency-groups"]["build"], *PYPROJECT["build-system"]["requires"]]),
        ("test", PYPROJECT["dependency-groups"]["test"]),
        ("demo", PYPROJECT["project"]["optional-dependencies"]["diffusers"]),
    ],
)
def test_locks_hold_what_the_project_asks_for(lock: str, wanted: list[str]):
    """Every dependency of pyproject.toml is pinned, to a version that it admits."""
    pins = pinned("core", lock)
    for requirement in map(Requirement, wanted):
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in requirements/{lock}.txt: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} against {version}: run make lock"


def imported() -> Iterator[tuple[str, str]]:
    """Every module that is not the standard library's and not ours, with a file that imports it."""
    for path in (
        path for folder in ("agent", "tests", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            top = (
                {name.partition(".")[0] for name in names}
                - sys.stdlib_module_names
                - {"joulegate", "tests", "benchmarks", "bootstrap"}
            )
            yield from ((name, str(path.relative_to(ROOT))) for name in top)


def test_what_is_imported_is_pinned():
    """Every library that a module, test, tool or benchmark imports is in a lock file, or in an extra of its own."""
    known = set(pinned(*LOCKS))
    for extra in PYPROJECT["project"]["optional-dependencies"].values():
        known |= {canonicalize_name(Requirement(text).name) for text in extra}
    homes = metadata.packages_distributions()
    for name, path in imported():
        distributions = {canonicalize_name(distribution) for distribution in homes.get(name, [name])}
        assert distributions & known, f"{path} imports {name}, which no lock file has: see CONTRIBUTING.md"


def test_locks_agree():
    """A package that two lock files pin has one version."""
    together = pinned(*LOCKS)
    for lock in LOCKS:
        for name, version in pinned(lock).items():
            assert together[name] == version, name


def test_make_help():
    """Make alone lists every target with what it does."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make"], cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert listed == {"help", "demo", "test", "lint", "typecheck", "bench", "bench-throttle", "lock", "clean"}


def test_bootstrap_says_one_line_to_an_old_python():
    """Set-up that cannot go on says what and what to do in one line, and fails."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); sys.version_info = (3, 9, 2, 'final', 0);"
        "import bootstrap; sys.exit(bootstrap.main('demo'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("set-up: Python 3.11 or newer is needed, this is ")
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def test_debian_packages_say_what_their_lack_costs():
    """Each line names a package, what shows that it is there, and its cost in words."""
    lines = (ROOT / "tools" / "debian-packages.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or len(line.split()) > 4, line


def test_continuous_integration_runs_make_test():
    """.ci/run can be executed and calls make test from wherever it is started."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    done = subprocess.run(
        ["bash", str(script)],
        cwd="/",
        env={"PATH": f"{ROOT / 'tests' / 'house' / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"make test in {ROOT} with CI=true\n"

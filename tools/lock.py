"""Write ``requirements/*.txt`` from what is installed in the interpreter that runs this (``make lock``).

Each file pins one role with everything it needs, for every Python in ``PYTHONS``: what the markers of a dependency ask
for on any of them must be installed here, or the script says what to install first.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
HEADS = {
    "core": "What a production host needs: the dependencies of pyproject.toml and all that they need.",
    "build": "What builds and installs the package itself.",
    "test": "What tests and lints need (dependency group test).",
    "demo": (
        "What the image model needs (extra diffusers). torch is installed first and alone: a resolver left to\n"
        "# itself may choose a newer CUDA build of several gigabytes. Where pip is configured with an index of CPU\n"
        "# builds, or finds such a wheel on disk, this version without CUDA is taken; a GPU host wants the CUDA build."
    ),
}


def roles(project: Mapping[str, Any]) -> dict[str, list[Requirement]]:
    """What ``pyproject.toml`` (its ``[project]`` and ``[dependency-groups]``) asks for, by lock file."""
    table, groups = project["project"], project["dependency-groups"]
    return {
        "core": [Requirement(text) for text in table["dependencies"]],
        "build": [Requirement(text) for text in groups["build"]],
        "test": [Requirement(text) for text in groups["test"]],
        "demo": [Requirement(text) for text in table["optional-dependencies"]["diffusers"]],
    }


def closure(wanted: Iterable[Requirement], python: str) -> Iterator[Requirement]:
    """``wanted`` and everything they need, directly or not, on Linux with ``python``."""
    environment = cast("dict[str, str]", default_environment())
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    seen: set[tuple[str, str]] = set()
    queue = list(wanted)
    while queue:
        requirement = queue.pop()
        for extra in ("", *sorted(requirement.extras)):
            key = (canonicalize_name(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            yield requirement
            needs = map(Requirement, installed(requirement).requires or ())
            queue += [
                need for need in needs if need.marker is None or need.marker.evaluate(environment | {"extra": extra})
            ]


def installed(requirement: Requirement) -> metadata.Distribution:
    """The installed distribution, or an end with what to install."""
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        sys.exit(f"lock: {requirement} is not installed here; install it and run this again")
    if requirement.specifier and not requirement.specifier.contains(found.version, prereleases=True):
        sys.exit(f"lock: {requirement} does not admit the installed {found.version}; install a fitting version")
    return found


def pins(wanted: Iterable[Requirement]) -> list[str]:
    """``name==version`` lines, with a marker where only some Pythons need the package."""
    needed_on: dict[str, set[str]] = {}
    wanted = list(wanted)
    for python in PYTHONS:
        for requirement in closure(wanted, python):
            needed_on.setdefault(canonicalize_name(requirement.name), set()).add(python)
    return [pin(name, pythons) for name, pythons in sorted(needed_on.items())]


def pin(name: str, pythons: set[str]) -> str:
    """One line; the local part of a version (``+cpu``) names a build, not a release, and is left out."""
    line = f"{name}=={Version(metadata.version(name)).public}"
    if pythons == set(PYTHONS):
        return line
    clauses = " or ".join(f'python_version == "{python}"' for python in sorted(pythons))
    return f"{line} ; {clauses}"


def main() -> None:
    """Write the files; a package of the core is pinned in ``core.txt`` only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    core: list[str] = []
    for role, wanted in roles(project).items():
        lines = [line for line in pins(wanted) if line not in core]
        core = core or lines
        head = f"# {HEADS[role]}\n# Written by tools/lock.py: change pyproject.toml, then run `make lock`.\n"
        (ROOT / "requirements" / f"{role}.txt").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
        print(f"requirements/{role}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()

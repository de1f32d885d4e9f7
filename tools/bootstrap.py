"""Make ``.venv``, install into it what is pinned, and the Debian programs that tests use.

The Makefile runs ``bootstrap.py demo|lint|test`` before every target, with the system's Python and nothing but the
standard library. A second run finds its stamps and ends within a tenth of a second. What could not be installed is
said in one line with what it costs, and the rest goes on (in CI the tests that miss it fail). It fails only when
nothing useful could follow: no venv, or no core packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "stamps"
LOCKS = {
    "demo": ("core", "build", "demo"),
    "lint": ("core", "build", "test"),
    "test": ("core", "build", "test", "demo"),
}
WITHOUT_DEMO = "torch and diffusers (make demo draws no images, tests of image pipelines are skipped)"
POLICY = Path("/usr/sbin/policy-rc.d")
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
APT = ("apt-get", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2")


class StepFault(Exception):
    """One step of the set-up failed; the text is one line."""


@dataclass(frozen=True)
class Program:
    """A Debian package, the program (or, with a slash, the file) that shows it is there, and what its lack costs."""

    package: str
    shows: str
    cost: str

    def missing(self) -> bool:
        """Whether the program is not on this machine."""
        return not (Path(self.shows).exists() if "/" in self.shows else shutil.which(self.shows))


def run(command: Sequence[str | Path], **environment: str) -> None:
    """Run ``command`` without input; raises ``StepFault`` with its first line of error, else its last line."""
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise StepFault(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if line.lower().startswith(("error: ", "e: "))]
        raise StepFault((telling[:1] or lines[-1:] or [f"{command[0]} ended with {done.returncode}"])[0])


def say(text: str) -> None:
    """Tell the person what takes time or is missing."""
    print(f"set-up: {text}", flush=True)


def digest(*paths: Path) -> str:
    """What a stamp holds: a hash of the files that decided the step."""
    whole = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()


def stamped(name: str, value: str) -> bool:
    """Whether step ``name`` was done from the same files."""
    stamp = STAMPS / name
    return stamp.is_file() and stamp.read_text(encoding="ascii") == value


def stamp(name: str, value: str) -> None:
    """Remember that step ``name`` is done."""
    STAMPS.mkdir(exist_ok=True)
    (STAMPS / name).write_text(value, encoding="ascii")


def make_venv() -> None:
    """Make ``.venv``; on Debian without ensurepip, and as root, install the package that brings it."""
    if PYTHON.exists() and stamped("python", f"{sys.version_info[:2]}"):
        return
    say(f"making .venv with Python {sys.version.split()[0]}")
    try:
        run([sys.executable, "-m", "venv", "--clear", VENV])
    except StepFault as fault:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if os.geteuid() or not shutil.which("apt-get"):
            raise StepFault(f"{sys.executable} -m venv: {fault}; as root: apt-get install {package}") from fault
        install_debian([package])
        run([sys.executable, "-m", "venv", "--clear", VENV])
    stamp("python", f"{sys.version_info[:2]}")


def pins(lock: str) -> list[str]:
    """The lines of ``requirements/LOCK.txt``."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def install_lock(lock: str) -> None:
    """Install one lock file, as it stands: ``--no-deps`` lets no unpinned package in, ``pip check`` proves it whole."""
    lines = pins(lock)
    say(f"installing {len(lines)} pinned packages of requirements/{lock}.txt")
    torch = next((line for line in lines if line.startswith("torch==")), None)
    if torch:
        # The one package that may bring more than the lock knows: outside the CPU build its CUDA libraries.
        constraints = [part for name in LOCKS["demo"] for part in ("-c", ROOT / "requirements" / f"{name}.txt")]
        run([PYTHON, *PIP, "install", torch, *constraints])
    run([PYTHON, *PIP, "install", "--no-deps", "-r", ROOT / "requirements" / f"{lock}.txt"])


def install_python(role: str) -> list[str]:
    """Install the lock files of ``role`` and the package itself, editable; returns what is missing."""
    missing = []
    changed = False
    for lock in LOCKS[role]:
        value = digest(ROOT / "requirements" / f"{lock}.txt")
        if stamped(lock, value):
            continue
        if stamped(f"{lock}-failed", value):
            missing.append(f"{WITHOUT_DEMO}; make clean, then this again, retries")
            continue
        try:
            install_lock(lock)
        except StepFault as fault:
            if lock != "demo":
                raise StepFault(f"requirements/{lock}.txt cannot be installed: {fault}") from fault
            missing.append(f"{WITHOUT_DEMO}: {fault}")
            stamp(f"{lock}-failed", value)
            continue
        stamp(lock, value)
        changed = True
    value = digest(ROOT / "pyproject.toml")
    if not stamped("package", value):
        run([PYTHON, *PIP, "install", "--no-deps", "--no-build-isolation", "-e", ROOT])
        stamp("package", value)
        changed = True
    if changed:
        run([PYTHON, *PIP, "check"])
    return missing


def programs() -> list[Program]:
    """The lines of ``tools/debian-packages.txt``: package, program, what its lack costs."""
    text = (ROOT / "tools" / "debian-packages.txt").read_text(encoding="utf-8")
    return [Program(*line.split(maxsplit=2)) for line in text.splitlines() if line and not line.startswith("#")]


def install_programs() -> list[str]:
    """Install the Debian programs that are missing, as root; returns what still is, with its cost."""
    wanted = [program for program in programs() if program.missing()]
    tried = digest(ROOT / "tools" / "debian-packages.txt")
    if wanted and not os.geteuid() and shutil.which("apt-get") and not stamped("debian", tried):
        say(f"installing Debian packages: {' '.join(program.package for program in wanted)}")
        install_debian([program.package for program in wanted])
        stamp("debian", tried)
    return [f"{program.package} ({program.cost})" for program in wanted if program.missing()]


def install_debian(packages: Sequence[str]) -> None:
    """Install what can be: all at once, else one by one, so that one unknown name does not cost the others."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with no_service_starts():
        attempt(["apt-get", "-q", "update"], quiet)
        if not attempt([*APT, "install", *packages], quiet):
            for package in packages:
                attempt([*APT, "install", package], quiet)


def attempt(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Run a step that may fail; what its failure costs is found by looking for the program afterwards."""
    try:
        run(command, **environment)
    except StepFault as fault:
        say(f"{command[0]}: {fault}")
        return False
    return True


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Let Debian's maintainer scripts start no daemon meanwhile: tests start what they need, on free ports."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def main(role: str) -> int:
    """Set up for ``role``; the exit code is 1 when what was asked for cannot follow."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything checked requires-python
        say(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 {role}")
        return 1
    try:
        make_venv()
        missing = install_python(role)
        missing += install_programs() if role == "test" else []
    except StepFault as fault:
        say(str(fault))
        return 1
    except OSError as error:
        say(f"{error.filename}: {error.strerror}; this clone's folder has to be yours and needs 2 GB of space")
        return 1
    if missing:
        say(f"not installed: {'; '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "test"))

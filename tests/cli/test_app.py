"""The command line as a person and a script meet it: help, versions, settings, faults, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from joulegate.cli import faults
from joulegate.cli.app import COMMANDS, main
from joulegate.config import ConfigFault, Settings, known_keys, load, load_settings, render

HOME = {"XDG_STATE_HOME": "/nowhere/state"}
CALL = "import sys; from joulegate.cli.app import main; sys.exit(main())"


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``joulegate`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def faults_of(tmp_path: Path, toml: str, environ: dict[str, str] | None = None, **overrides: object) -> tuple[str, ...]:
    """The fault lines of a TOML text, with the file's folder cut off."""
    file = tmp_path / "joulegate.toml"
    file.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigFault) as caught:
        load(file, overrides, {**HOME, **(environ or {})})
    return tuple(line.removeprefix(f"{tmp_path}/") for line in caught.value.lines)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_root_help(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    """Without a command, and with --help, every command is listed with its summary and nothing is loaded for it."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert not err
    for name, listed in COMMANDS.items():
        assert f"{name} " in out
        assert listed.summary[:40] in out


@pytest.mark.parametrize("arguments", [("version",), ("--help",), ("--version",)])
def test_light_start(arguments: tuple[str, ...]):
    """Commands that compute nothing import neither numpy nor a server nor torch."""
    heavy = ("numpy", "fastapi", "torch", "pynvml", "influxdb_client", "pydantic_settings")
    code = (
        "import sys; from joulegate.cli.app import main; main(sys.argv[1:]);"
        f"sys.exit(','.join(set(sys.modules) & set({heavy!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.stdout


def test_version_json(capsys: pytest.CaptureFixture[str]):
    """``version --json`` names Python, the platform, libraries (null where not installed) and the data formats."""
    assert main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["libraries"]["numpy"]
    assert facts["schemas"]["ledger"] >= 1
    assert set(facts) == {"version", "python", "platform", "libraries", "schemas"}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["verson"], "Did you mean 'version'?; see 'joulegate --help'"),
        (["version", "--bogus"], "No such option: --bogus; see 'joulegate version --help'"),
        (["version", "extra"], "see 'joulegate version --help'"),
        (["config"], "Missing command; see 'joulegate config --help'"),
        (["config", "show", "--config"], "Option '--config' requires an argument; see 'joulegate --help'"),
    ],
)
def test_usage_faults(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]):
    """A wrong command line costs one line that names the right help, exit 2, and nothing on stdout."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("joulegate: ")
    assert err.endswith(f"{hint}\n")
    assert err.count("\n") == 1


def test_completion():
    """The shell's completion asks the program itself, and gets the commands with their summaries."""
    done = shell(_JOULEGATE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="joulegate ver")
    assert "version" in done.stdout
    assert COMMANDS["version"].summary in done.stdout
    assert "config" not in done.stdout


def test_broken_pipe():
    """A reader that goes away ends the program without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", CALL, "version"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == faults.EXIT_BROKEN_PIPE


class PeerFault(Exception):
    """A fault as any package of ours defines one for itself."""


PeerFault.__module__ = "joulegate.stores.fault"


@pytest.mark.parametrize(
    ("error", "lines", "exit_code"),
    [
        (faults.UserFault("a: bad; mend it", "b: bad too"), ("a: bad; mend it", "b: bad too"), 2),
        (faults.UserFault("the ledger does not add up", exit_code=1), ("the ledger does not add up",), 1),
        (ConfigFault("x.toml:1 a: b"), ("x.toml:1 a: b",), 2),
        (PeerFault("cannot open the ledger"), ("cannot open the ledger",), 2),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/ledger.db"),
            ("/data/ledger.db: No space left on device; free some space or choose another folder",),
            2,
        ),
        (
            OSError(errno.EADDRINUSE, "Address already in use"),
            ("Address already in use; stop what listens there or choose another port",),
            2,
        ),
    ],
)
def test_faults_for_a_person(error: Exception, lines: tuple[str, ...], exit_code: int):
    """Faults that somebody can mend are shown as they are, with their exit code."""
    assert faults.explain(error) == (lines, exit_code)


def test_internal_error():
    """What nobody foresaw is one line with its class, its place and how to see more."""
    try:
        load_settings(overrides={"http.port": 1}, environ=3)  # type: ignore[arg-type]
    except AttributeError as error:
        (line,), exit_code = faults.explain(error)
    assert exit_code == faults.EXIT_INTERNAL
    assert line.startswith("internal error: AttributeError: ")
    assert " at config.py:" in line
    assert "JOULEGATE_DEBUG=1" in line
    assert "\n" not in line


def run_command(body: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that stands in the table beside ours and whose function has this body."""
    (tmp_path / "made_up.py").write_text(f"def command() -> int | None:\n    {body}\n", encoding="utf-8")
    code = (
        "import sys; from joulegate.cli import app;"
        "app.COMMANDS['made-up'] = app.Listed('made_up', 'Do it.', 'joulegate made-up'); sys.exit(app.main())"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code, "made-up"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("debug", "first"),
    [
        ("", "joulegate: internal error: ZeroDivisionError: integer division or modulo by zero"),
        ("1", "Traceback (most recent call last):"),
    ],
)
def test_unforeseen_exception_in_a_command(debug: str, first: str, tmp_path: Path):
    """A bug in a command shows one line and exit 70; with JOULEGATE_DEBUG=1 also the trace."""
    done = run_command("print(1 // 0)", tmp_path, JOULEGATE_DEBUG=debug)
    assert done.returncode == 70
    assert done.stdout == ""
    assert done.stderr.startswith(first)
    assert ("Traceback" in done.stderr) == bool(debug)


@pytest.mark.parametrize(
    ("body", "exit_code"), [("raise KeyboardInterrupt", 130), ("return 1", 1), ("return 0", 0), ("return None", 0)]
)
def test_exit_codes_of_a_command(body: str, exit_code: int, tmp_path: Path):
    """The int that a command returns is the exit code, nothing is 0, and Ctrl-C is 130 without a word."""
    done = run_command(body, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", "")


def test_precedence(tmp_path: Path):
    """Flags win over the environment, the environment over the file, the file over defaults."""
    file = tmp_path / "joulegate.toml"
    file.write_text('source = "twin"\n[http]\nhost = "::1"\nport = 1\n[twin]\ngpus = 2\n', encoding="utf-8")
    environ = {"JOULEGATE_HTTP__PORT": "2", "JOULEGATE_TWIN__GPUS": "3", "JOULEGATE_TWIN__FAULTS": "lost@1, reset@2"}
    settings = load_settings(file, {"http.port": 4, "source": None}, {**HOME, **environ})
    assert settings.http.port == 4
    assert settings.twin.gpus == 3
    assert settings.twin.faults == ("lost@1", "reset@2")
    assert settings.http.host == "::1"
    assert settings.source == "twin"
    assert settings.metering.foreign_tolerance == 0.15


@pytest.mark.parametrize(
    ("environ", "state_dir", "socket"),
    [
        (
            {"STATE_DIRECTORY": "/var/lib/jg:/other", "RUNTIME_DIRECTORY": "/run/jg"},
            "/var/lib/jg",
            "/run/jg/joulegate.sock",
        ),
        ({"JOULEGATE_STATE_DIR": "/data/jg"}, "/data/jg", "/data/jg/joulegate.sock"),
        ({"JOULEGATE_STATE_DIR": "/data/jg", "JOULEGATE_SOCKET": "/tmp/s"}, "/data/jg", "/tmp/s"),
        ({"JOULEGATE_SOCKET": "/tmp/s", "JOULEGATE_SOCKET__PATH": "/tmp/t"}, None, "/tmp/t"),
    ],
)
def test_places(environ: dict[str, str], state_dir: str | None, socket: str):
    """The state folder and the socket are where systemd or the environment put them."""
    settings = load_settings(environ={**HOME, **environ})
    assert state_dir is None or str(settings.state_dir) == state_dir
    assert str(settings.socket.path) == socket


def test_all_faults_at_once(tmp_path: Path):
    """Every fault of file, environment and flags is one line: where, key, what, what to do."""
    toml = '[http]\nport = true\nprot = 3\n[metering]\nlag_ms = "x"\n[reports]\nx = 1\n[twin]\nfaults = [1]\n'
    lines = faults_of(tmp_path, toml, {"JOULEGATE_METERING__POLL_S": "nan"}, **{"twin.gpus": 99, "source": "nvlm"})
    port = "give a TCP port from 0 to 65535 (0 takes any free one)"
    assert lines == (
        f"joulegate.toml:2 http.port: true is not a finite number; {port}",
        "joulegate.toml:3 http.prot: unknown key; did you mean http.port?",
        (
            'joulegate.toml:5 metering.lag_ms: "x" is not a number; '
            'give "auto" (learned per device) or the lateness of the energy counter in ms, from 0 to 2000'
        ),
        "joulegate.toml:6 reports: unknown table; known are grid, http, metering, site, socket, throttle, twin",
        (
            "joulegate.toml:9 twin.faults[0]: 1 is not text in quotes; "
            "give a list of faults such as lost@30+10:twin-0, which is kind, seconds from the start, how long (else "
            "for ever) and device (else all), in the environment separated by commas"
        ),
        (
            'environment JOULEGATE_METERING__POLL_S: "nan" is not a finite number; '
            'give "auto" (each source knows its own) or the shortest time in s between polls, from 0.01 to 10'
        ),
        "option --gpus: 99 is above 64; give a number of simulated GPUs from 1 to 64",
        (
            'option --source: "nvlm" is not a source; did you mean nvml?; '
            "give auto, nvml, rapl, model, twin or replay:FILE"
        ),
    )


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("[http\n", "joulegate.toml:1: not TOML: "),
        ("a = 1\nb = \n", "joulegate.toml:2: not TOML: invalid value, mend that line"),
        ("http = 3\n", "joulegate.toml:1 http: 3 is not a table; write a table [http] with its keys below it"),
        ("http.port = 70000\n", "joulegate.toml:1 http.port: 70000 is above 65535; give a TCP port"),
        ('http = { host = "" }\n', "joulegate.toml:1 http.host: the text is empty; give an address"),
        ("state_dir = 1\n", "joulegate.toml:1 state_dir: 1 is not text in quotes; give a folder"),
        ('state_dir = "~nobody-at-all/x"\n', "joulegate.toml:1 state_dir: "),
        ('source = "replay:"\n', 'joulegate.toml:1 source: "replay:" is not a source; did you mean replay:?'),
        ("[metering]\nhold_s = -1\n", "joulegate.toml:2 metering.hold_s: -1 is below 0; give how long"),
        ("[metering]\npoll_s = inf\n", "joulegate.toml:2 metering.poll_s: Infinity is not a finite number; give"),
        ("[metering]\nslots = 1.5\n", "joulegate.toml:2 metering.slots: 1.5 is not a whole number; give"),
        ('[metering]\nidle_policy = "usage"\n', 'joulegate.toml:2 metering.idle_policy: "usage" is not a known value'),
        (f'[socket]\npath = "/{"x" * 107}"\n', "joulegate.toml:2 socket.path: the path has 108 bytes where"),
        ('[twin]\nfaults = "lost@1"\nseed = "a"\n', 'joulegate.toml:3 twin.seed: "a" is not a whole number; give'),
        (
            '[twin]\nfaults = ["lost"]\n',
            'joulegate.toml:2 twin.faults: "lost" is not a fault such as lost@30+10:twin-0',
        ),
        ('[twin]\nfaults = ["lots@1"]\n', 'joulegate.toml:2 twin.faults: "lots@1": no fault is called lots; did you'),
        ("[lake]\n", "joulegate.toml:1 lake: unknown table; known are"),
        ("colour = 3\n", "joulegate.toml:1 colour: unknown key; known are state_dir, source, http.host"),
    ],
)
def test_file_faults(toml: str, fault: str, tmp_path: Path):
    """A fault in a file is named with its line, its key and what to give instead."""
    (line,) = faults_of(tmp_path, toml)
    assert line.startswith(fault)


def test_unreadable_files(tmp_path: Path):
    """A missing file, a folder and bytes that are no text are one line each, beside the faults of the environment."""
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a = '\xff'\n")
    for file, reason in [
        (tmp_path / "none.toml", "cannot be read (No such file or directory), give --config a readable TOML file"),
        (tmp_path, "cannot be read (Is a directory), give --config a readable TOML file"),
        (binary, "byte 6 is not UTF-8 text, save the file as UTF-8"),
    ]:
        with pytest.raises(ConfigFault) as caught:
            load(file, environ={**HOME, "JOULEGATE_HTTP__PORT": "x"})
        assert caught.value.lines[0] == f"{file}: {reason}"
        assert caught.value.lines[1].startswith('environment JOULEGATE_HTTP__PORT: "x" is not a whole number; give')


def test_strange_variables():
    """A variable that only looks like ours is a warning with the nearest name; the known special ones are not."""
    special = {"JOULEGATE_DEBUG": "1", "JOULEGATE_SOCKET": "/tmp/s", "JOULEGATE_STATE_DIR": "/tmp", "JOULEGATE_X": ""}
    loaded = load(environ={**HOME, **special, "JOULEGATE_HTTP__PROT": "1", "PATH": "/bin"})
    assert loaded.warnings == (
        "environment JOULEGATE_HTTP__PROT: not a setting, ignored; did you mean JOULEGATE_HTTP__PORT?",
    )


def test_frozen():
    """Settings and their tables cannot be changed, and are built without looking at the environment."""
    settings = load_settings(environ=HOME)
    for record, name in ((settings, "source"), (settings.http, "port")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(record, name, 1)


@given(
    text=st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30),
    number=st.floats(0.01, 10),
    faults_given=st.lists(
        st.builds("lost@{}:{}".format, st.integers(0, 99), st.text('\x7f\\"\u00e9#', min_size=1)), max_size=3
    ),
    lag_ms=st.none() | st.floats(0, 2000),
)
@example(text='\x7f\t"\\\u00e9\U0001f600', number=0.1, faults_given=["stuck@3+1:\x7f", "lost@1"], lag_ms=1e-9)
def test_rendered_settings_read_back(
    text: str, number: float, faults_given: list[str], lag_ms: float | None, tmp_path_factory: pytest.TempPathFactory
):
    """What config show prints is TOML that gives the same settings again, whatever the texts and numbers in it."""
    settings = Settings(
        state_dir=f"/{text}",
        source=f"replay:{text}",
        http={"host": text},
        socket={"path": "/tmp/s"},
        metering={"poll_s": number, "lag_ms": lag_ms},
        twin={"faults": faults_given},
    )
    file = tmp_path_factory.mktemp("rendered") / "joulegate.toml"
    file.write_text(render(settings), encoding="utf-8")
    assert load_settings(file, environ=HOME) == settings


def test_every_key_is_rendered_and_described():
    """``config show`` names every key that can be set, with a sentence on what to give."""
    text = render(load_settings(environ=HOME))
    table = tomllib.loads(text)
    assert table["http"] == {"host": "127.0.0.1", "hosts": [], "port": 9288}
    for key in known_keys():
        assert key.rsplit(".", 1)[-1] in text
    assert "# None" not in text


def test_config_commands(tmp_path: Path):
    """``config check`` lists every fault on stderr with exit 1, config show refuses with exit 2, stdout stays empty."""
    file = tmp_path / "joulegate.toml"
    file.write_text("[http]\nport = -1\nprot = 1\n", encoding="utf-8")
    for command, exit_code in (("check", 1), ("show", 2)):
        done = shell("config", command, "--config", str(file), **HOME)
        assert done.returncode == exit_code
        assert done.stdout == ""
        assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["joulegate:"] * 2
    report = json.loads(shell("config", "check", "--json", "--config", str(file), **HOME).stdout)
    assert report["ok"] is False
    assert len(report["faults"]) == 2
    file.write_text("[http]\nport = 1\n", encoding="utf-8")
    done = shell("config", "check", "--config", str(file), JOULEGATE_HTPP="1", **HOME)
    assert (done.returncode, done.stdout) == (0, f"{file}: no fault found\n")
    assert "JOULEGATE_HTPP: not a setting, ignored" in done.stderr
    done = shell("config", "show", "--json", "--config", str(file), **HOME)
    assert json.loads(done.stdout)["http"]["port"] == 1

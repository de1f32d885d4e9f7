"""``joulegate advise``: one line in, one line out, whatever the lines are."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.advise.recordings import CALL, SETTINGS, advise, environment, lines, observations

from joulegate.cli.advise import LINE_BYTES, printable
from joulegate.throttle.adviser import Adviser
from joulegate.throttle.wire import encode

ONE = next(observations(1))


def answers(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    """The recommendations of a run that went well."""
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def bad_notes(answer: dict[str, Any]) -> list[str]:
    """Why a line was not used."""
    return [reason["note"] for reason in answer["reasons"] if reason["code"] == "BAD_INPUT"]


def test_each_line_gets_what_the_adviser_says():
    """The output is that of the library, line for line and byte for byte, and again the same in a second run."""
    adviser = Adviser(SETTINGS)
    wanted = b"".join(encode(adviser.advise(one)).encode() + b"\n" for one in observations(60))
    assert advise(given=lines(60)).stdout == wanted
    assert advise(given=lines(60)).stdout == wanted
    assert b'"binding":"thermal"' in wanted


def test_lines_that_cannot_be_used_each_get_one_answer():
    """Empty, broken, foreign, undecodable and endless lines repeat the last limits, and good lines after them count."""
    good = [json.dumps(one).encode() for one in observations(4)]
    huge = b'{"t": 2, "devices": [{"id": "' + b"x" * (LINE_BYTES + 5) + b'"}]}'
    deep = b"[" * 200_000
    rest = [b"", b"{", b"\xff\xfe", b'{"t":1,"devices":[{"id":"\\\xff"}]}', b"[]", deep, huge, b'{"t":1e999}']
    given = b"\n".join([good[0], *rest, good[1], *rest, good[2], good[3]])
    found = answers(advise(given=given))
    assert len(found) == 4 + 2 * len(rest)
    bad = [index for index, answer in enumerate(found) if bad_notes(answer)]
    assert bad == [*range(1, 9), *range(10, 18)]
    for index in bad:
        before = found[0] if index < 9 else found[9]
        for member in ("tiers", "max_images_per_minute", "power_cap_w", "state", "binding"):
            assert found[index][member] == before[member]
    assert found[-1]["t"] == 3.0
    assert len({answer["decision_id"] for answer in found}) == len(found)


def test_a_last_line_without_newline_is_answered():
    """The end of the input also ends a line."""
    assert [answer["t"] for answer in answers(advise(given=lines(2)[:-1]))] == [0.0, 1.0]
    assert answers(advise(given=b"")) == []


def test_answers_come_before_the_next_line_is_there():
    """Each answer is flushed: a simulator may wait for it before it goes on."""
    command = [sys.executable, "-c", CALL, "advise"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for one in observations(3):
            process.stdin.write(json.dumps(one).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["t"] == one["t"]
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_reader_that_goes_away_ends_it_quietly():
    """A closed stdout is no fault to complain about."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", CALL, "advise"],
        input=lines(3),
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_ends_it_quietly():
    """Ctrl-C while it waits for a line: exit 130, no traceback."""
    command = [sys.executable, "-c", CALL, "advise"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines(1))
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_an_endless_line_takes_no_memory():
    """A line of 200 MB is read past, not kept: the process stays small, and the answer says what the line was."""
    code = (
        "import sys; from joulegate.cli.app import main; code = main();"
        # Not getrusage: its high-water mark is inherited from the process that forked, which may be any size.
        "status = open('/proc/self/status').read(); print(status.split('VmHWM:')[1].split()[0], file=sys.stderr);"
        "sys.exit(code)"
    )
    piece, pieces = b"y" * (1 << 20), 200
    with subprocess.Popen(
        [sys.executable, "-c", code, "advise"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        stdin = process.stdin
        assert stdin is not None

        def write() -> None:
            for _ in range(pieces):
                stdin.write(piece)
            stdin.write(b"\n" + lines(1))
            stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read().splitlines(), process.stderr.read()
        writer.join()
    assert len(out) == 2
    assert int(err) < 150_000
    assert json.loads(out[1])["t"] == 0.0


def test_long_lines_are_told_apart(tmp_path: Path):
    """What a line was that is too long to keep is said by its length and hash, so that the trail can be recomputed."""
    log = tmp_path / "log"
    long = b"z" * (LINE_BYTES + 1)
    answers(advise("--record", str(log), given=long + b"\n" + long + b"z"))
    kept = [json.loads(line).get("line") for line in log.read_text().splitlines()]
    assert kept[1:] == [
        f"a line of {len(content)} bytes (sha256 {hashlib.sha256(content).hexdigest()}), more than {LINE_BYTES}"
        for content in (long, long + b"z")
    ]


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ('[throttle]\nactuators = ["fan"]\n', "throttle.actuators"),
        ('[[throttle.tiers]]\nname = "a"\nquota = "many"\n', "throttle.tiers"),
        ("[throttle]\nmargin_k = 1\n", "margin_k"),
        ("[throttle\n", "not TOML"),
    ],
)
def test_a_bad_configuration(tmp_path: Path, toml: str, named: str):
    """A configuration that cannot be used: lines that name it, exit 2, nothing on stdout and no log."""
    config, log = tmp_path / "advise.toml", tmp_path / "log"
    config.write_text(toml)
    done = advise("--config", str(config), "--record", str(log), given=lines(2))
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode()
    assert done.stderr.decode().startswith("joulegate: ")
    assert not log.exists()


def test_the_configuration_is_used(tmp_path: Path):
    """Tiers and actuators come from the file that the daemon uses too; other tables may stand in it."""
    config = tmp_path / "advise.toml"
    config.write_text('[throttle]\nactuators = ["rate"]\n[[throttle.tiers]]\nname = "only"\n[twin]\ngpus = 2\n')
    found = answers(advise("--config", str(config), given=lines(60)))
    assert {tuple(answer["tiers"]) for answer in found} == {("only",)}
    assert {len(answer["power_cap_w"]) for answer in found} == {0}


def test_a_log_is_not_overwritten(tmp_path: Path):
    """An existing file is kept unless --force is given."""
    log = tmp_path / "log"
    log.write_text("precious")
    done = advise("--record", str(log), given=lines(1))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--force" in done.stderr
    assert log.read_text() == "precious"
    assert len(answers(advise("--record", str(log), "--force", given=lines(1)))) == 1
    assert log.read_text() != "precious"


@pytest.mark.parametrize(
    "arguments",
    [("--force",), ("--table", "--json"), ("--verify", "x", "--record", "y"), ("--verify", "x", "--table")],
)
def test_options_that_contradict(arguments: tuple[str, ...]):
    """Options that make no sense together: one line, exit 2."""
    done = advise(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1


def test_the_table_is_for_a_terminal():
    """A line each with the sentence, and nothing in it that a device's name could steer the terminal with."""
    observed = [{**one, "devices": [{**one["devices"][0], "id": "\x1b[2J\ud800"}]} for one in observations(60)]
    given = b"".join(json.dumps(one).encode() + b"\n" for one in observed) + b"nonsense\n"
    done = advise("--table", given=given)
    assert done.returncode == 0
    heading, *rows = done.stdout.decode().splitlines()
    assert heading.split()[:3] == ["t", "state", "binding"]
    assert len(rows) == 61
    assert rows[59].split()[:3] == ["59.0", "critical", "thermal"]
    assert "?[2J?" in rows[59]
    assert "not JSON" in rows[60]
    assert all(line.isprintable() for line in rows)


def test_printable_keeps_words():
    """Only what is no letter, sign or space is replaced."""
    assert printable("a\x00b\nc é\x7f") == "a?b c é?"

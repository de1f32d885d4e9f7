"""``joulegate advise``: lines in, lines out."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.throttle_contract.plant import Run
from tests.throttle_contract.program import CONFIG, Conversation, advise, batch, write_config
from tests.throttle_contract.promises import (
    Talk,
    about,
    codes,
    device,
    limits_only,
    observation,
    steady,
    strict_json,
    without_id,
)

from joulegate.throttle.settings import ThrottleSettings, Tier


def with_t(t: Any) -> dict[str, Any]:
    """A good observation but for its time."""
    return observation(2.5) | {"t": t}


UNUSABLE: dict[str, str] = {
    "empty": "",
    "blank": "   \t",
    "not JSON": "{t: 1",
    "cut short": json.dumps(observation(2.5))[:-3],
    "two values": '{"t": 2.5} {"t": 2.6}',
    "null": "null",
    "number": "3",
    "text": '"devices"',
    "list": json.dumps([observation(2.5)]),
    "true": "true",
    "empty object": "{}",
    "no devices key": json.dumps({"t": 2.5, "queue": {}}),
    "no device": json.dumps(observation(2.5, [])),
    "devices null": json.dumps({"t": 2.5, "devices": None}),
    "devices an object": json.dumps({"t": 2.5, "devices": {"id": "GPU-0"}}),
    "devices a text": json.dumps({"t": 2.5, "devices": "GPU-0"}),
    "devices without ids": json.dumps({"t": 2.5, "devices": [{"temperature_c": 99}, None, 3, "GPU-0"]}),
    "devices with ids that are no text": json.dumps({"t": 2.5, "devices": [device(7), device(None), device([])]}),  # type: ignore[arg-type]
    "t missing": json.dumps({"devices": [device()]}),
    "t null": json.dumps(with_t(None)),
    "t true": json.dumps(with_t(True)),
    "t text": json.dumps(with_t("2.5")),
    "t list": json.dumps(with_t([2.5])),
    "t NaN": json.dumps(with_t(float("nan"))),
    "t infinite": json.dumps(with_t(float("inf"))),
    "t minus infinite": json.dumps(with_t(float("-inf"))),
    "t too large for a float": json.dumps(observation(2.5)).replace('"t": 2.5', '"t": 1' + "0" * 400),
    "t of five thousand digits": json.dumps(observation(2.5)).replace('"t": 2.5', '"t": 1' + "0" * 5000),
    "t 1e999": json.dumps(observation(2.5)).replace('"t": 2.5', '"t": 1e999'),
    "t the same": json.dumps(observation(2.0)),
    "t before": json.dumps(observation(1.999)),
    "t far before": json.dumps(observation(-1e300)),
    "nested without end": "[" * 100_000,
    "object nested without end": '{"devices":' * 100_000,
    "a null byte": "\x00",
    "lone surrogate": '"\\ud800"',
}


def hot(t: float, **changes: Any) -> dict[str, Any]:
    """An observation of a host that is held: hot, demand above everything."""
    many = {"images_done": 1, "arrivals": {"pro": 1, "plus": 1, "free": 8}, "queue": {"pro": 0, "plus": 0, "free": 9}}
    return observation(t, steady(t, 85, 520.0), **(many | changes))


def test_answers_each_line_before_the_next(config: Path) -> None:
    """Every line is answered, in order, before the next is asked, whatever came before; the end of input ends it."""
    asked = [*UNUSABLE.values()][:12]
    with Conversation(config) as talk:
        answers = []
        for k, bad in enumerate(asked):
            answers.append(talk.ask(json.dumps(hot(float(k))).encode()))
            assert answers[-1]["t"] == float(k)
            assert "BAD_INPUT" in codes(talk.ask(bad.encode()))
        status, errors = talk.end()
    assert (status, errors) == (0, b"")
    assert len({answer["decision_id"] for answer in answers}) == len(answers)


def test_program_says_what_the_library_says(config: Path, melting: Run) -> None:
    """The program gives for a recorded run what the adviser gives in process, but for the hash."""
    lines = melting.seen[:400]
    tiers = (Tier("pro"), Tier("plus"), Tier("free", 0.02, "3/day"))
    expected = Talk(ThrottleSettings(tiers=tiers)).all(lines)
    assert [without_id(said) for said in advise(config, lines)] == [without_id(said) for said in expected]


def test_bytes_that_are_no_text(config: Path) -> None:
    """Bytes that are not UTF-8, carriage returns and a last line without an end are answered like any other."""
    good = [json.dumps(hot(float(k))).encode() for k in range(4)]
    data = b"\n".join([good[0], b"\xff\xfe{}", good[1] + b"\r", b"\xc3(", good[2], b"", good[3]])
    done = batch(config, data)
    assert done.returncode == 0, done.stderr
    answers = [strict_json(line) for line in done.stdout.decode().splitlines()]
    assert len(answers) == 7
    assert ["BAD_INPUT" in codes(said) for said in answers] == [False, True, False, True, False, True, False]


def test_a_line_of_megabytes(config: Path) -> None:
    """A device name of two megabytes or a thousand devices of nonsense is answered, and so is the line after."""
    lines = [
        hot(0.0),
        observation(1.0, [device("x" * 2_000_000)]),
        observation(2.0, [device(f"GPU-{k}", temperature_c="hot") for k in range(1000)]),
        hot(3.0),
        observation(4.0, [device("x" * 12_000_000)]),
        hot(5.0),
    ]
    answers = advise(config, lines)
    assert len(answers) == 6
    assert [answers[k]["t"] for k in (0, 2, 3, 5)] == [0.0, 2.0, 3.0, 5.0]


def test_a_time_beyond_all_clocks() -> None:
    """A time of 1e300 s is used or refused; either way the next line is answered by the promises."""
    talk = Talk()
    for t in (0.0, 1.0, 1e300, 2.0, 1.5e300):
        talk(hot(t) | {"devices": steady(1.0, 85, 520.0)})


def test_nothing_in_nothing_out(config: Path) -> None:
    """No input gives no output and success."""
    done = batch(config, b"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_reader_that_leaves(config: Path) -> None:
    """A reader that closes its end gets no traceback."""
    lines = "".join(json.dumps(hot(float(k))) + "\n" for k in range(300)).encode()
    with Conversation(config) as talk:
        talk.ask(json.dumps(hot(-1.0)).encode())
        assert talk.process.stdout is not None
        talk.process.stdout.close()
        talk.process.stdout = None
        _, errors = talk.process.communicate(lines, timeout=30)
    assert b"Traceback" not in errors


def test_interrupted(config: Path) -> None:
    """Control-C ends it without a traceback."""
    with Conversation(config) as talk:
        talk.ask(json.dumps(hot(0.0)).encode())
        talk.process.send_signal(signal.SIGINT)
        _, errors = talk.end()
    assert b"Traceback" not in errors


def test_same_input_same_bytes(config: Path, melting: Run) -> None:
    """Two processes over the same input give the same bytes, bad lines included."""
    lines = [json.dumps(seen) for seen in melting.seen[:300]]
    for place, bad in zip(range(10, 300, 8), UNUSABLE.values(), strict=False):
        lines.insert(place, bad.replace("\n", " "))
    data = "\n".join(lines).encode()
    first, second = batch(config, data), batch(config, data)
    assert first.stdout == second.stdout
    assert first.stdout.count(b"\n") == len(lines)


def test_recorded_log_is_recomputed(config: Path, tmp_path: Path, melting: Run) -> None:
    """A recorded log verifies bit for bit; one changed figure, in what was seen or in what was said, does not."""
    log = tmp_path / "log.jsonl"
    data = "".join(json.dumps(seen) + "\n" for seen in melting.seen[:250]).encode()
    assert batch(config, data + b"nonsense\n" + data[:50] + b"\n", ["--record", str(log)]).returncode == 0
    assert batch(config, b"", ["--verify", str(log)]).returncode == 0
    lines = log.read_bytes().splitlines(keepends=True)
    for word in (b'"temperature_c"', b'"burst"'):
        place = max(k for k, line in enumerate(lines) if word in line and k < len(lines) // 2)
        at = lines[place].index(word) + len(word)
        digit = next(k for k in range(at, at + 9) if lines[place][k : k + 1].isdigit())
        other = b"7" if lines[place][digit : digit + 1] != b"7" else b"6"
        forged = lines[place][:digit] + other + lines[place][digit + 1 :]
        log.write_bytes(b"".join([*lines[:place], forged, *lines[place + 1 :]]))
        done = batch(config, b"", ["--verify", str(log)])
        assert done.returncode == 1, (word, done.stdout)
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        ('["rate", "power_cap"]', '["rate"]'),
        ("floor = 0.02", "floor = 0.03"),
        ('quota = "3/day"', 'quota = "4/day"'),
        ("[throttle]", "[throttle]\nhost_power_limit_w = 9000.0"),
    ],
)
def test_other_configuration_other_hash(change: tuple[str, str]) -> None:
    """A different configuration gives a different decision id, even where the limits are the same."""

    def settings(text: str) -> ThrottleSettings:
        return ThrottleSettings(
            tiers=(
                Tier("pro"),
                Tier("plus"),
                Tier("free", 0.03 if "0.03" in text else 0.02, "4/day" if "4/day" in text else "3/day"),
            ),
            actuators=("rate", "power_cap") if "power_cap" in text else ("rate",),
            host_power_limit_w=9000.0 if "9000" in text else None,
        )

    plain, changed = settings(CONFIG), settings(CONFIG.replace(*change))
    assert Talk(plain)(observation(0.0))["decision_id"] != Talk(changed)(observation(0.0))["decision_id"]
    assert Talk(plain)(observation(0.0))["decision_id"] == Talk(settings(CONFIG))(observation(0.0))["decision_id"]


def test_hash_tells_histories_apart() -> None:
    """The same observation after another history has another decision id; a bad line is part of the history."""
    first, second, third = Talk(), Talk(), Talk()
    first(observation(0.0))
    second(observation(0.5))
    third(observation(0.0))
    third.line("nonsense")
    ids = {talk(observation(1.0))["decision_id"] for talk in (first, second, third)}
    assert len(ids) == 3


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_line_changes_nothing(kind: str) -> None:
    """A line that cannot be used repeats the last limits with BAD_INPUT, and later ones are as if it had not been."""
    with_bad, without = Talk(), Talk()
    for k in range(3):
        last = with_bad(hot(float(k)))
        without(hot(float(k)))
    bad = with_bad.line(UNUSABLE[kind])
    assert "BAD_INPUT" in codes(bad)
    assert limits_only(bad) == limits_only(last)
    assert (bad["state"], bad["binding"]) == (last["state"], last["binding"])
    assert bad["decision_id"] != last["decision_id"]
    for k in range(3, 40):
        assert without_id(with_bad(hot(float(k)))) == without_id(without(hot(float(k))))


@pytest.mark.parametrize("kind", ["not JSON", "no device", "t NaN", "list"])
def test_unusable_line_first(kind: str) -> None:
    """Before anything was seen, a bad line gets an answer: unknown, BAD_INPUT, and nothing is remembered of it."""
    talk, fresh = Talk(), Talk()
    said = talk.line(UNUSABLE[kind])
    assert said["state"] == "unknown"
    assert "BAD_INPUT" in codes(said)
    assert without_id(talk(observation(0.0))) == without_id(fresh(observation(0.0)))


def test_bad_lines_only() -> None:
    """However many bad lines come, the limits stay, and the reason is named each time, not gathered."""
    talk = Talk()
    last = talk(hot(5.0))
    for _ in range(50):
        said = talk.line("}{")
        assert limits_only(said) == limits_only(last)
        assert len(about(said, "BAD_INPUT")) == 1


def test_time_begins_anywhere() -> None:
    """The first time may be negative, zero or large: only differences count."""
    runs = []
    for start in (0.0, -1000.0, 1_700_000_000.0):
        talk = Talk()
        runs.append(
            [limits_only(talk(hot(0.0) | {"t": start + k, "devices": steady(k, 85, 520.0)})) for k in range(60)]
        )
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    "text",
    [
        "[throttle\n",
        '[throttle]\nactuators = ["fan"]\n',
        "[throttle]\nactuators = []\n",
        '[[throttle.tiers]]\nname = "a"\n[[throttle.tiers]]\nname = "a"\n',
        '[[throttle.tiers]]\nname = "a"\nfloor = 1.5\n',
        '[[throttle.tiers]]\nname = "a"\nfloor = -0.1\n',
        '[[throttle.tiers]]\nname = "a"\nfloor = 0.6\n[[throttle.tiers]]\nname = "b"\nfloor = 0.6\n',
        "[[throttle.tiers]]\nfloor = 0.1\n",
        '[[throttle.tiers]]\nname = "a"\nquota = "three a day"\n',
        "[throttle]\nhost_power_limit_w = nan\n",
        "[throttle]\nhost_power_limit_w = -5\n",
    ],
)
def test_bad_configuration(tmp_path: Path, text: str) -> None:
    """A configuration that cannot hold is one line on standard error and exit 2, before any line is read."""
    done = batch(write_config(tmp_path, text), json.dumps(observation(0.0)).encode())
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert b"advise.toml" in done.stderr or b"throttle" in done.stderr


def test_missing_configuration(tmp_path: Path) -> None:
    """A file that is not there is named, exit 2."""
    done = batch(tmp_path / "none.toml", b"")
    assert done.returncode == 2
    assert b"none.toml" in done.stderr
    assert b"Traceback" not in done.stderr

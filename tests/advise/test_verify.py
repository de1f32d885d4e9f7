"""``joulegate advise --verify``: a log that was touched anywhere is found out, and told in one line a kind."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.advise.recordings import BASE_EVERY, CODE, advise, chained, lines, rehashed

from joulegate.cli.app import main
from joulegate.stores.trail_records import decided_of, hash_of
from joulegate.stores.trail_verify import Outcome, Verifier
from joulegate.throttle.adviser import Adviser
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.wire import encode

COUNT = 35
RECORDED = chained(COUNT)
Records = list[dict[str, Any]]


def verified(found: Records, code: dict[str, str] | None = None) -> Outcome:
    """What the verifier says of these records."""
    verifier = Verifier(CODE if code is None else code)
    for number, record in enumerate(found, start=1):
        verifier.take(record, f"log:{number}")
    return verifier.outcome


def test_an_untouched_log_is_the_same_bit_for_bit():
    """Every decision is recomputed and equal, over bases in between."""
    outcome = verified(RECORDED)
    assert (outcome.decisions, outcome.recomputed, outcome.bases) == (COUNT, COUNT, 4)
    assert outcome.ok
    assert not outcome.notes


@pytest.mark.parametrize("start", [BASE_EVERY + 1, 2 * (BASE_EVERY + 1)])
def test_a_log_can_begin_at_any_base(start: int):
    """A segment verifies alone: the base restores the model."""
    part = RECORDED[start:]
    assert part[0]["kind"] == "base"
    outcome = verified(part)
    assert outcome.ok
    assert outcome.recomputed == sum(record["kind"] == "decision" for record in part)


def test_what_has_no_base_before_it_is_not_called_good():
    """A part that begins between bases: its chain is checked, and as not all could be recomputed, it is not ok."""
    outcome = verified(RECORDED[5:])
    assert not outcome.ok
    assert not outcome.differences
    assert outcome.decisions - outcome.recomputed == 6


def decision(found: Records, number: int) -> dict[str, Any]:
    """Decision ``number`` of the records."""
    return next(r for r in found if r["kind"] == "decision" and r["sequence"] == number)


def change_member(found: Records) -> None:
    """Change what was sent."""
    decision(found, 7)["recommendation"]["tiers"]["free"]["admit_fraction"] = 0.5


def change_input(found: Records) -> None:
    """Change what was seen."""
    decision(found, 7)["observation"]["devices"][0]["temperature_c"] = 40


def change_int_to_float(found: Records) -> None:
    """Change 71 to 71.0, which Python calls equal."""
    decision(found, 7)["observation"]["devices"][0]["temperature_c"] *= 1.0


def change_float_to_int(found: Records) -> None:
    """Change 10.0 to 10 in what was sent."""
    decision(found, 7)["recommendation"]["ttl_s"] = int(decision(found, 7)["recommendation"]["ttl_s"])


def change_model(found: Records) -> None:
    """Change what the adviser knew."""
    found[BASE_EVERY + 1]["checkpoint"]["memory"]["devices"]["GPU-0"]["max_w"] = 900.0


def change_settings(found: Records) -> None:
    """Change what was configured."""
    found[0]["configuration"]["margin_c"] = 0.0


def remove_one(found: Records) -> None:
    """Remove a record."""
    del found[4]


def swap_two(found: Records) -> None:
    """Put two records in each other's place."""
    found[4], found[5] = found[5], found[4]


def repeat_one(found: Records) -> None:
    """Put a record there twice."""
    found.insert(4, found[4])


def put_a_stranger(found: Records) -> None:
    """Put something else in a record's place."""
    found[4] = {"hello": "world"}


TOUCHES: list[tuple[Callable[[Records], None], set[str], set[str]]] = [
    (change_member, {"hash"}, {"recommendation"}),
    (change_input, {"hash", "recommendation"}, {"recommendation", "checkpoint"}),
    (change_float_to_int, {"hash", "recommendation"}, {"recommendation"}),
    (change_int_to_float, {"hash", "recommendation"}, {"recommendation", "checkpoint"}),
    (change_model, {"hash", "checkpoint"}, {"checkpoint"}),
    (change_settings, {"hash", "configuration", "recommendation"}, {"configuration", "recommendation"}),
    (remove_one, {"chain", "sequence"}, {"sequence"}),
    (swap_two, {"chain", "sequence"}, {"sequence"}),
    (repeat_one, {"chain", "sequence"}, {"sequence"}),
    (put_a_stranger, {"format", "chain", "sequence"}, set()),
]


@pytest.mark.parametrize(("touch", "plain", "forged"), TOUCHES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_touch_is_found(touch: Callable[[Records], None], plain: set[str], forged: set[str]):
    """A change shows in the hashes, and where all hashes were written anew, in what is recomputed."""
    found = copy.deepcopy(RECORDED)
    touch(found)
    outcome = verified(found)
    assert not outcome.ok
    assert plain <= set(outcome.differences)
    if forged:
        again = copy.deepcopy(RECORDED)
        touch(again)
        outcome = verified(rehashed(again))
        assert not outcome.ok
        assert forged <= set(outcome.differences)


def test_the_first_difference_of_a_kind_is_told():
    """The line names the sequence, the member, and both values; later ones of its kind are counted."""
    found = copy.deepcopy(RECORDED)
    decision(found, 7)["recommendation"]["tiers"]["free"]["burst"] = 99.5
    decision(found, 9)["recommendation"]["state"] = "another"
    first = verified(rehashed(found)).differences["recommendation"]
    assert (first.sequence, first.count) == (7, 2)
    real = decision(RECORDED, 7)["recommendation"]["tiers"]["free"]["burst"]
    assert first.what == f"tiers.free.burst: recorded 99.5, recomputed {real}"


def test_a_gap_that_the_trail_names_is_no_difference():
    """Decisions lost to a full disk: the base that names them keeps the log good, and one that does not, does not."""
    found = copy.deepcopy(RECORDED)
    base = next(index for index, r in enumerate(found) if r["kind"] == "base" and r["sequence"] == 11)
    del found[base - 3 : base]
    unnamed = verified(rehashed(copy.deepcopy(found)))
    assert set(unnamed.differences) >= {"sequence"}
    found[base - 3] |= {"gap": "3 decisions were not written: No space left on device", "why": "gap"}
    outcome = verified(rehashed(found))
    assert outcome.ok
    assert outcome.gaps == ["before 11: 3 decisions were not written: No space left on device"]


def test_a_gap_does_not_excuse_going_back():
    """A base that names a gap and a number that was there already: records were put in between."""
    found = copy.deepcopy(RECORDED)
    base = next(r for r in found if r["kind"] == "base" and r["sequence"] == 11)
    base |= {"gap": "3 decisions were not written", "why": "gap", "sequence": 9}
    assert verified(rehashed(found)).differences["sequence"].sequence == 9


def test_many_brackets_are_kept_as_text():
    """Whether deep JSON can be read hangs on the stack of who reads it, so it is never kept as JSON."""
    flat = "[" + ",".join(["[]"] * 900) + "]"
    assert decided_of(1, flat, "{}").line == flat
    assert decided_of(1, "[[]]", "{}").observation == [[]]


def test_other_code_and_configuration_are_named():
    """Other code is a note, said once; another configuration than the one given is a difference."""
    outcome = verified(RECORDED, {**CODE, "throttle": "f" * 64})
    assert outcome.ok
    assert len(outcome.notes) == 1
    assert "throttle abc there, ffffffffffff here" in outcome.notes[0]
    verifier = Verifier(CODE, configuration_hash="0" * 64)
    for record in RECORDED:
        verifier.take(record, "log")
    assert set(verifier.outcome.differences) == {"configuration"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
HOSTILE = st.one_of(
    JSON.map(json.dumps),
    st.text(),
    st.builds(
        lambda t, device: json.dumps({"t": t, "devices": [device]}),
        st.floats(),
        st.dictionaries(st.sampled_from(["id", "up", "energy_j", "temperature_c", "power_w"]), JSON),
    ),
)


@settings(max_examples=40)
@given(st.lists(HOSTILE, min_size=1, max_size=8))
def test_whatever_is_observed_can_be_recorded_and_recomputed(texts: list[str]):
    """For any lines, what is kept of them gives the same recommendations again, by way of the file's text."""
    told = [text.replace("\n", " ") for text in texts]
    adviser, again = Adviser(ThrottleSettings()), Adviser(ThrottleSettings())
    for number, line in enumerate(told, start=1):
        sent = encode(adviser.advise_line(line))
        kept = json.loads(json.dumps(decided_of(number, line, sent).members(), allow_nan=False))
        made = again.advise_line(kept["line"]) if "line" in kept else again.advise(kept["observation"])
        assert encode(made) == sent


# The command


def write(path: Path, found: Records) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path


def test_the_command_verifies_what_it_recorded(tmp_path: Path):
    """Recorded, with bad lines among them, then verified: exit 0 and one line, from a file or packed from stdin."""
    config, log = tmp_path / "advise.toml", tmp_path / "log.jsonl"
    config.write_text("[throttle]\nmargin_c = 2.5\n")
    given = lines(5) + b"nonsense\n\n\xff\n[[[\n" + b"{" * 5000 + b'\n{"t":NaN}\n' + lines(9)
    made = advise("--config", str(config), "--record", str(log), given=given)
    assert made.returncode == 0
    count = len(made.stdout.splitlines())
    done = advise("--config", str(config), "--verify", str(log))
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        done.stdout.decode() == f"{log}: {count} of {count} decisions are the same bit for bit, and the chain holds\n"
    )
    piped = advise("--verify", "-", "--json", given=gzip.compress(log.read_bytes()))
    assert json.loads(piped.stdout) == {
        "ok": True,
        "decisions": count,
        "recomputed": count,
        "bases": 1,
        "gaps": [],
        "notes": [],
        "differences": [],
    }
    config.write_text("[throttle]\nmargin_c = 2.6\n")
    other = advise("--config", str(config), "--verify", str(log))
    assert (other.returncode, other.stdout) == (1, b"")
    assert b"configuration" in other.stderr


def test_the_command_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Exit 1, one line for each kind with its place, and the same as JSON."""
    found = copy.deepcopy(RECORDED)
    change_member(found)
    log = write(tmp_path / "log.jsonl", found)
    assert main(["advise", "--verify", str(log)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[4].strip() for line in err.splitlines() if "sequence 7" in line] == [
        "hash",
        "recommendation",
    ]
    assert main(["advise", "--verify", str(log), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert not summary["ok"]
    assert [(one["kind"], one["sequence"]) for one in summary["differences"]] == [("hash", 7), ("recommendation", 7)]


@pytest.mark.parametrize("indent", [None, 2])
def test_downloads_are_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str], indent: int | None):
    """Pages as the endpoint gives them, one a line or one over many lines, and a plain list."""
    whole = tmp_path / "page.json"
    whole.write_text(json.dumps({"items": RECORDED, "next": None}, indent=indent))
    assert main(["advise", "--verify", str(whole)]) == 0
    whole.write_text(json.dumps(RECORDED, indent=indent))
    assert main(["advise", "--verify", str(whole)]) == 0
    pages = [{"items": RECORDED[:9], "next": "8"}, {"items": RECORDED[9:], "next": None}]
    whole.write_text("".join(json.dumps(page) + "\n" for page in pages))
    assert main(["advise", "--verify", str(whole)]) == 0
    assert capsys.readouterr().out.count(f"{COUNT} of {COUNT} decisions") == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no decision"),
        (b"hello\n", "it is not JSON"),
        (b"{\n", "neither JSON Lines nor JSON"),
        (b"\x1f\x8bxx", "cannot be read"),
        (b"[1, 2]\n", "not a record of a trail"),
    ],
)
def test_what_is_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str):
    """A file that is no log is one clear line, never a traceback, and never good."""
    log = tmp_path / "log"
    log.write_bytes(content)
    assert main(["advise", "--verify", str(log)]) in {1, 2}
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_a_missing_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A path that is not there: one line, exit 2."""
    assert main(["advise", "--verify", str(tmp_path / "nothing")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_half_a_last_line_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A log that is still written to, or was cut by a kill, is good up to there."""
    log = write(tmp_path / "log", RECORDED)
    log.write_text(log.read_text()[:-40])
    assert main(["advise", "--verify", str(log)]) == 0
    assert "half a line" in capsys.readouterr().out


def test_hash_is_over_everything_else():
    """The hash of a record is SHA-256 over its other members with sorted keys: anyone can compute it."""
    import hashlib

    record = copy.deepcopy(RECORDED[3])
    told = record.pop("hash")
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == told == hash_of(RECORDED[3])

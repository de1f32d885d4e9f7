"""The trail on disk: segments, bounds, kills, torn ends, full disks; and that nobody waits for it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.advise.recordings import CODE, ROOT, SETTINGS, environment, records

from joulegate.stores.trail import DecisionTrail
from joulegate.stores.trail_files import TrailFault, lines_of, pack, segments_of
from joulegate.stores.trail_input import given_in
from joulegate.stores.trail_reader import TrailReader
from joulegate.stores.trail_records import Base, Decided, Why
from joulegate.stores.trail_verify import Outcome, Verifier, replay
from joulegate.throttle.adviser import Adviser, settings_hash
from joulegate.throttle.wire import encode

SEGMENT_BYTES = 64 * 1024
"""The least, and some twenty decisions of these recordings."""

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def made() -> list[Base | Decided]:
    """Two hundred decisions with a base before every tenth."""
    return list(records(200))


def written(folder: Path, made: list[Base | Decided], *, most_bytes: int = 10**8) -> DecisionTrail:
    """A trail of these records, closed."""
    trail = DecisionTrail(folder, most_bytes, segment_bytes=SEGMENT_BYTES)
    trail.start()
    for record in made:
        assert trail.append(record)
    assert trail.close()
    return trail


def verified(folder: Path) -> Outcome:
    """What ``--verify`` says of the folder."""
    verifier = Verifier(CODE)
    for given in given_in(folder):
        if given.why is None:
            verifier.take(given.record, given.where)
        elif given.torn:
            verifier.outcome.notes.append("torn")
        else:
            verifier.unreadable(given.where, given.why)
    return verifier.outcome


def sequences(folder: Path) -> list[int]:
    """Sequences of the decisions on disk."""
    found = [json.loads(line) for segment in segments_of(folder) for line in lines_of(segment)]
    return [record["sequence"] for record in found if record["kind"] == "decision"]


def until(holds: Callable[[], bool]) -> None:
    """Wait for the trail's thread."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def test_segments_are_packed_and_verify_alone_and_together(tmp_path: Path, made: list[Base | Decided]):
    """Every finished segment is compressed, begins with a base, and verifies by itself; the folder does as a whole."""
    trail = written(tmp_path, made)
    assert trail.state.written == len(made)
    assert (trail.state.error, trail.state.lost) == (None, 0)
    segments = segments_of(tmp_path)
    assert len(segments) > 4
    assert [segment.packed for segment in segments] == [True] * (len(segments) - 1) + [False]
    assert gzip.decompress(segments[0].path.read_bytes()).startswith(b'{"sequence":1,"kind":"base"')
    assert sequences(tmp_path) == list(range(1, 201))
    outcome = verified(tmp_path)
    assert outcome.ok
    assert outcome.decisions == 200
    assert all(verified(segment.path).ok for segment in segments)


def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path, made: list[Base | Decided]):
    """What is kept of a run brings an adviser to where it was; what follows joins, and the whole verifies."""
    written(tmp_path, made[:95])
    trail = DecisionTrail(tmp_path, 10**8, segment_bytes=SEGMENT_BYTES)
    kept = trail.kept
    last = made[94]
    assert isinstance(last, Decided)
    assert (kept.sequence, kept.base and kept.base["sequence"]) == (last.sequence, 81)
    assert [one["sequence"] for one in kept.decisions] == list(range(81, last.sequence + 1))
    assert kept.base is not None
    adviser = Adviser.restored(SETTINGS, kept.base["checkpoint"])
    for one in kept.decisions:
        newest = replay(adviser, one)
    assert encode(newest) == last.recommendation
    trail.start()
    sequence = kept.sequence + 1
    checkpoint = adviser.checkpoint()
    assert trail.append(Base(sequence, Why.RESTORED, CODE, SETTINGS, settings_hash(SETTINGS), checkpoint))
    rest = [record for record in made[95:] if isinstance(record, Decided)]
    assert all(trail.append(record) for record in rest)
    assert trail.close()
    assert sequences(tmp_path) == list(range(1, 201))
    assert verified(tmp_path).ok
    assert DecisionTrail(tmp_path / "other", 10**8).kept.sequence == 0


def test_the_oldest_goes_when_the_bound_is_reached(tmp_path: Path, made: list[Base | Decided]):
    """The folder stays within its bound, what went is counted, and the rest still verifies."""
    trail = written(tmp_path, made, most_bytes=SEGMENT_BYTES + 12_000)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size <= 2 * SEGMENT_BYTES
    assert trail.state.dropped_segments > 0
    kept = sequences(tmp_path)
    assert kept == list(range(kept[0], 201))
    assert kept[0] > 1
    assert verified(tmp_path).ok


@pytest.mark.parametrize(
    "end", [b'{"sequence":201,"kind":"dec', b"\0" * 4096, b"\0" * 100 + b"\n", b'{"a":1}\n', b"\n"]
)
def test_a_torn_end_is_cut(tmp_path: Path, made: list[Base | Decided], end: bytes):
    """Half a record, or what a power cut leaves of one, is cut off and counted; the last whole one stays."""
    written(tmp_path, made[:50])
    last = segments_of(tmp_path)[-1].path
    whole = last.read_bytes()
    last.write_bytes(whole + end)
    trail = DecisionTrail(tmp_path, 10**8)
    assert trail.state.cut_bytes == len(end)
    assert last.read_bytes() == whole
    assert trail.kept.sequence == made[49].sequence


def test_damage_in_the_middle_stays_for_verify(tmp_path: Path, made: list[Base | Decided]):
    """Only the end is mended: a record that was changed is evidence, is not learned from, and is named."""
    written(tmp_path, made[:9])
    (segment,) = segments_of(tmp_path)
    changed = segment.path.read_bytes().replace(b'"images_done":1.0', b'"images_done":9.0')
    segment.path.write_bytes(changed)
    trail = DecisionTrail(tmp_path, 10**8)
    assert trail.state.cut_bytes == 0
    assert segment.path.read_bytes() == changed
    assert (trail.kept.base, trail.kept.sequence) == (None, 8)
    assert "hash" in verified(tmp_path).differences


def test_what_a_kill_left_while_packing_is_tidied(tmp_path: Path, made: list[Base | Decided]):
    """Half a compressed file goes, and a plain one beside its whole compressed one; a lone plain one is packed."""
    written(tmp_path, made)
    first, second, *_ = segments_of(tmp_path)
    for segment in (first, second):
        plain = segment.path.with_name(segment.path.name.removesuffix(".gz"))
        plain.write_bytes(gzip.decompress(segment.path.read_bytes()))
    second.path.unlink()
    half = tmp_path / "decisions-000000999999.jsonl.gz.part"
    half.write_bytes(b"\x1f\x8bhalf")
    assert sequences(tmp_path) == list(range(1, 201))
    trail = DecisionTrail(tmp_path, 10**8)
    trail.start()
    assert trail.close()
    assert not half.exists()
    assert [segment.packed for segment in segments_of(tmp_path)[:-1]] == [True] * (len(segments_of(tmp_path)) - 1)
    assert sequences(tmp_path) == list(range(1, 201))
    assert verified(tmp_path).ok


def test_a_segment_is_read_where_it_is_now(tmp_path: Path, made: list[Base | Decided]):
    """One that was packed, or dropped, after it was listed has the same lines, or none."""
    written(tmp_path, made[:9])
    (listed,) = segments_of(tmp_path)
    before = list(lines_of(listed))
    packed = pack(listed)
    assert not listed.path.exists()
    assert list(lines_of(listed)) == list(lines_of(packed)) == before
    packed.path.unlink()
    assert list(lines_of(listed)) == list(lines_of(packed)) == []


def test_a_full_disk_costs_records_and_nobody_else(small_disk: Callable[[str], Path], made: list[Base | Decided]):
    """While the disk is full records are lost and counted; with room again the next base names how many and why."""
    folder = small_disk("400k")
    ballast = folder / "ballast"
    trail = DecisionTrail(folder / "decisions", 10**8, segment_bytes=SEGMENT_BYTES)
    trail.start()
    for record in made[:20]:
        assert trail.append(record)
    until(lambda: trail.state.written == 20)
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(bytes(free - 8192))
    for record in made[20:100]:
        assert trail.append(record)
    until(lambda: trail.state.error is not None and trail._queue.empty())
    assert trail.state.error == os.strerror(28)
    ballast.unlink()
    for record in made[100:]:
        assert trail.append(record)
    assert trail.close()
    assert trail.state.error is None
    missing = set(range(1, 201)) - set(sequences(folder / "decisions"))
    assert 0 < len(missing) == trail.state.lost
    outcome = verified(folder / "decisions")
    assert outcome.ok
    assert outcome.notes == [], "half a record was left"
    assert len(outcome.gaps) == 1
    assert f"{len(missing)} decisions were not written: {os.strerror(28)}" in outcome.gaps[0]


def test_a_folder_that_cannot_be_used_raises_nothing(tmp_path: Path, made: list[Base | Decided]):
    """Where the folder cannot be, the trail says so in its state and takes what it is given all the same."""
    place = tmp_path / "decisions"
    place.write_text("a file is in the way")
    trail = DecisionTrail(place, 10**8)
    trail.start()
    assert all(trail.append(record) for record in made[:30])
    assert trail.close()
    assert trail.state.error is not None
    assert trail.state.written == 0


def test_appending_never_waits(tmp_path: Path, made: list[Base | Decided]):
    """When more waits than is kept in memory, records are refused at once, and the trail names the loss."""
    trail = DecisionTrail(tmp_path, 10**8, queue_records=15)
    taken = [trail.append(record) for record in made[:60]]
    assert taken == [True] * 15 + [False] * 45
    trail.start()
    until(trail._queue.empty)
    for record in made[60:]:
        while not trail.append(record):
            time.sleep(0.001)
    assert trail.close()
    outcome = verified(tmp_path)
    assert outcome.ok
    assert "more waited than are kept in memory" in outcome.gaps[0]
    assert trail.state.lost == 200 - outcome.decisions > 30


def test_kill_9_loses_the_newest_records_only(tmp_path: Path):
    """Killed at any instant, again and again: what is left verifies, and each run goes on where the last one ended."""
    chance = random.Random(5)
    before = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.advise.kill_writer", str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**environment(), "PYTHONPATH": f"{ROOT / 'agent'}{os.pathsep}{ROOT}"},
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline().startswith(b"ready")
            time.sleep(chance.uniform(0.05, 0.3))
            writer.kill()
        DecisionTrail(tmp_path, 10**9)
        found = sequences(tmp_path)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= before
        before = len(found)
    outcome = verified(tmp_path)
    assert outcome.ok
    assert outcome.decisions == before > 20


# Reading


@pytest.fixture
def folder(tmp_path: Path, made: list[Base | Decided]) -> Path:
    """A written trail."""
    written(tmp_path, made)
    return tmp_path


def pages(reader: TrailReader, since: str | None, limit: int) -> Iterator[list[Any]]:
    """Every page from ``since`` on."""
    while True:
        page = asyncio.run(reader.decisions(since, limit))
        yield list(page.items)
        if page.next is None:
            return
        since = page.next


@pytest.mark.parametrize("limit", [1, 7, 11, 1000])
def test_pages_hold_every_record_once(folder: Path, limit: int):
    """Paged through at any size, from the oldest on, every decision comes once, in order, and bases before theirs."""
    found = [record for page in pages(TrailReader(folder), None, limit) for record in page]
    assert [record["sequence"] for record in found if record["kind"] == "decision"] == list(range(1, 201))
    verifier = Verifier(CODE)
    for record in found:
        verifier.take(record, "page")
    assert verifier.outcome.ok


def test_since_is_a_sequence_or_an_id(folder: Path):
    """What comes after a decision can be asked for by its number and by its id; an unknown id is one line."""
    reader = TrailReader(folder)
    (tenth,) = [r for page in pages(reader, "9", 100) for r in page if r["sequence"] == 10 and r["kind"] == "decision"]
    by_id = asyncio.run(reader.decisions(tenth["recommendation"]["decision_id"], 3))
    assert [record["sequence"] for record in by_id.items] == [11, 11, 12, 13]
    assert asyncio.run(reader.decisions("200", 5)).items == []
    assert asyncio.run(reader.decisions("999999999999", 5)).items == []
    with pytest.raises(ValueError, match="no decision 'nonsense' is kept"):
        asyncio.run(reader.decisions("nonsense", 3))


@pytest.mark.parametrize("number", [1, 2, 10, 11, 57, 200])
def test_one_decision_with_its_model(folder: Path, number: int):
    """By its id: the record as it was written, and the model before it, from which it can be made again."""
    reader = TrailReader(folder)
    record = next(r for p in pages(reader, str(number - 1), 50) for r in p if r["kind"] == "decision")
    found = asyncio.run(reader.decision(record["recommendation"]["decision_id"]))
    assert found is not None
    model = found["model"]
    assert {name: value for name, value in found.items() if name != "model"} == record
    again = Adviser.restored(SETTINGS, model).advise(record["observation"])
    assert again.decision_id == record["recommendation"]["decision_id"]
    assert again.explain == record["recommendation"]["explain"]


def test_unknown_decisions_are_none(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """An id that is not there, or is not where ids stand, gives nothing; nor does a folder that is not there."""
    reader = TrailReader(folder)
    for name in ("nothing", "GPU-0", "free", "", '"', "\ud800"):
        assert asyncio.run(reader.decision(name)) is None
    empty = TrailReader(tmp_path_factory.mktemp("empty") / "none")
    assert asyncio.run(empty.decision("x")) is None
    assert asyncio.run(empty.decisions(None, 5)).items == []


def test_reading_while_segments_are_packed(tmp_path: Path, made: list[Base | Decided]):
    """A reader that pages while the writer packs and begins segments misses nothing and repeats nothing."""
    trail = DecisionTrail(tmp_path, 10**8, segment_bytes=SEGMENT_BYTES)
    trail.start()
    feeder = threading.Thread(target=lambda: [trail.append(record) and time.sleep(0.001) for record in made])
    feeder.start()
    reader, found, since = TrailReader(tmp_path), [], None
    until_s = time.monotonic() + PATIENCE_S
    while (not found or found[-1] < 200) and time.monotonic() < until_s:
        page = asyncio.run(reader.decisions(since, 9))
        found += [record["sequence"] for record in page.items if record["kind"] == "decision"]
        since = page.next or (str(found[-1]) if found else None)
    feeder.join()
    assert trail.close()
    assert found == list(range(1, 201))


def test_a_trail_that_cannot_be_read(folder: Path):
    """A damaged segment is one line that names the file."""
    packed = segments_of(folder)[0].path
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(TrailFault, match=packed.name):
        asyncio.run(TrailReader(folder).decisions(None, 500))

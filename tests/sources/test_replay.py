"""A recorded trace played as a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulegate.daemon.ports import Source
from joulegate.metering.reading import Method, Quality, SensorStatus
from joulegate.sources.fault import SourceFault
from joulegate.sources.replay import ReplaySource
from joulegate.sources.trace_csv import TraceFault

TAPE = """device,t_s,energy_mj,power_w,temperature_c,clock_events,utilization
A,1000.0,5000,100,40,1,0
B,1000.5,,50,,,
A,1001.0,105000,,41.0,4,1
A,1002.0,,,,,
B,1002.5,,70,,,0.5
A,1003.0,305000,100,45,4,0.25
"""


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Two devices over three seconds, with a hole in A at 1002 s."""
    path = tmp_path / "tape.csv"
    path.write_text(TAPE)
    return path


def opened(tape: Path, **options: float) -> ReplaySource:
    """A replay that began at 50 s."""
    source = ReplaySource(tape, **options)  # type: ignore[arg-type]
    source.open()
    return source


def test_readings_come_when_their_time_has_passed(tape: Path) -> None:
    """The first drain is the beginning of the tape; readings keep their distance, on the live clock."""
    source: Source = opened(tape)
    (first,) = source.drain(50.0, 9050.0)
    assert (first.device, first.t_s, first.wall_s, first.energy_mj) == ("A", 50.0, 9050.0, 5000)
    assert (first.clock_events, first.temperature_c, first.utilization) == (1, 40.0, 0.0)
    assert source.drain(50.4, 9050.4) == []
    second, third = source.drain(51.0, 9051.0)
    assert (second.device, second.t_s, second.wall_s, second.power_w) == ("B", 50.5, 9050.5, 50.0)
    assert (third.t_s, third.energy_mj, third.power_w) == (51.0, 105000, None)
    assert [reading.t_s for reading in source.drain(99.0, 9099.0)] == [52.0, 52.5, 53.0]


def test_a_hole_in_the_tape_is_a_missing_reading(tape: Path) -> None:
    """A row without any value is down, named and counted, not 0."""
    source = opened(tape)
    source.drain(50.0, 0.0)
    missing = next(reading for reading in source.drain(60.0, 10.0) if reading.t_s == 52.0)
    assert (missing.up, missing.error, missing.energy_mj) == (False, "missing on the tape", None)
    assert source.errors() == {"A": {"missing": 1}}


def test_everything_is_labelled_simulated(tape: Path) -> None:
    """What was measured once is not live: devices and sensors say simulated, and name the file."""
    source = opened(tape)
    assert [(d.id, d.method, d.quality) for d in source.devices()] == [
        ("A", Method.SIMULATED, Quality.SIMULATED),
        ("B", Method.SIMULATED, Quality.SIMULATED),
    ]
    assert {(s.status, str(tape) in s.why) for s in source.sensors()} == {(SensorStatus.SIMULATED, True)}


def test_faster_play_keeps_the_joules(tape: Path) -> None:
    """Ten times as fast, watts are ten times as high, so that counter and power still agree."""
    source = opened(tape, speed=10.0)
    source.drain(50.0, 0.0)
    readings = source.drain(50.31, 0.31)
    assert [round(reading.t_s, 6) for reading in readings] == [50.05, 50.1, 50.2, 50.25, 50.3]
    assert readings[-1].energy_mj == 305000
    assert readings[-1].power_w == 1000.0
    assert readings[-1].temperature_c == 45.0


def test_a_loop_starts_again_and_a_single_pass_ends(tape: Path) -> None:
    """With loop the tape comes round after its length and a mean step; without, it is finished."""
    once = opened(tape)
    assert not once.finished
    assert len(once.drain(0.0, 0.0)) + len(once.drain(1000.0, 0.0)) == 6
    assert once.finished
    assert once.drain(2000.0, 0.0) == []
    again = opened(tape, loop=True)
    again.drain(50.0, 0.0)
    readings = again.drain(54.0, 4.0)
    times = [reading.t_s for reading in readings if reading.device == "A"]
    assert times == pytest.approx([51.0, 52.0, 53.0, 53.6])
    assert [r.energy_mj for r in readings if r.device == "A"] == [105000, None, 305000, 5000]
    assert not again.finished


def test_a_loop_nobody_listened_to_is_not_played_back(tape: Path) -> None:
    """After a long sleep whole passes are skipped and counted, and times never go back."""
    source = opened(tape, loop=True)
    last_s = source.drain(50.0, 0.0)[-1].t_s
    readings = source.drain(50.0 + 3.6 * 100 + 1.0, 0.0)
    assert len(readings) < 12
    assert source.errors()["replay"]["passes_skipped"] == 99
    for reading in readings:
        assert reading.t_s >= last_s
        last_s = reading.t_s


def test_a_lone_reading_loops_once_a_second(tmp_path: Path) -> None:
    """A tape of one instant has no length, and still does not play without end."""
    path = tmp_path / "one.csv"
    path.write_text("device,t_s,power_w\nA,7,5\n")
    source = opened(path, loop=True)
    assert len(source.drain(0.0, 0.0)) == 1
    assert len(source.drain(1.0, 0.0)) == 1


def test_a_bad_tape_is_one_line_with_its_place(tmp_path: Path) -> None:
    """The strict reader's fault comes through, with file, line and column."""
    path = tmp_path / "bad.csv"
    path.write_text("device,t_s,power_w,utilization\nA,1,5,80\n")
    with pytest.raises(TraceFault, match=r"bad\.csv:2: utilization: 80 is over 1"):
        ReplaySource(path).open()


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(tape: Path, speed: float) -> None:
    """Only a finite speed above 0 plays."""
    with pytest.raises(SourceFault, match="speed"):
        ReplaySource(tape, speed=speed)


def test_a_closed_tape_is_silent(tape: Path) -> None:
    """After closing, twice, nothing comes."""
    source = opened(tape)
    source.close()
    source.close()
    assert source.drain(50.0, 0.0) == ()

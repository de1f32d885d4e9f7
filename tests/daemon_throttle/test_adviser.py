"""The throttle adviser in virtual time, over a real trail: beats, publishing, restarts, gaps and defects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.daemon_throttle.scenes import CODE, SETTINGS, WALL_S, Host

from joulegate.daemon.throttle import due
from joulegate.stores.trail import FOLDER
from joulegate.stores.trail_files import lines_of, segments_of
from joulegate.stores.trail_input import given_in
from joulegate.stores.trail_verify import Outcome, Verifier
from joulegate.throttle.adviser import Adviser
from joulegate.throttle.recommendation import Action, Binding, State


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host and the throttle side of its daemon."""
    one = Host(tmp_path)
    yield one
    one.close()


def records(host: Host) -> list[dict[str, Any]]:
    """The whole trail."""
    return [json.loads(line) for segment in segments_of(host.folder / FOLDER) for line in lines_of(segment)]


def verified(host: Host) -> Outcome:
    """What ``--verify`` says of it."""
    verifier = Verifier(CODE)
    for given in given_in(host.folder / FOLDER):
        verifier.take(given.record, given.where)
    return verifier.outcome


def newest(host: Host):
    """The newest recommendation."""
    shown = host.board.newest()
    assert shown is not None
    return shown.recommendation


def test_each_second_is_advised_and_recorded(host: Host):
    """Every turn is one decision of the trail, with a base each minute, and all of it verifies."""
    host.run(130)
    host.stop()
    found = records(host)
    assert [r["sequence"] for r in found if r["kind"] == "decision"] == list(range(1, 131))
    assert [(r["sequence"], r["why"]) for r in found if r["kind"] == "base"] == [
        (1, "start"),
        (61, "continued"),
        (121, "continued"),
    ]
    assert verified(host).ok
    assert found[1]["observation"]["t"] == pytest.approx(1001.0 + WALL_S, abs=0.01)


def test_it_publishes_at_the_readers_beat(host: Host):
    """While nothing falls, one is shown every five seconds, numbered without gaps."""
    host.run(5)
    first = host.board.newest().sequence
    host.run(60, power_w=100.0)
    shown = host.board.after(first)
    assert [one.sequence for one in shown] == list(range(first + 1, first + 1 + len(shown)))
    assert len(shown) == pytest.approx(12, abs=3)


def test_a_fall_is_shown_at_once(host: Host):
    """A device that is suddenly hot is capped in the very turn that sees it."""
    host.run(41)
    before = host.board.newest().sequence
    host.temperature_c = 88.0
    host.run(1)
    assert host.board.newest().sequence == before + 1
    assert newest(host).state in {State.CRITICAL, State.EMERGENCY}
    assert newest(host).power_cap_w


RECOMMENDED = replace(Adviser(SETTINGS).advise(None), state=State.NOMINAL, binding=None, admit_fraction=1.0)


def with_free(**members: Any):
    """The same with another limit of the free tier."""
    return replace(RECOMMENDED, tiers={**RECOMMENDED.tiers, "free": replace(RECOMMENDED.tiers["free"], **members)})


@pytest.mark.parametrize(
    ("before", "after", "is_due"),
    [
        (RECOMMENDED, RECOMMENDED, False),
        (RECOMMENDED, replace(RECOMMENDED, state=State.WATCH), True),
        (RECOMMENDED, replace(RECOMMENDED, binding=Binding.QUEUE), True),
        (RECOMMENDED, replace(RECOMMENDED, admit_fraction=0.99), True),
        (replace(RECOMMENDED, admit_fraction=0.5), RECOMMENDED, False),
        (RECOMMENDED, replace(RECOMMENDED, max_images_per_minute=9.0), True),
        (replace(RECOMMENDED, max_images_per_minute=9.0), RECOMMENDED, False),
        (replace(RECOMMENDED, max_images_per_minute=9.0), replace(RECOMMENDED, max_images_per_minute=8.9), True),
        (RECOMMENDED, replace(RECOMMENDED, power_cap_w={"GPU-0": 699.0}), True),
        (replace(RECOMMENDED, power_cap_w={"GPU-0": 500.0}), replace(RECOMMENDED, power_cap_w={"GPU-0": 508.0}), False),
        (RECOMMENDED, replace(RECOMMENDED, host_power_cap_w=1.0), True),
        (RECOMMENDED, with_free(action=Action.REJECT), True),
        (RECOMMENDED, with_free(admit_fraction=0.01), True),
        (RECOMMENDED, with_free(max_images_per_minute=5.0), True),
        (RECOMMENDED, with_free(images_per_tenant_day=3), True),
    ],
)
def test_what_is_shown_at_once(before, after, is_due: bool):
    """What falls or changes its kind is shown at once; what rises waits for the beat, and then all of it is shown."""
    assert due(before, after, 1.0) is is_due
    assert due(before, after, 5.0)


def test_a_restart_goes_on_with_what_was_learned(host: Host):
    """The model is where it was, the chain of ids goes on, and the trail says that it was restored."""
    host.temperature_c = 84.0
    host.run(100)
    learned = host.adviser._adviser.checkpoint()
    host.stop()
    host.t_s += 3.0
    host.start()
    assert host.adviser._adviser.checkpoint() == learned
    host.run(5)
    host.stop()
    found = records(host)
    assert [(r["sequence"], r["why"]) for r in found if r["kind"] == "base"][-1] == (101, "restored")
    assert verified(host).ok


def test_a_gap_is_not_fresh_telemetry(host: Host):
    """After ten minutes of absence a hot host's caps come back by slew from the fail-safe, not at once to the top."""
    host.temperature_c = 86.5
    host.run(120)
    capped_w = newest(host).power_cap_w["GPU-0"]
    host.stop()
    host.t_s += 600.0
    host.temperature_c = 50.0
    host.start()
    host.run(2)
    assert newest(host).power_cap_w["GPU-0"] <= capped_w + 10.0
    host.stop()
    blind = [r["observation"] for r in records(host) if r["kind"] == "decision"][120]
    assert [set(device) for device in blind["devices"]] == [{"id", "up", "quality"}]
    assert verified(host).ok


@pytest.mark.parametrize("shift_s", [-86_400.0, 86_400.0])
def test_a_clock_that_was_set(host: Host, shift_s: float):
    """After a restart with another wall clock, or another boot's monotonic one, lines still rise and are used."""
    host.run(20)
    host.stop()
    host.origin_s += shift_s
    host.t_s = 5.0
    host.start()
    host.run(20)
    assert "BAD_INPUT" not in {reason.code.value for reason in newest(host).reasons}
    host.stop()
    assert verified(host).ok


def test_other_settings_learn_anew(host: Host):
    """What was learned under another configuration is not gone on from; numbers and chain are."""
    host.run(20)
    host.stop()
    host.settings = replace(SETTINGS, margin_c=3.0)
    host.start()
    host.run(3)
    host.stop()
    found = records(host)
    assert [(r["sequence"], r["why"]) for r in found if r["kind"] == "base"] == [(1, "start"), (21, "start")]
    outcome = verified(host)
    assert outcome.ok
    assert "another configuration" in outcome.notes[0]


def test_a_base_that_is_damaged_is_not_built_on(host: Host):
    """A trail that was changed on disk costs what was learned, never the start."""
    host.run(20)
    host.stop()
    (segment,) = segments_of(host.folder / FOLDER)
    segment.path.write_bytes(segment.path.read_bytes().replace(b'"utilization":0.9', b'"utilization":0.8'))
    host.start()
    host.run(2)
    host.stop()
    assert [r["why"] for r in records(host) if r["kind"] == "base"] == ["start", "start"]


class Bomb(float):
    """A number that cannot be looked at: what stands for a defect in the adviser."""

    def __float__(self) -> float:
        raise ZeroDivisionError("a defect\nof two lines")


def test_a_defect_costs_the_recommendation_only(host: Host, caplog: pytest.LogCaptureFixture):
    """It is counted, said once in one line, told in the status; the newest stays; and it goes on by itself."""
    host.run(30)
    shown = host.board.newest()
    assert host.adviser.status().ok
    host.asked = {"free": Bomb(1.0)}
    host.run(2)
    assert host.board.newest() is shown
    assert host.adviser.faults == 2
    status = host.adviser.status()
    assert not status.ok
    assert "ZeroDivisionError: a defect of two lines" in status.detail
    host.run(20)
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert f"{host.t_s - shown.made_s:.1f} s old" in host.adviser.status().detail
    host.asked = {}
    host.run(2)
    assert host.adviser.status().ok
    assert host.board.newest() is not shown


@pytest.mark.parametrize(("turns", "why", "is_kept"), [(1, "restored", True), (3, "start", False)])
def test_after_a_defect_it_stands_on_firm_ground(host: Host, turns: int, why: str, is_kept: bool):
    """It goes on from the last base, after three failures in a row from nothing, and all of it still verifies."""
    host.run(70)
    host.asked = {"free": Bomb(1.0)}
    host.run(turns)
    host.asked = {}
    knows = host.adviser._adviser.newest is not None
    assert knows is is_kept
    host.run(20)
    host.stop()
    found = records(host)
    assert [r["why"] for r in found if r["kind"] == "base"][2:] == ["restored", "restored", why][-turns:]
    assert found[-1]["observation"]["t"] == pytest.approx(host.t_s + WALL_S, abs=0.01)
    assert verified(host).ok


def test_a_loop_that_fails_costs_the_turn(host: Host):
    """No snapshot can be had: nothing is recommended, and nothing that was learned is lost."""
    host.run(30)
    learned = host.adviser._adviser.checkpoint()
    host.breaks = RuntimeError("no snapshot")
    host.run(2)
    assert host.adviser.faults == 2
    assert host.adviser._adviser.checkpoint() == learned


def test_a_broken_feed_costs_its_part_only(host: Host):
    """A budget or grid that fails is unknown for the turn, and the thermals are looked at all the same."""
    host.run(3)

    def broken(*_: object) -> None:
        raise RuntimeError("no budget")

    object.__setattr__(host.adviser._feeds, "grid", broken)
    host.temperature_c = 88.0
    host.run(2)
    assert newest(host).power_cap_w
    assert host.adviser.faults == 2
    assert "no budget" in host.adviser.status().detail
    host.stop()
    assert records(host)[-1]["observation"]["grid_g_per_kwh"] is None


def test_silence_makes_it_stale(host: Host):
    """A device that stops to answer is stale within fifteen seconds, and caps fall meanwhile, never rise."""
    host.run(60)
    host.silent = True
    host.run(14)
    assert newest(host).state is State.STALE
    first_w = newest(host).power_cap_w["GPU-0"]
    host.run(60)
    assert newest(host).power_cap_w["GPU-0"] < first_w
    host.silent = False
    host.run(3)
    assert newest(host).state is not State.STALE


def test_before_the_first_snapshot_nothing_is_said(tmp_path: Path):
    """No snapshot, no recommendation, and the status says so."""
    host = Host(tmp_path)
    host.adviser._feeds = replace(host.adviser._feeds, snapshot=lambda: None)
    host.run(3)
    assert host.board.newest() is None
    assert host.adviser.status().detail == "nothing has been recommended yet"
    host.close()

"""A restart on the same counters: nothing is lost, nothing counted twice, no total falls, pending requests go on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.daemon.parts import BUSY_W, IDLE_W, House, check_books, span

from joulegate.daemon.loop import RESTORED_GRACE_S, Claimed
from joulegate.metering.entry import Status
from joulegate.metering.host_meter import Options
from joulegate.metering.span import Member, Outcome, StartSource, Work

TWO = ("GPU-a", "GPU-b")


def totals_of(house: House) -> dict[str, int]:
    """What the snapshot says that each device used."""
    assert house.loop.snapshot is not None
    for state in house.loop.snapshot.devices.values():
        totals = state.totals
        assert totals.device_mj == totals.requests_mj + totals.idle_mj + totals.unattributed_mj
    return {device: state.totals.device_mj for device, state in house.loop.snapshot.devices.items()}


def assert_not_fallen(before: dict[str, int], after: dict[str, int]) -> None:
    """No device's total fell."""
    for device, total_mj in before.items():
        assert after[device] >= total_mj


@pytest.mark.parametrize("seed", range(5))
def test_kills_at_random_moments_keep_the_counter_whole(seed: int, tmp_path: Path) -> None:
    """Over many kills and pauses each device's total is exactly what its counter rose by, in one epoch."""
    chance = random.Random(seed)
    house = House(tmp_path, TWO)
    first_mj = {device: int(energy) for device, energy in house.plant.energy_mj.items()}
    running: list[str] = []
    count, totals = 0, dict.fromkeys(TWO, 0)
    for _ in range(70):
        act = chance.random()
        if act < 0.4 and len(running) < 4:
            count += 1
            running.append(f"r{count}")
            house.begin(f"r{count}", chance.choice([("GPU-a",), ("GPU-b",), TWO]))
        elif act < 0.7 and running:
            house.end(running.pop(chance.randrange(len(running))))
        elif act < 0.85:
            house.turn(0.2)
            house.kill()
            house.sleep(chance.choice([0.1, 2.0, 15.0, 40.0]))
            house.start()
        house.turn(chance.choice([0.2, 0.6, 1.0, 3.0]))
        after = totals_of(house)
        assert_not_fallen(totals, after)
        totals = after
    for request_id in running:
        house.end(request_id)
    house.turn(6.0)
    pending_mj, energies = check_books(tmp_path)
    assert pending_mj == 0
    assert len(energies) == count
    assert None not in energies.values()
    for device in TWO:
        position = house.loop.meter.devices[device].position("boot-1")
        assert position is not None
        assert position.epoch == 0
        assert totals_of(house)[device] == position.counter_mj - first_mj[device]
    house.kill()


def test_a_pause_inside_a_request_is_a_gap_inside_the_law(tmp_path: Path) -> None:
    """A request that ran through a restart gets the pause's energy too, and says that it was placed by a model."""
    house = House(tmp_path)
    house.turn(5.0)
    house.begin("through")
    house.turn(4.0)
    house.kill()
    house.sleep(20.0)
    house.start()
    house.turn(2.0)
    house.end("through")
    house.turn(4.0)
    entry = house.reader().request("through")
    assert entry is not None
    assert "gap" in entry.flags
    assert entry.energy_mj == pytest.approx(26_000 * (IDLE_W + BUSY_W), rel=0.02)
    assert check_books(tmp_path) == (0, {"through": entry.energy_mj})
    house.kill()


def test_a_reset_counter_opens_an_epoch_and_only_estimates_the_hole(tmp_path: Path) -> None:
    """After a restart on a counter that starts at nothing, what no counter saw is estimated, outside the law."""
    house = House(tmp_path)
    house.turn(8.0)
    house.kill()
    before = house.reader().energy(0, 4e9, ()).totals
    house.sleep(10.0)
    house.plant.live(house.clock.t_s)
    house.plant.energy_mj["GPU-a"] = 0.0
    house.start()
    house.turn(8.0)
    after = house.reader().energy(0, 4e9, ()).totals
    assert after.device_mj >= before.device_mj + 5_000 * IDLE_W
    assert after.estimated_mj > 0
    assert house.loop.snapshot.devices["GPU-a"].epoch == 1
    check_books(tmp_path)
    house.kill()


def test_requests_of_an_earlier_boot_end_where_the_boot_did(tmp_path: Path) -> None:
    """After a reboot a running request is cancelled with the energy it had, and an ended one keeps its own."""
    house = House(tmp_path)
    house.turn(5.0)
    house.begin("running")
    house.turn(5.0)
    house.kill()
    pending_mj, _ = check_books(tmp_path)
    assert pending_mj > 0
    house.boot_id = "boot-2"
    house.clock.origin_s += 500.0
    house.plant.energy_mj["GPU-a"] = 0.0
    house.start()
    house.turn(40.0)
    entry = house.reader().request("running")
    assert entry is not None
    assert entry.status is Status.FINAL
    assert entry.outcome is Outcome.CANCELLED
    assert entry.energy_mj == pending_mj
    assert check_books(tmp_path)[0] == 0
    house.kill()


@pytest.mark.parametrize("step_s", [-900.0, -7.0, 7.0, 900.0])
def test_a_set_wall_clock_costs_no_energy(step_s: float, tmp_path: Path) -> None:
    """A wall clock that is set, while running or across a restart, moves the accounts to their new time, exactly."""
    house = House(tmp_path)
    first_mj = int(house.plant.energy_mj["GPU-a"])
    house.begin("r")
    house.turn(15.0)
    house.clock.origin_s += step_s
    house.turn(14.6)
    house.begin("late")
    house.turn(0.4)
    house.kill()
    house.clock.origin_s += step_s
    house.start()
    house.end("late")
    house.turn(12.0)
    house.end("r")
    house.turn(5.0)
    position = house.loop.meter.devices["GPU-a"].position("boot-1")
    assert position is not None
    assert totals_of(house)["GPU-a"] == position.counter_mj - first_mj
    pending_mj, energies = check_books(tmp_path)
    assert pending_mj == 0
    assert energies["r"] == pytest.approx(42_000 * (IDLE_W + BUSY_W), rel=0.03)
    entry = house.reader().request("r")
    assert entry.ended_s == pytest.approx(house.clock.wall_s() - 5.0, abs=0.5)
    house.kill()


def test_a_clock_set_far_back_overwrites_nothing(tmp_path: Path) -> None:
    """After a restart with the clock set back by hours, accounts of the same wall time twice are kept apart."""
    house = House(tmp_path)
    first_mj = int(house.plant.energy_mj["GPU-a"])
    house.turn(40.0)
    house.sleep(5000.0)
    house.turn(20.0)
    house.kill()
    house.clock.origin_s -= 5030.0
    house.start()
    house.turn(20.0)
    position = house.loop.meter.devices["GPU-a"].position("boot-1")
    assert house.reader().energy(0, 4e9, ()).totals.device_mj == position.counter_mj - first_mj
    check_books(tmp_path)
    house.kill()


def test_a_device_that_is_gone_gives_what_it_had_placed(tmp_path: Path) -> None:
    """A request on two devices, one of which is not there after the restart, keeps both parts and is partial."""
    house = House(tmp_path, TWO)
    house.turn(5.0)
    house.begin("both", TWO)
    house.turn(6.0)
    house.kill()
    house.plant.ids = ("GPU-a",)
    house.start()
    house.turn(1.0)
    house.end("both")
    house.turn(40.0)
    entry = house.reader().request("both")
    assert entry is not None
    assert set(entry.devices) == set(TWO)
    assert "partial" in entry.flags
    assert check_books(tmp_path)[0] == 0
    assert set(house.loop.snapshot.devices) == {"GPU-a"}
    house.kill()


def test_a_graceful_stop_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """After stop and start the device's total is still exactly what its counter rose by."""
    house = House(tmp_path)
    first_mj = int(house.plant.energy_mj["GPU-a"])
    for number in range(4):
        house.begin(f"r{number}")
        house.turn(1.4)
        house.end(f"r{number}")
        house.begin(f"open{number}")
        assert house.loop.stop()
        house.kill()
        house.sleep(1.0)
        house.start()
        house.turn(0.4)
        house.end(f"open{number}")
    house.turn(5.0)
    pending_mj, energies = check_books(tmp_path)
    assert pending_mj == 0
    assert len(energies) == 8
    position = house.loop.meter.devices["GPU-a"].position("boot-1")
    assert totals_of(house)["GPU-a"] == position.counter_mj - first_mj
    house.kill()


def test_told_again_after_it_was_final(tmp_path: Path) -> None:
    """A span that comes again after it was final, in this run or a later one, is acknowledged and changes nothing."""
    house = House(tmp_path)
    whole = span("again", house.clock.t_s + 1, house.clock.t_s + 3)
    batch = replace(whole, request_id="batch", members=(Member("b1", Work(1)), Member("b2", Work(3))))
    house.turn(4.0)
    house.tell(whole)
    house.tell(batch)
    house.turn(4.0)
    books = check_books(tmp_path)
    assert set(books[1]) == {"again", "b1", "b2"}
    for _ in range(2):
        house.tell(whole)
        house.tell(batch)
        house.end("again")
        house.turn(4.0)
        assert check_books(tmp_path) == books
        house.kill()
        house.start()
        house.turn(0.4)
    assert house.acknowledged.count("whole again") == 3
    assert sorted(e.request_id for e in house.published if e.status is Status.FINAL) == ["again", "b1", "b2"]
    assert house.loop.dropped == 0
    house.kill()


def test_forgotten_figures_are_asked_of_the_ledger(tmp_path: Path) -> None:
    """What the loop has forgotten of this very run is not billed again either."""
    house = House(tmp_path)
    whole = span("old", house.clock.t_s + 1, house.clock.t_s + 3)
    house.turn(4.0)
    house.tell(whole)
    house.turn(4.0)
    books = check_books(tmp_path)
    house.loop._figures.clear()
    house.tell(whole)
    house.turn(4.0)
    assert check_books(tmp_path) == books
    assert [e.request_id for e in house.published if e.status is Status.FINAL] == ["old"]
    house.kill()


def test_restored_requests_that_nobody_claims_are_ended(tmp_path: Path) -> None:
    """A running request whose pipeline died with the daemon ends where the earlier run was last seen."""
    house = House(tmp_path, options=Options(hold_s=0.2))
    house.turn(3.0)
    house.begin("orphan")
    house.begin("kept")
    house.turn(4.0)
    seen_s = house.clock.wall_s()
    house.kill()
    house.start()
    house.turn(1.0)
    house.submit(Claimed(("kept",)), "claim")
    house.turn(RESTORED_GRACE_S + 3)
    entry = house.reader().request("orphan")
    assert entry is not None
    assert entry.outcome is Outcome.CANCELLED
    assert entry.ended_s == pytest.approx(seen_s, abs=2.0)
    assert house.reader().request("kept") is None
    house.end("kept")
    house.turn(4.0)
    assert house.reader().request("kept").outcome is Outcome.OK
    assert check_books(tmp_path)[0] == 0
    house.kill()


def test_queued_requests_survive_a_restart(tmp_path: Path) -> None:
    """With one slot, a request that waits when the daemon is killed starts when the one before it ends."""
    house = House(tmp_path, options=Options(hold_s=0.2, slots=1))
    house.turn(3.0)
    arrival = {"arrived_s": house.clock.t_s, "start_source": StartSource.ARRIVAL}
    house.begin("first", **arrival)
    house.begin("second", **arrival)
    house.turn(2.0)
    house.kill()
    house.start()
    house.turn(1.0)
    house.end("first")
    house.begin("second-again-on-the-plant")
    house.turn(2.0)
    house.end("second")
    house.turn(4.0)
    first, second = house.reader().request("first"), house.reader().request("second")
    assert first.start_source is second.start_source is StartSource.FIFO
    assert second.started_s == pytest.approx(first.ended_s, abs=1e-6)
    assert "inferred_start" in second.flags
    assert second.queue_s == pytest.approx(3.0, abs=0.3)
    house.kill()

"""The loop's turns: acknowledged after the commit, contained faults, bounded waits, figures for those who wait."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.daemon.parts import BUSY_W, IDLE_W, House, PlantSource, check_books, span

from joulegate.daemon.loop import ORPHAN_GRACE_S, Claimed, Delivery, MeterLoop, Orphaned
from joulegate.metering.batch import Batch, Restored
from joulegate.metering.entry import Status
from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.reading import Quality
from joulegate.metering.span import Outcome
from joulegate.stores import Ledger, LedgerFault


@dataclass
class FullDisk:
    """A ledger on a disk that can be full: implements ``daemon.ports.LedgerWriter`` over the real one."""

    ledger: Ledger
    full: bool = False
    bug: bool = False

    def restore(self) -> Restored:
        """As the ledger."""
        return self.ledger.restore()

    def commit(self, batch: Batch) -> None:
        """Refuse while full."""
        if self.bug:
            raise ZeroDivisionError("a bug")
        if self.full:
            raise LedgerFault("cannot write the ledger: the disk is full; free space")
        self.ledger.commit(batch)

    def final_ids(self, ids: set[str]) -> set[str]:
        """As the ledger, which can be read while full."""
        return self.ledger.final_ids(ids)

    def close(self) -> None:
        """As the ledger."""
        self.ledger.close()


@pytest.fixture
def full(tmp_path: Path) -> tuple[House, FullDisk]:
    """A house whose disk can be full."""
    house = House(tmp_path)
    disk = FullDisk(house.ledger)
    house.loop = MeterLoop(
        house.source,
        HostMeter(house.options, origin_s=house.clock.origin_s, boot_id="boot-1"),
        disk,
        faults=(LedgerFault,),
        publish=house.published.extend,
        clock=house.clock.monotonic_s,
        wall_clock=house.clock.wall_s,
    )
    return house, disk


def test_acknowledged_after_the_commit(full: tuple[House, FullDisk]) -> None:
    """While the disk is full nothing is acknowledged and no total rises; with room again all is written, once."""
    house, disk = full
    house.turn(5.0)
    before = house.loop.snapshot.devices["GPU-a"].totals
    disk.full = True
    house.begin("a")
    house.turn(3.0)
    house.end("a")
    house.turn(20.0)
    assert house.acknowledged == []
    assert house.published == []
    assert house.loop.snapshot.devices["GPU-a"].totals == before
    assert "disk is full" in house.loop.snapshot.agent.ledger_error
    assert house.loop.snapshot.agent.ledger_backlog > 0
    disk.full = False
    house.turn(3.0)
    assert house.acknowledged == ["begin a", "end a"]
    assert house.loop.snapshot.agent.ledger_error is None
    assert house.loop.snapshot.agent.ledger_backlog == 0
    assert check_books(house.folder)[1]["a"] == pytest.approx(3_000 * (IDLE_W + BUSY_W), rel=0.05)
    house.kill()


def test_a_long_outage_is_one_batch(full: tuple[House, FullDisk]) -> None:
    """A disk that is full for ten minutes costs memory for the requests only, not for each turn."""
    house, disk = full
    disk.full = True
    for number in range(20):
        house.begin(f"r{number}")
        house.turn(10.0)
        house.end(f"r{number}")
        house.turn(5.0)
    assert len(house.loop._unwritten) <= 6
    disk.full = False
    house.turn(5.0)
    pending_mj, energies = check_books(house.folder)
    assert (pending_mj, len(energies)) == (0, 20)
    house.kill()


def test_an_unforeseen_fault_is_counted_and_shown(
    full: tuple[House, FullDisk], caplog: pytest.LogCaptureFixture
) -> None:
    """A turn that fails whole is counted, said once in the log, shown, and leaves the snapshot to grow old."""
    house, disk = full
    house.turn(2.0)
    aged_s = house.loop.snapshot.t_s
    disk.bug = True
    house.begin("a")
    for _ in range(3):
        house.clock.t_s += 0.2
        house.loop._attempt()
    assert house.loop.faults == 3
    assert house.loop.snapshot.t_s == aged_s
    assert "ZeroDivisionError: a bug" in house.loop.snapshot.agent.ledger_error
    assert len(caplog.records) == 1
    assert house.acknowledged == []
    disk.bug = False
    house.turn(2.0)
    house.end("a")
    house.turn(4.0)
    assert house.acknowledged == ["begin a", "end a"]
    assert check_books(house.folder)[0] == 0
    house.turn(61.0)
    assert house.loop.snapshot.agent.ledger_error is None
    house.kill()


def test_a_broken_source_does_not_stop_the_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the source raises, spans are still journalled and acknowledged, and the fault is shown."""
    house = House(tmp_path)
    house.turn(1.0)

    def broken() -> None:
        raise ValueError("no driver")

    house.source.breaks = broken
    house.begin("a")
    house.turn(1.0)
    assert house.acknowledged == ["begin a"]
    assert "no driver" in house.loop.snapshot.agent.ledger_error
    assert len(caplog.records) == 1
    house.kill()


def test_a_callback_that_raises_keeps_no_other_back(tmp_path: Path) -> None:
    """An acknowledgement that cannot be delivered is counted, and the next one is delivered."""
    house = House(tmp_path)

    def broken(_new: bool) -> None:
        raise RuntimeError("gone")

    from joulegate.daemon.loop import Began

    house.loop.submit(Delivery(Began(span("x", house.clock.t_s)), broken))
    house.begin("y")
    house.turn(0.4)
    assert house.acknowledged == ["begin y"]
    assert house.loop.faults == 1
    house.kill()


def test_one_devices_fault_stays_with_it(tmp_path: Path) -> None:
    """A meter that fails inside one device is counted at that device; the other device's requests become final."""
    house = House(tmp_path, ("GPU-a", "GPU-b"))
    house.turn(2.0)

    good = house.loop.meter.devices["GPU-a"]
    house.begin("both", ("GPU-a", "GPU-b"))
    house.begin("b", ("GPU-b",))
    house.turn(1.0)
    good.partition._explain = _raise
    house.turn(2.0)
    house.end("both")
    house.end("b")
    house.turn(40.0)
    assert house.loop.meter.faults["GPU-a"] > 0
    assert house.loop.snapshot.devices["GPU-a"].errors["meter_fault"] > 0
    assert "meter_fault" not in house.loop.snapshot.devices["GPU-b"].errors
    assert house.reader().request("b").status is Status.FINAL
    assert "partial" in house.reader().request("both").flags
    house.kill()


def _raise(*_: object) -> None:
    raise ArithmeticError("broken")


def test_a_broken_connection_ends_its_requests(tmp_path: Path) -> None:
    """A pipeline that does not come back has its running requests ended where the connection broke, as cancelled."""
    house = House(tmp_path)
    house.turn(2.0)
    house.begin("lost")
    house.begin("back")
    house.begin("batch", members=())
    house.turn(2.0)
    broke_s, broke_wall_s = house.clock.t_s, house.clock.wall_s()
    house.submit(Orphaned(("lost", "back"), broke_s), "orphaned")
    house.turn(ORPHAN_GRACE_S - 5)
    house.submit(Claimed(("back",)), "claimed")
    house.turn(12.0)
    entry = house.reader().request("lost")
    assert entry.outcome is Outcome.CANCELLED
    assert entry.ended_s == pytest.approx(broke_wall_s)
    assert house.reader().request("back") is None
    house.end("back")
    house.turn(4.0)
    assert house.reader().request("back").outcome is Outcome.OK
    house.kill()


def test_a_span_that_nobody_ends_is_ended_at_the_longest(tmp_path: Path) -> None:
    """A request that runs on is ended at the longest time, not later, also when nobody looked for longer."""
    house = House(tmp_path, options=Options(hold_s=0.2, longest_s=60.0))
    house.turn(2.0)
    began_s = house.clock.wall_s()
    house.begin("forever")
    house.turn(5.0)
    house.kill()
    house.sleep(55.0)
    house.plant.live(house.clock.t_s)
    house.plant.running["GPU-a"] = set()
    house.sleep(245.0)
    house.start()
    house.turn(5.0)
    entry = house.reader().request("forever")
    assert entry.outcome is Outcome.CANCELLED
    assert entry.ended_s == pytest.approx(began_s + 60.0)
    assert entry.energy_mj == pytest.approx(60_000 * (IDLE_W + BUSY_W), rel=0.2)
    assert "gap" in entry.flags
    assert check_books(tmp_path)[0] == 0
    house.kill()


def test_a_full_inbox_refuses_whole(tmp_path: Path) -> None:
    """Edges that do not fit are refused all together and counted; those that were taken stay."""
    house = House(tmp_path)
    many = [Delivery(Claimed((f"r{number}",))) for number in range(150_000)]
    assert house.loop.submit(*many)
    assert not house.loop.submit(*many)
    assert house.loop.dropped == len(many)
    for _ in range(10):
        house.turn(0.2)
    assert house.loop.submit(*many)
    house.kill()


def test_an_end_without_a_begin_is_counted(tmp_path: Path) -> None:
    """The end of a request that was never begun is acknowledged, counted as dropped and otherwise ignored."""
    house = House(tmp_path)
    house.end("never")
    house.turn(0.4)
    assert house.acknowledged == ["end never"]
    assert house.loop.snapshot.agent.messages_dropped == 1
    house.kill()


def test_waiting_ends_with_the_final_figure_or_the_loop(tmp_path: Path) -> None:
    """``wait`` gives the final entry once it is durable, ``None`` after its time, and at once when the loop stops."""
    house = House(tmp_path)
    house.turn(3.0)
    house.begin("a")
    house.turn(2.0)
    house.end("a")
    assert house.loop.wait("a", 0.0) is None
    house.turn(0.2)
    provisional = house.loop.lookup("a")
    assert provisional.status is Status.PENDING
    assert provisional.quality is Quality.MODELLED
    house.turn(3.0)
    assert house.loop.wait("a", 0.0).status is Status.FINAL
    found: list[object] = ["nothing"]
    waiter = threading.Thread(target=lambda: found.append(house.loop.wait("never", 60.0)))
    waiter.start()
    assert house.loop.stop()
    waiter.join(5.0)
    assert found == ["nothing", None]
    house.kill()


def test_the_load_is_told_to_a_simulated_source(tmp_path: Path) -> None:
    """A source that burns power for spans hears of each edge once, and of running ones again after a restart."""
    told: list[tuple[str, str]] = []

    class Loaded(PlantSource):
        """Implements ``LoadAware`` too."""

        def span_started(self, span: object, now_s: float) -> None:
            """Note it."""
            told.append(("start", span.request_id))

        def span_ended(self, span: object, now_s: float) -> None:
            """Note it."""
            told.append(("end", span.request_id))

    house = House(tmp_path)

    def restart() -> None:
        house.source = Loaded(house.plant, house.clock.t_s)
        meter = HostMeter(house.options, origin_s=house.clock.origin_s, boot_id="boot-1")
        house.loop = MeterLoop(house.source, meter, house.ledger, faults=(LedgerFault,), clock=house.clock.monotonic_s)

    restart()
    house.begin("a")
    house.begin("b")
    house.turn(0.4)
    house.end("a")
    house.turn(0.4)
    assert told == [("start", "a"), ("start", "b"), ("end", "a")]
    told.clear()
    restart()
    assert told == [("start", "b")]
    house.kill()


def test_thousands_of_open_spans(tmp_path: Path) -> None:
    """Five thousand spans open at once are all settled, and the books close in every bucket."""
    house = House(tmp_path)
    house.turn(2.0)
    for number in range(5_000):
        house.begin(f"r{number}")
    house.turn(3.0)
    for number in range(5_000):
        house.end(f"r{number}")
    house.turn(3.0)
    pending_mj, energies = check_books(tmp_path)
    assert pending_mj == 0
    assert len(energies) == 5_000
    assert sum(energies.values()) == pytest.approx(3_000 * (IDLE_W + BUSY_W), rel=0.05)
    house.kill()


def test_nothing_grows_with_the_days(tmp_path: Path) -> None:
    """After hours of requests the meter holds no more than after its first quarter of an hour."""
    house = House(tmp_path, options=Options(hold_s=0.2))
    sizes = []
    for hour in range(2):
        for number in range(45):
            house.begin(f"r{hour}-{number}")
            house.turn(4.0)
            house.end(f"r{hour}-{number}")
            house.turn(21.0)
        meter = house.loop.meter
        device = meter.devices["GPU-a"]
        sizes.append(
            len(device._accounts) + len(device._held) + len(device._placed) + len(meter._owners) + len(meter._tracked)
        )
    assert max(sizes) <= 92 + 30
    house.kill()


def test_a_device_that_never_answers_is_waited_for_a_bounded_time(tmp_path: Path) -> None:
    """A finished request on a silent device is final without a figure, quality missing, after half a minute."""
    house = House(tmp_path)
    house.plant.silent.add("GPU-a")
    house.turn(1.0)
    house.begin("unseen")
    house.turn(2.0)
    house.end("unseen")
    house.turn(20.0)
    assert house.reader().request("unseen").status is Status.PENDING
    house.turn(15.0)
    entry = house.reader().request("unseen")
    assert entry.status is Status.FINAL
    assert entry.energy_mj is None
    assert entry.quality is Quality.MISSING
    house.kill()


def test_a_long_hold_is_not_silence(tmp_path: Path) -> None:
    """Where readings wait a minute for late spans, requests wait with them and become final with their energy."""
    house = House(tmp_path, options=Options(hold_s=60.0))
    house.turn(2.0)
    house.begin("a")
    house.turn(2.0)
    house.end("a")
    house.turn(55.0)
    assert house.reader().request("a").status is Status.PENDING
    house.turn(10.0)
    entry = house.reader().request("a")
    assert entry.energy_mj == pytest.approx(2_000 * (IDLE_W + BUSY_W), rel=0.05)
    assert entry.flags == ()
    house.kill()


def test_a_member_is_billed_once(tmp_path: Path) -> None:
    """A batch that names a request which runs already bills only its other members; the books close."""
    from joulegate.metering.span import Member, Work

    house = House(tmp_path)
    house.turn(2.0)
    house.begin("a")
    house.begin("batch", members=(Member("a", Work(1)), Member("b", Work(1))))
    house.turn(2.0)
    house.end("a")
    house.end("batch")
    house.turn(4.0)
    pending_mj, energies = check_books(tmp_path)
    assert pending_mj == 0
    assert set(energies) == {"a", "b"}
    house.kill()


def test_late_spans_take_from_idle(tmp_path: Path) -> None:
    """A span told long after it ended is flagged late and served from the idle account; the counter's total stays."""
    house = House(tmp_path)
    house.turn(3.0)
    started_s = house.clock.t_s
    house.plant.running["GPU-a"] = {"x"}
    house.turn(4.0)
    house.plant.running["GPU-a"] = set()
    house.turn(20.0)
    before = house.loop.snapshot.devices["GPU-a"].totals
    house.tell(span("late", started_s, started_s + 4.0))
    house.turn(3.0)
    after = house.loop.snapshot.devices["GPU-a"].totals
    entry = house.reader().request("late")
    assert "late" in entry.flags
    assert entry.energy_mj == pytest.approx(4_000 * (IDLE_W + BUSY_W), rel=0.05)
    assert after.requests_mj == before.requests_mj + entry.energy_mj
    assert after.device_mj - before.device_mj == pytest.approx(3_000 * IDLE_W, rel=0.5)
    assert check_books(tmp_path)[0] == 0
    assert replace(after, device_mj=0) != before
    house.kill()

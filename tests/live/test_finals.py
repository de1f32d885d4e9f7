"""What the live meter does with finals, late spans, devices that fail, batches and queues; in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.live.rides import ORIGIN_S, Books, board, device_of, host

from joulegate.metering.entry import Status
from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work
from joulegate.sources.gpu_model import GpuModel
from joulegate.sources.gpu_profiles import A100, H100

IDEAL = H100.ideal()


class Bench:
    """Boards on a bench, and a meter that reads them."""

    def __init__(self, *models: GpuModel, options: Options | None = None) -> None:
        self.models = {model.device: model for model in models or (board(IDEAL),)}
        self.meter = host(options or Options(hold_s=0.5))
        for model in self.models.values():
            self.meter.add_device(device_of(model.profile, model.device))
        self.books = Books()
        self.t_s = 100.0
        self.deaf: set[str] = set()

    def run(self, seconds: float) -> None:
        """Time passes: polls, and a turn of the meter every 0.2 s."""
        until_s = self.t_s + seconds - 1e-9
        while self.t_s < until_s:
            readings = []
            for _ in range(4):
                self.t_s += 0.05
                for device, model in self.models.items():
                    model.advance(max(model.now_s, self.t_s))
                    if device not in self.deaf:
                        readings.append(model.read(self.t_s + ORIGIN_S))
            self.meter.feed(readings)
            self.books.take(self.meter.advance(self.t_s))

    def begin(self, request_id: str, *devices: str, tell: bool = True, **fields: object) -> None:
        """A request begins on its boards, and is told or not."""
        devices = devices or tuple(self.models)
        for device in devices:
            if device in self.models:
                self.models[device].start(request_id, "sana", self.t_s)
        if tell:
            self.meter.begin(Span(request_id, devices, self.t_s, power_class="sana", **fields))

    def end(self, request_id: str, *, tell: bool = True, outcome: Outcome = Outcome.OK) -> None:
        """It ends."""
        for model in self.models.values():
            model.stop(request_id, self.t_s)
        if tell:
            self.meter.end(request_id, self.t_s, outcome)

    def truth_mj(self, request_id: str) -> float:
        """What it really used."""
        return sum(m.energy_true_mj(request_id) for m in self.models.values() if request_id in m._finished)


def test_final_only_after_the_counter_has_passed() -> None:
    """A request stays pending until the counter has shown its end plus lag, then it is final, once."""
    bench = Bench()
    bench.run(5.0)
    bench.begin("a")
    bench.run(2.0)
    bench.end("a")
    ended_s = bench.t_s
    while "a" not in bench.books.entries:
        assert bench.meter.pending == 1
        bench.run(0.2)
        assert bench.t_s < ended_s + 5.0
    partition = bench.meter.devices["twin-0"].partition
    assert partition.frontier_s >= ended_s
    assert bench.t_s >= ended_s + 0.5 + IDEAL.sensor.lag_s
    entry = bench.books.entries["a"]
    assert entry.status is Status.FINAL
    assert entry.quality is Quality.MEASURED
    assert entry.method is Method.COUNTER
    assert entry.flags == ()
    assert entry.energy_mj == pytest.approx(bench.truth_mj("a"), rel=0.02)
    bench.run(10.0)
    bench.books.shares_close()


def test_a_late_end_is_flagged_and_keeps_the_law() -> None:
    """An end told long after it happened takes effect where the books stand; the request is flagged late."""
    bench = Bench()
    bench.run(5.0)
    bench.begin("a")
    bench.run(2.0)
    ended_s = bench.t_s
    bench.end("a", tell=False)
    bench.run(6.0)
    bench.meter.end("a", ended_s, Outcome.OK)
    bench.run(4.0)
    assert "late" in bench.books.entries["a"].flags
    assert bench.books.entries["a"].ended_s == pytest.approx(ended_s + ORIGIN_S)
    bench.books.shares_close()


def test_finals_stay_when_a_late_span_comes() -> None:
    """A span told after its time was settled is served from idle and unattributed energy; other finals stay."""
    bench = Bench()
    bench.run(8.0)
    bench.begin("early")
    bench.run(2.0)
    bench.end("early")
    bench.begin("late", tell=False)
    began_s = bench.t_s
    bench.run(2.0)
    bench.end("late", tell=False)
    ended_s = bench.t_s
    bench.run(20.0)
    before = bench.books.entries["early"]
    bench.meter.begin(Span("late", ("twin-0",), began_s, ended_s, power_class="sana"))
    bench.run(3.0)
    late = bench.books.entries["late"]
    assert bench.books.entries["early"] == before
    assert "late" in late.flags
    assert late.quality is Quality.APPORTIONED
    assert 0.5 * bench.truth_mj("late") < late.energy_mj < 1.2 * bench.truth_mj("late")
    bench.books.shares_close()


def test_each_device_pays_for_itself() -> None:
    """A request on two boards gets from each what that board used, and its shares close on both."""
    other = GpuModel(A100.ideal(), t0_s=100.0, device="twin-1", class_power_w={"sana": 200.0})
    bench = Bench(board(IDEAL), other)
    bench.run(5.0)
    bench.begin("both")
    bench.begin("one", "twin-1")
    bench.run(3.0)
    bench.end("both")
    bench.end("one")
    bench.run(4.0)
    both = bench.books.entries["both"]
    assert set(both.devices) == {"twin-0", "twin-1"}
    assert both.devices["twin-0"].energy_mj == pytest.approx(bench.models["twin-0"].energy_true_mj("both"), rel=0.03)
    assert both.devices["twin-1"].energy_mj == pytest.approx(bench.models["twin-1"].energy_true_mj("both"), rel=0.03)
    assert both.devices["twin-0"].power_mean_w > both.devices["twin-1"].power_mean_w
    bench.books.shares_close()


def test_a_batch_is_split_by_work() -> None:
    """A batch's members get its energy by their work, to the millijoule, whatever their order."""
    results = []
    for order in (1, -1):
        bench = Bench()
        bench.run(4.0)
        members = (Member("x", Work(1, 20, 512, 512)), Member("y", Work(3, 20, 512, 512)))[::order]
        bench.begin("batch", members=members, batch_id="b")
        bench.run(2.0)
        bench.end("batch")
        bench.run(4.0)
        results.append({name: bench.books.entries[name].energy_mj for name in ("x", "y")})
        assert results[-1]["y"] == pytest.approx(3 * results[-1]["x"], abs=4)
        assert sum(results[-1].values()) == pytest.approx(bench.truth_mj("batch"), rel=0.03)
        bench.books.shares_close()
    assert results[0] == results[1]


def test_unknown_devices() -> None:
    """A span on an unknown device beside a known one is partial; on unknown ones only it is missing, never zero."""
    bench = Bench()
    bench.run(4.0)
    bench.begin("mixed", "twin-0", "GPU-nobody")
    bench.begin("nowhere", "GPU-nobody")
    bench.run(2.0)
    bench.end("mixed")
    bench.end("nowhere")
    bench.run(4.0)
    mixed, nowhere = bench.books.entries["mixed"], bench.books.entries["nowhere"]
    assert "partial" in mixed.flags
    assert mixed.quality is not Quality.MEASURED
    assert mixed.energy_mj > 0
    assert (nowhere.energy_mj, nowhere.u_measurement_mj, nowhere.method) == (None, None, None)
    assert nowhere.quality is Quality.MISSING
    assert bench.meter.unknown_devices == 2
    bench.books.shares_close()


def test_a_device_lost_mid_span() -> None:
    """A board lost while a request runs leaves it partial after a bounded wait; what came before the loss is kept."""
    bench = Bench()
    bench.run(5.0)
    bench.begin("a")
    bench.run(3.0)
    bench.models["twin-0"].fault("lost", bench.t_s)
    bench.run(2.0)
    bench.end("a")
    bench.run(25.0)
    assert "a" not in bench.books.entries
    bench.run(12.0)
    entry = bench.books.entries["a"]
    assert "partial" in entry.flags
    assert 0.4 * bench.truth_mj("a") < entry.energy_mj < 0.8 * bench.truth_mj("a")
    assert entry.u_measurement_mj > 0.2 * entry.energy_mj
    assert bench.meter.states(bench.t_s, {})["twin-0"].up is False
    bench.books.shares_close()


def test_a_reset_counter_is_a_new_epoch() -> None:
    """When the counter falls a new epoch begins, the law closes in both, and the request that saw it is partial."""
    bench = Bench()
    bench.run(5.0)
    bench.begin("a")
    bench.run(2.0)
    bench.models["twin-0"].fault("reset", bench.t_s + 0.02, 0.01)
    bench.run(2.0)
    bench.end("a")
    bench.run(4.0)
    assert {epoch for _, epoch, _ in bench.books.accounts} == {0, 1}
    assert "partial" in bench.books.entries["a"].flags
    assert bench.books.entries["a"].energy_mj == pytest.approx(bench.truth_mj("a"), rel=0.1)
    bench.books.shares_close()


def test_a_lag_that_is_learned_tears_no_hole() -> None:
    """When the learned lag moves, no request that runs meanwhile loses coverage and the counter stays whole."""
    bench = Bench()
    bench.run(5.0)
    first_mj = bench.models["twin-0"].counter_mj()
    device = bench.meter.devices["twin-0"]
    bench.begin("a")
    for lag_s in (0.13, 0.06, 0.16, 0.1):
        device.learner.lag = replace(device.learner.lag, lag_s=lag_s)
        bench.run(3.0)
    bench.end("a")
    bench.run(4.0)
    assert "partial" not in bench.books.entries["a"].flags
    placed_mj = bench.books.device_mj("twin-0")
    assert bench.books.positions["twin-0"].total_mj == placed_mj
    assert first_mj is not None
    bench.books.shares_close()


def test_five_thousand_open_spans() -> None:
    """Thousands of spans at once are settled exactly, in one ride."""
    bench = Bench()
    bench.run(3.0)
    for number in range(5_000):
        bench.begin(f"r{number}")
    bench.run(2.0)
    for number in range(5_000):
        bench.end(f"r{number}")
    bench.run(3.0)
    assert len(bench.books.entries) == 5_000
    bench.books.shares_close()


def test_a_serial_server_is_billed_from_its_starts() -> None:
    """With one slot, requests that only tell arrival and end are billed from when the one before them left."""
    bench = Bench(options=Options(hold_s=1.0, slots=1))
    bench.run(6.0)
    arrived_s, truths = bench.t_s, {}
    for number in range(4):
        bench.begin(f"r{number}", tell=False)
        started_s = bench.t_s
        bench.run(1.0 + 0.4 * number)
        bench.end(f"r{number}", tell=False)
        truths[f"r{number}"] = started_s
        bench.meter.begin(
            Span(f"r{number}", ("twin-0",), arrived_s, bench.t_s, arrived_s, StartSource.ARRIVAL, power_class="sana")
        )
    bench.run(5.0)
    for request_id, started_s in truths.items():
        entry = bench.books.entries[request_id]
        assert entry.started_s == pytest.approx(started_s + ORIGIN_S, abs=1e-6)
        assert entry.start_source is StartSource.FIFO
        assert "inferred_start" in entry.flags
        assert entry.energy_mj == pytest.approx(bench.truth_mj(request_id), rel=0.05)
    bench.books.shares_close()


def test_without_slots_the_arrival_stands_for_the_start() -> None:
    """Without slots the start is the arrival, and says so."""
    bench = Bench()
    bench.run(4.0)
    bench.meter.begin(
        Span("a", ("twin-0",), bench.t_s - 1, bench.t_s, bench.t_s - 1, StartSource.ARRIVAL, power_class="sana")
    )
    bench.run(4.0)
    entry = bench.books.entries["a"]
    assert entry.start_source is StartSource.ARRIVAL
    assert "inferred_start" in entry.flags


def test_a_reading_from_the_past_is_left_out() -> None:
    """Readings that are not newer than the last change nothing."""
    bench = Bench()
    bench.run(4.0)
    reading = bench.models["twin-0"].read(ORIGIN_S)
    bench.meter.feed([replace(reading, t_s=bench.t_s - 2, energy_mj=0)])
    bench.run(4.0)
    assert {epoch for _, epoch, _ in bench.books.accounts} == {0}


@given(seed=st.integers(0, 2**32), lateness_s=st.floats(0, 8), wall_step_s=st.sampled_from([0.0, -300.0, 5000.0]))
def test_law_one_whatever_comes(seed: int, lateness_s: float, wall_step_s: float) -> None:
    """Edges told late and in any order, resets, losses, a set wall clock: every bucket closes, and so do the shares."""
    chance = random.Random(seed)
    bench = Bench(board(H100.varied(seed % 1000), seed=seed), options=Options(hold_s=chance.choice([0.0, 0.5, 2.0])))
    told: list[tuple[float, Span]] = []
    running: list[str] = []
    begun: dict[str, float] = {}
    for number in range(30):
        act = chance.random()
        if act < 0.45:
            request_id = f"r{number}"
            begun[request_id] = bench.t_s
            live = chance.random() < 0.5
            bench.begin(request_id, tell=live)
            running.append(request_id)
        elif act < 0.8 and running:
            request_id = running.pop(chance.randrange(len(running)))
            known = bench.meter.span(request_id) is not None
            bench.end(request_id, tell=known)
            if not known:
                whole = Span(request_id, ("twin-0",), begun[request_id], bench.t_s, power_class="sana")
                told.append((bench.t_s + lateness_s * chance.random(), whole))
        elif act < 0.9:
            bench.models["twin-0"].fault(chance.choice(["reset", "lost", "hung"]), bench.t_s, chance.choice([0.1, 3.0]))
        elif wall_step_s:
            bench.meter.reanchor(ORIGIN_S + wall_step_s * chance.randrange(3))
        for item in [item for item in told if item[0] <= bench.t_s]:
            told.remove(item)
            bench.meter.begin(item[1])
        bench.run(chance.choice([0.2, 0.6, 1.4]))
        bench.books.shares_close(pending=True)
    for request_id in running:
        bench.end(request_id, tell=bench.meter.span(request_id) is not None)
    for _, whole in told:
        bench.meter.begin(whole)
    bench.run(38.0)
    assert bench.meter.pending == 0
    assert bench.meter.faults == {}
    bench.books.shares_close()


def test_options_default_to_the_ledgers_hour() -> None:
    """The longest span fits into the hour that a ledger restores."""
    from joulegate.stores.ledger import RESTORED_S

    assert Options().longest_s + 60 < RESTORED_S
    assert isinstance(host(), HostMeter)

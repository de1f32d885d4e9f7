"""The streaming partition against a brute-force cutter in rational numbers, and what it does where readings fail."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.metering.interval import Interval, Kind
from joulegate.metering.model import PowerModel
from joulegate.metering.partition import BucketKey, Cell, OwnPower, Partition, SpanUse, UseShare
from joulegate.metering.reading import Method

NO_GUARD = 1e12
LAG_S = 0.25
CLASSES = ("a", "b")


@dataclass(frozen=True)
class Problem:
    """A line in ms and mJ (``None``: nobody saw it), spans in ms, and the number of the model in force per interval."""

    line: list[tuple[int, int, int | None]]
    models_at: list[int]
    spans: list[tuple[str, int, int, str]]
    models: list[PowerModel]


@dataclass
class Truth:
    """Exact accounts; ``buckets`` counts roundings."""

    requests_mj: dict[str, Fraction]
    idle_mj: Fraction = Fraction(0)
    cuts: int = 0
    covered_ms: dict[str, Fraction] = field(default_factory=dict)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 20 intervals, a tenth of them unseen, spans whose edges like to meet theirs, and up to three models."""
    steps = draw(
        st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 900_000), st.integers(0, 9)), min_size=1, max_size=20)
    )
    t_ms, line = draw(st.integers(1_000, 20_000)), []
    for length_ms, energy_mj, luck in steps:
        line.append((t_ms, t_ms + length_ms, None if luck == 0 else energy_mj))
        t_ms += length_ms
    edge = st.one_of(
        st.sampled_from([begin for begin, *_ in line]), st.integers(max(0, line[0][0] - 2000), t_ms + 2000)
    )
    spans = []
    for index in range(draw(st.integers(0, 7))):
        start_ms, end_ms = sorted((draw(edge), draw(edge)))
        spans.append((f"r{index}", start_ms, end_ms, draw(st.sampled_from(CLASSES))))
    watts = st.lists(st.integers(1, 700), min_size=3, max_size=3)
    models = [
        PowerModel(float(idle_w), 1.0, {"a": float(a_w), "b": float(b_w)}, calibrated=True, idle_known=True)
        for idle_w, a_w, b_w in draw(st.lists(watts, min_size=1, max_size=3))
    ]
    models_at = [draw(st.integers(0, len(models) - 1)) for _ in line]
    return Problem(line, models_at, spans, models)


def exactly(problem: Problem, *, charge_idle: bool) -> Truth:
    """Cut every interval at every edge and visit every span."""
    truth = Truth({name: Fraction(0) for name, *_ in problem.spans})
    truth.covered_ms = {name: Fraction(0) for name, *_ in problem.spans}
    for (begin, end, energy_mj), at in zip(problem.line, problem.models_at, strict=True):
        if energy_mj is None:
            continue
        model = problem.models[at]
        inside = {t for _, *edges, _ in problem.spans for t in edges if begin < t < end}
        weights: dict[str | None, Fraction] = {None: Fraction(0)}
        for t, until in pairwise([begin, *sorted(inside), end]):
            active = [(name, kind) for name, start, stop, kind in problem.spans if start <= t and stop >= until]
            idle = Fraction(model.idle_w) * (until - t)
            if not active or not charge_idle:
                weights[None] += idle
            for name, kind in active:
                own = Fraction(model.dynamic_w[kind]) * (until - t) + (idle if charge_idle else 0)
                weights[name] = weights.get(name, Fraction(0)) + own / len(active)
                truth.covered_ms[name] += until - t
        total = sum(weights.values())
        for name, weight in weights.items():
            if name is None:
                truth.idle_mj += energy_mj * weight / total
            else:
                truth.requests_mj[name] += energy_mj * weight / total
    return truth


def run(partition: Partition, problem: Problem, *, announced_late: bool) -> tuple[dict[str, SpanUse], list[Cell]]:
    """Feed the problem in order of time."""
    waiting = sorted(problem.spans, key=lambda span: span[1])
    for (begin, end, energy_mj), at in zip(problem.line, problem.models_at, strict=True):
        while waiting and (not announced_late or waiting[0][1] <= end):
            name, start_ms, end_ms, kind = waiting.pop(0)
            partition.add(name, start_ms / 1000, power_class=kind)
            partition.end(name, end_ms / 1000)
        if partition.model is not problem.models[at]:
            partition.set_model(problem.models[at])
        kind_of = Kind.RESET if energy_mj is None else Kind.MEASURED
        interval = Interval(kind_of, begin / 1000 + LAG_S, end / 1000 + LAG_S, energy_mj, Method.COUNTER)
        partition.place(interval, LAG_S)
    for name, start_ms, end_ms, kind in waiting:
        partition.add(name, start_ms / 1000, end_ms / 1000, power_class=kind)
    partition.finish()
    return {use.span_id: use for use in partition.take_finished()}, partition.take_cells()


@settings(max_examples=200)
@given(problems(), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.3, 1e9 + 0.7]), st.sampled_from([2.0, 7.5]))
def test_streaming_equals_brute_force(
    problem: Problem, charge_idle: bool, announced_late: bool, origin_s: float, bucket_s: float
) -> None:
    """With models that change, resets, buckets on any axis and idle charged or not, all owe what exact cutting says."""
    partition = Partition(
        "G0",
        problem.models[problem.models_at[0]],
        bucket_s=bucket_s,
        bucket_origin_s=origin_s,
        charge_idle=charge_idle,
        guard_tolerance=NO_GUARD,
    )
    uses, cells = run(partition, problem, announced_late=announced_late)
    truth = exactly(problem, charge_idle=charge_idle)

    assert sorted(uses) == sorted(name for name, *_ in problem.spans)
    allowance_mj = 2 + 2 * len(cells) + 0.01 * (origin_s > 1e6) * sum(e or 0 for *_, e in problem.line) / 1000
    for name, use in uses.items():
        if use.energy_mj is None:
            assert truth.covered_ms[name] == 0, name
            continue
        assert abs(use.energy_mj - truth.requests_mj[name]) <= allowance_mj, name
        assert sum(share.energy_mj for share in use.shares) == use.energy_mj
        assert sum(share.held_s for share in use.shares) >= float(truth.covered_ms[name]) / 1000 - 1e-3
    check_law(problem, list(uses.values()), cells)
    idle_mj = sum(cell.idle_mj + cell.unattributed_mj for cell in cells)
    assert abs(idle_mj - truth.idle_mj) <= allowance_mj * (1 + len(uses))


def check_law(problem: Problem, uses: list[SpanUse], cells: list[Cell]) -> None:
    """Law 1 in integers per bucket, and per bucket between spans and accounts."""
    assert len({cell.key for cell in cells}) == len(cells)
    shares: dict[BucketKey, int] = {}
    for share in (share for use in uses for share in use.shares):
        shares[share.key] = shares.get(share.key, 0) + share.energy_mj
    for cell in cells:
        assert cell.device_mj == cell.requests_mj + cell.idle_mj + cell.unattributed_mj
        assert min(cell.requests_mj, cell.idle_mj, cell.unattributed_mj, cell.estimated_mj) >= 0
        assert cell.requests_mj == shares.pop(cell.key, 0)
    assert not any(shares.values())
    assert sum(cell.device_mj for cell in cells) == sum(energy or 0 for *_, energy in problem.line)
    epochs = [0]
    for *_, energy in problem.line:
        if energy is None:
            epochs.append(0)
        else:
            epochs[-1] += energy
    booked = [sum(cell.device_mj for cell in cells if cell.key.epoch == epoch) for epoch in range(len(epochs))]
    assert booked == epochs


@given(problems(), st.integers(50, 62))
def test_law_holds_where_floats_cannot_count(problem: Problem, bits: int) -> None:
    """Steps of 2^50 mJ and more, where a float is coarser than a millijoule, lose and invent none."""
    line = [(a, b, None if energy is None else energy + 2**bits) for a, b, energy in problem.line]
    huge = Problem(line, problem.models_at, problem.spans, problem.models)
    partition = Partition("G0", huge.models[huge.models_at[0]], bucket_s=5.0, guard_tolerance=NO_GUARD)
    uses, cells = run(partition, huge, announced_late=False)
    check_law(huge, list(uses.values()), cells)


MODEL = PowerModel(100.0, 300.0, {"a": 300.0}, calibrated=True, idle_known=True)


def line_of(partition: Partition, watts: list[float], step_s: float = 0.5, start_s: float = 0.0) -> None:
    """Place intervals of ``step_s`` with these mean powers."""
    for index, power_w in enumerate(watts):
        begin_s = start_s + index * step_s
        energy_mj = round(1000 * power_w * step_s)
        partition.place(Interval(Kind.MEASURED, begin_s, begin_s + step_s, energy_mj, Method.COUNTER), 0.0)


def test_late_span_is_served_from_idle_and_unattributed() -> None:
    """A span that comes after its time was settled takes what idle and unattributed hold, and is flagged late."""
    partition = Partition("G0", MODEL, bucket_s=3600.0, history_s=100.0)
    line_of(partition, [100.0] * 4 + [400.0] * 4 + [100.0] * 4)
    (before,) = partition.take_cells()
    assert (before.device_mj, before.requests_mj, before.unattributed_mj) == (1_200_000, 0, 600_000)
    partition.add("late", 2.0, 4.0, power_class="a")
    line_of(partition, [100.0] * 4, start_s=6.0)
    (use,) = partition.take_finished()
    (after,) = partition.take_cells()
    assert use.late
    assert use.energy_mj == pytest.approx(800_000, abs=4)
    assert after.requests_mj == use.energy_mj
    assert after.device_mj == 1_400_000 == after.requests_mj + after.idle_mj + after.unattributed_mj


def test_late_span_without_history_gets_no_energy_of_the_past() -> None:
    """Without history what is settled stays: the span is partial, and its figure is of the rest."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    line_of(partition, [400.0] * 4)
    partition.add("late", 1.0, 3.0, power_class="a")
    line_of(partition, [400.0] * 4, start_s=2.0)
    partition.finish()
    (use,) = partition.take_finished()
    assert (use.energy_mj, use.late, use.partial) == (400_000, True, True)


def test_dropped_span_keeps_what_it_was_given_and_leaves_the_rest_to_others() -> None:
    """A span that nobody will end is final with what was settled; its edges mean nothing afterwards."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("lost", 0.0, power_class="a")
    partition.add("never", 50.0, 60.0)
    line_of(partition, [400.0] * 4)
    (use,) = partition.drop("lost")
    (unstarted,) = partition.drop("never")
    assert (use.energy_mj, use.partial) == (800_000, True)
    assert unstarted.energy_mj is None
    assert partition.drop("lost") == []
    assert (partition.active_spans, partition.unfinished_spans) == (0, 0)
    line_of(partition, [100.0] * 200, start_s=2.0)
    partition.finish()
    assert partition.take_finished() == []
    (cell,) = partition.take_cells()
    assert (cell.requests_mj, cell.idle_mj) == (800_000, 10_000_000)


def test_adopted_shares_are_part_of_the_figure() -> None:
    """What an earlier run had placed on a span comes back in its figure, and its shape is doubted as in a gap."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("r", -2.0, 1.0, power_class="a")
    partition.adopt("r", [UseShare(BucketKey(0, -1), 1234, 2.0)], Method.COUNTER)
    line_of(partition, [400.0] * 4)
    (use,) = partition.take_finished()
    assert use.energy_mj == 1234 + 400_000
    assert (use.gap, use.partial) == (True, False)
    assert [share.key.bucket for share in use.shares] == [-1, 0]


def test_shares_of_one_bucket_are_one_however_often_the_model_changes() -> None:
    """A long span does not grow with every new model: one share a bucket, with the seconds and energy of all."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("long", 0.0, 100.0, power_class="a")
    for index in range(50):
        line_of(partition, [400.0] * 4, start_s=2.0 * index)
        partition.set_model(PowerModel(100.0 + index, 300.0, {"a": 300.0}, calibrated=True))
    partition.finish()
    (use,) = partition.take_finished()
    (share,) = use.shares
    assert share.energy_mj == use.energy_mj == 40_000_000
    assert share.held_s == pytest.approx(100.0)


def test_foreign_load_goes_to_nobody() -> None:
    """Power beyond the model's tolerance is unattributed where it is, and the span that saw it loses quality."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("r", 2.0, 4.0, power_class="a")
    line_of(partition, [100.0] * 4 + [900.0] * 4 + [100.0] * 4)
    (use,) = partition.take_finished()
    (cell,) = partition.take_cells()
    assert use.contended
    assert use.energy_mj == pytest.approx(800_000, rel=0.01)
    assert cell.unattributed_mj == pytest.approx(1_000_000, rel=0.01)


def test_guard_waits_for_its_stretch() -> None:
    """One late counter step accuses nobody: within the guard's stretch the energy is only later."""
    late_step = [0.0, 200.0, 100.0, 100.0] * 3
    short = Partition("G0", MODEL, bucket_s=3600.0, guard_s=0.1)
    line_of(short, late_step)
    assert short.take_cells()[0].unattributed_mj == 150_000
    patient = Partition("G0", MODEL, bucket_s=3600.0, guard_s=2.0)
    line_of(patient, late_step)
    patient.finish()
    assert patient.take_cells()[0].unattributed_mj == 0


def test_unknown_class_is_forgiven_more() -> None:
    """Before a class is learned, twice the model is no accusation, whenever its span began."""
    for start_s in (-5.0, 0.0):
        partition = Partition("G0", MODEL, bucket_s=3600.0)
        partition.add("r", start_s, 30.0, power_class="never seen")
        line_of(partition, [700.0] * 8)
        assert partition.take_cells()[0].unattributed_mj == 0, start_s


def test_own_power_decides_before_the_class() -> None:
    """Two spans of one class that overlap owe by what is known of each."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("small", 0.0, 2.0, power_class="a", own_power=OwnPower(100.0, 0.1))
    partition.add("large", 0.0, 2.0, power_class="a", own_power=OwnPower(500.0, 0.1))
    line_of(partition, [400.0] * 4)
    partition.finish()
    energies = {use.span_id: use.energy_mj for use in partition.take_finished()}
    assert energies == {"small": 200_000, "large": 600_000}


def test_energy_of_a_hole_is_estimated_outside_the_law() -> None:
    """Across a reset nothing is booked, the estimate is the trapezoid where there is one, and a new epoch begins."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("r", 0.0, 6.0, power_class="a")
    line_of(partition, [400.0] * 4)
    partition.place(Interval(Kind.RESET, 2.0, 4.0, None, Method.COUNTER), 0.0)
    partition.place(Interval(Kind.GAP, 4.0, 5.0, None, Method.INSTANT, estimate_mj=77), 0.0)
    line_of(partition, [400.0] * 4, start_s=5.0)
    partition.finish()
    (use,) = partition.take_finished()
    cells = {cell.key.epoch: cell for cell in partition.take_cells()}
    assert partition.epoch == 2
    assert use.energy_mj == 800_000 + 400_000
    assert (use.partial, use.evidence.uncovered_mj) == (True, pytest.approx(1_200_000))
    assert cells[0].estimated_mj == 800_000
    assert cells[1].estimated_mj == 77
    assert cells[0].device_mj + cells[2].device_mj == sum(c.device_mj for c in cells.values()) == 1_600_000


@given(st.floats(0.0, 20.0), st.floats(0.1, 10.0))
def test_provisional_figure_runs_towards_the_final_one(now_s: float, duration_s: float) -> None:
    """At the frontier the provisional figure is what settlement gives; ahead of it the model speaks; it never falls."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("r", 0.0, power_class="a")
    assert partition.provisional_mj("nobody", 1.0) is None
    line_of(partition, [400.0] * math.ceil(2 * duration_s))
    partition.flush()
    frontier_s = partition.frontier_s or 0.0
    settled_mj = partition.provisional_mj("r", frontier_s) or 0.0
    assert settled_mj == pytest.approx(400_000 * frontier_s)
    ahead_mj = partition.provisional_mj("r", frontier_s + now_s) or 0.0
    assert ahead_mj == pytest.approx(settled_mj + 400_000 * now_s)


def test_end_in_the_past_takes_effect_at_the_frontier() -> None:
    """A running span whose end comes too late pays up to what was settled, once, and is late."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("r", 0.0, power_class="a")
    partition.add("r", 99.0)
    line_of(partition, [400.0] * 4)
    partition.end("r", 1.0)
    partition.end("r", 50.0)
    line_of(partition, [100.0] * 4, start_s=2.0)
    (use,) = partition.take_finished()
    assert (use.energy_mj, use.late, use.start_s, use.end_s) == (800_000, True, 0.0, 1.0)


def test_guard_is_strict_again_once_the_unknown_class_has_gone() -> None:
    """Forgiveness lasts as long as the span of the class nobody knows, in the same stretch and after it."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("new", 0.0, 0.9, power_class="never seen")
    line_of(partition, [600.0, 600.0])
    assert partition.take_cells()[0].unattributed_mj == 0
    line_of(partition, [700.0, 700.0], start_s=1.0)
    assert partition.take_cells()[0].unattributed_mj == pytest.approx(600_000)
    partition.add("brief", 2.0, 2.5, power_class="never seen")
    line_of(partition, [100.0] * 2 + [300.0] * 4, start_s=2.0)
    assert partition.take_cells()[0].unattributed_mj == pytest.approx(600_000 + 400_000)


def test_edge_of_a_request_that_readings_missed_is_in_doubt_by_the_model() -> None:
    """Where the line shows less than a calibrated model expects, an edge is as doubtful as the model's power."""
    partition = Partition("G0", MODEL, bucket_s=3600.0)
    partition.add("missed", 1.0, 1.5, power_class="a")
    line_of(partition, [100.0] * 8)
    (use,) = partition.take_finished()
    assert (use.evidence.start_w, use.evidence.end_w) == (400.0, 400.0)

"""The streaming partition against the brute-force reference: same model and intervals, same shares to a millijoule."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import reference

from joulegate.metering.interval import Interval, Kind
from joulegate.metering.model import PowerModel
from joulegate.metering.partition import Partition
from joulegate.metering.reading import Method

BUCKET_S = 10
NO_GUARD = 1e12
CLASSES = ("", "a", "b")


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], list[tuple[str, int, int, str]]]:
    """Contiguous intervals (start ms, end ms, mJ) and spans (id, start ms, end ms, class) that like to share edges."""
    steps = draw(st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 2_000_000)), min_size=1, max_size=25))
    t_ms, intervals = draw(st.integers(0, 30_000)), []
    for length_ms, energy_mj in steps:
        intervals.append((t_ms, t_ms + length_ms, energy_mj))
        t_ms += length_ms
    first_ms = intervals[0][0]
    edge = st.one_of(st.sampled_from([i[0] for i in intervals]), st.integers(max(0, first_ms - 3000), t_ms + 3000))
    spans = []
    for index in range(draw(st.integers(0, 9))):
        start_ms, end_ms = sorted((draw(edge), draw(edge)))
        spans.append((f"r{index}", start_ms, end_ms, draw(st.sampled_from(CLASSES))))
    return intervals, spans


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(1, 300), st.lists(st.integers(1, 900), min_size=3, max_size=3), st.booleans())
def test_streaming_equals_brute_force(
    problem: tuple[list[tuple[int, int, int]], list[tuple[str, int, int, str]]],
    idle_w: int,
    dynamic_w: list[int],
    announced_late: bool,
) -> None:
    """Whatever the cuts, each span gets its exact share within 1 mJ for each bucket it touches, and so does idle."""
    intervals, spans = problem
    by_class = {name: float(watts) for name, watts in zip(CLASSES, dynamic_w, strict=True)}
    model = PowerModel(float(idle_w), 1.0, by_class, calibrated=True, idle_known=True)
    partition = Partition("G0", model, bucket_s=BUCKET_S, guard_tolerance=NO_GUARD)
    waiting = sorted(spans, key=lambda span: span[1])
    for start_ms, end_ms, energy_mj in intervals:
        while waiting and (not announced_late or waiting[0][1] <= end_ms):
            span_id, span_start_ms, span_end_ms, kind = waiting.pop(0)
            partition.add(span_id, span_start_ms / 1000, span_end_ms / 1000, power_class=kind)
        partition.place(Interval(Kind.MEASURED, start_ms / 1000, end_ms / 1000, energy_mj, Method.COUNTER), 0.0)
    for span_id, span_start_ms, span_end_ms, kind in waiting:
        partition.add(span_id, span_start_ms / 1000, span_end_ms / 1000, power_class=kind)
    partition.finish()

    exact = reference.attribute(
        [reference.Interval(Fraction(a, 1000), Fraction(b, 1000), energy) for a, b, energy in intervals],
        [reference.Use(name, Fraction(a, 1000), Fraction(b, 1000), kind) for name, a, b, kind in spans],
        reference.Model(Fraction(idle_w), {name: Fraction(int(watts)) for name, watts in by_class.items()}),
    )
    uses = {use.span_id: use for use in partition.take_finished()}
    assert sorted(uses) == sorted(name for name, *_ in spans)
    allowance_mj = 1 + (intervals[-1][1] - intervals[0][0]) // (1000 * BUCKET_S) + 2
    for name, start_ms, end_ms, _ in spans:
        covered_ms = min(end_ms, intervals[-1][1]) - max(start_ms, intervals[0][0])
        energy_mj = uses[name].energy_mj
        if covered_ms <= 0:
            assert not energy_mj, (name, energy_mj)
            continue
        assert energy_mj is not None
        assert abs(energy_mj - exact.requests_mj[name]) <= allowance_mj, name
        assert sum(share.energy_mj for share in uses[name].shares) == energy_mj
    cells = partition.take_cells()
    total_mj = sum(energy for *_, energy in intervals)
    assert sum(cell.device_mj for cell in cells) == total_mj
    assert all(cell.device_mj == cell.requests_mj + cell.idle_mj + cell.unattributed_mj for cell in cells)
    assert sum(cell.requests_mj for cell in cells) == sum(use.energy_mj or 0 for use in uses.values())
    idle_mj = sum(cell.idle_mj + cell.unattributed_mj for cell in cells)
    assert abs(idle_mj - exact.idle_mj) <= allowance_mj * (1 + len(spans))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40, unique=True), st.integers(1, 8))
def test_cost_of_intervals_does_not_touch_open_spans(times_ms: list[int], count: int) -> None:
    """Spans that are open throughout owe equally, however many intervals pass while they are open."""
    times_ms = sorted(times_ms)
    model = PowerModel(100.0, 300.0, calibrated=True)
    partition = Partition("G0", model, bucket_s=BUCKET_S, guard_tolerance=NO_GUARD)
    for index in range(count):
        partition.add(f"r{index}", times_ms[0] / 1000, times_ms[-1] / 1000)
    for a, b in pairwise(times_ms):
        partition.place(Interval(Kind.MEASURED, a / 1000, b / 1000, 400 * (b - a), Method.COUNTER), 0.0)
    partition.finish()
    total_mj = 400 * (times_ms[-1] - times_ms[0])
    energies = [use.energy_mj or 0 for use in partition.take_finished()]
    assert sum(energies) == total_mj
    assert max(energies) - min(energies) <= 1 + total_mj // (400 * 1000 * BUCKET_S) + 1

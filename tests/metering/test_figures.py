"""From uses to quality, flags and a batch's split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.figures import (
    BATCH_SPLIT_ERROR,
    combine,
    flags_of,
    least_trusted,
    member_uncertainty,
    quality_of,
    split_members,
)
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, StartSource, Work


@dataclass(frozen=True)
class Use:
    """What a device saw of a span."""

    start_s: float = 0.0
    end_s: float = 3.0
    energy_mj: int | None = 1000
    methods: frozenset[Method] = frozenset({Method.COUNTER})
    shared: bool = False
    partial: bool = False
    gap: bool = False
    late: bool = False
    contended: bool = False


def test_lone_long_and_seen_whole_is_measured() -> None:
    """Nothing less than that."""
    assert quality_of([Use(), Use()], Method.COUNTER, primary=Method.COUNTER, step_s=0.1) is Quality.MEASURED


@pytest.mark.parametrize(
    "use",
    [
        Use(shared=True),
        Use(partial=True),
        Use(gap=True),
        Use(late=True),
        Use(contended=True),
        Use(end_s=0.19),
    ],
)
def test_anything_doubtful_is_apportioned(use: Use) -> None:
    """Also when another device saw the same span well."""
    for uses in ([use], [Use(), use], [use, Use()]):
        assert quality_of(uses, Method.COUNTER, step_s=0.1) is Quality.APPORTIONED


def test_inferred_start_batch_and_stand_in_are_apportioned() -> None:
    """So is a start nobody observed, a member of a batch, and a figure from what stood in for the source."""
    for source in (StartSource.FIFO, StartSource.ARRIVAL):
        assert quality_of([Use()], Method.COUNTER, step_s=0.1, start_source=source) is Quality.APPORTIONED
    assert quality_of([Use()], Method.COUNTER, step_s=0.1, members=2) is Quality.APPORTIONED
    assert quality_of([Use()], Method.INSTANT, primary=Method.COUNTER, step_s=0.1) is Quality.APPORTIONED


@pytest.mark.parametrize("ceiling", [Quality.SIMULATED, Quality.DEFAULT, Quality.MODELLED])
def test_figure_is_no_better_than_its_source(ceiling: Quality) -> None:
    """A source that does not measure lends its quality, whatever the use looks like."""
    assert quality_of([Use()], Method.COUNTER, step_s=0.1, source_quality=ceiling) is ceiling


def test_method_alone_tells_what_is_not_measured() -> None:
    """Simulated wins over modelled; without a figure nothing matters."""
    assert quality_of([Use()], Method.SIMULATED, step_s=0.1, source_quality=Quality.MODELLED) is Quality.SIMULATED
    assert quality_of([Use()], Method.MODEL, step_s=0.1) is Quality.MODELLED
    assert quality_of([Use()], None, step_s=0.1) is Quality.MISSING
    assert quality_of([Use(energy_mj=None)], Method.SIMULATED, step_s=0.1) is Quality.MISSING


@given(st.builds(Use, late=st.booleans(), partial=st.booleans(), gap=st.booleans(), contended=st.booleans()))
def test_flags_say_what_they_are_named_for(use: Use) -> None:
    """Each flag is there when any device saw it, in one fixed order."""
    flags = flags_of([Use(), use], step_s=0.1, start_source=StartSource.ENGINE, primary=Method.COUNTER)
    told = (("late", use.late), ("partial", use.partial), ("gap", use.gap), ("contended", use.contended))
    assert flags == tuple(word for word, applies in told if applies)


def test_flags_of_start_length_and_source() -> None:
    """An inferred start, a request under one step, and a figure from two sources are named."""
    short = [Use(end_s=0.05)]
    assert flags_of(short, step_s=0.1, start_source=StartSource.FIFO) == ("inferred_start", "below_resolution")
    both = [Use(methods=frozenset({Method.COUNTER, Method.INSTANT}))]
    other = [Use(methods=frozenset({Method.INSTANT}))]
    unseen = [Use(methods=frozenset())]
    assert flags_of(both, step_s=0.1, start_source=StartSource.ENGINE) == ("source_changed",)
    assert flags_of(other, step_s=0.1, start_source=StartSource.ENGINE, primary=Method.COUNTER) == ("source_changed",)
    assert flags_of(other, step_s=0.1, start_source=StartSource.ENGINE) == ()
    assert flags_of(unseen, step_s=0.1, start_source=StartSource.ENGINE, primary=Method.COUNTER) == ()


def test_weakest_method_is_carried() -> None:
    """A sum of a counter and a model is a model's."""
    assert least_trusted([Method.COUNTER, Method.MODEL, Method.INSTANT]) is Method.MODEL
    assert least_trusted(iter([Method.AVERAGE])) is Method.AVERAGE
    assert least_trusted([]) is None


WORK = st.builds(Work, st.integers(1, 8), st.integers(1, 100), st.integers(64, 2048), st.integers(64, 2048))


@given(st.integers(0, 10**9), st.lists(WORK, min_size=1, max_size=16), st.randoms(use_true_random=False))
def test_batch_is_split_by_work_exactly(energy_mj: int, works: list[Work], random: object) -> None:
    """Members' parts add up, follow their work within a millijoule, and do not depend on their order."""
    members = [Member(f"r{index}", work) for index, work in enumerate(works)]
    parts = dict(zip([m.request_id for m in members], split_members(energy_mj, members), strict=True))
    assert sum(parts.values()) == energy_mj
    units = sum(work.units for work in works)
    for member in members:
        assert abs(parts[member.request_id] - energy_mj * member.work.units / units) < 1 + 1e-9 * energy_mj
    random.shuffle(members)  # type: ignore[attr-defined]
    assert dict(zip([m.request_id for m in members], split_members(energy_mj, members), strict=True)) == parts


def test_members_of_a_batch_share_its_doubt() -> None:
    """Each has its part of the whole's U, and that of the split; the only member has no split."""
    assert member_uncertainty(100.0, 100.0, 10.0, 4.0) == (10.0, 4.0)
    measurement, allocation = member_uncertainty(25.0, 100.0, 10.0, 4.0)
    assert measurement == 2.5
    assert allocation == pytest.approx(math.hypot(1.0, 2 * BATCH_SPLIT_ERROR * 25 * 0.75))
    assert member_uncertainty(0.0, 0.0, 10.0, 4.0) == (0.0, 0.0)
    assert combine([3.0, 4.0]) == 5.0

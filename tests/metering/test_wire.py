"""Spans and entries on the wire."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegate.metering.entry import DeviceUse, RequestEntry, Share, Status
from joulegate.metering.reading import CLOCK_EVENTS, Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work
from joulegate.metering.wire import (
    MAX_COUNT,
    MAX_TEXT,
    WireFault,
    entry_from_wire,
    entry_to_wire,
    rfc3339,
    span_from_wire,
    span_to_wire,
    wall_s_from_rfc3339,
)

NOW_S = 5_000.0
WALL_S = 1_743_336_000.0

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CONTRACT = {
    *("request_id", "status", "model", "tier", "tenant", "images", "steps", "width", "height", "outcome", "flags"),
    *("arrived", "started", "ended", "start_source", "queue_s"),
    *("energy_j", "uncertainty_j", "method", "quality", "devices", "co2e_g"),
}

texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=MAX_TEXT)
labels = st.none() | texts
counts = st.none() | st.integers(1, MAX_COUNT)
works = st.builds(Work, counts, counts, counts, counts)
moments = st.floats(0, 1e9)
figures = st.none() | st.floats(-1e9, 1e9)
whole_mj = st.integers(-(2**62), 2**62)


@st.composite
def spans(draw) -> Span:
    """Any span that a sender may build."""
    request_id = draw(texts)
    arrived_s, started_s, ended_s = sorted(draw(st.tuples(moments, moments, moments)))
    single = st.builds(lambda work: (Member(request_id, work),), works)
    several = st.lists(st.builds(Member, texts, works), max_size=4, unique_by=lambda member: member.request_id)
    return Span(
        request_id=request_id,
        devices=tuple(draw(st.lists(texts, max_size=4, unique=True))),
        started_s=started_s,
        ended_s=draw(st.sampled_from((None, ended_s))),
        arrived_s=draw(st.sampled_from((None, arrived_s))),
        start_source=draw(st.sampled_from(StartSource)),
        power_class=draw(st.just("") | texts),
        members=draw(single | several.map(tuple)),
        batch_id=draw(labels),
        model=draw(labels),
        tier=draw(labels),
        tenant=draw(labels),
        outcome=draw(st.sampled_from(Outcome)),
        edge_error_s=draw(st.floats(0, 60)),
    )


@st.composite
def entries(draw) -> RequestEntry:
    """Any entry that a ledger may hold."""
    request_id = draw(texts)
    uses = st.builds(
        DeviceUse,
        whole_mj,
        figures,
        figures,
        figures,
        figures,
        st.none() | st.integers(0, 2**48),
        st.dictionaries(st.sampled_from(CLOCK_EVENTS), st.floats(0, 1e6)),
    )
    return RequestEntry(
        request_id=request_id,
        status=draw(st.sampled_from(Status)),
        outcome=draw(st.sampled_from(Outcome)),
        work=draw(works),
        started_s=draw(st.floats(0, 4e9)),
        ended_s=draw(st.floats(0, 4e9)),
        start_source=draw(st.sampled_from(StartSource)),
        energy_mj=draw(st.none() | whole_mj),
        u_measurement_mj=draw(st.none() | whole_mj),
        u_allocation_mj=draw(st.none() | whole_mj),
        method=draw(st.none() | st.sampled_from(Method)),
        quality=draw(st.sampled_from(Quality)),
        model=draw(labels),
        tier=draw(labels),
        tenant=draw(labels),
        arrived_s=draw(st.none() | st.floats(0, 4e9)),
        batch_id=draw(labels),
        devices=draw(st.dictionaries(texts, uses, max_size=3)),
        shares=tuple(
            Share(request_id, *share)
            for share in draw(st.lists(st.tuples(texts, st.integers(0, 2**40), whole_mj), max_size=3))
        ),
        flags=tuple(draw(st.lists(st.sampled_from(("late", "partial", "gap")), unique=True))),
    )


def over_json(message: dict[str, object]) -> dict[str, object]:
    """The message as a peer decodes it."""
    return json.loads(json.dumps(message, allow_nan=False))


def parse(**fields: object) -> Span:
    """A span of a small message with ``fields`` put in."""
    message = {"request_id": "r-1", "started_s": 10.0, "ended_s": 12.0} | fields
    return span_from_wire(message, now_s=NOW_S, wall_s=WALL_S)


@patient
@given(spans())
def test_a_span_comes_back_from_the_wire_as_it_was_sent(span: Span) -> None:
    """A span that is written, sent as JSON and read again is the same span."""
    assert span_from_wire(over_json(span_to_wire(span)), now_s=NOW_S, wall_s=WALL_S) == span


@patient
@given(entries())
def test_an_entry_comes_back_from_the_wire_with_every_millijoule(entry: RequestEntry) -> None:
    """An entry that is written, sent as JSON and read again is the same entry, to the millijoule."""
    assert entry_from_wire(over_json(entry_to_wire(entry))) == entry


@patient
@given(st.floats(0, 4e9))
def test_a_time_of_day_survives_to_the_microsecond(wall_s: float) -> None:
    """A Unix time written as RFC 3339 and read again differs by less than a microsecond."""
    assert wall_s_from_rfc3339(rfc3339(wall_s), "t") == pytest.approx(wall_s, abs=1e-6)


@patient
@given(
    st.dictionaries(
        st.sampled_from((*span_to_wire(Span("r", (), 1.0)), "started", "images", "tier")),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_a_hostile_message_is_a_span_or_one_clear_line(message: dict[str, object]) -> None:
    """Whatever JSON comes in, the outcome is a span or a fault of one line, and never another exception."""
    try:
        span = span_from_wire(message, now_s=NOW_S, wall_s=WALL_S)
    except WireFault as fault:
        assert "\n" not in str(fault)  # noqa: PT017 - the other outcome is a span
    else:
        assert span_from_wire(over_json(span_to_wire(span)), now_s=NOW_S, wall_s=WALL_S) == span


def test_times_of_day_become_monotonic_seconds_by_the_given_pair() -> None:
    """RFC 3339 times, with any offset, land on the monotonic clock where the pair puts them."""
    span = span_from_wire(
        {
            "request_id": "r-1",
            "arrived": "2025-03-30T12:00:00Z",
            "started": "2025-03-30T14:00:01.5+02:00",
            "ended": "2025-03-30t12:00:04.25z",
        },
        now_s=NOW_S,
        wall_s=WALL_S,
    )
    assert (span.arrived_s, span.started_s, span.ended_s) == pytest.approx((NOW_S, NOW_S + 1.5, NOW_S + 4.25))


def test_a_span_without_an_end_is_still_running() -> None:
    """``ended`` may be absent: the span is open."""
    assert parse(ended_s=None).ended_s is None


def test_a_span_that_only_knows_its_arrival_says_so() -> None:
    """Where the start is missing the arrival stands for it, with the start source that tells."""
    span = span_from_wire({"request_id": "r-1", "arrived_s": 10.0}, now_s=NOW_S, wall_s=WALL_S)
    assert (span.started_s, span.start_source) == (10.0, StartSource.ARRIVAL)


def test_the_class_is_the_model_where_none_is_given() -> None:
    """Requests of one model draw alike unless the sender groups them otherwise."""
    assert parse(model="sdxl").power_class == "sdxl"
    assert parse(**{"model": "sdxl", "class": "big"}).power_class == "big"


def test_unknown_keys_are_ignored() -> None:
    """A newer sender's extra fields change nothing."""
    assert parse(colour="red", v=1) == parse()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"request_id": None}, "request_id: is missing"),
        ({"request_id": ""}, "request_id: must not be empty"),
        ({"request_id": 7}, "request_id: must be text, not int"),
        ({"request_id": "x" * 257}, "request_id: must be at most 256 characters, it has 257"),
        ({"request_id": "a\nb"}, "request_id: must not have control characters"),
        ({"tenant": "a\ud800"}, "tenant: must not have control characters"),
        ({"tier": ["free"]}, "tier: must be text, not list"),
        ({"started_s": None}, "started: is missing"),
        ({"started_s": "10"}, "started_s: must be a number, not str"),
        ({"started_s": True}, "started_s: must be a number, not bool"),
        ({"started_s": math.nan}, "started_s: must be finite"),
        ({"started_s": math.inf}, "started_s: must be finite"),
        ({"started_s": 10**400}, "started_s: is too large"),
        ({"started_s": -1}, "started_s: must be at least 0"),
        ({"ended_s": 9.5}, "ended: is 0.5 s before the start"),
        ({"arrived_s": 11}, "arrived: is 1 s after the start"),
        ({"started_s": None, "started": 12}, "started: must be an RFC 3339 time"),
        ({"started_s": None, "started": "2025-03-30T12:00:00"}, "started: must be an RFC 3339 time"),
        ({"started_s": None, "started": "2025-13-30T12:00:00Z"}, "started: is not a time of the calendar"),
        ({"started_s": None, "started": "1969-12-31T12:00:00Z"}, "started: is before 1970"),
        ({"images": 0}, "images: must be from 1 to"),
        ({"images": -4}, "images: must be from 1 to"),
        ({"images": 4.0}, "images: must be a whole number"),
        ({"steps": True}, "steps: must be a whole number"),
        ({"width": 2**31}, "width: must be from 1 to"),
        ({"devices": "GPU-0"}, "devices: must be a list"),
        ({"devices": [0]}, "devices: must be text, not int"),
        ({"devices": ["GPU-0", "GPU-0"]}, "devices: names 'GPU-0' twice"),
        ({"members": [{"request_id": "a", "steps": 0}]}, "members[0].steps: must be from 1 to"),
        ({"members": [{"request_id": "a"}, {"request_id": "a"}]}, "members: names 'a' twice"),
        ({"members": ["a"]}, "members[0]: must be an object"),
        ({"outcome": "great"}, "outcome: must be one of ok, failed, cancelled"),
        ({"start_source": 3}, "start_source: must be one of engine"),
        ({"edge_error_s": -0.1}, "edge_error_s: must be at least 0"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(fields: dict[str, object], line: str) -> None:
    """Each wrong field gives one line that starts with its name and says what is wrong."""
    with pytest.raises(WireFault) as fault:
        parse(**fields)
    assert str(fault.value).startswith(line)


def test_an_entry_has_the_field_names_of_the_http_contract() -> None:
    """The names that gateways and dashboards rely on are all there, and a missing figure is null."""
    entry = RequestEntry(
        "r-1", Status.FINAL, Outcome.OK, Work(4, 30, 1024, 768), WALL_S, WALL_S + 2, StartSource.DECLARED,
        None, None, None, None, Quality.MISSING, arrived_s=WALL_S - 1,
        devices={"GPU-0": DeviceUse(1_500, power_mean_w=300.0, clock_event_s={"sw_thermal": 0.5})},
    )  # fmt: skip
    wire = entry_to_wire(entry)
    assert wire.keys() >= CONTRACT
    assert (wire["energy_j"], wire["uncertainty_j"], wire["method"], wire["co2e_g"]) == (None, None, None, None)
    assert (wire["started"], wire["queue_s"], wire["images"]) == ("2025-03-30T12:00:00.000000Z", 1.0, 4)
    device = wire["devices"]["GPU-0"]
    assert (device["energy_j"], device["power_mean_w"], device["power_max_w"]) == (1.5, 300.0, None)
    assert device["clock_event_s"] == {"sw_thermal": 0.5}


def test_uncertainty_is_told_in_two_parts() -> None:
    """Both parts of the uncertainty are joules at k=2, and a part that is unknown is null beside the other."""
    entry = RequestEntry(
        "r-1", Status.FINAL, Outcome.OK, Work(), 1.0, 2.0, StartSource.ENGINE, 10_000, 500, None, Method.COUNTER,
        Quality.MEASURED,
    )  # fmt: skip
    assert entry_to_wire(entry)["uncertainty_j"] == {"measurement": 0.5, "allocation": None}


@patient
@given(entries(), st.data())
def test_a_damaged_entry_is_one_clear_line(entry: RequestEntry, data: st.DataObject) -> None:
    """An entry with a field of the wrong type is a fault that names it, or no harm was done."""
    wire = over_json(entry_to_wire(entry))
    field = data.draw(st.sampled_from(sorted(wire)))
    wire[field] = data.draw(st.none() | st.just([1]) | st.just({"x": 1}) | st.just("word") | st.just(True))
    try:
        entry_from_wire(wire)
    except WireFault as fault:
        assert "\n" not in str(fault)  # noqa: PT017 - the other outcome is an entry

"""Tests of a recommendation as bytes, and of the flat numbers that autoscalers read."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http_throttle.stand_ins import FREE, recommendation

from joulegate.http.throttle_bytes import MAX_REPLICAS, NO_LIMIT, part_etag, prepare, replicas_wanted, scale_body
from joulegate.throttle.recommendation import Binding, State
from joulegate.throttle.wire import encode


def scale(**fields: object) -> dict[str, object]:
    """The flat numbers of a recommendation."""
    numbers: dict[str, object] = json.loads(scale_body(recommendation(**fields)))
    return numbers


def wanted(limit: float | None, demand: float | None, **fields: object) -> float:
    """Replicas for a capacity and a demand of a host where nothing else is special."""
    fields = {"inputs": {"demand_images_per_minute": demand}, "reasons": (), "admit_fraction": 1.0} | fields
    return replicas_wanted(recommendation(max_images_per_minute=limit, **fields))


def test_everything_is_prepared() -> None:
    """Tag, body, tiers, event and numbers are all of the one recommendation."""
    made = recommendation("abc")
    prepared = prepare(made, 7, 12.5)
    assert (prepared.sequence, prepared.decision_id, prepared.made_s) == (7, "abc", 12.5)
    assert prepared.recommendation is made
    assert prepared.etag == b'"abc"'
    assert prepared.body.decode() == encode(made)
    assert prepared.tiers.keys() == {"pro", "free"}
    assert all(json.loads(body)["decision_id"] == "abc" for body in prepared.tiers.values())
    assert json.loads(prepared.scale)["decision_id"] == "abc"


def test_event_is_one_frame() -> None:
    """The event has id, name and data on a line each and ends with an empty one, whatever the texts hold."""
    prepared = prepare(recommendation("abc", explain="a\r\nid: x\n\ndata: y\u2028"), 0, 0.0)
    id_line, event, data, *rest = prepared.event.decode().split("\n")
    assert (id_line, event, rest) == ("id: abc", "event: recommendation", ["", ""])
    assert data.removeprefix("data: ").encode() == prepared.body
    assert "\r" not in prepared.event.decode()


def test_what_is_no_number_is_never_sent() -> None:
    """A recommendation with nan cannot become bytes: the fault is met when it is made, not by a reader."""
    with pytest.raises(ValueError, match="JSON"):
        prepare(recommendation(admit_fraction=math.nan), 0, 0.0)


@given(st.text(max_size=20), st.text(max_size=20))
def test_tags_of_parts_differ(first: str, second: str) -> None:
    """Two parts have the same tag only if they have the same name, and any name gives a tag that a header can carry."""
    tags = [part_etag("abc", name.encode("utf-8", "replace").decode()) for name in (first, second)]
    assert (tags[0] == tags[1]) == (first.encode("utf-8", "replace") == second.encode("utf-8", "replace"))
    for tag in tags:
        assert all(0x21 <= octet < 0x7F for octet in tag)
        assert tag.count(b'"') == 2


def test_scale_has_numbers_and_no_null() -> None:
    """Every member but the id is a finite number, also where nothing is known and nothing limits."""
    for fields in (
        {},
        {"max_images_per_minute": None, "max_concurrency": None, "host_power_cap_w": None, "reasons": (), "inputs": {}},
        {"state": State.UNKNOWN, "binding": None, "admit_fraction": 0.0, "max_images_per_minute": 0.0},
    ):
        numbers = scale(**fields)
        assert numbers.pop("decision_id") == "d1"
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers.values())
        assert {"replicas_wanted", "admit_fraction", "max_images_per_minute", "limited", "state"} <= numbers.keys()


def test_unlimited_is_told_apart() -> None:
    """Without a limit the number is a huge one that is documented, and a flag says so."""
    free, held = scale(max_images_per_minute=None), scale()
    assert (free["max_images_per_minute"], free["limited"]) == (NO_LIMIT, 0)
    assert (held["max_images_per_minute"], held["limited"]) == (174.0, 1)


def test_what_is_not_known_is_absent() -> None:
    """Demand and capacity that nobody knows are left out rather than made up."""
    numbers = scale(max_images_per_minute=None, reasons=(), inputs={}, max_concurrency=None, admit_fraction=1.0)
    assert not numbers.keys() & {"demand_images_per_minute", "capacity_images_per_minute", "max_concurrency"}
    assert scale()["demand_images_per_minute"] == 609.0
    assert scale(inputs={"capacity_images_per_minute": 200.0})["capacity_images_per_minute"] == 200.0


def test_states_are_ordered_numbers() -> None:
    """The state rises from nominal 0 to emergency 4; stale and unknown follow."""
    assert [scale(state=state)["state"] for state in State] == list(range(7))
    assert scale(state=State.EMERGENCY)["state"] == 4


def test_replicas_are_demand_over_capacity() -> None:
    """Half used is half a host, 3.5 times asked for is three and a half: fractions, so that hosts can be summed."""
    assert wanted(200.0, 100.0) == 0.5
    assert wanted(174.0, 609.0) == 3.5
    assert replicas_wanted(recommendation(inputs={})) == 3.5
    assert wanted(100.0, None, admit_fraction=0.25) == 4.0
    assert wanted(100.0, 0.0) == 0.0


@pytest.mark.parametrize("state", [State.STALE, State.UNKNOWN])
def test_blind_host_asks_for_no_change(state: State) -> None:
    """Without telemetry, demand or capacity the number is 1: neither up nor down."""
    assert wanted(10.0, 1000.0, state=state) == 1.0
    assert wanted(None, 100.0) == 1.0
    assert wanted(100.0, None) == 1.0


@pytest.mark.parametrize("binding", [Binding.ENERGY, Binding.CO2E])
def test_budget_is_not_stretched_by_more_hosts(binding: Binding) -> None:
    """Under a budget of energy or CO2e no more hosts are asked for; heat does ask for them."""
    assert wanted(100.0, 400.0, binding=binding) == 1.0
    assert wanted(100.0, 40.0, binding=binding) == 0.4
    assert wanted(100.0, 400.0, binding=Binding.THERMAL) == 4.0


def test_dead_host_asks_for_one_beside_it() -> None:
    """A host without any capacity is a replica that gives nothing: it wants two; a flood asks for a bounded number."""
    assert wanted(0.0, 100.0) == 2.0
    assert wanted(0.0, 0.0) == 1.0
    assert wanted(0.001, 1e9) == MAX_REPLICAS


@given(
    limit=st.none() | st.floats(0, 1e9),
    demand=st.none() | st.floats(0, 1e15),
    fraction=st.floats(0, 1),
    state=st.sampled_from(State),
    binding=st.none() | st.sampled_from(Binding),
)
def test_any_recommendation_has_flat_numbers(
    limit: float | None, demand: float | None, fraction: float, state: State, binding: Binding | None
) -> None:
    """Whatever the recommendation, the numbers are JSON without null, and replicas stay within their bounds."""
    made = recommendation(
        max_images_per_minute=limit,
        inputs={"demand_images_per_minute": demand},
        admit_fraction=fraction,
        state=state,
        binding=binding,
        tiers={"free": FREE},
    )
    numbers = json.loads(scale_body(made))
    assert None not in numbers.values()
    assert 0.0 <= numbers["replicas_wanted"] <= MAX_REPLICAS

"""Whatever comes in: an answer, and every promise kept."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st
from tests.throttle_contract.promises import Talk, finite, limits_only, not_looser, observation, steady, without_id

from joulegate.throttle.adviser import Adviser
from joulegate.throttle.settings import ThrottleSettings, Tier
from joulegate.throttle.wire import encode

NUMBERS = (
    st.integers(-5, 1000)
    | st.floats(0, 700, allow_nan=False)
    | st.floats()
    | st.sampled_from([1e308, -1e308, 5e-324, 10**400])
)
ODD = st.none() | st.booleans() | st.text(max_size=6) | st.lists(st.integers(), max_size=2)
VALUE = NUMBERS | ODD
ANYTHING = st.recursive(
    VALUE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.lists(
    st.sampled_from(["gpu_idle", "sw_thermal", "hw_slowdown", "hw_power_brake", "hw_thermal", "sw_power_cap", "else"])
    | ODD,
    max_size=3,
)
COUNTS = st.dictionaries(st.sampled_from(["pro", "plus", "free", "gold", ""]), VALUE, max_size=4)


def usually(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any] = ANYTHING) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, sometimes anything."""
    return st.one_of(good, good, good, good, bad)


DEVICE = st.fixed_dictionaries(
    {"id": usually(st.sampled_from(["GPU-0", "GPU-1", "GPU-2"]))},
    optional={
        "up": usually(st.booleans()),
        "temperature_c": usually(st.integers(20, 100)),
        "memory_temperature_c": usually(st.integers(20, 110)),
        "power_w": usually(st.floats(0, 900)),
        "energy_j": usually(st.floats(0, 1e7)),
        "utilization": usually(st.floats(0, 1)),
        "power_limit_w": usually(st.integers(100, 800)),
        "power_limit_min_w": usually(st.integers(50, 300)),
        "power_limit_max_w": usually(st.integers(250, 800)),
        "max_operating_c": usually(st.integers(60, 95)),
        "slowdown_c": usually(st.integers(60, 99)),
        "memory_max_operating_c": usually(st.integers(80, 110)),
        "clock_events": usually(EVENTS),
    },
)
OBSERVATION = st.fixed_dictionaries(
    {"devices": usually(st.lists(usually(DEVICE), max_size=4))},
    optional={
        "images_done": usually(st.floats(0, 100)),
        "arrivals": usually(COUNTS),
        "queue": usually(COUNTS),
        "grid_g_per_kwh": usually(st.floats(0, 1000)),
        "grid_forecast": usually(
            st.lists(st.fixed_dictionaries({"t": NUMBERS, "g_per_kwh": NUMBERS}) | ANYTHING, max_size=3)
        ),
        "budget": usually(
            st.fixed_dictionaries({}, optional={"energy_j_left": VALUE, "co2e_g_left": VALUE, "until_t": VALUE})
        ),
    },
)
ODD_GAPS = st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0]) | st.none()
GAPS = usually(st.sampled_from([0.2, 1.0, 5.0, 20.0, 3600.0]), ODD_GAPS)
SETTINGS = st.builds(
    ThrottleSettings,
    tiers=st.sampled_from(
        [
            (Tier("pro"), Tier("plus"), Tier("free", 0.02, "3/day", 1, 9)),
            (Tier("all", 1.0),),
            (Tier("pro", 0.3), Tier("batch", 0.1, deferrable=True), Tier("free", 0.6)),
        ]
    ),
    actuators=st.sampled_from([("rate", "power_cap"), ("rate",), ("power_cap",)]),
    host_power_limit_w=st.none() | st.floats(1.0, 3000.0),
)


def timed(gaps_and_rest: list[tuple[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Observations with a time that mostly goes on."""
    t, many = 0.0, []
    for gap, rest in gaps_and_rest:
        step = finite(gap)
        many.append({"t": gap if step is None else t + step, **rest})
        t = t + step if step is not None and 0 < step < 1e6 else t
    return many


SEQUENCE = st.lists(st.tuples(GAPS, OBSERVATION), min_size=1, max_size=15).map(timed)


@given(ANYTHING)
def test_any_value_alone(value: Any) -> None:
    """Any JSON value gets an answer that keeps every promise."""
    said = Talk()(value)
    assert said["state"] == "unknown"


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
def test_any_text_alone(text: str) -> None:
    """Any text gets an answer that keeps every promise."""
    Talk().line(text)


@given(SETTINGS, SEQUENCE)
@settings(max_examples=80)
def test_any_sequence(configuration: ThrottleSettings, many: list[Any]) -> None:
    """A hostile sequence never raises, breaks a promise or lifts a cap over the greatest, for any configuration."""
    note("\n".join(json.dumps(seen) for seen in many))
    Talk(configuration).all(many)


@settings(max_examples=25)
@given(
    SEQUENCE, st.lists(ANYTHING.filter(lambda value: not isinstance(value, dict)), min_size=1, max_size=3), st.data()
)
def test_bad_lines_anywhere(many: list[Any], bad: list[Any], data: st.DataObject) -> None:
    """Bad lines in any place repeat the limits and leave no trace in what follows but the hash."""
    plain, disturbed = Talk(), Talk()
    expected = [without_id(said) for said in plain.all(many)]
    place = data.draw(st.integers(0, len(many)))
    found = [without_id(said) for said in disturbed.all(many[:place])]
    for value in bad:
        said = disturbed(value)
        if found:
            assert limits_only(said) == limits_only(found[-1])
    found += [without_id(said) for said in disturbed.all(many[place:])]
    assert found == expected


@given(SETTINGS, SEQUENCE, st.data())
@settings(max_examples=25)
def test_checkpoint_anywhere(configuration: ThrottleSettings, many: list[Any], data: st.DataObject) -> None:
    """A hostile sequence can be cut anywhere by a checkpoint, and goes on with the same bytes."""
    whole, cut = Adviser(configuration), Adviser(configuration)
    place = data.draw(st.integers(0, len(many)))
    for seen in many[:place]:
        whole.advise(seen)
        cut.advise(seen)
    cut = Adviser.restored(configuration, json.loads(json.dumps(cut.checkpoint(), allow_nan=False)))
    for seen in many[place:]:
        assert encode(whole.advise(seen)) == encode(cut.advise(seen))


@given(SEQUENCE)
@settings(max_examples=25)
def test_value_and_text_agree(many: list[Any]) -> None:
    """A decoded value and its text give the same bytes."""
    values, texts = Adviser(ThrottleSettings()), Adviser(ThrottleSettings())
    for seen in many:
        text = json.dumps(seen)
        assert encode(values.advise(json.loads(text))) == encode(texts.advise_line(text))


@given(SEQUENCE, st.permutations(range(4)))
@settings(max_examples=25)
def test_order_of_members_changes_nothing(many: list[Any], order: list[int]) -> None:
    """The order of an object's members, as another JSON writer may have it, changes no limit."""
    plain, shuffled = Talk(), Talk()
    for seen in many:
        backwards = dict(reversed(seen.items()))
        assert limits_only(shuffled(backwards)) == limits_only(plain(seen))


@given(st.integers(60, 86), st.integers(0, 6), st.floats(150, 600), st.sampled_from([("rate", "power_cap"), ("rate",)]))
@settings(max_examples=25)
def test_hotter_is_never_looser(temperature_c: int, more_c: int, power_w: float, actuators: tuple[str, ...]) -> None:
    """Of two hosts that differ in their temperature only, the hotter one never gets the higher cap or rate."""
    cool, hot = Talk(ThrottleSettings(actuators=actuators)), Talk(ThrottleSettings(actuators=actuators))
    for k in range(30):
        t = 2.0 * k
        told = {"images_done": 2, "arrivals": {"pro": 1, "plus": 2, "free": 9}, "queue": {"free": 5}}
        less = cool(observation(t, steady(t, temperature_c, power_w), **told))
        more = hot(observation(t, steady(t, temperature_c + more_c, power_w), **told))
    not_looser(more, less, 0.03)

"""Property tests that try to break the meter with readings and spans no plant would give."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.support.meter import attribute, check_laws, requests_of

SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
POLICIES = ("separate", "reserved", "usage", "marginal")


@dataclass(frozen=True)
class Row:
    """A reading; an empty cell is ``None``."""

    device: str
    t_ms: int
    energy_mj: int | None
    power_w: float | None = None


@dataclass(frozen=True)
class Use:
    """A row of the spans file."""

    request_id: str
    devices: tuple[str, ...]
    start_ms: int
    end_ms: int
    kind: str = ""
    batch_id: str = ""
    steps: int | None = None


def readings_text(rows: list[Row], *, power: bool = False) -> str:
    """CSV of the readings."""
    lines = ["device,t_s,energy_mj" + ",power_w" * power]
    for row in rows:
        cells = [row.device, f"{row.t_ms / 1000:.3f}", "" if row.energy_mj is None else str(row.energy_mj)]
        lines.append(",".join(cells + ["" if row.power_w is None else repr(row.power_w)] * power))
    return "\n".join(lines) + "\n"


def spans_text(uses: list[Use]) -> str:
    """CSV of the spans."""
    lines = ["request_id,devices,start_s,end_s,class,batch_id,steps"]
    for use in uses:
        cells = [use.request_id, "|".join(use.devices), f"{use.start_ms / 1000:.3f}", f"{use.end_ms / 1000:.3f}"]
        lines.append(",".join([*cells, use.kind, use.batch_id, "" if use.steps is None else str(use.steps)]))
    return "\n".join(lines) + "\n"


GAPS_MS = st.one_of(st.integers(1, 30), st.integers(90, 110), st.integers(500, 5000))
RISES_MJ = st.one_of(st.just(0), st.integers(0, 200), st.integers(2_000, 90_000), st.integers(10**6, 10**9))


@st.composite
def counters(draw: st.DrawFn, device: str, *, resets: bool = True, holes: bool = True) -> list[Row]:
    """An arbitrary counter: any rises, some empty cells, some resets, a base up to 2**60."""
    t_ms = draw(st.integers(0, 5000))
    energy_mj = draw(st.sampled_from([0, 5, 10**6, 2**53 + 1, 2**60]))
    rows = []
    for gap_ms, rise_mj, event in draw(
        st.lists(st.tuples(GAPS_MS, RISES_MJ, st.integers(0, 19)), min_size=2, max_size=40)
    ):
        t_ms += gap_ms
        energy_mj = draw(st.integers(0, max(0, energy_mj - 1))) if event == 0 and resets else energy_mj + rise_mj
        rows.append(Row(device, t_ms, None if event == 1 and holes else energy_mj))
    assume(any(row.energy_mj is not None for row in rows))
    return rows


@st.composite
def worlds(draw: st.DrawFn, *, resets: bool = True) -> tuple[list[Row], list[Use]]:
    """One or two devices and up to eight spans whose edges like to meet readings and each other."""
    devices = ["G0", "G1"][: draw(st.integers(1, 2))]
    rows = [row for device in devices for row in draw(counters(device, resets=resets))]
    times = sorted({row.t_ms for row in rows})
    edge = st.one_of(st.sampled_from(times), st.integers(0, times[-1] + 2000), st.just(times[0]))
    uses = []
    for index in range(draw(st.integers(0, 8))):
        start_ms, end_ms = sorted((draw(edge), draw(edge)))
        held = tuple(draw(st.lists(st.sampled_from(devices), min_size=1, unique=True)))
        uses.append(Use(f"r{index}", held, start_ms, end_ms, draw(st.sampled_from(["", "a", "b"]))))
    return rows, uses


def deltas(rows: list[Row]) -> dict[str, list[int]]:
    """Counter delta of each epoch by device, from the rows alone: a fall begins an epoch."""
    found: dict[str, list[int]] = {}
    for device in dict.fromkeys(row.device for row in rows):
        values = [row.energy_mj for row in rows if row.device == device and row.energy_mj is not None]
        epochs = [0] * bool(values)
        for before, after in pairwise(values):
            if after < before:
                epochs.append(0)
            else:
                epochs[-1] += after - before
        found[device] = epochs
    return found


def totals(result: dict[str, Any], key: str) -> dict[str, int]:
    """One account of every device."""
    return {name: device[key] for name, device in result["devices"].items()}


@SETTINGS
@given(worlds(), st.sampled_from(POLICIES), st.sampled_from(["auto", "0", "100", "250"]))
def test_conservation(world: tuple[list[Row], list[Use]], policy: str, lag: str) -> None:
    """Law 1 holds in integers per device and epoch for any counter, spans, policy and lag."""
    rows, uses = world
    result = attribute(readings_text(rows), spans_text(uses), "--idle-policy", policy, "--lag-ms", lag)
    check_laws(result)
    expected = deltas(rows)
    assert totals(result, "counter_delta_mj") == {name: sum(epochs) for name, epochs in expected.items()}
    assert sorted(requests_of(result)) == sorted(use.request_id for use in uses)
    for name, epochs in expected.items():
        booked = [epoch["counter_delta_mj"] for epoch in result["devices"][name]["epochs"]]
        assert [value for value in booked if value] == [value for value in epochs if value], name


@SETTINGS
@given(worlds(), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(world: tuple[list[Row], list[Use]], random: Any) -> None:
    """Shuffled spans and interleaved devices give the same figures to the millijoule."""
    rows, uses = world
    plain = attribute(readings_text(rows), spans_text(uses))
    shuffled = random.sample(uses, len(uses))
    woven = sorted(rows, key=lambda row: (row.t_ms, -ord(row.device[-1])))
    mixed = attribute(readings_text(woven), spans_text(shuffled))
    assert mixed["devices"] == plain["devices"]
    assert requests_of(mixed) == requests_of(plain)


@SETTINGS
@given(worlds())
def test_idle_policies_only_move_idle_energy(world: tuple[list[Row], list[Use]]) -> None:
    """A policy changes neither delta nor unattributed nor estimated energy, and moves requests and idle as it says."""
    rows, uses = world
    results = {policy: attribute(readings_text(rows), spans_text(uses), "--idle-policy", policy) for policy in POLICIES}
    separate = results["separate"]
    for result in results.values():
        check_laws(result)
        for key in ("counter_delta_mj", "unattributed_mj", "estimated_mj"):
            assert totals(result, key) == totals(separate, key)
        for name, request in requests_of(result).items():
            assert (request["energy_mj"] is None) == (requests_of(separate)[name]["energy_mj"] is None)
    for name, device in separate["devices"].items():
        assert results["marginal"]["devices"][name]["requests_mj"] <= device["requests_mj"]
        for policy in ("reserved", "usage"):
            assert results[policy]["devices"][name]["requests_mj"] >= device["requests_mj"]


@SETTINGS
@given(worlds(), st.data())
def test_splitting_a_recording_adds_up(world: tuple[list[Row], list[Use]], data: st.DataObject) -> None:
    """Cut at any time, with the reading at the cut in both halves, the deltas of the halves add up to the whole."""
    rows, uses = world
    cut_ms = data.draw(st.sampled_from(sorted({row.t_ms for row in rows if row.energy_mj is not None})))
    whole = totals(attribute(readings_text(rows), spans_text(uses)), "counter_delta_mj")
    for device in whole:
        mine = [row for row in rows if row.device == device and row.energy_mj is not None]
        seam = [row for row in mine if row.t_ms <= cut_ms][-1:] or mine[:1]
        first = [row for row in mine if row.t_ms <= seam[0].t_ms]
        second = [row for row in mine if row.t_ms >= seam[0].t_ms]
        held = [replace(use, devices=(device,)) for use in uses if device in use.devices]
        parts = [attribute(readings_text(half), spans_text(held)) for half in (first, second)]
        for part in parts:
            check_laws(part)
        assert sum(totals(part, "counter_delta_mj")[device] for part in parts) == whole[device]


@SETTINGS
@given(worlds(), st.integers(1, 2**59))
def test_counter_offset_means_nothing(world: tuple[list[Row], list[Use]], offset_mj: int) -> None:
    """Only differences of a counter count: any offset gives the same figures."""
    rows, uses = world
    moved = [row if row.energy_mj is None else replace(row, energy_mj=row.energy_mj + offset_mj) for row in rows]
    assert attribute(readings_text(moved), spans_text(uses)) == attribute(readings_text(rows), spans_text(uses))


@SETTINGS
@given(worlds(), st.lists(st.integers(1, 60), min_size=2, max_size=5))
def test_batch_members_share_one_span(world: tuple[list[Row], list[Use]], steps: list[int]) -> None:
    """A batch owes what one span owes, members owe by their work within 1 mJ, and their order changes nothing."""
    rows, uses = world
    assume(uses)
    lone, others = uses[0], uses[1:]
    members = [replace(lone, request_id=f"m{i}", batch_id="b", steps=n) for i, n in enumerate(steps)]
    result = attribute(readings_text(rows), spans_text([*members, *others]))
    check_laws(result)
    again = attribute(readings_text(rows), spans_text([*others, *members[::-1]]))
    assert requests_of(again) == requests_of(result)
    single = requests_of(attribute(readings_text(rows), spans_text([replace(lone, batch_id="b"), *others])))
    parts = [requests_of(result)[member.request_id] for member in members]
    if single[lone.request_id]["energy_mj"] is None:
        assert all(part["energy_mj"] is None for part in parts)
        return
    for device in lone.devices:
        whole_mj = single[lone.request_id]["devices"].get(device)
        shares = [part["devices"].get(device) for part in parts]
        if whole_mj is None:
            assert not any(shares)
            continue
        assert abs(sum(shares) - whole_mj) <= len(members) + 1
        for share, n in zip(shares, steps, strict=True):
            assert abs(share - sum(shares) * n / sum(steps)) <= 1 + 1e-9 * whole_mj


@SETTINGS
@given(worlds(resets=False))
def test_what_no_reading_saw_is_missing(world: tuple[list[Row], list[Use]]) -> None:
    """A span wholly outside the readings has no figure at all; one that crosses their end is not `measured`."""
    rows, uses = world
    last_ms = max(row.t_ms for row in rows)
    device = rows[0].device
    first_ms = min(row.t_ms for row in rows if row.device == device and row.energy_mj is not None)
    final_ms = max(row.t_ms for row in rows if row.device == device and row.energy_mj is not None)
    after = Use("after", (device,), last_ms + 10_000, last_ms + 11_000)
    across = Use("across", (device,), final_ms, final_ms + 60_000)
    extra = [after, across]
    if first_ms > 0:
        extra.append(Use("before", (device,), 0, first_ms - 1))
    result = attribute(readings_text(rows), spans_text([*uses, *extra]), "--lag-ms", "0")
    check_laws(result)
    requests = requests_of(result)
    for name in ("after", "before"):
        if name in requests:
            assert requests[name]["energy_mj"] is None, requests[name]
            assert requests[name]["u_measurement_mj"] is None
            assert requests[name]["u_allocation_mj"] is None
            assert requests[name]["method"] is None
    assert requests["across"]["quality"] != "measured"


@SETTINGS
@given(worlds())
def test_uncertainty_is_a_figure_wherever_energy_is(world: tuple[list[Row], list[Use]]) -> None:
    """Every figure has both parts of U, not negative, at least the sensor's gain, and a known method and quality."""
    rows, uses = world
    for request in attribute(readings_text(rows), spans_text(uses))["requests"]:
        if request["energy_mj"] is None:
            continue
        for key in ("u_measurement_mj", "u_allocation_mj"):
            assert isinstance(request[key], int), request
            assert request[key] >= 0
        assert request["u_measurement_mj"] >= 0.05 * request["energy_mj"] - 1
        assert request["method"] == "counter"
        assert request["quality"] in ("measured", "apportioned", "modelled")


@SETTINGS
@given(worlds())
def test_sharing_or_shortness_is_never_measured(world: tuple[list[Row], list[Use]]) -> None:
    """Only a request that was alone on its devices throughout can be `measured`."""
    rows, uses = world
    requests = requests_of(attribute(readings_text(rows), spans_text(uses)))
    for use in uses:
        shared = any(
            other is not use
            and set(other.devices) & set(use.devices)
            and min(other.end_ms, use.end_ms) > max(other.start_ms, use.start_ms)
            for other in uses
        )
        if shared:
            assert requests[use.request_id]["quality"] != "measured"


@st.composite
def power_logs(draw: st.DrawFn) -> list[Row]:
    """Readings without a counter."""
    t_ms, rows = 0, []
    watts = st.one_of(st.none(), st.just(0.0), st.floats(0, 1500).map(lambda value: round(value, 1)))
    for gap_ms, power_w in draw(st.lists(st.tuples(GAPS_MS, watts), min_size=2, max_size=40)):
        t_ms += gap_ms
        rows.append(Row("G0", t_ms, None, power_w))
    return rows


@SETTINGS
@given(power_logs(), worlds())
def test_power_only_readings_obey_the_law(rows: list[Row], world: tuple[list[Row], list[Use]]) -> None:
    """The integral of power is partitioned exactly too, holes are estimated below the largest power ever read."""
    uses = [replace(use, devices=("G0",)) for use in world[1]]
    text = readings_text(rows, power=True).replace("t_s,energy_mj,", "t_s,").replace(",,", ",")
    result = attribute(text, spans_text(uses))
    check_laws(result)
    known = [row for row in rows if row.power_w is not None]
    if len(known) < 2:
        assert all(request["energy_mj"] is None for request in result["requests"])
        assert totals(result, "counter_delta_mj") == {"G0": 0}
    for request in result["requests"]:
        assert request["method"] in (None, "instant", "average")
    most_mj = (rows[-1].t_ms - rows[0].t_ms) * max((row.power_w for row in known), default=0.0)
    accounted = totals(result, "counter_delta_mj")["G0"] + totals(result, "estimated_mj")["G0"]
    assert accounted <= most_mj * (1 + 1e-9) + len(rows) + 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_spans_owe_equally(count: int) -> None:
    """Spans that are alike in all but name owe the same within 1 mJ for each interval they cross."""
    rows = [Row("G0", 100 * i, 50_003 * i) for i in range(100)]
    uses = [Use(f"r{i}", ("G0",), 2_000, 6_000) for i in range(count)]
    energies = [request["energy_mj"] for request in attribute(readings_text(rows), spans_text(uses))["requests"]]
    assert max(energies) - min(energies) <= 41


def test_span_of_no_length_takes_nothing_and_breaks_nothing() -> None:
    """A span that starts when it ends is accepted, owes nothing, and changes nobody's figure."""
    rows = [Row("G0", 100 * i, 50_003 * i) for i in range(100)]
    real = Use("real", ("G0",), 2_000, 6_000)
    alone = attribute(readings_text(rows), spans_text([real]))
    result = attribute(
        readings_text(rows), spans_text([real, *(Use(f"z{t}", ("G0",), t, t) for t in (2000, 2050, 4000))])
    )
    check_laws(result)
    assert requests_of(result)["real"]["energy_mj"] == requests_of(alone)["real"]["energy_mj"]
    assert all(not request["energy_mj"] for name, request in requests_of(result).items() if name != "real")


def test_huge_counters_lose_no_millijoule() -> None:
    """Near 2**60 mJ, where a float would lose 60 mJ, every millijoule is placed."""
    rows = [Row("G0", 100 * i, 2**60 + 49_999 * i + i % 7) for i in range(300)]
    uses = [Use(f"r{i}", ("G0",), 700 * i, 700 * i + 1_550, "ab"[i % 2]) for i in range(35)]
    result = attribute(readings_text(rows), spans_text(uses))
    check_laws(result)
    assert totals(result, "counter_delta_mj") == {"G0": 49_999 * 299 + 299 % 7}


def test_one_huge_step_is_one_interval() -> None:
    """A single rise of 2**60 mJ is partitioned exactly."""
    rows = [Row("G0", 0, 0), Row("G0", 10_000, 2**60 + 1), Row("G0", 10_100, 2**60 + 9)]
    result = attribute(
        readings_text(rows), spans_text([Use("a", ("G0",), 1_000, 4_000), Use("b", ("G0",), 2_000, 9_000)])
    )
    check_laws(result)
    assert totals(result, "counter_delta_mj") == {"G0": 2**60 + 9}


@pytest.mark.parametrize("cells", [["", "", ""], ["5", "", ""], ["", "7", ""]])
def test_counter_seen_less_than_twice_gives_no_figure(cells: list[str]) -> None:
    """One reading is no difference: the request is missing, the delta is 0, and nothing is booked."""
    text = "device,t_s,energy_mj\n" + "".join(f"G0,{i + 1}.0,{cell}\n" for i, cell in enumerate(cells))
    result = attribute(text, spans_text([Use("r", ("G0",), 1_000, 3_000)]))
    check_laws(result)
    (request,) = result["requests"]
    assert request["energy_mj"] is None
    assert request["quality"] == "missing"


def test_counter_that_never_moves_is_zero_and_not_missing() -> None:
    """A counter read twice at the same value did measure: 0 mJ, and that is not the same as no reading."""
    rows = [Row("G0", 100 * i, 77) for i in range(50)]
    result = attribute(readings_text(rows), spans_text([Use("r", ("G0",), 1_000, 3_000)]))
    check_laws(result)
    assert totals(result, "counter_delta_mj") == {"G0": 0}
    assert requests_of(result)["r"]["energy_mj"] in (0, None)


def test_time_axis_may_be_unix_time() -> None:
    """Times of 1.8e9 seconds give the figures of times near zero, within a part in ten thousand."""
    rows = [Row("G0", 100 * i, (30_000 if 20 <= i < 60 else 9_500) * (i - 20) + 10**6) for i in range(20, 60)]
    uses = [Use("a", ("G0",), 2_500, 4_000), Use("b", ("G0",), 3_000, 5_500)]
    shift_ms = 1_800_000_000_000
    near = requests_of(attribute(readings_text(rows), spans_text(uses), "--lag-ms", "0"))
    far = requests_of(
        attribute(
            readings_text([replace(row, t_ms=row.t_ms + shift_ms) for row in rows]),
            spans_text([replace(use, start_ms=use.start_ms + shift_ms, end_ms=use.end_ms + shift_ms) for use in uses]),
            "--lag-ms",
            "0",
        )
    )
    for name, request in near.items():
        assert math.isclose(far[name]["energy_mj"], request["energy_mj"], rel_tol=1e-4)


def test_fuzz_of_many_spans_is_exact() -> None:
    """Three thousand random spans over random counters on three devices close to 0 mJ."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for device in ("G0", "G1", "G2"):
        times = np.cumsum(rng.integers(1, 200, 5_000))
        energies = np.cumsum(rng.integers(0, 80_000, 5_000))
        rows += [Row(device, int(t), int(e)) for t, e in zip(times, energies, strict=True)]
    uses = []
    for i in range(3_000):
        start_ms = int(rng.integers(0, 500_000))
        held = ("G0", "G1", "G2")[: rng.integers(1, 4)]
        uses.append(Use(f"r{i}", held, start_ms, start_ms + int(rng.integers(0, 20_000)), f"c{i % 5}"))
    result = attribute(readings_text(rows), spans_text(uses))
    check_laws(result)
    assert totals(result, "counter_delta_mj") == {name: sum(epochs) for name, epochs in deltas(rows).items()}

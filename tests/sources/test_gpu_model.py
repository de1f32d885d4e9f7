"""The simulated GPU: conservation, sensors, heat, slowdown, faults."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.metering.reading import Reading, clock_event_names
from joulegate.sources.gpu_model import GpuModel, dynamic_power_w
from joulegate.sources.gpu_profiles import A100, B200, H100, L40S, PROFILES, GpuProfile, SensorProfile

IDLE = replace(H100.ideal(), idle_w=100.0)


def watch(model: GpuModel, to_s: float, every_s: float = 0.05) -> list[Reading]:
    """Readings at a steady poll until ``to_s``."""
    readings = []
    for poll in range(1, math.floor((to_s - model.now_s) / every_s) + 1):
        model.advance(model.now_s + every_s if poll else to_s)
        readings.append(model.read(0.0))
    return readings


def test_the_worked_oracle_is_the_models_own_truth() -> None:
    """The note's case 6.6: A 1800 J, B 1200 J, idle 300 J, 3300 J in all."""
    model = GpuModel(IDLE)
    model.start("A", "", 1.0, dynamic_w=500.0)
    model.start("B", "", 3.0, dynamic_w=300.0)
    model.stop("A", 5.0)
    model.stop("B", 7.0)
    model.advance(9.0)
    assert model.energy_true_mj("A") == pytest.approx(1_800_000, abs=0.01)
    assert model.energy_true_mj("B") == pytest.approx(1_200_000, abs=0.01)
    assert model.idle_true_mj() == pytest.approx(300_000, abs=0.01)
    assert model.total_true_mj() == pytest.approx(3_300_000, abs=0.01)


REQUESTS = st.lists(
    st.tuples(st.floats(0, 30), st.floats(0.001, 15), st.sampled_from(["turbo", "sana", "pixart", "flux"])),
    max_size=25,
)


@given(REQUESTS, st.integers(0, 1000), st.sampled_from(sorted(PROFILES)))
@settings(max_examples=40, deadline=None)
def test_every_joule_is_somebodys(requests: list[tuple[float, float, str]], seed: int, board: str) -> None:
    """Requests plus idle are the whole, with leakage, hidden shares, caps and a hot inlet."""
    model = GpuModel(PROFILES[board].varied(seed), seed=seed)
    model.set_cooling(0.0, inlet_c=45.0)
    edges = [(start_s, 1, number) for number, (start_s, _, _) in enumerate(requests)]
    edges += [(start_s + lasts_s, 0, number) for number, (start_s, lasts_s, _) in enumerate(requests)]
    for at_s, begins, number in sorted(edges):
        if begins:
            model.start(str(number), requests[number][2], at_s)
        else:
            model.stop(str(number), at_s)
    model.advance(50.0)
    parts = math.fsum(model.energy_true_mj(str(number)) for number in range(len(requests)))
    assert parts + model.idle_true_mj() == pytest.approx(model.total_true_mj(), abs=0.5)
    assert model.active() == ()


def test_hidden_shares_move_energy_between_requests_only() -> None:
    """An uneven time slice gives one request what it takes from the other, in proportion to the hidden factors."""
    even, uneven = GpuModel(IDLE), GpuModel(replace(IDLE, share_sd=0.5), seed=3)
    for model in (even, uneven):
        model.start("a", "", 0.0, dynamic_w=400.0)
        model.start("b", "", 0.0, dynamic_w=400.0)
        model.advance(10.0)
    assert even.energy_true_mj("a") == pytest.approx(even.energy_true_mj("b"))
    assert abs(uneven.energy_true_mj("a") - uneven.energy_true_mj("b")) > 100_000
    assert uneven.total_true_mj() == pytest.approx(even.total_true_mj())


@pytest.mark.parametrize(
    ("step_s", "lag_s", "phase_s"), [(0.1, 0.1, 0.0), (0.1, 0.0, 0.03), (0.02, 0.25, 0.0), (0.09, 0.17, 0.05)]
)
def test_the_counter_is_the_truth_of_a_while_ago_in_steps(step_s: float, lag_s: float, phase_s: float) -> None:
    """Without gain error the counter shows the truth at the last step before now - lag, to the millijoule."""
    model = GpuModel(replace(H100, sensor=SensorProfile(step_s=step_s, lag_s=lag_s, phase_s=phase_s)))
    seen = []
    for poll in range(1, 400):
        now_s = poll * 0.013
        if poll == 26:
            model.start("a", "sana", 0.337)
        if poll == 200:
            model.stop("a", now_s - 0.004)
        model.advance(now_s)
        shown_s = max(0.0, math.floor((now_s - lag_s - phase_s) / step_s + 1e-6) * step_s + phase_s)
        counter_mj = model.counter_mj()
        assert counter_mj is not None
        assert abs(counter_mj - model.total_true_at_mj(shown_s)) <= 1
        seen.append(counter_mj)
    assert seen == sorted(seen)
    assert len(set(seen)) == pytest.approx((now_s - lag_s) / step_s, abs=4)


def test_gain_scales_the_counter_and_not_the_truth() -> None:
    """A sensor that reads 5 % high counts 5 % more of the same energy."""
    true, high = (GpuModel(replace(IDLE, sensor=SensorProfile(gain=gain))) for gain in (1.0, 1.05))
    for model in (true, high):
        model.advance(20.0)
    assert high.total_true_mj() == true.total_true_mj()
    assert high.counter_mj() == pytest.approx(1.05 * (true.counter_mj() or 0), abs=1)


def test_a_quarter_window_misses_what_falls_between() -> None:
    """On an H100 a burst of 50 ms that ends before the window is invisible to instant power and seen by the counter."""
    model = GpuModel(IDLE)
    model.start("a", "", 1.01, dynamic_w=500.0)
    model.stop("a", 1.06)
    model.advance(1.15)
    assert model.read(0.0).power_w == pytest.approx(100.0)
    assert model.read(0.0).energy_mj == pytest.approx(100_000)
    model.advance(1.25)
    assert model.read(0.0).energy_mj == pytest.approx(110_000 + 25_000, abs=1)
    wide = GpuModel(replace(IDLE, sensor=L40S.sensor))
    wide.start("a", "", 1.01, dynamic_w=500.0)
    wide.stop("a", 1.06)
    wide.advance(1.15)
    assert wide.read(0.0).power_w == pytest.approx(100.0 + 250.0)


def test_the_average_is_over_a_second_and_an_a100_has_none() -> None:
    """Half a second of 600 W in the last second is a mean of 350 W."""
    model = GpuModel(IDLE)
    model.start("a", "", 4.5, dynamic_w=500.0)
    model.advance(5.0)
    assert model.read(0.0).power_average_w == pytest.approx(350.0)
    assert model.read(0.0).utilization == pytest.approx(0.5)
    assert GpuModel(A100).read(0.0).power_average_w is None


def test_temperatures_settle_where_the_equations_say() -> None:
    """Die at inlet + (Rd + Rs) P with leakage in P; memory at the sink plus its own resistance."""
    model = GpuModel(replace(H100, soft_governor=False))
    model.start("a", "", 0.0, dynamic_w=500.0)
    model.advance(100.0)
    model.advance(600.0)
    p = model.profile
    r = p.die_k_per_w + p.sink_k_per_w
    rest_c = p.inlet_c + r * p.idle_w
    leak = p.idle_w * p.leakage_per_k
    die_c = (p.inlet_c + r * (p.idle_w + 500.0 - leak * rest_c)) / (1 - r * leak)
    power_w = p.idle_w + leak * (die_c - rest_c) + 500.0
    assert model.die_c == pytest.approx(die_c, abs=0.01)
    assert model.power_w == pytest.approx(power_w, abs=0.01)
    assert model.read(0.0).temperature_c == math.floor(die_c)
    assert model.read(0.0).memory_temperature_c == math.floor(p.inlet_c + (p.sink_k_per_w + p.memory_k_per_w) * power_w)


def test_heat_steps_match_a_fine_euler_integration() -> None:
    """The matrix exponential gives the same warm-up as ten thousand small explicit steps."""
    model = GpuModel(replace(IDLE, soft_governor=False))
    model.start("a", "", 0.0, dynamic_w=500.0)
    model.advance(12.0)
    p = model.profile
    sink_c = p.inlet_c + p.sink_k_per_w * p.idle_w
    die_c = sink_c + p.die_k_per_w * p.idle_w
    dt_s = 0.0005
    for _ in range(round(12.0 / dt_s)):
        up_w = (die_c - sink_c) / p.die_k_per_w
        die_c, sink_c = (
            die_c + dt_s * (600.0 - up_w) / p.die_j_per_k,
            sink_c + dt_s * (up_w - (sink_c - p.inlet_c) / p.sink_k_per_w) / p.sink_j_per_k,
        )
    assert model.die_c == pytest.approx(die_c, abs=0.02)


def test_the_shown_temperature_is_whole_and_late() -> None:
    """Integers, one sample a second, shown a second after it was taken."""
    model = GpuModel(IDLE)
    model.start("a", "", 10.0, dynamic_w=500.0)
    model.advance(11.9)
    rested = math.floor(IDLE.inlet_c + 0.062 * 100.0)
    assert model.read(0.0).temperature_c == rested
    assert model.die_c > rested + 5
    model.advance(12.05)
    assert rested < (model.read(0.0).temperature_c or 0) < model.die_c


def test_hardware_slowdown_halves_the_clock_until_it_is_cool() -> None:
    """At the slowdown temperature clocks halve, power falls and service slows; 3 K cooler for 2 s, they return."""
    model = GpuModel(replace(H100, soft_governor=False))
    model.start("a", "", 0.0, dynamic_w=560.0)
    model.set_cooling(0.0, sink_factor=2.6)
    states = []
    for tick in range(1, 4000):
        model.advance(tick * 0.1)
        names = clock_event_names(model.clock_events) or ()
        states.append(("hw_thermal" in names, model.sm_clock_mhz, model.power_w, model.die_c))
        assert ("hw_slowdown" in names) == ("hw_thermal" in names)
    slowed = [state for state in states if state[0]]
    assert slowed[0][3] >= H100.slowdown_c - 0.5
    assert max(state[3] for state in states) < H100.slowdown_c + 1
    assert {state[1] for state in slowed} == {H100.sm_clock_max_mhz / 2}
    assert max(state[2] for state in slowed) < 0.5 * max(state[2] for state in states)
    first = next(index for index, state in enumerate(states) if state[0])
    after = next(index for index in range(first, len(states)) if not states[index][0])
    assert states[after][3] < H100.slowdown_c - 3
    assert states[after][1] == H100.sm_clock_max_mhz
    assert model.work_true_s("a") < 0.95 * model.now_s


def test_the_soft_governor_holds_the_operating_temperature() -> None:
    """With the driver's soft steps the die stays below slowdown and the event is named."""
    model = GpuModel(H100)
    model.start("a", "", 0.0, dynamic_w=600.0)
    model.set_cooling(0.0, inlet_c=42.0)
    seen: set[str] = set()
    for tick in range(1, 600):
        model.advance(float(tick))
        seen.update(clock_event_names(model.clock_events) or ())
        assert model.die_c < H100.slowdown_c
    assert "sw_thermal" in seen
    assert "hw_slowdown" not in seen


def test_a_power_limit_is_kept_by_a_lower_clock() -> None:
    """Under a limit the draw is the limit, the event is sw_power_cap and work goes on slower."""
    model = GpuModel(IDLE)
    model.start("a", "", 0.0, dynamic_w=500.0)
    model.set_power_limit(350.0, 10.0)
    model.advance(20.0)
    assert model.power_w == pytest.approx(350.0)
    assert clock_event_names(model.clock_events) == ("sw_power_cap",)
    assert model.sm_clock_mhz == pytest.approx(H100.sm_clock_max_mhz * 0.5 ** (1 / 2.2))
    assert model.work_true_s("a") == pytest.approx(10 + 10 * 0.5 ** (0.9 / 2.2), rel=1e-6)
    assert model.read(0.0).power_limit_w == 350.0
    model.set_power_limit(1.0, 20.0)
    assert model.power_limit_w == H100.power_limit_min_w


def test_sharing_slows_each_and_costs_no_more() -> None:
    """Two time-sliced requests get half the work each."""
    model = GpuModel(IDLE)
    model.start("a", "", 0.0, dynamic_w=500.0)
    model.start("b", "", 0.0, dynamic_w=500.0)
    model.advance(10.0)
    assert model.work_true_s("a") == pytest.approx(5.0)
    assert model.power_w == pytest.approx(600.0)


def history(seed: int, every_s: float) -> list[Reading]:
    """What a varied board shows at whole half seconds, advanced in steps of ``every_s``."""
    profile = H100.varied(seed)
    model = GpuModel(replace(profile, sensor=replace(profile.sensor, noise=0.01)), seed=seed)
    model.start("a", "sana", 0.25)
    model.start("b", "flux", 0.5)
    readings = []
    for half in range(1, 20):
        while model.now_s < half * 0.5 - 1e-9:
            model.advance(min(half * 0.5, model.now_s + every_s))
        readings.append(model.read(0.0))
    return readings


def test_the_seed_decides_and_the_pace_does_not() -> None:
    """The same seed shows the same readings however finely time is fed, another seed shows others."""
    coarse, fine = history(1, 10.0), history(1, 0.0037)
    for one, other in zip(coarse, fine, strict=True):
        assert one.energy_mj == pytest.approx(other.energy_mj, abs=1)
        assert one.power_w == pytest.approx(other.power_w, rel=1e-6)
        assert one.temperature_c == other.temperature_c
    assert history(1, 10.0) == coarse
    assert [r.energy_mj for r in history(2, 10.0)] != [r.energy_mj for r in coarse]


def test_long_sleeps_cost_bounded_steps_and_lose_no_energy() -> None:
    """A day in one call is caught up, after odd ends of steps too."""
    model = GpuModel(IDLE)
    model.start("a", "", 0.0037, dynamic_w=400.0)
    model.start("b", "", 1000.043, dynamic_w=200.0)
    model.advance(1000.0471)
    for t_s in (999.95, 1000.0, 1000.0025, 1000.025, 1000.0425):
        assert model.total_true_at_mj(t_s) == pytest.approx((t_s * 100 + (t_s - 0.0037) * 400) * 1000, abs=0.1)
    assert model.work_true_s("b") == pytest.approx(0.0041 / 2)
    model.stop("b", 1000.0471)
    before_mj = model.total_true_mj()
    model.advance(86_400.0)
    assert model.total_true_mj() - before_mj == pytest.approx((86_400.0 - 1000.0471) * 500_000, rel=1e-9)


def test_time_does_not_go_back() -> None:
    """A past time is refused."""
    model = GpuModel(H100, t0_s=100.0)
    model.advance(101.0)
    with pytest.raises(ValueError, match="goes back"):
        model.advance(100.5)


def test_an_unknown_class_draws_what_its_name_says() -> None:
    """Every name has its own power within the range of the ML.ENERGY models, the same on every run."""
    powers = [dynamic_power_w(f"model-{number}", H100) for number in range(200)]
    assert min(powers) >= 0.58 * 605
    assert max(powers) <= 0.97 * 605
    assert len({round(power) for power in powers}) > 100
    assert dynamic_power_w("sdxl", H100) == pytest.approx(dynamic_power_w("sdxl", H100))
    assert dynamic_power_w("sdxl", B200) / 870 == pytest.approx(dynamic_power_w("sdxl", H100) / 605)
    model = GpuModel(IDLE, class_power_w={"sdxl": 222.0})
    model.start("a", "sdxl", 0.0)
    assert model.power_w == pytest.approx(322.0)


def test_truths_are_bounded_where_asked() -> None:
    """With a bound only the newest finished truths are kept."""
    model = GpuModel(IDLE, keep_finished=2)
    for number in range(4):
        model.start(str(number), "x", float(number))
        model.stop(str(number), number + 0.5)
    assert model.energy_true_mj("3") > 0
    with pytest.raises(KeyError):
        model.energy_true_mj("1")


def test_every_board_is_as_hot_and_as_slow() -> None:
    """Scaled heat paths end at the same temperature at full power, with the same time constants."""
    for board in PROFILES.values():
        full_c = board.inlet_c + (board.die_k_per_w + board.sink_k_per_w) * board.power_limit_w
        assert full_c == pytest.approx(70.4)
        assert board.die_k_per_w * board.die_j_per_k == pytest.approx(3.5)
        assert board.sink_k_per_w * board.sink_j_per_k == pytest.approx(35.1)


def faulty(kind: str, profile: GpuProfile = IDLE) -> tuple[GpuModel, list[Reading]]:
    """Twenty seconds at 500 W with a fault from 5 to 10 s."""
    model = GpuModel(profile)
    model.start("a", "", 0.0, dynamic_w=400.0)
    model.fault(kind, 5.0, 5.0)  # type: ignore[arg-type]
    return model, watch(model, 20.0, 0.1)


def energies(readings: list[Reading], begin_s: float, end_s: float) -> list[int]:
    """Counter values between two times."""
    return [r.energy_mj for r in readings if begin_s < r.t_s < end_s and r.energy_mj is not None]


@pytest.mark.parametrize(("kind", "error"), [("lost", "GPU_IS_LOST"), ("hung", "TIMEOUT")])
def test_a_device_that_does_not_answer_has_no_values(kind: str, error: str) -> None:
    """While lost or hung every reading is down, named and empty, and before and after it is up."""
    _, readings = faulty(kind)
    for reading in readings:
        if 5.0 < reading.t_s < 10.0 - 1e-6:
            assert (reading.up, reading.error, reading.energy_mj, reading.power_w) == (False, error, None, None)
        if reading.t_s < 5.0 - 1e-6 or reading.t_s > 10.0 + 1e-6:
            assert (reading.up, reading.error) == (True, None)
    after = energies(readings, 10.5, 20.1)
    if kind == "lost":
        assert after[0] < 1_000_000
    else:
        assert after[0] > 4_900_000


def test_a_reset_counter_starts_at_zero() -> None:
    """After a reset the counter counts from 0, and the truth does not notice."""
    model, readings = faulty("reset")
    assert max(energies(readings, 0, 5.0)) > 2_400_000
    assert energies(readings, 5.0, 5.15)[0] <= 50_000
    assert energies(readings, 19.9, 21)[-1] == pytest.approx(14.9 * 500_000, abs=60_000)
    assert model.total_true_mj() == pytest.approx(20 * 500_000, rel=1e-6)


def test_a_stuck_counter_stands_and_then_jumps_to_the_truth() -> None:
    """While it is stuck power goes on; afterwards nothing is lost."""
    _, readings = faulty("stuck")
    assert len(set(energies(readings, 5.05, 9.95))) == 1
    assert all(r.power_w == pytest.approx(500.0) for r in readings if 6 < r.t_s < 10)
    assert energies(readings, 10.0, 10.35)[-1] == pytest.approx(10.2 * 500_000, abs=60_000)


def test_a_lying_counter_gains_too_little() -> None:
    """It counts 0.57 of the energy while it lies, as the one of zeus #181 did."""
    _, readings = faulty("lying")
    gained = energies(readings, 9.45, 9.55)[0] - energies(readings, 6.45, 6.55)[0]
    assert gained == pytest.approx(0.57 * 3 * 500_000, rel=1e-3)


def test_zero_power_and_a_missing_counter_are_what_they_are_called() -> None:
    """``zero`` reads 0 W with a good counter; ``not_supported`` has power and no counter."""
    _, readings = faulty("zero")
    broken = [r for r in readings if 5.1 < r.t_s < 9.9]
    assert all((r.power_w, r.power_average_w) == (0.0, 0.0) and r.energy_mj for r in broken)
    _, readings = faulty("not_supported")
    broken = [r for r in readings if 5.1 < r.t_s < 9.9]
    assert all(r.energy_mj is None and r.power_w == pytest.approx(500.0) and r.up for r in broken)

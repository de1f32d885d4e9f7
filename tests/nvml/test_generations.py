"""What each generation of GPUs offers, and what the source makes of it, through the real pynvml."""

import time

import pytest
from tests.nvml.client import Client
from tests.nvml.stand_in import (
    GENERATIONS,
    MODE_AVERAGE,
    MODE_INSTANT,
    MODE_NONE,
    MODE_STATIC,
    SCOPE_GPU,
    SCOPE_MODULE,
    SINT,
    UINT,
)


def _newest(client, uuid):
    return client.until(lambda: client.up(uuid))


EXPECTED = {
    "pascal": ("instant", "gpu", 89.0, 93.0),
    "turing": ("counter", "gpu", 89.0, 93.0),
    "a100": ("counter", "gpu", 85.0, 89.0),
    "ga10x": ("counter", "gpu", 89.0, 93.0),
    "ada": ("counter", "gpu", 87.0, 89.0),
    "h100": ("counter", "gpu", 87.0, 89.0),
    "gh200": ("counter", "module", 87.0, 89.0),
    "mig": ("counter", "board", 87.0, 89.0),
}


def test_every_generation_is_measured_by_what_it_offers(stand_in):
    """Method, scope and thresholds follow from the calls that work, generation by generation."""
    for generation in GENERATIONS:
        stand_in.add(generation, power_w=250.0)
    with Client(stand_in.environment) as client:
        client.open()
        devices = client.ask("devices")
        time.sleep(0.3)
        newest = {reading["device"]: reading for reading in client.drain()}
    found = {
        generation: (device["method"], device["scope"], device["max_operating_c"], device["slowdown_c"])
        for generation, device in zip(GENERATIONS, devices, strict=True)
    }
    assert found == EXPECTED
    for number, generation in enumerate(GENERATIONS):
        reading, kind = newest[stand_in.uuid(number)], GENERATIONS[generation]
        assert (reading["energy_mj"] is not None) == kind.counter
        assert reading["power_w"] == 250.0
        assert (reading["power_average_w"] is not None) == kind.average
        assert reading["memory_temperature_c"] == kind.memory_temperature_c
        assert reading["power_limit_w"] == kind.limits_w[2]
        assert (reading["utilization"] is None) == (generation == "mig")
        assert reading["temperature_c"] == 50.0


def test_mig_says_that_figures_are_the_boards(stand_in):
    """With MIG on, the device says that no figure is an instance's own."""
    stand_in.add("mig")
    with Client(stand_in.environment) as client:
        client.open()
        assert "whole board" in client.device(stand_in.uuid(0))["notes"][0]


def test_a_module_that_tells_both_scopes_is_measured_as_the_module_its_counter_covers(stand_in):
    """With GPU and module power both told, power is the module's, as the counter is, and the device says so."""
    gpu = stand_in.add("gh200", power_w=500.0)
    for number, mode in ((185, MODE_AVERAGE), (186, MODE_INSTANT)):
        stand_in.field(gpu, number, mode, UINT, scopes=SCOPE_GPU | SCOPE_MODULE)
    with Client(stand_in.environment) as client:
        client.open()
        device = client.device(stand_in.uuid(gpu))
        assert (device["scope"], _newest(client, stand_in.uuid(gpu))["power_w"]) == ("module", 500.0)
        assert "do not add the host" in device["notes"][0]


def test_margins_become_degrees_on_the_die(stand_in):
    """T.Limit offsets are margins: at 61 C with 20 C left, slowdown at offset -2 is 83 C and the maximum 81 C."""
    gpu = stand_in.add("ada")
    stand_in.set(gpu, temperature_c=61, margin_c=20)
    with Client(stand_in.environment) as client:
        client.open()
        device = client.device(stand_in.uuid(gpu))
        assert (device["max_operating_c"], device["slowdown_c"], device["shutdown_c"]) == (81.0, 83.0, 88.0)


def test_a_gpu_with_margins_but_no_live_margin_falls_back_to_thresholds(stand_in):
    """Without the live margin the T.Limit offsets mean nothing, so the older thresholds are used."""
    gpu = stand_in.add("ada")
    stand_in.set(gpu, thresholds_c=(95, 92, 0, 88, 0, 0, 0, 0))
    stand_in.fail(gpu, "nvmlDeviceGetMarginTemperature", 13)
    with Client(stand_in.environment) as client:
        client.open()
        device = client.device(stand_in.uuid(gpu))
        assert (device["max_operating_c"], device["slowdown_c"], device["shutdown_c"]) == (88.0, 92.0, 95.0)


@pytest.mark.parametrize(
    ("generation", "method", "instant"),
    [("a100", "counter", True), ("ga10x", "counter", False), ("pascal", "instant", True)],
)
def test_an_old_driver_without_field_values_is_asked_by_the_older_calls(stand_in, generation, method, instant):
    """Where field values are missing, PowerUsage is instant on GA100 and older and a one-second mean on the rest."""
    gpu = stand_in.add(generation, power_w=180.0)
    stand_in.fail(gpu, "nvmlDeviceGetFieldValues", 13)
    with Client(stand_in.environment) as client:
        client.open()
        reading = _newest(client, stand_in.uuid(gpu))
        assert client.device(stand_in.uuid(gpu))["method"] == method
        assert (reading["power_w"] is not None) == instant
        assert (reading["power_average_w"] is not None) != instant
        assert (reading["energy_mj"] is not None) == (method == "counter")


def test_a_gpu_with_average_power_only_is_measured_by_it(stand_in):
    """Without counter and instant power, the one-second mean is the method and fills its own field only."""
    gpu = stand_in.add("ga10x", power_w=220.0)
    for number in (83, 191, 186):
        stand_in.field(gpu, number, MODE_NONE)
    stand_in.fail(gpu, "nvmlDeviceGetTotalEnergyConsumption", 3)
    stand_in.set(gpu, average_w=215.0)
    with Client(stand_in.environment) as client:
        client.open()
        reading = _newest(client, stand_in.uuid(gpu))
        assert client.device(stand_in.uuid(gpu))["method"] == "average"
        assert (reading["energy_mj"], reading["power_w"], reading["power_average_w"]) == (None, None, 215.0)


def test_a_gpu_that_tells_nothing_is_missing_and_not_zero(stand_in):
    """A GPU without energy and power is listed as MISSING and gives no 0 W."""
    gpu = stand_in.add("pascal")
    stand_in.field(gpu, 186, MODE_NONE)
    stand_in.fail(gpu, "nvmlDeviceGetPowerUsage", 3)
    with Client(stand_in.environment) as client:
        client.open()
        assert client.sensor(stand_in.uuid(gpu))["status"] == "MISSING"
        assert client.device(stand_in.uuid(gpu))["quality"] == "missing"
        assert [reading["power_w"] for reading in client.drain() if reading["up"]] == []


def test_values_are_read_from_the_member_that_their_type_names(stand_in):
    """A signed field keeps its sign and an unsigned one does not take it for one."""
    gpu = stand_in.add("h100")
    stand_in.field(gpu, 194, MODE_STATIC, SINT, value=-5)
    stand_in.field(gpu, 82, MODE_STATIC, UINT, value=71)
    with Client(stand_in.environment) as client:
        client.open()
        assert client.device(stand_in.uuid(gpu))["slowdown_c"] == 50.0 + 37.0 + 5.0
        assert _newest(client, stand_in.uuid(gpu))["memory_temperature_c"] == 71.0


def test_the_counters_step_is_learned_and_polling_slows_to_two_a_step(stand_in):
    """A counter in steps of 120 ms is found to have them, and is then polled every 60 ms."""
    gpu = stand_in.add("h100", power_w=300.0)
    stand_in.set(gpu, step_ms=120)
    with Client(stand_in.environment) as client:
        client.open()
        device = client.until(lambda: client.device(stand_in.uuid(gpu))["step_s"] and client.device(stand_in.uuid(gpu)))
        assert device["step_s"] == pytest.approx(0.12, rel=0.15)
        assert client.sensor(stand_in.uuid(gpu))["details"]["poll_s"] == pytest.approx(0.06, rel=0.15)


def test_clock_events_utilization_and_limits_follow_the_device(stand_in):
    """Slow values change in the readings when they change in the driver; foreign bits of the mask are cut."""
    gpu = stand_in.add("h100")
    with Client(stand_in.environment, rates={"slow_s": 0.2}) as client:
        client.open()
        stand_in.apply(gpu, power_w=650.0, temperature_c=84.6, clock_reasons=0x624, gpu_util=99, limit_mw=500_000)
        stand_in.field(gpu, 190, MODE_STATIC, UINT, value=500_000)
        reading = client.until(lambda: (new := client.up(stand_in.uuid(gpu))) and new["temperature_c"] == 84.0 and new)
        assert (reading["clock_events"], reading["utilization"], reading["power_limit_w"]) == (0x24, 0.99, 500.0)
        assert reading["power_w"] == 650.0


def test_a_simulator_may_set_the_counter_itself(stand_in):
    """``apply`` with an energy puts exactly that on the counter."""
    gpu = stand_in.add("h100")
    with Client(stand_in.environment) as client:
        client.open()
        stand_in.apply(gpu, power_w=123.0, energy_mj=(1 << 53) + 1)
        reading = client.until(lambda: (new := client.up(stand_in.uuid(gpu))) and new["power_w"] == 123.0 and new)
        assert reading["energy_mj"] == (1 << 53) + 1

"""What goes wrong below: lost GPUs, refused and hanging calls, counters that lie, a driver that is not there."""

import os
import re
import subprocess
import time

import pynvml
import pytest
from tests.nvml.client import Client
from tests.nvml.stand_in import MODE_NONE, SONAME

from joulegate.sources.nvml.faults import RULES, Action

FIELDS = "nvmlDeviceGetFieldValues"


def _open(stand_in, **options):
    client = Client(stand_in.environment, **options)
    client.open()
    return client


def test_the_table_knows_every_code_of_the_bindings():
    """Every NVML_ERROR constant of the installed bindings has a rule under its own name."""
    codes = {
        value: name.removeprefix("NVML_ERROR_")
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_")
    }
    assert {code: rule.name for code, rule in RULES.items()} == codes


def test_every_error_code_is_handled_as_the_table_says(stand_in):
    """One GPU a code: lost ones go down under the code's name, refusals are counted, "no data" is no error."""
    codes = [code for code, rule in RULES.items() if rule.action not in (Action.REINIT, Action.UNAVAILABLE)]
    for _ in range(len(codes) + 1):
        stand_in.add("h100")
    sound = stand_in.uuid(len(codes))
    with _open(stand_in) as client:
        for gpu, code in enumerate(codes):
            stand_in.fail(gpu, FIELDS, code)
        time.sleep(0.6)
        early = client.drain()
        time.sleep(0.6)
        readings, errors = client.drain(), client.ask("errors")
        for gpu, code in enumerate(codes):
            uuid, rule = stand_in.uuid(gpu), RULES[code]
            mine = [reading for reading in readings if reading["device"] == uuid]
            assert all(reading["energy_mj"] is None and reading["power_w"] is None for reading in mine), rule.name
            down = {one["error"] for one in [*early, *mine] if not one["up"] and one["device"] == uuid}
            assert down == ({rule.name} if rule.action is Action.LOST else set()), rule.name
            assert (rule.name in errors.get(uuid, {})) == (rule.action is not Action.NO_DATA), rule.name
        assert sum(reading["device"] == sound and reading["up"] for reading in readings) >= 3


def test_a_lost_gpu_goes_down_alone_and_comes_back(stand_in):
    """GPU_IS_LOST blanks that GPU, the other keeps sampling, and the lost one is found again by its UUID."""
    lost, other = stand_in.add("h100"), stand_in.add("a100")
    with _open(stand_in) as client:
        client.until(lambda: client.up(stand_in.uuid(lost)))
        stand_in.lose(lost)
        down = client.until(lambda: client.down(stand_in.uuid(lost)))
        assert (down["error"], down["energy_mj"], down["power_w"]) == ("GPU_IS_LOST", None, None)
        assert client.sensor(stand_in.uuid(lost))["status"] == "MISSING"
        assert client.sensor(stand_in.uuid(lost))["fix"]
        client.until(lambda: client.up(stand_in.uuid(other)))
        stand_in.restore(lost)
        assert client.until(lambda: client.up(stand_in.uuid(lost)))["energy_mj"] is not None
        assert client.ask("errors")[stand_in.uuid(lost)]["GPU_IS_LOST"] >= 1
        assert stand_in.uuid(other) not in client.ask("errors")


def test_after_a_driver_reload_devices_are_found_by_uuid_not_by_index(stand_in):
    """A reload kills all handles and swaps the indexes; each UUID still gets its own GPU's values."""
    first, second = stand_in.add("h100", power_w=100.0), stand_in.add("h100", power_w=600.0)
    with _open(stand_in) as client:
        client.until(lambda: client.up(stand_in.uuid(first)))
        stand_in.reorder(second, first)
        stand_in.reload_driver()
        client.until(lambda: client.down(stand_in.uuid(first)))
        assert client.until(lambda: client.up(stand_in.uuid(first)))["power_w"] == 100.0
        assert client.until(lambda: client.up(stand_in.uuid(second)))["power_w"] == 600.0
        assert stand_in.read_host("inits") == 2


def test_an_uninitialised_library_is_initialised_once_more_without_losing_a_device(stand_in):
    """UNINITIALIZED leads to one fresh init; no device is reported down for it."""
    gpu = stand_in.add("h100")
    with _open(stand_in) as client:
        client.until(lambda: client.up(stand_in.uuid(gpu)))
        stand_in.fail(gpu, FIELDS, 1, times=1)
        readings = []
        client.until(lambda: readings.extend(client.drain()) or stand_in.read_host("inits") == 2)
        time.sleep(0.3)
        readings += client.drain()
        assert all(reading["up"] for reading in readings)
        assert client.until(lambda: client.up(stand_in.uuid(gpu)))


def test_a_driver_unloaded_in_flight_takes_all_devices_down_and_is_looked_for(stand_in):
    """DRIVER_NOT_LOADED in flight names itself on every device."""
    gpus = [stand_in.add("h100"), stand_in.add("h100")]
    with _open(stand_in) as client:
        stand_in.fail_host("nvmlInitWithFlags", 9)
        for gpu in gpus:
            stand_in.fail(gpu, FIELDS, 9)
        for gpu in gpus:
            down = client.until(lambda gpu=gpu: client.down(stand_in.uuid(gpu)))
            assert down["error"] == "DRIVER_NOT_LOADED"
        client.until(lambda: client.ask("errors").get("nvml", {}).get("REINITIALISED"))


def test_a_reset_counter_is_passed_on_as_it_is(stand_in):
    """A counter that falls gives lower readings, never negative ones, and the device stays up."""
    gpu = stand_in.add("h100", power_w=400.0)
    with _open(stand_in) as client:
        before = client.until(lambda: client.up(stand_in.uuid(gpu)))["energy_mj"]
        stand_in.reset_counter(gpu)
        after = client.until(
            lambda: (new := client.up(stand_in.uuid(gpu))) and new["energy_mj"] < before and new["energy_mj"]
        )
        assert 0 <= after < 400_000


def test_a_hanging_call_blanks_its_own_device_only(stand_in):
    """While one GPU's call hangs it is down with TIMEOUT, others go on in a fresh thread, and it is back on return."""
    stuck, other = stand_in.add("h100"), stand_in.add("h100")
    with _open(stand_in, allowance_s=0.5) as client:
        client.until(lambda: client.up(stand_in.uuid(stuck)))
        probed = stand_in.calls(stuck, "nvmlDeviceGetHandleByUUID")
        stand_in.hang(stuck, FIELDS, 60_000)
        assert client.until(lambda: client.down(stand_in.uuid(stuck)))["error"] == "TIMEOUT"
        client.drain()
        time.sleep(1.2)
        readings = client.drain()
        assert stand_in.calls(stuck, "nvmlDeviceGetHandleByUUID") == probed
        assert sum(reading["device"] == stand_in.uuid(other) and reading["up"] for reading in readings) >= 3
        assert not any(reading["up"] for reading in readings if reading["device"] == stand_in.uuid(stuck))
        assert client.sensor(stand_in.uuid(stuck))["why"].startswith("TIMEOUT")
        stand_in.hang(stuck, FIELDS, 0)
        assert client.until(lambda: client.up(stand_in.uuid(stuck)))
        assert client.ask("errors")[stand_in.uuid(stuck)] == {"TIMEOUT": 1}


def test_a_device_that_hangs_at_the_probe_does_not_keep_the_source_from_opening(stand_in):
    """The source opens with the GPUs that answer; the hanging one is listed as down."""
    stuck, other = stand_in.add("h100"), stand_in.add("h100")
    stand_in.hang(stuck, "nvmlDeviceGetTemperatureThreshold", 60_000)
    with _open(stand_in, allowance_s=0.5) as client:
        assert client.until(lambda: client.up(stand_in.uuid(other)))
        assert client.sensor(stand_in.uuid(stuck))["status"] == "MISSING"
        stand_in.hang(stuck, "nvmlDeviceGetTemperatureThreshold", 0)
        assert client.until(lambda: client.up(stand_in.uuid(stuck)))


def test_more_hanging_devices_than_threads_allowed_leave_no_device_looking_well(stand_in):
    """With ten of ten GPUs hanging every one is down, at most eight threads wait, and all return together."""
    gpus = [stand_in.add("h100") for _ in range(10)]
    with _open(stand_in, allowance_s=0.1) as client:
        for gpu in gpus:
            stand_in.hang(gpu, FIELDS, 60_000)
        for gpu in gpus:
            client.until(lambda gpu=gpu: client.down(stand_in.uuid(gpu)))
        for gpu in gpus:
            stand_in.hang(gpu, FIELDS, 0)
        for gpu in gpus:
            client.until(lambda gpu=gpu: client.up(stand_in.uuid(gpu)))


def test_a_library_that_hangs_at_the_start_makes_the_source_unavailable(stand_in):
    """When the first library-wide call does not return, opening fails with one line instead of waiting."""
    stand_in.add("h100")
    stand_in.hang(None, "nvmlDeviceGetCount_v2", 60_000)
    with Client(stand_in.environment, allowance_s=0.3) as client:
        assert "does not return" in client.ask("open")
        stand_in.hang(None, "nvmlDeviceGetCount_v2", 0)


@pytest.mark.parametrize("effect", [1, 2])
def test_zeros_and_refusals_of_a_driver_asked_too_fast_are_no_readings(stand_in, effect):
    """0 mW (1) and NOT_SUPPORTED (2) under 60 ms are counted, polling slows until power comes, 0 W is never given."""
    gpu = stand_in.add("h100", power_w=333.0)
    stand_in.set(gpu, min_poll_ms=60, fast_effect=effect)
    with _open(stand_in) as client:
        readings = []
        client.until(lambda: readings.extend(client.drain()) or sum(one["power_w"] is not None for one in readings) > 8)
        assert {reading["power_w"] for reading in readings} == {None, 333.0}
        assert all(reading["energy_mj"] is not None for reading in readings)
        assert client.sensor(stand_in.uuid(gpu))["details"]["poll_s"] > 0.06
        assert client.ask("errors")[stand_in.uuid(gpu)][("ZERO_POWER", "NOT_SUPPORTED")[effect - 1]] >= 1


def test_zero_power_that_stays_is_believed(stand_in):
    """A GPU that says 0 W again and again draws 0 W."""
    gpu = stand_in.add("h100")
    stand_in.set(gpu, instant_w=0.0)
    with _open(stand_in) as client:
        assert client.until(lambda: [reading for reading in client.drain() if reading["power_w"] == 0.0])


def test_a_failed_field_in_a_call_that_succeeded_is_missing(stand_in):
    """The call returns success while the counter's own code is an error: energy is missing, not 0, power stays."""
    gpu = stand_in.add("h100", power_w=210.0)
    with _open(stand_in) as client:
        client.until(lambda: client.up(stand_in.uuid(gpu)))
        stand_in.fail_field(gpu, 83, 999)
        reading = client.until(lambda: (new := client.up(stand_in.uuid(gpu))) and new["energy_mj"] is None and new)
        assert reading["power_w"] == 210.0
        assert client.ask("errors")[stand_in.uuid(gpu)]["UNKNOWN"] >= 1


def test_slow_values_that_fail_are_missing_and_the_rest_stays(stand_in):
    """A refused temperature is missing and counted; energy goes on."""
    gpu = stand_in.add("h100")
    with _open(stand_in, rates={"slow_s": 0.1}) as client:
        for function in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"):
            stand_in.fail(gpu, function, 999)
        reading = client.until(lambda: (new := client.up(stand_in.uuid(gpu))) and new["temperature_c"] is None and new)
        assert reading["energy_mj"] is not None
        assert reading["utilization"] == 0.75


def test_without_permission_for_processes_only_processes_are_missing(stand_in):
    """NO_PERMISSION on the process calls leaves energy as it was and gives no processes."""
    gpu = stand_in.add("h100")
    stand_in.processes(gpu, (4242, 1 << 30, 50))
    for function in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetProcessUtilization"):
        stand_in.fail(gpu, function, 4)
    with _open(stand_in) as client:
        client.until(
            lambda: (
                client.ask("processes") == [] and "NO_PERMISSION" in client.ask("errors").get(stand_in.uuid(gpu), {})
            )
        )
        assert client.until(lambda: client.up(stand_in.uuid(gpu)))["energy_mj"] is not None


def test_foreign_processes_are_named_and_our_own_left_out(stand_in):
    """Processes carry pid, name, memory and SM share; ours are not foreign; nobody is listed before somebody asks."""
    gpu = stand_in.add("h100")
    foreign, own = os.getpid(), 4242
    stand_in.processes(gpu, (foreign, 3 << 30, 40), (own, 1 << 30, 10))
    with _open(stand_in, own_pid=own) as client:
        time.sleep(0.2)
        assert stand_in.calls(gpu, "nvmlDeviceGetComputeRunningProcesses_v3") == 0
        found = client.until(lambda: client.ask("processes"))
        assert [(one["pid"], one["memory_bytes"], one["sm_share"]) for one in found] == [(foreign, 3 << 30, 0.4)]
        assert found[0]["name"] not in ("", "unknown")


def test_xid_events_are_counted_on_their_device(stand_in):
    """An Xid lands in the errors of its GPU and, named, on its sensor line."""
    gpu, other = stand_in.add("h100"), stand_in.add("a100")
    with _open(stand_in) as client:
        client.until(lambda: stand_in.calls(other, "nvmlDeviceRegisterEvents") == 1)
        time.sleep(0.1)
        stand_in.event(gpu, 79)
        errors = client.until(lambda: client.ask("errors"))
        assert errors == {stand_in.uuid(gpu): {"XID_79": 1}}
        assert "fallen off the bus" in client.sensor(stand_in.uuid(gpu))["why"]


def test_a_device_that_refuses_events_does_not_silence_the_others(stand_in):
    """Registering fails on one GPU; the other's Xid is still heard."""
    deaf, heard = stand_in.add("h100"), stand_in.add("h100")
    stand_in.fail(deaf, "nvmlDeviceRegisterEvents", 3)
    with _open(stand_in) as client:
        client.until(lambda: stand_in.calls(heard, "nvmlDeviceRegisterEvents") == 1)
        time.sleep(0.1)
        stand_in.event(heard, 48)
        assert client.until(lambda: client.ask("errors")) == {stand_in.uuid(heard): {"XID_48": 1}}


def test_a_device_added_later_appears(stand_in):
    """A GPU that NVML tells of later is found and measured."""
    stand_in.add("h100")
    late = stand_in.add("a100", visible=False)
    with _open(stand_in, rates={"count_s": 0.2}) as client:
        assert [device["id"] for device in client.ask("devices")] == [stand_in.uuid(0)]
        stand_in.show(2)
        assert client.until(lambda: client.up(stand_in.uuid(late)))["energy_mj"] is not None


def test_a_gpu_lost_before_the_start_is_listed_and_found_when_it_is_back(stand_in):
    """A GPU that cannot even be named is MISSING under its index and appears by UUID once it answers."""
    stand_in.add("h100")
    lost = stand_in.add("h100")
    stand_in.lose(lost)
    with _open(stand_in, rates={"count_s": 0.2}) as client:
        assert client.sensor("nvml-index-1")["status"] == "MISSING"
        stand_in.restore(lost)
        assert client.until(lambda: client.up(stand_in.uuid(lost)))
        assert all(sensor["status"] == "MEASURED" for sensor in client.ask("sensors"))


def test_a_forked_child_is_not_fooled_and_can_measure_by_itself(stand_in):
    """After a fork the inherited source is silent, and a source of the child's own works."""
    stand_in.add("h100")
    with _open(stand_in) as client:
        client.until(lambda: client.up(stand_in.uuid(0)))
        answer = client.ask("fork")
        assert answer["inherited"] == 0
        assert answer["own"] > 0
        assert client.until(lambda: client.up(stand_in.uuid(0)))


def test_counters_that_lie_or_stand_still_are_found_out(stand_in):
    """57 % of the power is named with both figures; a counter still or refused for 5 s is left for instant power."""
    liar, still, sound, silent = (stand_in.add("h100", power_w=200.0) for _ in range(4))
    stand_in.set(liar, instant_w=200.0 / 0.57)
    with _open(stand_in) as client:
        stand_in.freeze_counter(still)
        stand_in.field(silent, 83, MODE_NONE)
        device = client.until(lambda: (new := client.device(stand_in.uuid(still)))["method"] == "instant" and new)
        assert "stands still" in device["notes"][-1]
        reading = client.until(lambda: client.up(stand_in.uuid(still)))
        assert (reading["energy_mj"], reading["power_w"]) == (None, 200.0)
        lying = client.device(stand_in.uuid(liar))
        assert "disagree" in lying["notes"][-1]
        assert re.search(r"-4[1-5]%", client.sensor(stand_in.uuid(liar))["why"])
        assert lying["gain_error"] == pytest.approx(0.43, abs=0.03)
        assert client.device(stand_in.uuid(sound))["notes"] == []
        assert client.ask("errors")[stand_in.uuid(still)]["COUNTER_STUCK"] == 1
        client.until(lambda: client.device(stand_in.uuid(silent))["method"] == "instant")


@pytest.mark.parametrize(
    ("code", "words"), [(9, "driver is not loaded"), (18, "different versions"), (4, "refuses"), (999, "no reason")]
)
def test_a_library_that_cannot_start_is_one_clear_line(stand_in, code, words):
    """A failing init makes the source unavailable: one line, what is wrong and what to do, and a MISSING sensor."""
    stand_in.add("h100")
    stand_in.fail_host("nvmlInitWithFlags", code)
    with Client(stand_in.environment) as client:
        text = client.ask("open")
        assert words in text
        assert "\n" not in text
        assert client.ask("drain") == []
        sensor = client.ask("sensors")[0]
        assert (sensor["status"], sensor["method"]) == ("MISSING", None)
        assert sensor["fix"]
        stand_in.fail_host("nvmlInitWithFlags", 0)
        assert client.ask("open") is None


def test_no_gpu_is_one_clear_line(stand_in):
    """A driver without GPUs makes the source unavailable."""
    with Client(stand_in.environment) as client:
        assert "names no GPU" in client.ask("open")


def test_no_library_is_one_clear_line(stand_in, tmp_path):
    """Without libnvidia-ml.so.1 the source is unavailable and says what to install."""
    present = subprocess.run(
        ["ldconfig", "-p"], capture_output=True, text=True, check=False, env={"PATH": "/sbin:/usr/sbin:/usr/bin"}
    )
    if SONAME in present.stdout:
        pytest.skip("this machine has an NVIDIA driver")
    with Client({**stand_in.environment, "LD_LIBRARY_PATH": str(tmp_path)}) as client:
        assert "libnvidia-ml.so.1 was not found" in client.ask("open")


def test_closing_twice_is_safe_and_lets_the_library_go(stand_in):
    """close() shuts the library down once, and a closed source gives nothing."""
    stand_in.add("h100")
    with _open(stand_in) as client:
        client.ask("close")
        client.ask("close")
        assert stand_in.read_host("shutdowns") == 1
        assert client.ask("drain") == []

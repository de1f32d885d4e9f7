"""The NVML source: readings of every NVIDIA GPU of this host, for the daemon's loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.sources.nvml.faults import HOST, HUNG, NO_PERMISSION, RULES, NvmlFault, Rule
from joulegate.sources.nvml.fleet import INIT_ALLOWANCE_S, Slot
from joulegate.sources.nvml.gpu import Gpu, Rates
from joulegate.sources.nvml.processes import ProcessWatch
from joulegate.sources.nvml.sampler import Sampler

ALLOWANCE_S = 3.0
"""How long one call may take before its thread is given up and its device blanked."""

_DOWN_EVERY_S = 1.0
_NO_GPU = Rule(
    "NO_DEVICE",
    HUNG.action,
    "the NVIDIA driver is loaded but names no GPU",
    "give the container a GPU (`--gpus all`), or check `nvidia-smi -L`",
)


class NvmlUnavailable(Exception):
    """NVML cannot be used here; the text is one line: what is missing and what to do."""


class NvmlSource:
    """Every NVIDIA GPU of this host. Implements the daemon's ``Source`` port; device ids are UUIDs.

    One thread owns NVML; ``drain`` and the other methods only take what it left and never wait for a driver.
    """

    name = "nvml"

    def __init__(
        self,
        *,
        own_pids: Callable[[], Collection[int]] = lambda: (os.getpid(),),
        allowance_s: float = ALLOWANCE_S,
        rates: Rates | None = None,
        events: bool = True,
    ) -> None:
        """``own_pids`` are processes that are not foreign; ``allowance_s`` bounds one call into the driver."""
        self._own_pids, self._allowance_s, self._events = own_pids, allowance_s, events
        self._rates = rates or Rates()
        self._sampler: Sampler | None = None
        self._pid = 0
        self._trouble: Rule | None = None
        self._down_s: dict[str, float] = {}

    def open(self) -> None:
        """Load the library, probe every GPU and start sampling; raises ``NvmlUnavailable``."""
        self.close()
        sampler = Sampler(self._rates, self._allowance_s, ProcessWatch(self._own_pids), events=self._events)
        self._pid, self._sampler, self._trouble = os.getpid(), sampler, None
        sampler.start()
        in_time = sampler.settled.wait(2 * INIT_ALLOWANCE_S)
        fleet = sampler.fleet
        if sampler.fault is not None:
            self._fail(sampler.fault.rule, sampler.fault)
        if not in_time or sampler.hangs_at_start:
            self._fail(HUNG, None)
        if not fleet.slots:
            self._fail(next(iter(fleet.unidentified.values()), _NO_GPU), None)

    def devices(self) -> Sequence[Device]:
        """Every GPU found so far, also those that do not answer now."""
        return tuple(slot.newest for slot in self._slots())

    def sensors(self) -> Sequence[Sensor]:
        """One line a GPU: how it is measured, or why it is not and what to do; one line in all when NVML is missing."""
        if self._trouble is not None:
            return (Sensor(HOST, SensorStatus.MISSING, None, self._trouble.why, self._trouble.fix),)
        sampler = self._sampler
        if sampler is None:
            return (Sensor(HOST, SensorStatus.MISSING, None, "the source is not open"),)
        events = {} if sampler.events is None else sampler.events.newest
        lines = [_line(slot, events.get(slot.device.id, "")) for slot in self._slots()]
        named = {slot.newest.index for slot in self._slots()}
        for index, rule in sorted(sampler.fleet.unidentified.items()):
            if index not in named:
                lines.append(Sensor(f"nvml-index-{index}", SensorStatus.MISSING, None, rule.why, rule.fix))
        return tuple(lines)

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """Readings since the last call. A GPU that is gone gives one with ``up=False`` a second."""
        sampler = self._sampler
        if sampler is None or self._pid != os.getpid():
            return ()
        queue = sampler.readings
        taken = [queue.popleft() for _ in range(len(queue))]
        for slot in self._slots():
            if slot.gpu is None and slot.rule is not None:
                self._tell_down(slot, slot.rule, now_s, wall_s, taken)
        return taken

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Failed calls so far: UUID (or ``nvml`` for the library itself) -> error name -> count."""
        sampler = self._sampler
        if sampler is None:
            return {}
        found = {slot.device.id: slot.tally.counts() for slot in self._slots()} | {HOST: sampler.fleet.tally.counts()}
        return {device: counts for device, counts in found.items() if counts}

    def processes(self) -> Sequence[GpuProcess]:
        """Processes on the GPUs that are not our own, at most ten seconds old; the first call only asks for them."""
        sampler = self._sampler
        return () if sampler is None or self._pid != os.getpid() else sampler.processes.newest()

    def close(self) -> None:
        """Stop the threads and let the library go; safe to call twice, and in a forked child."""
        sampler, self._sampler = self._sampler, None
        if sampler is not None and self._pid == os.getpid():
            sampler.stop()

    def _slots(self) -> tuple[Slot, ...]:
        return () if self._sampler is None else tuple(self._sampler.fleet.slots.values())

    def _fail(self, rule: Rule, fault: NvmlFault | None) -> None:
        self.close()
        self._trouble = rule
        where = "" if fault is None else f" ({fault.function}: {rule.name})"
        raise NvmlUnavailable(f"NVML cannot be used: {rule.why}{where}; {rule.fix or 'see `nvidia-smi`'}")

    def _tell_down(self, slot: Slot, rule: Rule, now_s: float, wall_s: float, taken: list[Reading]) -> None:
        last_s = self._down_s.get(slot.device.id)
        if last_s is None or now_s - last_s >= _DOWN_EVERY_S:
            self._down_s[slot.device.id] = now_s
            taken.append(Reading(slot.device.id, now_s, wall_s, up=False, error=rule.name))


def _line(slot: Slot, event: str) -> Sensor:
    """The sensor line of one GPU."""
    gpu, device = slot.gpu, slot.newest
    errors = {"errors": slot.tally.counts()} | ({"last_event": event} if event else {})
    if gpu is None:
        rule = slot.rule
        why = "not probed yet" if rule is None else f"{rule.name}: {rule.why}"
        return Sensor(device.id, SensorStatus.MISSING, None, why, "" if rule is None else rule.fix, errors)
    details = {**gpu.details, **errors}
    if device.quality is Quality.MISSING:
        why = "this GPU tells neither energy nor power"
        return Sensor(device.id, SensorStatus.MISSING, None, why, "update the driver, or use the host model", details)
    why = "; ".join(filter(None, [_how(gpu, device), *device.notes, event]))
    fix = RULES[NO_PERMISSION].fix if RULES[NO_PERMISSION].name in gpu.probe.tried.values() else ""
    if gpu.warning:
        fix = "compare with an external meter before trusting joules"
    return Sensor(device.id, SensorStatus.MEASURED, device.method, why, fix, details)


def _how(gpu: Gpu, device: Device) -> str:
    """How the energy is known, in words."""
    if device.method is Method.COUNTER:
        step = "" if device.step_s is None else f", steps of {device.step_s * 1e3:.0f} ms"
        return f"energy counter of the {device.scope}{step}"
    if device.method is Method.INSTANT:
        return f"instant power of the {device.scope}, integrated every {gpu.period_s * 1e3:.0f} ms"
    return f"one-second mean power of the {device.scope}: edges of short requests are blurred"

"""One GPU while it answers: its fast and slow readings, its step, its self-check, and what they say of the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from joulegate.metering.reading import Device, Method, Reading
from joulegate.sources.nvml.faults import Action, NvmlFault, Tally, rule_of
from joulegate.sources.nvml.library import MEMORY_TEMPERATURE, POWER_LIMIT_ENFORCED, Field, FieldBatch, Handle, Lane
from joulegate.sources.nvml.pace import FASTEST_S, SLOWEST_S, Gate, Pace, ZeroGuard
from joulegate.sources.nvml.probe import Probe
from joulegate.sources.nvml.selfcheck import CounterCheck
from joulegate.sources.nvml.steps import StepLearner

_DIE = 0
_SM_CLOCK = 1
_CLOCK_EVENTS_MASK = 0x1FF
_MARGIN_MEMORY = 60
_COUNTER_SILENT_S = 5.0
_NO_COUNTER_STEP_S = 0.1
_ENDS = (Action.LOST, Action.REINIT, Action.UNAVAILABLE)


class SlowValues(NamedTuple):
    """What is read once a second, in the order of ``Reading``; every fast reading carries the newest."""

    power_average_w: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    clock_events: int | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """How often to read, in seconds.

    Fast readings are no closer than ``fastest_s``, slow ones come every ``slow_s``, and every ``count_s`` NVML is asked
    whether devices were added.
    """

    fastest_s: float = FASTEST_S
    slow_s: float = 1.0
    count_s: float = 10.0


class Gpu:
    """A probed GPU. All methods are called by the thread that holds ``lane``; ``device`` may be read by any."""

    def __init__(self, handle: Handle, probe: Probe, tally: Tally, rates: Rates, former: Gpu | None = None) -> None:
        """``former`` is the same GPU before it was gone: what was learned of its counter still holds."""
        self.handle, self.probe, self.tally = handle, probe, tally
        self.device: Device = probe.device
        self._rates = rates
        self._pace = Pace(rates.fastest_s)
        self._steps, self._check, self._zeros = StepLearner(), CounterCheck(), ZeroGuard()
        self._fast = self._batch(probe.energy_field, probe.power_field, self._average_if_only())
        self._paired = probe.energy_field is not None and probe.power_field is not None
        self._id = probe.device.id
        self._slow_batch = self._batch(*probe.slow_fields)
        self._gates: dict[str, Gate] = {}
        self._slow = SlowValues()
        self._limit_zero_c: deque[float] = deque(maxlen=_MARGIN_MEMORY)
        self._counter_seen_s = time.monotonic()
        self._counter_used = probe.has_counter
        self._warned = False
        if former is not None and former.probe.has_counter and probe.has_counter:
            self._inherit(former)
        if not probe.has_counter:
            self._pace.learned(_NO_COUNTER_STEP_S if probe.has_instant else SLOWEST_S * 2, rates.fastest_s)

    @property
    def period_s(self) -> float:
        """Seconds between two fast readings now."""
        return self._pace.period_s

    @property
    def details(self) -> dict[str, object]:
        """What was probed and learned, for ``joulegate doctor``."""
        found: dict[str, object] = {"probed": dict(self.probe.tried), "poll_s": self.period_s}
        if self._check.verdict is not None:
            found["self_check"] = str(self._check.verdict)
        found["live"] = {name: gate.answer for name, gate in self._gates.items()}
        return found

    @property
    def warning(self) -> str:
        """The self-check's complaint, or an empty string."""
        verdict = self._check.verdict
        if not self._counter_used and self.probe.has_counter:
            return (
                "the energy counter stands still or is refused while the GPU draws power: instant power is integrated"
            )
        if verdict is not None and not verdict.agrees:
            return f"counter and power disagree: {verdict}"
        return ""

    def fast(self, lane: Lane, wall_offset_s: float) -> Reading | None:
        """Energy and power now, or ``None`` when there is no sample; ``t_s`` is the middle of the calls."""
        before_s = time.monotonic()
        batch = self._fast
        average_w = self._slow.power_average_w
        pair = None
        if batch is not None:
            self._fetch(lane, batch, before_s)
            pair = batch.pair() if self._paired else None
        found = self._unusual(lane, before_s, average_w) if pair is None else (*pair, average_w)
        energy_mj, power_mw, average_w = found
        after_s = time.monotonic()
        t_s = (before_s + after_s) / 2
        power_w = self._believed(power_mw, after_s)
        self._learn(t_s, energy_mj, power_w)
        if energy_mj is None and power_w is None and average_w is None:
            return None
        used_mj = energy_mj if self._counter_used else None
        return Reading(self._id, t_s, t_s + wall_offset_s, used_mj, power_w, average_w, *self._slow[1:])

    def _unusual(
        self, lane: Lane, now_s: float, average_w: float | None
    ) -> tuple[int | None, float | None, float | None]:
        """Energy, power and average of a GPU that needs other calls, or of a poll in which a field failed."""
        probe = self.probe
        found = {} if self._fast is None else self._items(self._fast, now_s)
        energy_mj = self._energy(lane, found)
        power_mw = found.get(probe.power_field) if probe.power_field else None
        if probe.power_call:
            power_mw = self._call(lane, "nvmlDeviceGetPowerUsage")
        if not (probe.has_counter or probe.has_instant):
            average_w = self._average_w(lane, found)
        return energy_mj, power_mw, average_w

    def slow(self, lane: Lane) -> None:
        """Read what changes slowly; a value that fails is missing until it works again."""
        now_s = time.monotonic()
        found: dict[Field, float | None] = {}
        if self._slow_batch is not None:
            lane.fetch(self.tally, self._slow_batch)
            found = self._items(self._slow_batch, now_s, fast=False)
        temperature_c = self._slow_call(lane, now_s, "nvmlDeviceGetTemperatureV", _DIE)
        if temperature_c is None:
            temperature_c = self._slow_call(lane, now_s, "nvmlDeviceGetTemperature", _DIE)
        rates = self._slow_call(lane, now_s, "nvmlDeviceGetUtilizationRates")
        memory = self._slow_call(lane, now_s, "nvmlDeviceGetMemoryInfo")
        clock_mhz = self._slow_call(lane, now_s, "nvmlDeviceGetClockInfo", _SM_CLOCK)
        events = self._slow_call(lane, now_s, "nvmlDeviceGetCurrentClocksEventReasons")
        if events is None:
            events = self._slow_call(lane, now_s, "nvmlDeviceGetCurrentClocksThrottleReasons")
        limit_mw = found.get((POWER_LIMIT_ENFORCED, 0))
        if limit_mw is None:
            limit_mw = self._slow_call(lane, now_s, "nvmlDeviceGetEnforcedPowerLimit")
        self._slow = SlowValues(
            power_average_w=self._average_w(lane, found),
            temperature_c=_float(temperature_c),
            memory_temperature_c=_float(found.get((MEMORY_TEMPERATURE, 0))),
            utilization=None if rates is None else rates.gpu / 100.0,
            memory_used_bytes=None if memory is None else int(memory.used),
            power_limit_w=None if limit_mw is None else limit_mw / 1e3,
            sm_clock_mhz=_float(clock_mhz),
            clock_events=None if events is None else int(events) & _CLOCK_EVENTS_MASK,
        )
        self._margin(lane, now_s, temperature_c)

    def _inherit(self, former: Gpu) -> None:
        self._steps, self._pace, self._check = former._steps, former._pace, former._check
        self._steps.restart()
        self._limit_zero_c = former._limit_zero_c
        self.device = replace(self.device, step_s=self._steps.step_s)
        self._judge(not self._check.stuck)

    def _average_if_only(self) -> Field | None:
        """The average field, where nothing faster tells the power."""
        probe = self.probe
        return None if probe.has_counter or probe.has_instant else probe.average_field

    def _batch(self, *fields: Field | None) -> FieldBatch | None:
        wanted = [one for one in fields if one is not None]
        return FieldBatch(self.handle, wanted) if wanted else None

    def _fetch(self, lane: Lane, batch: FieldBatch, now_s: float) -> None:
        """The fast batch worked at the probe: when it is refused as a whole, ask more slowly."""
        try:
            lane.fetch(self.tally, batch)
        except NvmlFault as fault:
            if fault.rule.action is Action.ABSENT:
                self.tally.count(fault.rule.name)
                self._pace.spurious(now_s)
            raise

    def _items(self, batch: FieldBatch, now_s: float, *, fast: bool = True) -> dict[Field, float | None]:
        """Values by field. A call may succeed while one of its fields failed: each has its own code."""
        found: dict[Field, float | None] = {}
        for one, (code, value) in zip(batch.fields, batch.values(), strict=True):
            found[one] = value
            if code == 0:
                continue
            rule = rule_of(code)
            if rule.action is Action.NO_DATA:
                continue
            self.tally.count(rule.name)
            if rule.action in _ENDS:
                raise NvmlFault(code, "nvmlDeviceGetFieldValues")
            if fast and rule.action is Action.ABSENT:
                self._pace.spurious(now_s)
        return found

    def _energy(self, lane: Lane, found: Mapping[Field, float | None]) -> int | None:
        if self.probe.energy_call:
            value = self._call(lane, "nvmlDeviceGetTotalEnergyConsumption")
            return None if value is None else int(value)
        value = found.get(self.probe.energy_field) if self.probe.energy_field else None
        return None if value is None else int(value)

    def _average_w(self, lane: Lane, found: Mapping[Field, float | None]) -> float | None:
        """The driver's one-second mean, W."""
        if self.probe.average_call:
            value_mw = self._call(lane, "nvmlDeviceGetPowerUsage")
        else:
            value_mw = found.get(self.probe.average_field) if self.probe.average_field else None
        return None if value_mw is None else value_mw / 1e3

    def _believed(self, power_mw: float | None, now_s: float) -> float | None:
        """Watts, or ``None`` for a missing value or a zero that was not repeated."""
        if power_mw is None:
            return None
        if power_mw > 0:
            self._zeros.moved()
            if self._pace.slowed:
                self._pace.sound(now_s)
            return power_mw / 1e3
        if self._zeros.believes(now_s):
            return 0.0
        self.tally.count("ZERO_POWER")
        self._pace.spurious(now_s)
        return None

    def _call(self, lane: Lane, function: str) -> Any:
        """A fast call that worked at the probe; ``None`` when it fails in a way that may pass."""
        try:
            return lane.ask(self.tally, function, self.handle)
        except NvmlFault as fault:
            if fault.rule.action in _ENDS:
                raise
            if fault.rule.action is Action.ABSENT:
                self.tally.count(fault.rule.name)
                self._pace.spurious(time.monotonic())
            return None

    def _slow_call(self, lane: Lane, now_s: float, function: str, *arguments: int) -> Any:
        """A slow call behind its gate; ``None`` while it is closed or when the call fails."""
        gate = self._gates.get(function) or self._gates.setdefault(function, Gate())
        if not gate.open(now_s):
            return None
        try:
            answer = lane.ask(self.tally, function, self.handle, *arguments)
        except NvmlFault as fault:
            if fault.rule.action in _ENDS:
                raise
            if gate.failed(fault.rule.name, now_s) and fault.rule.action is Action.ABSENT:
                self.tally.count(fault.rule.name)
            return None
        gate.passed()
        return answer

    def _margin(self, lane: Lane, now_s: float, temperature_c: int | None) -> None:
        """Publish T.Limit offsets as degrees. The lowest sum of a minute rules: both parts are whole, late degrees."""
        if self.probe.t_limits is None or temperature_c is None:
            return
        margin_c = self._slow_call(lane, now_s, "nvmlDeviceGetMarginTemperature")
        if margin_c is None:
            return
        self._limit_zero_c.append(float(temperature_c + margin_c))
        maximum, slowdown, shutdown = self.probe.t_limits.degrees(min(self._limit_zero_c), 0.0)
        if (maximum, slowdown, shutdown) != (
            self.device.max_operating_c,
            self.device.slowdown_c,
            self.device.shutdown_c,
        ):
            self.device = replace(self.device, max_operating_c=maximum, slowdown_c=slowdown, shutdown_c=shutdown)

    def _learn(self, t_s: float, energy_mj: int | None, power_w: float | None) -> None:
        """Feed the step learner and the self-check, and publish what they changed."""
        if not self.probe.has_counter:
            return
        if energy_mj is None:
            self._steps.restart()
        else:
            self._counter_seen_s = t_s
            if self._steps.observe(t_s, energy_mj) and self._steps.step_s is not None:
                self._pace.learned(self._steps.step_s, self._rates.fastest_s)
                self.device = replace(self.device, step_s=self._steps.step_s)
        verdict = self._check.observe(t_s, energy_mj, power_w)
        silent = t_s - self._counter_seen_s > _COUNTER_SILENT_S and power_w is not None
        used = not (self._check.stuck or silent)
        if used != self._counter_used or verdict is not None:
            self._judge(used)

    def _judge(self, used: bool) -> None:
        """Trust the counter, or stop trusting it, and say so on the device."""
        if self._counter_used and not used:
            self.tally.count("COUNTER_STUCK")
        self._counter_used = used
        warning = self.warning
        if warning and not self._warned:
            self.tally.count("COUNTER_DISAGREES" if used else "COUNTER_NOT_USED")
        self._warned = bool(warning)
        verdict = self._check.verdict
        off = abs(verdict.disagreement) if verdict is not None and not verdict.agrees and used else 0.0
        self.device = replace(
            self.device,
            method=Method.COUNTER if used else Method.INSTANT,
            gain_error=max(self.probe.device.gain_error, off),
            notes=(*self.probe.device.notes, *([warning] if warning else ())),
        )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)

"""Probe: what one GPU can tell. Every call is tried; the architecture is asked only for what no call can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from joulegate.metering.reading import Device, Method, Quality
from joulegate.sources.nvml.faults import Action, NvmlFault, Tally, rule_of
from joulegate.sources.nvml.gain import gain_error_of
from joulegate.sources.nvml.library import (
    ENERGY,
    GPU_MAX_T_LIMIT,
    MEMORY_TEMPERATURE,
    POWER_AVERAGE,
    POWER_INSTANT,
    POWER_LIMIT_ENFORCED,
    POWER_LIMIT_MAX,
    POWER_LIMIT_MIN,
    SCOPE_GPU,
    SCOPE_MODULE,
    SHUTDOWN_T_LIMIT,
    SLOWDOWN_T_LIMIT,
    Field,
    FieldBatch,
    Handle,
    Lane,
)

_AMPERE = 7
_GA100_DEVICE_IDS = range(0x2080, 0x2100)
_SHUTDOWN, _SLOWDOWN, _MEMORY_MAX, _GPU_MAX = range(4)
_ENDS = (Action.LOST, Action.REINIT, Action.UNAVAILABLE)

_CANDIDATES: tuple[tuple[str, Field], ...] = (
    ("energy field", (ENERGY, SCOPE_GPU)),
    ("instant power field", (POWER_INSTANT, SCOPE_GPU)),
    ("instant power field, module", (POWER_INSTANT, SCOPE_MODULE)),
    ("average power field", (POWER_AVERAGE, SCOPE_GPU)),
    ("average power field, module", (POWER_AVERAGE, SCOPE_MODULE)),
    ("memory temperature field", (MEMORY_TEMPERATURE, SCOPE_GPU)),
    ("minimum power limit field", (POWER_LIMIT_MIN, SCOPE_GPU)),
    ("maximum power limit field", (POWER_LIMIT_MAX, SCOPE_GPU)),
    ("enforced power limit field", (POWER_LIMIT_ENFORCED, SCOPE_GPU)),
    ("shutdown T.Limit field", (SHUTDOWN_T_LIMIT, SCOPE_GPU)),
    ("slowdown T.Limit field", (SLOWDOWN_T_LIMIT, SCOPE_GPU)),
    ("maximum T.Limit field", (GPU_MAX_T_LIMIT, SCOPE_GPU)),
)


@dataclass(frozen=True, slots=True)
class TLimits:
    """Margins to the thermal limit (C, signed) at which the GPU reaches its operating maximum, slows and stops."""

    maximum: float | None
    slowdown: float | None
    shutdown: float | None

    def degrees(self, temperature_c: float, margin_c: float) -> tuple[float | None, float | None, float | None]:
        """The same three as degrees on the die: a margin m at temperature T makes the limit at offset x T + m - x."""
        zero_c = temperature_c + margin_c
        maximum, slowdown, shutdown = (
            None if offset is None else zero_c - offset for offset in (self.maximum, self.slowdown, self.shutdown)
        )
        return maximum, slowdown, shutdown


@dataclass(frozen=True, slots=True)
class Probe:
    """What a GPU can tell and how to ask it. ``tried`` maps each call to ``ok`` or the name of its error."""

    device: Device
    energy_field: Field | None = None
    energy_call: bool = False
    power_field: Field | None = None
    power_call: bool = False
    average_field: Field | None = None
    average_call: bool = False
    slow_fields: tuple[Field, ...] = ()
    t_limits: TLimits | None = None
    event_types: int = 0
    mig: bool = False
    pci_bus_id: str = ""
    tried: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_counter(self) -> bool:
        """True when the GPU has an energy counter."""
        return self.energy_field is not None or self.energy_call

    @property
    def has_instant(self) -> bool:
        """True when the GPU tells instant power."""
        return self.power_field is not None or self.power_call

    @property
    def has_average(self) -> bool:
        """True when the GPU tells the mean power of the last second."""
        return self.average_field is not None or self.average_call


class _Trial:
    """Tries calls on one GPU and remembers how each went. Only a lost GPU or library ends it."""

    def __init__(self, lane: Lane, handle: Handle, tally: Tally) -> None:
        self._lane, self._handle, self._tally = lane, handle, tally
        self.tried: dict[str, str] = {}
        self.fields: dict[Field, float] = {}

    def ask(self, function: str, *arguments: object) -> Any:
        """The answer, or ``None`` with the reason kept in ``tried``."""
        label = " ".join([function.removeprefix("nvmlDeviceGet"), *map(str, arguments)])
        try:
            answer = self._lane.ask(self._tally, function, self._handle, *arguments)
        except NvmlFault as fault:
            self._keep(label, fault)
            return None
        self.tried[label] = "ok"
        return answer

    def ask_fields(self, candidates: Sequence[tuple[str, Field]]) -> None:
        """Read all candidates in one call and keep the values of those that work in ``fields``."""
        try:
            batch = FieldBatch(self._handle, [wanted for _, wanted in candidates])
            self._lane.fetch(self._tally, batch)
        except NvmlFault as fault:
            self._keep("FieldValues", fault)
            return
        for (label, wanted), (code, value) in zip(candidates, batch.values(), strict=True):
            self.tried[label] = rule_of(code).name if code else "ok"
            if code and rule_of(code).action in _ENDS:
                raise NvmlFault(code, "nvmlDeviceGetFieldValues")
            if value is not None:
                self.fields[wanted] = value

    def first(self, *wanted: Field) -> Field | None:
        """The first of ``wanted`` that this GPU has."""
        return next((one for one in wanted if one in self.fields), None)

    def _keep(self, label: str, fault: NvmlFault) -> None:
        self.tried[label] = fault.rule.name
        if fault.rule.action in _ENDS:
            raise fault


def probe(lane: Lane, handle: Handle, uuid: str, tally: Tally) -> Probe:
    """Try every call on the GPU; raises ``NvmlFault`` only when the GPU or the library is lost."""
    trial = _Trial(lane, handle, tally)
    trial.ask_fields(_CANDIDATES)
    mig = (trial.ask("nvmlDeviceGetMigMode") or [0])[0] == 1
    energy_field = trial.first((ENERGY, SCOPE_GPU))
    energy_call = energy_field is None and trial.ask("nvmlDeviceGetTotalEnergyConsumption") is not None
    module = trial.first((POWER_INSTANT, SCOPE_MODULE), (POWER_AVERAGE, SCOPE_MODULE)) is not None
    # A counter covers the whole module where there is one, so the power beside it must cover the same.
    order = (SCOPE_MODULE, SCOPE_GPU) if energy_field or energy_call else (SCOPE_GPU, SCOPE_MODULE)
    power_field = trial.first(*((POWER_INSTANT, scope) for scope in order))
    average_field = trial.first(*((POWER_AVERAGE, scope) for scope in order))
    averages, guess = _usage_is_average(trial, power_field, average_field)
    usage = trial.ask("nvmlDeviceGetPowerUsage") is not None
    result = Probe(
        device=_bare_device(trial, uuid),
        energy_field=energy_field,
        energy_call=energy_call,
        power_field=power_field,
        power_call=power_field is None and usage and not averages,
        average_field=average_field,
        average_call=average_field is None and usage and averages,
        slow_fields=tuple(
            one
            for one in (average_field, trial.first((POWER_LIMIT_ENFORCED, 0)), trial.first((MEMORY_TEMPERATURE, 0)))
            if one is not None
        ),
        t_limits=_t_limits(trial),
        event_types=int(trial.ask("nvmlDeviceGetSupportedEventTypes") or 0),
        mig=mig,
        pci_bus_id=_text(getattr(trial.ask("nvmlDeviceGetPciInfo"), "busId", "")),
        tried=trial.tried,
    )
    scopes = {one[1] for one in (power_field, average_field) if one is not None}
    scope = "board" if mig else "module" if module and SCOPE_MODULE in scopes else "gpu"
    return _judged(result, scope, _notes(scope, guess, trial.tried))


def _judged(result: Probe, scope: str, notes: tuple[str, ...]) -> Probe:
    """``result`` with the device's method and quality as they follow from what works."""
    method = Method.COUNTER if result.has_counter else Method.INSTANT if result.has_instant else Method.AVERAGE
    measured = result.has_counter or result.has_instant or result.has_average
    quality = Quality.MEASURED if measured else Quality.MISSING
    return replace(result, device=replace(result.device, method=method, quality=quality, scope=scope, notes=notes))


def _notes(scope: str, guess: str, tried: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    if scope == "board":
        notes.append("MIG is on: power and energy are the whole board's, no figure is an instance's own")
    if scope == "module":
        notes.append("energy and power cover the whole module (CPU, GPU and memory): do not add the host's again")
    if guess:
        notes.append(guess)
    denied = sorted(label for label, answer in tried.items() if answer == "NO_PERMISSION")
    if denied:
        notes.append(f"not permitted to this user: {', '.join(denied)}")
    return tuple(notes)


def _usage_is_average(trial: _Trial, power_field: Field | None, average_field: Field | None) -> tuple[bool, str]:
    """Whether PowerUsage is a one-second mean, and a note where that is a guess.

    NVML documents a mean on Ampere (except GA100) and newer, and offers field 185 exactly there; drivers before 525
    have neither field, so only the architecture is left to ask.
    """
    if average_field is not None:
        return True, ""
    if power_field is not None:
        return False, ""
    architecture = trial.ask("nvmlDeviceGetArchitecture")
    if architecture is None:
        return True, "power is taken for a one-second mean, because the driver does not tell the GPU's architecture"
    pci = trial.ask("nvmlDeviceGetPciInfo")
    ga100 = pci is not None and (int(pci.pciDeviceId) >> 16) in _GA100_DEVICE_IDS
    return int(architecture) >= _AMPERE and not ga100, ""


def _t_limits(trial: _Trial) -> TLimits | None:
    """T.Limit offsets where the GPU has them (Ada and newer) and also tells its live margin."""
    if trial.first((SLOWDOWN_T_LIMIT, 0), (GPU_MAX_T_LIMIT, 0)) is None:
        return None
    if trial.ask("nvmlDeviceGetMarginTemperature") is None:
        return None
    return TLimits(
        maximum=trial.fields.get((GPU_MAX_T_LIMIT, 0)),
        slowdown=trial.fields.get((SLOWDOWN_T_LIMIT, 0)),
        shutdown=trial.fields.get((SHUTDOWN_T_LIMIT, 0)),
    )


def _bare_device(trial: _Trial, uuid: str) -> Device:
    """Name, limits and thresholds; method, scope and quality are decided afterwards."""
    name = _text(trial.ask("nvmlDeviceGetName")) or "NVIDIA GPU"
    low_w, high_w = _limits(trial)
    thresholds = [trial.ask("nvmlDeviceGetTemperatureThreshold", which) for which in range(4)]
    memory = trial.ask("nvmlDeviceGetMemoryInfo")
    return Device(
        id=uuid,
        name=name,
        method=Method.AVERAGE,
        quality=Quality.MISSING,
        index=trial.ask("nvmlDeviceGetIndex"),
        power_limit_min_w=low_w,
        power_limit_max_w=high_w,
        max_operating_c=_degrees(thresholds[_GPU_MAX]),
        slowdown_c=_degrees(thresholds[_SLOWDOWN]),
        shutdown_c=_degrees(thresholds[_SHUTDOWN]),
        memory_max_operating_c=_degrees(thresholds[_MEMORY_MAX]),
        memory_total_bytes=None if memory is None else int(memory.total),
        gain_error=gain_error_of(name),
    )


def _limits(trial: _Trial) -> tuple[float | None, float | None]:
    """Smallest and largest power limit that can be set, W."""
    answer = trial.ask("nvmlDeviceGetPowerManagementLimitConstraints")
    if answer is not None:
        return answer[0] / 1e3, answer[1] / 1e3
    low_mw, high_mw = (trial.fields.get((number, SCOPE_GPU)) for number in (POWER_LIMIT_MIN, POWER_LIMIT_MAX))
    return None if low_mw is None else low_mw / 1e3, None if high_mw is None else high_mw / 1e3


def _degrees(answer: int | None) -> float | None:
    """A threshold in C; a driver that gives 0 has none."""
    return None if not answer else float(answer)


def _text(answer: str | bytes | None) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer or ""

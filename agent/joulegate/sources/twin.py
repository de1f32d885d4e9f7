"""The twin as a source: simulated GPUs that burn simulated power for the spans they are told of."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.metering.span import Span
from joulegate.sources.fault import SourceFault
from joulegate.sources.gpu_model import FAULT_KINDS, FaultKind, GpuModel
from joulegate.sources.gpu_profiles import PROFILES, GpuProfile

POLL_S = 0.05
"""Two polls for each step of the counter (notes/measurement.md, 6.2)."""

HOLDBACK_S = 0.25
"""Longer than the loop lets a span edge wait."""

_MAX_WAITING = 20_000
_MAX_CATCH_UP_S = 60.0
_KEPT_TRUTHS = 1000


class TwinSource:
    """Simulated GPUs behind the ports ``Source`` and ``LoadAware``; every figure is labelled simulated.

    The time comes with every call (``drain``, ``span_started``, ``span_ended``) and starts at the first of them. The
    model lives ``holdback_s`` behind it, so that an edge told a little late still burns at its own time; a later one
    burns from the model's present and is counted. When nobody drains, the oldest readings are dropped and counted.
    One thread only.
    """

    name = "twin"

    def __init__(
        self,
        profiles: Sequence[GpuProfile | str] = ("H100",),
        *,
        seed: int = 0,
        poll_s: float = POLL_S,
        holdback_s: float = HOLDBACK_S,
        class_power_w: Mapping[str, float] | None = None,
    ) -> None:
        """``profiles`` gives one device each, by name (``PROFILES``) or as made; raises ``SourceFault``."""
        self._profiles = [_profile(profile) for profile in profiles]
        self._ids = [f"twin-{index}" for index in range(len(self._profiles))]
        self._seed = seed
        self._poll_s = poll_s
        self._holdback_s = holdback_s
        self._class_power_w = class_power_w
        self._models: dict[str, GpuModel] = {}
        self._commands: list[tuple[FaultKind, str, float, float]] = []
        self._waiting: deque[Reading] = deque(maxlen=_MAX_WAITING)
        self._errors: dict[str, Counter[str]] = {device: Counter() for device in self._ids}
        self._edges: list[tuple[float, int, Span, bool]] = []
        self._edge_count = 0
        self._next_poll_s = math.inf
        self._offset_s = 0.0

    def open(self) -> None:
        """Nothing to probe."""

    def devices(self) -> Sequence[Device]:
        """The simulated boards, with the step and lag of their sensors as they are."""
        return [
            _device(device, index, profile)
            for index, (device, profile) in enumerate(zip(self._ids, self._profiles, strict=True))
        ]

    def sensors(self) -> Sequence[Sensor]:
        """One line a device that says that nothing is measured."""
        why = "a simulated GPU: power, heat and sensors come from a model, no joule of it was used by hardware"
        fix = "start with --source auto on a machine with an NVIDIA GPU or readable RAPL counters"
        return [Sensor(device, SensorStatus.SIMULATED, Method.SIMULATED, why, fix) for device in self._ids]

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """Readings at every poll up to ``holdback_s`` before ``now_s`` that were not given yet."""
        self._offset_s = wall_s - now_s
        self._run_to(now_s)
        readings = list(self._waiting)
        self._waiting.clear()
        return readings

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Failed simulated calls, and readings that nobody fetched."""
        return {device: dict(counts) for device, counts in self._errors.items() if counts}

    def processes(self) -> Sequence[GpuProcess]:
        """None: no foreign process runs on a model."""
        return ()

    def close(self) -> None:
        """Nothing to let go."""

    def span_started(self, span: Span, now_s: float) -> None:
        """Burn power on the span's devices from its start; devices that are not the twin's are not its business."""
        self._tell(span, min(span.started_s, now_s), begins=True)
        self._run_to(now_s)

    def span_ended(self, span: Span, now_s: float) -> None:
        """Stop burning it at its end."""
        self._tell(span, now_s if span.ended_s is None else min(span.ended_s, now_s), begins=False)
        self._run_to(now_s)

    def fault(self, kind: FaultKind, device: str, at_s: float, for_s: float = math.inf) -> None:
        """Break a device by command, from ``at_s`` on the clock of ``drain``; raises ``SourceFault``."""
        if kind not in FAULT_KINDS:
            raise SourceFault(f"twin: no fault is called {kind!r}; there are {', '.join(FAULT_KINDS)}")
        if device not in self._errors:
            raise SourceFault(f"twin: no device is called {device!r}; there are {', '.join(self._ids)}")
        if self._models:
            self._models[device].fault(kind, at_s, for_s)
        else:
            self._commands.append((kind, device, at_s, for_s))

    def model(self, device: str) -> GpuModel:
        """The model of a device, for its truth; raises ``SourceFault`` before the first time was given."""
        if device not in self._models:
            raise SourceFault(f"twin: {device!r} has not started, or is not one of {', '.join(self._ids)}")
        return self._models[device]

    def _tell(self, span: Span, at_s: float, *, begins: bool) -> None:
        self._edge_count += 1
        heappush(self._edges, (at_s, self._edge_count, span, begins))

    def _run_to(self, now_s: float) -> None:
        """Live until ``holdback_s`` before now: edges and polls in the order of their times."""
        until_s = now_s - self._holdback_s
        if not self._models:
            self._begin(until_s)
        self._skip_polls(until_s)
        while True:
            edge_s = self._edges[0][0] if self._edges else math.inf
            if min(edge_s, self._next_poll_s) > until_s:
                break
            if edge_s <= self._next_poll_s:
                self._cross(*heappop(self._edges))
                continue
            for device, model in self._models.items():
                model.advance(max(model.now_s, self._next_poll_s))
                self._take(device, model)
            self._next_poll_s += self._poll_s
        for model in self._models.values():
            model.advance(max(model.now_s, until_s))

    def _skip_polls(self, until_s: float) -> None:
        """After a long sleep the energy is caught up, but not every reading that was missed."""
        behind_s = until_s - self._next_poll_s
        if behind_s <= _MAX_CATCH_UP_S:
            return
        skipped = int(behind_s / self._poll_s)
        self._next_poll_s += skipped * self._poll_s
        for counts in self._errors.values():
            counts["readings_skipped"] += skipped

    def _cross(self, at_s: float, _: int, span: Span, begins: bool) -> None:
        for device in span.devices:
            model = self._models.get(device)
            if model is None:
                continue
            if at_s < model.now_s:
                self._errors[device]["edges_late"] += 1
            edge_s = max(at_s, model.now_s)
            if begins:
                model.start(span.request_id, span.power_class or span.model or "", edge_s)
            else:
                model.stop(span.request_id, edge_s)

    def _begin(self, t0_s: float) -> None:
        for device, profile in zip(self._ids, self._profiles, strict=True):
            self._models[device] = GpuModel(
                profile,
                seed=self._seed,
                t0_s=t0_s,
                device=device,
                class_power_w=self._class_power_w,
                keep_finished=_KEPT_TRUTHS,
            )
        for kind, device, at_s, for_s in self._commands:
            self._models[device].fault(kind, at_s, for_s)
        self._next_poll_s = t0_s

    def _take(self, device: str, model: GpuModel) -> None:
        if len(self._waiting) == _MAX_WAITING:
            self._errors[self._waiting[0].device]["readings_dropped"] += 1
        reading = model.read(model.now_s + self._offset_s)
        if reading.error is not None:
            self._errors[device][reading.error] += 1
        self._waiting.append(reading)


def _profile(profile: GpuProfile | str) -> GpuProfile:
    if isinstance(profile, GpuProfile):
        return profile
    if profile not in PROFILES:
        raise SourceFault(f"twin: no profile is called {profile!r}; there are {', '.join(PROFILES)}")
    return PROFILES[profile]


def _device(device: str, index: int, profile: GpuProfile) -> Device:
    return Device(
        id=device,
        name=f"simulated {profile.name}",
        method=Method.SIMULATED,
        quality=Quality.SIMULATED,
        scope="gpu",
        index=index,
        power_limit_min_w=profile.power_limit_min_w,
        power_limit_max_w=profile.power_limit_max_w,
        max_operating_c=profile.max_operating_c,
        slowdown_c=profile.slowdown_c,
        shutdown_c=profile.shutdown_c,
        memory_max_operating_c=profile.memory_max_operating_c,
        memory_total_bytes=profile.memory_total_bytes,
        step_s=profile.sensor.step_s,
        lag_s=profile.sensor.lag_s,
        notes=("simulated: no hardware stands behind it",),
    )

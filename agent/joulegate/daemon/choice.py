"""Which source is used: the best that works here, and what is said of those that do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from joulegate.config import Settings, TwinSettings
from joulegate.daemon.ports import Source, SourceUnavailable
from joulegate.metering.reading import Sensor, SensorStatus
from joulegate.sources.fault import SourceFault
from joulegate.sources.host_model import HostModelSource
from joulegate.sources.nvml.gpu import Rates
from joulegate.sources.nvml.source import NvmlSource, NvmlUnavailable
from joulegate.sources.rapl import RaplSource
from joulegate.sources.replay import ReplaySource
from joulegate.sources.twin import TwinSource

AUTOMATIC = ("nvml", "rapl", "model")
"""From a board's own counter to a model of the host (design, section 7)."""

_UNUSABLE = (NvmlUnavailable, SourceFault)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The source in use, open, and the sensors of those that were tried and do not work here."""

    source: Source
    missing: tuple[Sensor, ...] = ()


def make_source(name: str, settings: Settings) -> Source:
    """The source called ``name``, not opened; raises ``SourceUnavailable`` for what cannot be built."""
    try:
        return _make(name, settings)
    except _UNUSABLE as fault:
        raise SourceUnavailable(str(fault)) from None


def _make(name: str, settings: Settings) -> Source:
    poll_s = settings.metering.poll_s
    if name == "nvml":
        return NvmlSource() if poll_s is None else NvmlSource(rates=Rates(fastest_s=poll_s))
    if name == "rapl":
        return RaplSource() if poll_s is None else RaplSource(poll_s=poll_s)
    if name == "model":
        return HostModelSource() if poll_s is None else HostModelSource(poll_s=poll_s)
    if name == "twin":
        return _twin(settings.twin, poll_s)
    if settings.replay_file is not None:
        return ReplaySource(settings.replay_file)
    raise SourceUnavailable(f"source {name!r} is not known; choose auto, nvml, rapl, model, twin or replay:FILE")


def _twin(twin: TwinSettings, poll_s: float | None) -> Source:
    """The simulated GPUs, with the faults that are planned for them."""
    profiles = [twin.profile] * twin.gpus
    source = (
        TwinSource(profiles, seed=twin.seed) if poll_s is None else TwinSource(profiles, seed=twin.seed, poll_s=poll_s)
    )
    now_s = time.monotonic()
    for fault in twin.planned_faults():
        devices = [device.id for device in source.devices()] if fault.device is None else [fault.device]
        for device in devices:
            source.fault(fault.kind, device, now_s + fault.after_s, fault.for_s)
    return source


def open_source(settings: Settings) -> Chosen:
    """Open the source that the settings name, or the best one that works; raises ``SourceUnavailable``."""
    names = AUTOMATIC if settings.source == "auto" else (settings.source,)
    missing: list[Sensor] = []
    reasons: list[str] = []
    for name in names:
        source = make_source(name, settings)
        try:
            source.open()
        except _UNUSABLE as fault:
            reasons.append(str(fault))
            missing.extend(source.sensors())
            source.close()
            continue
        if source.devices():
            return Chosen(source, tuple(missing))
        reasons.append(f"{name}: no device found")
        missing.extend(source.sensors())
        source.close()
    raise SourceUnavailable("; ".join(reasons))


def sensors_of(chosen: Chosen) -> Sequence[Sensor]:
    """Every sensor that was looked at: those in use first."""
    return (*chosen.source.sensors(), *(s for s in chosen.missing if s.status is SensorStatus.MISSING))

"""The host power model: watts from the processor's design power and its load, where nothing can be measured."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.sources.cpu_table import CpuPower, find_cpu
from joulegate.sources.epoch_counter import EpochCounter
from joulegate.sources.fault import SourceFault

PROC = Path("/proc")
POLL_S = 0.2
MAX_GAP_S = 10.0
W_PER_UNKNOWN_THREAD = 4.0
DEVICE = "host"

_GIB = 2**30
_KIB = 1024
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_GAIN_ERROR_KNOWN = 0.5
_GAIN_ERROR_UNKNOWN = 1.0
_DIMM_W = {"x86": 5.0, "arm": 1.5}
_RAM_LEAST_W = {"x86": 10.0, "arm": 3.0}
_DIMM_SIZES_GIB = (128, 64, 32, 16, 8, 4)
_MOST_DIMMS = 32


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What the model knows of the machine. ``cpu`` is ``None`` when the processor is not in the table."""

    model_name: str
    cpu: CpuPower | None
    sockets: int
    threads: int
    memory_bytes: int | None
    arm: bool
    virtual: bool

    @property
    def tdp_w(self) -> float:
        """Design power of all sockets; an unknown processor counts 4 W a thread (codecarbon's default)."""
        return self.threads * W_PER_UNKNOWN_THREAD if self.cpu is None else self.cpu.tdp_w * self.sockets

    @property
    def memory_w(self) -> float:
        """Power of the memory by ``memory_power_w``; 0 only where its size is not known."""
        return 0.0 if self.memory_bytes is None else memory_power_w(self.memory_bytes / _GIB, arm=self.arm)

    def power_w(self, load: float) -> float:
        """TDP x (0.1 + 0.9 load^3) and the memory; ``load`` is the busy share of all threads, from 0 to 1.

        codecarbon's model of a whole machine (codecarbon 3.3.2, ``cpu_load`` mode; notes/measurement.md, section 5).
        """
        return self.tdp_w * (0.1 + 0.9 * load**3) + self.memory_w


class HostModelSource:
    """The device ``host``: processors and memory, modelled. Sampled by ``drain`` itself from /proc/stat.

    ``energy_mj`` is our own integral. A failed read is a missing reading. When nobody looked for ``max_gap_s``, or the
    processors' own clock stood still (a paused machine), a new epoch starts: that time's energy is not invented.
    """

    name = "model"

    def __init__(
        self, proc: Path | str = PROC, *, poll_s: float = POLL_S, max_gap_s: float = MAX_GAP_S, arm: bool | None = None
    ) -> None:
        """``proc`` is the root of stat, cpuinfo and meminfo; ``arm`` is asked of the platform when ``None``."""
        self.proc = Path(proc)
        self._poll_s = poll_s
        self._max_gap_s = max_gap_s
        self._arm = platform.machine().lower().startswith(("arm", "aarch")) if arm is None else arm
        self._spec: HostSpec | None = None
        self._counter = EpochCounter()
        self._errors: Counter[str] = Counter()
        self._last: _Ticks | None = None
        self._last_s = -math.inf
        self._last_poll_s = -math.inf

    def open(self) -> None:
        """Look at the machine; raises ``SourceFault`` where /proc/stat cannot be read."""
        try:
            ticks = _read_ticks(self.proc)
        except (OSError, ValueError) as error:
            raise SourceFault(f"host model: {self.proc / 'stat'} cannot be used ({error}); it needs Linux") from None
        self._spec = _host_spec(self.proc, ticks.threads, arm=self._arm)

    @property
    def spec(self) -> HostSpec:
        """The machine as the model sees it; raises ``SourceFault`` before ``open``."""
        if self._spec is None:
            raise SourceFault("host model: it is not open")
        return self._spec

    def devices(self) -> Sequence[Device]:
        """``host``, modelled or, for an unknown processor, a default.

        ``gain_error``: no study bounds this model, and a design power is a cooling figure, not a draw. 50 % covers the
        distance between its cubic and a linear law at half load; 100 % where even the design power is a guess.
        """
        known = self.spec.cpu is not None
        return [
            Device(
                id=DEVICE,
                name=self.spec.model_name or "unknown processor",
                method=Method.MODEL,
                quality=Quality.MODELLED if known else Quality.DEFAULT,
                scope="host",
                lag_s=0.0,
                gain_error=_GAIN_ERROR_KNOWN if known else _GAIN_ERROR_UNKNOWN,
                notes=(self._basis(), *self._caveats()),
            )
        ]

    def sensors(self) -> Sequence[Sensor]:
        """One line: modelled, on what basis, and what would measure instead."""
        fix = "an NVIDIA GPU with a driver, or readable RAPL counters, would be measured instead"
        why = "; ".join((f"nothing measures here, power is modelled: {self._basis()}", *self._caveats()))
        details = {"tdp_w": self.spec.tdp_w, "memory_w": self.spec.memory_w, "threads": self.spec.threads}
        return [Sensor(DEVICE, SensorStatus.MODELLED, Method.MODEL, why, fix, details)]

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """One reading if ``poll_s`` has passed since the last, else none."""
        if now_s - self._last_poll_s < self._poll_s - 1e-9:
            return ()
        self._last_poll_s = now_s
        try:
            ticks = _read_ticks(self.proc)
        except (OSError, ValueError):
            self._errors["stat_unreadable"] += 1
            return (Reading(DEVICE, now_s, wall_s, up=False, error="stat_unreadable"),)
        power_w, load = self._accept(ticks, now_s)
        return (Reading(DEVICE, now_s, wall_s, energy_mj=self._counter.energy_mj, power_w=power_w, utilization=load),)

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Failed reads and gaps."""
        return {DEVICE: dict(self._errors)} if self._errors else {}

    def processes(self) -> Sequence[GpuProcess]:
        """None."""
        return ()

    def close(self) -> None:
        """Nothing is held open."""

    def _accept(self, ticks: _Ticks, now_s: float) -> tuple[float | None, float | None]:
        """Integrate from the last good read; returns power and load over that time."""
        last, gap_s = self._last, now_s - self._last_s
        self._last, self._last_s = ticks, now_s
        if last is None:
            return None, None
        total = ticks.total - last.total
        seen_s = total / _TICKS_PER_S / ticks.threads
        if gap_s > self._max_gap_s or (gap_s > 1 and seen_s < gap_s / 2):
            self._errors["gap"] += 1
            self._counter.restart()
            return None, None
        if total <= 0:
            self._last, self._last_s = last, now_s - gap_s
            return None, None
        load = min(1.0, max(0.0, (ticks.busy - last.busy) / total))
        power_w = self.spec.power_w(load)
        self._counter.add_uj(round(power_w * gap_s * 1e6))
        return power_w, load

    def _basis(self) -> str:
        spec = self.spec
        if spec.cpu is None:
            known = f"processor {spec.model_name!r} is not in the table, {W_PER_UNKNOWN_THREAD:.0f} W a thread assumed"
        else:
            known = f"{spec.sockets} x {spec.cpu.name}, TDP {spec.cpu.tdp_w:g} W (codecarbon's table)"
        return f"{known}: {spec.tdp_w:g} W x (0.1 + 0.9 load^3) + {spec.memory_w:g} W memory (a guess from its size)"

    def _caveats(self) -> tuple[str, ...]:
        if not self.spec.virtual or self.spec.cpu is None:
            return ()
        return ("a virtual machine: the whole processor is charged, though others may share it",)


@dataclass(frozen=True, slots=True)
class _Ticks:
    """Clock ticks of all threads since boot. Time stolen by other guests is not ours and idle of none."""

    busy: int
    total: int
    threads: int


def memory_power_w(memory_gib: float, *, arm: bool = False) -> float:
    """Watts of the memory from its size alone: 5 W a DIMM (ARM 1.5), less for each of many, at least 10 W (ARM 3).

    codecarbon 3.3.2's heuristic (methodology, RAM): DIMMs 5 to 8 count 0.9, 9 to 16 0.8, further ones 0.7 of the first.
    """
    kind = "arm" if arm else "x86"
    dimms = _dimms(memory_gib)
    weight = (
        min(dimms, 4) + 0.9 * min(max(dimms - 4, 0), 4) + 0.8 * min(max(dimms - 8, 0), 8) + 0.7 * max(dimms - 16, 0)
    )
    return max(_RAM_LEAST_W[kind], _DIMM_W[kind] * weight)


def _dimms(memory_gib: float) -> int:
    """How many DIMMs such a memory usually has."""
    for most_gib, dimms in ((2, 1), (16, 2), (64, 4), (128, 8)):
        if memory_gib <= most_gib:
            return dimms
    size_gib = next(size for size in _DIMM_SIZES_GIB if size <= memory_gib / 8)
    return min(_MOST_DIMMS, math.ceil(memory_gib / size_gib))


def _read_ticks(proc: Path) -> _Ticks:
    """The first line of stat: user nice system idle iowait irq softirq steal (guest time is in user already)."""
    lines = (proc / "stat").read_text(encoding="ascii", errors="replace").splitlines()
    cpu_lines = [line.split() for line in lines if line.startswith("cpu")]
    if not cpu_lines or cpu_lines[0][0] != "cpu" or len(cpu_lines[0]) < 5:
        raise ValueError("it has no cpu line")
    user, nice, system, idle, iowait, irq, softirq, steal = ([int(n) for n in cpu_lines[0][1:9]] + [0] * 8)[:8]
    busy = user + nice + system + irq + softirq
    return _Ticks(busy, busy + idle + iowait + steal, max(1, len(cpu_lines) - 1))


def _host_spec(proc: Path, threads: int, *, arm: bool) -> HostSpec:
    cpuinfo = _fields(proc / "cpuinfo")
    names = [value for key, value in cpuinfo if key in {"model name", "Model", "cpu model"}]
    flags = next((value for key, value in cpuinfo if key == "flags"), "")
    memory_kib = next((value for key, value in _fields(proc / "meminfo") if key == "MemTotal"), "").split()
    model_name = names[0] if names else ""
    return HostSpec(
        model_name=model_name,
        cpu=find_cpu(model_name),
        sockets=max(1, len({value for key, value in cpuinfo if key == "physical id"})),
        threads=threads,
        memory_bytes=int(memory_kib[0]) * _KIB if memory_kib and memory_kib[0].isdigit() else None,
        arm=arm,
        virtual="hypervisor" in flags.split(),
    )


def _fields(path: Path) -> list[tuple[str, str]]:
    """``key: value`` lines of a proc file, none when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, colon, value in pairs if colon]

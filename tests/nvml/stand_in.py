"""The Python side of ``fake_nvml.c``: builds the library, owns its shared file and pokes it while a client reads.

A client is any process started with ``StandIn.environment``; it loads the library through the real ``pynvml`` (or NVML
in any other language). Values change for every client at its next call. The layout is that of the C source, which
asserts the same offsets.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
SONAME = "libnvidia-ml.so.1"
FUNCTIONS = tuple(re.findall(r"X\((nvml\w+)\)", SOURCE.read_text()))

HEADER_BYTES, RECORD_BYTES, CAPACITY = 4096, 8192, 32
SEGMENT_AT, RULE_AT, PROCESS_AT, FIELD_AT, HEADER_RULE_AT = 512, 2048, 3072, 4096, 512
SEGMENTS = 64
MAGIC = 0x4A474E56
NAN = math.nan

MODE_NONE, MODE_STATIC, MODE_ENERGY, MODE_INSTANT, MODE_AVERAGE = range(5)
DOUBLE, UINT, ULONG, ULL, SLL, SINT, USHORT = range(7)
SCOPE_GPU, SCOPE_MODULE, SCOPE_MEMORY = 1, 2, 4
XID, GPU_UNAVAILABLE = 0x8, 0x4000

_HEADER = {
    "magic": ("I", 0),
    "version": ("I", 4),
    "count": ("I", 8),
    "capacity": ("I", 12),
    "generation": ("I", 16),
    "stale_error": ("I", 20),
    "inits": ("I", 24),
    "shutdowns": ("I", 28),
    "driver": ("64s", 32),
    "nvml": ("64s", 96),
    "cuda": ("I", 160),
}
_FIELDS = (
    "sequence:Q uuid:64s name:64s lost:I segment_count:I step_ms:I lag_ms:I direct_mj:q offset_mj:q instant_w:d "
    "average_w:d module_extra_w:d counter_is_module:I power_usage_mode:I min_poll_ms:I fast_effect:I temperature_c:i "
    "margin_c:i gpu_util:I memory_util:I memory_total:Q memory_used:Q limit_mw:I limit_min_mw:I limit_max_mw:I "
    "limit_default_mw:I thresholds_c:8I clocks_mhz:4I clock_reasons:Q event_types:Q event_type:Q event_data:Q "
    "event_count:Q architecture:I brand:I pci_device_id:I pci_bus:I mig:I process_count:I"
)


def _offsets(text: str) -> dict[str, tuple[str, int]]:
    """Name -> (struct code, offset), with the C compiler's alignment."""
    offsets, at = {}, 0
    for item in text.split():
        name, code = item.split(":")
        at += -at % (1 if code.endswith("s") else struct.calcsize(code[-1]))
        offsets[name] = (code, at)
        at += struct.calcsize(code)
    return offsets


_RECORD = _offsets(_FIELDS)


@dataclass(frozen=True)
class Generation:
    """What one family of GPUs supports. ``scopes`` is the mask of its power scopes."""

    name: str
    architecture: int
    counter: bool = True
    average: bool = False
    instant: bool = True
    scopes: int = SCOPE_GPU
    average_usage: bool = False
    t_limit: bool = False
    thresholds_c: tuple[int, int, int, int] = (96, 93, 0, 89)
    memory_temperature_c: int | None = None
    limits_w: tuple[int, int, int] = (100, 300, 300)
    pci_device_id: int = 0x1E0710DE
    step_ms: int = 100
    event_types: int = XID
    mig: int = 0
    module_extra_w: float = 0.0
    unsupported: tuple[str, ...] = field(default=())


_NO_MARGIN = ("nvmlDeviceGetMarginTemperature", "nvmlDeviceGetMigMode")

GENERATIONS = {
    "pascal": Generation(
        "Tesla P100-PCIE-16GB", 4, counter=False, pci_device_id=0x15F810DE, step_ms=20, unsupported=_NO_MARGIN
    ),
    "turing": Generation("Tesla T4", 6, limits_w=(60, 70, 70), pci_device_id=0x1EB810DE, unsupported=_NO_MARGIN),
    "a100": Generation(
        "NVIDIA A100-SXM4-40GB",
        7,
        memory_temperature_c=55,
        thresholds_c=(92, 89, 95, 85),
        limits_w=(100, 400, 400),
        pci_device_id=0x20B010DE,
        event_types=XID | 0x7,
        unsupported=("nvmlDeviceGetMarginTemperature",),
    ),
    "ga10x": Generation(
        "NVIDIA GeForce RTX 3090", 7, average=True, average_usage=True, pci_device_id=0x220410DE, unsupported=_NO_MARGIN
    ),
    "ada": Generation(
        "NVIDIA GeForce RTX 4090",
        8,
        average=True,
        average_usage=True,
        t_limit=True,
        thresholds_c=(0, 0, 0, 0),
        limits_w=(150, 600, 450),
        pci_device_id=0x268410DE,
        unsupported=("nvmlDeviceGetMigMode",),
    ),
    "h100": Generation(
        "NVIDIA H100 80GB HBM3",
        9,
        average=True,
        average_usage=True,
        t_limit=True,
        scopes=SCOPE_GPU | SCOPE_MEMORY,
        thresholds_c=(0, 0, 0, 0),
        memory_temperature_c=60,
        limits_w=(200, 700, 700),
        pci_device_id=0x233010DE,
        event_types=XID | GPU_UNAVAILABLE | 0x7,
    ),
    "gh200": Generation(
        "NVIDIA GH200 480GB",
        9,
        average=True,
        average_usage=True,
        t_limit=True,
        scopes=SCOPE_MODULE,
        thresholds_c=(0, 0, 0, 0),
        memory_temperature_c=60,
        limits_w=(200, 900, 900),
        pci_device_id=0x234210DE,
        module_extra_w=100.0,
    ),
    "mig": Generation(
        "NVIDIA H100 80GB HBM3",
        9,
        average=True,
        average_usage=True,
        t_limit=True,
        thresholds_c=(0, 0, 0, 0),
        limits_w=(200, 700, 700),
        pci_device_id=0x233010DE,
        mig=1,
        unsupported=("nvmlDeviceGetUtilizationRates",),
    ),
}


class CompilerMissing(Exception):
    """There is no gcc here, so the stand-in cannot be built."""


def build_library(folder: Path) -> Path:
    """Compile ``fake_nvml.c`` to ``folder/libnvidia-ml.so.1`` and return that path; raises ``CompilerMissing``."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CompilerMissing("gcc is not installed: apt-get install gcc libc6-dev")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / SONAME
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", library, SOURCE, "-lm"],
        check=True,
        capture_output=True,
    )
    return library


class StandIn:
    """Simulated GPUs behind NVML's ABI. ``gpu`` arguments are record numbers, in the order of ``add``."""

    def __init__(self, library: Path, state: Path) -> None:
        """Create ``state`` (the shared file) for clients that load ``library``."""
        self.library, self.state = library, state
        size = HEADER_BYTES + CAPACITY * RECORD_BYTES
        with state.open("wb") as file:
            file.truncate(size)
        with state.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self.count = 0
        self.host(magic=MAGIC, version=1, capacity=CAPACITY, generation=1, stale_error=15, cuda=13000)
        self.host(driver=b"580.65.06", nvml=b"13.580.65.06")

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a client, over this process's own."""
        path = os.pathsep.join(filter(None, [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH")]))
        return {**os.environ, "LD_LIBRARY_PATH": path, "JOULEGATE_FAKE_NVML": str(self.state)}

    def add(
        self, generation: str = "h100", *, power_w: float = 100.0, base_mj: float = 1e9, visible: bool = True
    ) -> int:
        """Add a GPU that draws ``power_w`` and return its record number; without ``visible`` NVML hides it."""
        gpu, kind = self.count, GENERATIONS[generation]
        self.count += 1
        low, high, default = kind.limits_w
        self.set(
            gpu,
            uuid=self.uuid(gpu).encode(),
            name=kind.name.encode(),
            step_ms=kind.step_ms,
            lag_ms=100,
            direct_mj=-1,
            instant_w=NAN,
            average_w=NAN,
            module_extra_w=kind.module_extra_w,
            counter_is_module=int(kind.module_extra_w > 0),
            power_usage_mode=MODE_AVERAGE if kind.average_usage else MODE_INSTANT,
            temperature_c=50,
            margin_c=37,
            gpu_util=75,
            memory_util=40,
            memory_total=80 << 30,
            memory_used=20 << 30,
            limit_mw=default * 1000,
            limit_min_mw=low * 1000,
            limit_max_mw=high * 1000,
            limit_default_mw=default * 1000,
            thresholds_c=(*kind.thresholds_c, 0, 0, 0, 0),
            clocks_mhz=(1500, 1410, 1215, 1500),
            event_types=kind.event_types,
            architecture=kind.architecture,
            brand=5,
            pci_device_id=kind.pci_device_id,
            pci_bus=gpu + 1,
            mig=kind.mig,
        )
        self._fields_of(gpu, kind)
        for function in kind.unsupported:
            self.fail(gpu, function, 3)
        self.draw(gpu, power_w, base_mj=base_mj)
        struct.pack_into("I", self._map, 192 + 4 * gpu, gpu)
        if visible:
            self.show(self.count)
        return gpu

    def show(self, count: int) -> None:
        """The number of devices that NVML tells of."""
        self.host(count=count)

    def reorder(self, *gpus: int) -> None:
        """NVML index i is record ``gpus[i]`` from now on, as a driver may decide after a reset."""
        struct.pack_into(f"{len(gpus)}I", self._map, 192, *gpus)

    def reload_driver(self) -> None:
        """Handles given out so far are stale; only a fresh init of the library helps."""
        self.host(generation=self.read_host("generation") + 1)

    @staticmethod
    def uuid(gpu: int) -> str:
        """UUID of a record."""
        return f"GPU-{gpu:08x}-6a67-4f6f-8000-{gpu:012x}"

    def host(self, **values: float | bytes) -> None:
        """Set header values."""
        for name, value in values.items():
            code, at = _HEADER[name]
            struct.pack_into(code, self._map, at, value)

    def read_host(self, name: str) -> int:
        """A header value, for instance ``inits``."""
        code, at = _HEADER[name]
        return int(struct.unpack_from(code, self._map, at)[0])

    def set(self, gpu: int, **values: float | bytes | tuple[int, ...]) -> None:
        """Set values of a record in one step that no reader sees half of."""
        self._write(gpu, values)

    def get(self, gpu: int, name: str) -> float:
        """A value of a record."""
        code, at = _RECORD[name]
        return struct.unpack_from(code, self._map, self._at(gpu) + at)[0]

    def draw(self, gpu: int, power_w: float, *, base_mj: float | None = None) -> None:
        """From now on the GPU draws ``power_w``; energy goes on from where it is (or from ``base_mj``)."""
        now_s, at = time.monotonic(), self._at(gpu)
        count = int(self.get(gpu, "segment_count"))
        if base_mj is None:
            base_mj = self._true_mj(gpu, now_s)
        slot = at + SEGMENT_AT + 24 * (count % SEGMENTS)
        self._write(gpu, {"segment_count": count + 1}, extra=(slot, struct.pack("ddd", now_s, base_mj, power_w)))

    def apply(
        self,
        gpu: int,
        power_w: float | None = None,
        energy_mj: int | None = None,
        temperature_c: float | None = None,
        **values: float,
    ) -> None:
        """What a simulator's sensors show now: instant power, the counter as it is (stepped and late already), the die.

        With ``energy_mj`` the library integrates nothing itself; without it, ``power_w`` is drawn from now on.
        ``values`` are any other fields of the record (``clock_reasons``, ``gpu_util``, ``memory_used``, ``average_w``).
        """
        if energy_mj is None and power_w is not None:
            self.draw(gpu, power_w)
        elif energy_mj is not None:
            values |= {"direct_mj": energy_mj} | ({} if power_w is None else {"instant_w": power_w})
        if temperature_c is not None:
            values["temperature_c"] = math.floor(temperature_c)
        self._write(gpu, values)

    def true_mj(self, gpu: int, t_s: float) -> float:
        """Energy used until ``t_s`` (not before the newest change of power), whatever the counter shows."""
        return self._true_mj(gpu, t_s)

    def reset_counter(self, gpu: int) -> None:
        """The counter starts again at about zero, as after a driver reload."""
        self.set(gpu, offset_mj=-int(self._true_mj(gpu, time.monotonic() - 0.5)))

    def freeze_counter(self, gpu: int) -> None:
        """The counter stays where it is while power is drawn on."""
        self.set(gpu, direct_mj=int(self._true_mj(gpu, time.monotonic())))

    def lose(self, gpu: int, code: int = 15) -> None:
        """Every call on this GPU gives ``code``."""
        self.set(gpu, lost=code)

    def restore(self, gpu: int) -> None:
        """The GPU answers again."""
        self.set(gpu, lost=0)

    def fail(self, gpu: int, function: str, code: int, times: int = 0) -> None:
        """``function`` returns ``code`` for this GPU (``times`` times; 0 for ever; code 0 heals)."""
        self._rule(self._at(gpu) + RULE_AT, function, code, times)

    def fail_host(self, function: str, code: int, times: int = 0) -> None:
        """The same for a call that names no GPU."""
        self._rule(HEADER_RULE_AT, function, code, times)

    def hang(self, gpu: int | None, function: str, hang_ms: int) -> None:
        """``function`` takes ``hang_ms``; 0 lets those go that hang now. ``None`` is a call that names no GPU."""
        base = HEADER_RULE_AT if gpu is None else self._at(gpu) + RULE_AT
        struct.pack_into("I", self._map, base + 16 * FUNCTIONS.index(function) + 4, hang_ms)

    def calls(self, gpu: int | None, function: str) -> int:
        """How often ``function`` was called so far."""
        base = HEADER_RULE_AT if gpu is None else self._at(gpu) + RULE_AT
        return int(struct.unpack_from("I", self._map, base + 16 * FUNCTIONS.index(function) + 8)[0])

    def field(
        self, gpu: int, number: int, mode: int, kind: int = UINT, *, value: int = 0, scopes: int = SCOPE_GPU
    ) -> None:
        """Define a field: how its value arises, which union member carries it, in which scopes."""
        struct.pack_into("qHBBI", self._map, self._field_at(gpu, number), value, 0, kind, mode, scopes)

    def fail_field(self, gpu: int, number: int, code: int) -> None:
        """The field's own ``nvmlReturn`` is ``code`` while the call succeeds (0 heals)."""
        struct.pack_into("H", self._map, self._field_at(gpu, number) + 8, code)

    def event(self, gpu: int, data: int, kind: int = XID) -> None:
        """Raise one event, by default XID ``data``."""
        self.set(gpu, event_type=kind, event_data=data, event_count=int(self.get(gpu, "event_count")) + 1)

    def processes(self, gpu: int, *processes: tuple[int, int, int]) -> None:
        """Compute processes on a GPU: (pid, memory bytes, SM utilization in per cent) each, eight at most."""
        at = self._at(gpu) + PROCESS_AT
        for slot, (pid, memory_bytes, sm_util) in enumerate(processes):
            struct.pack_into("IIQII", self._map, at + 24 * slot, pid, 0, memory_bytes, sm_util, 0)
        self.set(gpu, process_count=len(processes))

    def close(self) -> None:
        """Let the shared file go."""
        self._map.close()

    def _fields_of(self, gpu: int, kind: Generation) -> None:
        if kind.counter:
            for number in (83, 191):
                self.field(gpu, number, MODE_ENERGY, ULL)
        else:
            self.fail(gpu, "nvmlDeviceGetTotalEnergyConsumption", 3)
        if kind.average:
            self.field(gpu, 185, MODE_AVERAGE, UINT, scopes=kind.scopes)
        if kind.instant:
            self.field(gpu, 186, MODE_INSTANT, UINT, scopes=kind.scopes)
        if kind.memory_temperature_c is not None:
            self.field(gpu, 82, MODE_STATIC, UINT, value=kind.memory_temperature_c)
        for number, watts in zip((187, 188, 189, 190), (*kind.limits_w, kind.limits_w[2]), strict=True):
            self.field(gpu, number, MODE_STATIC, UINT, value=watts * 1000)
        if kind.t_limit:
            for number, offset in zip((193, 194, 195, 196), (-7, -2, 0, 0), strict=True):
                self.field(gpu, number, MODE_STATIC, SINT, value=offset)

    def _true_mj(self, gpu: int, t_s: float) -> float:
        count = int(self.get(gpu, "segment_count"))
        if count == 0:
            return 0.0
        slot = self._at(gpu) + SEGMENT_AT + 24 * ((count - 1) % SEGMENTS)
        epoch_s, base_mj, power_w = struct.unpack_from("ddd", self._map, slot)
        return base_mj + power_w * 1e3 * (t_s - epoch_s)

    def _write(self, gpu: int, values: dict, extra: tuple[int, bytes] | None = None) -> None:
        at = self._at(gpu)
        sequence = struct.unpack_from("Q", self._map, at)[0]
        struct.pack_into("Q", self._map, at, sequence + 1)
        try:
            if extra is not None:
                self._map[extra[0] : extra[0] + len(extra[1])] = extra[1]
            for name, value in values.items():
                code, offset = _RECORD[name]
                struct.pack_into(code, self._map, at + offset, *(value if isinstance(value, tuple) else (value,)))
        finally:
            struct.pack_into("Q", self._map, at, sequence + 2)

    def _rule(self, base: int, function: str, code: int, times: int) -> None:
        at = base + 16 * FUNCTIONS.index(function)
        struct.pack_into("I", self._map, at + 12, times)
        struct.pack_into("i", self._map, at, code)

    @staticmethod
    def _at(gpu: int) -> int:
        return HEADER_BYTES + gpu * RECORD_BYTES

    def _field_at(self, gpu: int, number: int) -> int:
        return self._at(gpu) + FIELD_AT + 16 * number

"""Processes on the GPUs: evidence beside unattributed energy. Dear to ask, so only when asked for, and rarely."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from joulegate.metering.reading import GpuProcess
from joulegate.sources.nvml.faults import Action, NvmlFault
from joulegate.sources.nvml.fleet import Fleet, Slot
from joulegate.sources.nvml.gpu import Gpu
from joulegate.sources.nvml.library import Lane
from joulegate.sources.nvml.pace import Gate

_EVERY_S = 10.0
_ASKED_LATELY_S = 30.0
_LISTS = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3")
_UTILIZATION = "nvmlDeviceGetProcessUtilization"
_ENDS = (Action.LOST, Action.REINIT, Action.UNAVAILABLE)


class ProcessWatch:
    """Lists processes every ten seconds while somebody asks, one device a turn (a list takes milliseconds)."""

    def __init__(self, own_pids: Callable[[], Collection[int]], proc: Path = Path("/proc")) -> None:
        """``own_pids`` are left out of the lists; names come from ``proc``."""
        self._own_pids, self._proc = own_pids, proc
        self._found: dict[str, tuple[GpuProcess, ...]] = {}
        self._due_s: dict[str, float] = {}
        self._gates: dict[tuple[str, str], Gate] = {}
        self._asked_s = -math.inf

    def newest(self) -> tuple[GpuProcess, ...]:
        """The newest lists; asking keeps them coming. For any thread."""
        self._asked_s = time.monotonic()
        return tuple(process for found in tuple(self._found.values()) for process in found)

    def turn(self, lane: Lane, fleet: Fleet) -> None:
        """List one device's processes when that is due."""
        now_s = time.monotonic()
        if now_s - self._asked_s > _ASKED_LATELY_S:
            return
        for uuid, slot in fleet.slots.items():
            gpu = slot.gpu
            if gpu is None:
                self._found.pop(uuid, None)
            elif self._due_s.get(uuid, 0.0) <= now_s:
                self._due_s[uuid] = now_s + _EVERY_S
                lane.subject = uuid
                self._found[uuid] = self._list(lane, slot, gpu, now_s)
                return

    def _list(self, lane: Lane, slot: Slot, gpu: Gpu, now_s: float) -> tuple[GpuProcess, ...]:
        memory: dict[int, int | None] = {}
        for function in _LISTS:
            for row in self._ask(lane, slot, gpu, now_s, function) or ():
                memory.setdefault(int(row.pid), None if row.usedGpuMemory is None else int(row.usedGpuMemory))
        # Under MIG the per-process rates take 50 to 100 ms a call (notes/measurement.md, 1.1).
        shares = {} if gpu.probe.mig else self._shares(lane, slot, gpu, now_s)
        own = set(self._own_pids())
        return tuple(
            GpuProcess(slot.device.id, pid, self._name(pid), memory.get(pid), shares.get(pid))
            for pid in sorted({*memory, *shares} - own)
        )

    def _shares(self, lane: Lane, slot: Slot, gpu: Gpu, now_s: float) -> dict[int, float]:
        """Newest SM share by pid; a process that did nothing lately is not in it."""
        since_us = int((time.time() - _EVERY_S) * 1e6)
        rows = self._ask(lane, slot, gpu, now_s, _UTILIZATION, since_us) or ()
        return {int(row.pid): row.smUtil / 100.0 for row in sorted(rows, key=lambda row: int(row.timeStamp))}

    def _ask(self, lane: Lane, slot: Slot, gpu: Gpu, now_s: float, function: str, *arguments: int) -> Any:
        """The rows, or ``None``: without the right to see processes, energy is measured as before."""
        gate = self._gates.setdefault((slot.device.id, function), Gate())
        if not gate.open(now_s):
            return None
        try:
            rows = lane.ask(slot.tally, function, gpu.handle, *arguments)
        except NvmlFault as fault:
            # A lost GPU shows itself at the next fast poll, where it is dealt with.
            if fault.rule.action not in (*_ENDS, Action.NO_DATA):
                gate.failed(fault.rule.name, now_s)
            return None
        gate.passed()
        return rows

    def _name(self, pid: int) -> str:
        """The command's name; ``unknown`` for a process outside this pid namespace."""
        try:
            return (self._proc / str(pid) / "comm").read_text(errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"

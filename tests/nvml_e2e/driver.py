"""The hardware of an end-to-end test: simulated boards that live in real time and show themselves through NVML's ABI.

The driver's thread steps one ``GpuModel`` a board and writes what its sensors show into the stand-in library's shared
file. It is also the keeper of the truth: what each request really used, by the boards' own physics.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Self

from tests.nvml.stand_in import MODE_STATIC, SINT, UINT, StandIn

from joulegate.metering.reading import Reading
from joulegate.sources.gpu_model import FaultKind, GpuModel
from joulegate.sources.gpu_profiles import H100, GpuProfile

TURN_S = 0.005
BEHIND_S = 0.05
"""The boards live this far behind the clock, so that an edge told a little late still burns at its own time."""

NOT_SUPPORTED, GPU_IS_LOST = 3, 15
ENERGY, MEMORY_TEMPERATURE, ENFORCED_LIMIT = 83, 82, 190
SHUTDOWN, SLOWDOWN, MAXIMUM = 193, 194, 196
FAR_MS = 600_000


def late_as_real(profile: GpuProfile = H100) -> GpuProfile:
    """``profile`` with the sensor's lag shortened by ``BEHIND_S``: a client sees the lag of the profile."""
    return replace(profile, sensor=replace(profile.sensor, lag_s=profile.sensor.lag_s - BEHIND_S))


@dataclass(order=True)
class _Edge:
    at_s: float
    order: int
    request_id: str = field(compare=False)
    power_class: str | None = field(compare=False)
    gpus: tuple[int, ...] = field(compare=False)
    dynamic_w: float | None = field(compare=False, default=None)


@dataclass
class _Board:
    model: GpuModel
    base_mj: int
    shown_mj: int = 0
    down: str | None = None


class Driver:
    """Boards behind ``stand_in``, by record number. Use as a context manager; times are ``time.monotonic()``.

    ``latest_s`` is by how much the latest edge missed its own time, ``slowest_s`` the longest turn of the thread: both
    say how far a loaded machine has spoilt the hardware.
    """

    def __init__(self, stand_in: StandIn, *, class_power_w: dict[str, float]) -> None:
        self.latest_s = self.slowest_s = 0.0
        self.fault: BaseException | None = None
        self._stand_in, self._class_power_w = stand_in, class_power_w
        self._boards: dict[int, _Board] = {}
        self._edges: list[_Edge] = []
        self._count = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)

    def add(self, generation: str = "h100", profile: GpuProfile | None = None) -> int:
        """One more board of ``generation``; returns its record number."""
        gpu = self._stand_in.add(generation, base_mj=0.0)
        profile = late_as_real() if profile is None else profile
        model = GpuModel(
            profile,
            seed=gpu,
            t0_s=time.monotonic() - BEHIND_S,
            device=self.uuid(gpu),
            class_power_w=self._class_power_w,
        )
        self._boards[gpu] = _Board(model, base_mj=987_654_321 + gpu)
        for number, limit_c in ((SHUTDOWN, profile.shutdown_c), (SLOWDOWN, profile.slowdown_c)):
            self._stand_in.field(gpu, number, MODE_STATIC, SINT, value=round(profile.max_operating_c - limit_c))
        self._stand_in.field(gpu, MAXIMUM, MODE_STATIC, SINT, value=0)
        self._show(gpu, self._boards[gpu])
        return gpu

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        for gpu in self._boards:
            self._stand_in.hang(gpu, "nvmlDeviceGetFieldValues", 0)
        if self.fault is not None:
            raise AssertionError("the driver died") from self.fault

    def uuid(self, gpu: int) -> str:
        """The board's UUID."""
        return self._stand_in.uuid(gpu)

    def start(self, request_id: str, power_class: str, gpus: tuple[int, ...], at_s: float) -> None:
        """A request begins to burn power on ``gpus``."""
        self._tell(request_id, power_class, gpus, at_s, None)

    def stop(self, request_id: str, gpus: tuple[int, ...], at_s: float) -> None:
        """It lets them go."""
        self._tell(request_id, None, gpus, at_s, None)

    def foreign(self, gpu: int, watts: float) -> None:
        """Somebody burns ``watts`` on a board from now on, whom nobody told of."""
        self._tell(f"foreign-{gpu}", "foreign", (gpu,), time.monotonic(), watts)

    def break_(self, gpu: int, kind: FaultKind, for_s: float = math.inf) -> None:
        """Break a board now; the fault reaches clients through NVML's return codes and values."""
        with self._lock:
            self._boards[gpu].model.fault(kind, time.monotonic() - BEHIND_S, for_s)

    def cap(self, gpu: int, limit_w: float) -> None:
        """Set a board's power limit, as an operator's ``nvidia-smi -pl`` does."""
        with self._lock:
            model = self._boards[gpu].model
            model.set_power_limit(limit_w, max(model.now_s, time.monotonic() - BEHIND_S))

    def true_mj(self, request_id: str) -> float:
        """What a request used on all its boards, once it has stopped."""
        with self._lock:
            found = []
            for board in self._boards.values():
                try:
                    found.append(board.model.energy_true_mj(request_id))
                except KeyError:
                    continue
        assert found, f"{request_id} never ran"
        return sum(found)

    def power_w(self, gpu: int) -> float:
        """True power now."""
        with self._lock:
            return self._boards[gpu].model.power_w

    def _tell(self, request_id: str, power_class: str | None, gpus: tuple[int, ...], at_s: float, w: float | None):
        with self._lock:
            self._count += 1
            heappush(self._edges, _Edge(at_s, self._count, request_id, power_class, gpus, w))

    def _run(self) -> None:
        try:
            before_s = time.monotonic()
            while not self._stop.wait(TURN_S):
                with self._lock:
                    self._turn(time.monotonic() - BEHIND_S)
                self.slowest_s, before_s = max(self.slowest_s, time.monotonic() - before_s), time.monotonic()
        except BaseException as fault:
            self.fault = fault
            raise

    def _turn(self, now_s: float) -> None:
        while self._edges and self._edges[0].at_s <= now_s:
            self._cross(heappop(self._edges))
        for gpu, board in self._boards.items():
            board.model.advance(max(now_s, board.model.now_s))
            self._show(gpu, board)

    def _cross(self, edge: _Edge) -> None:
        for gpu in edge.gpus:
            model = self._boards[gpu].model
            at_s = max(edge.at_s, model.now_s)
            self.latest_s = max(self.latest_s, at_s - edge.at_s)
            if edge.power_class is None:
                model.stop(edge.request_id, at_s)
            else:
                model.start(edge.request_id, edge.power_class, at_s, edge.dynamic_w)

    def _show(self, gpu: int, board: _Board) -> None:
        reading = board.model.read(0.0)
        if reading.error != board.down:
            self._fail(gpu, board, reading.error)
        if reading.up:
            self._show_values(gpu, board, reading)

    def _fail(self, gpu: int, board: _Board, error: str | None) -> None:
        if error == "TIMEOUT" or board.down == "TIMEOUT":
            self._stand_in.hang(gpu, "nvmlDeviceGetFieldValues", FAR_MS if error == "TIMEOUT" else 0)
        if error == "GPU_IS_LOST":
            self._stand_in.lose(gpu, GPU_IS_LOST)
        elif board.down == "GPU_IS_LOST":
            self._stand_in.restore(gpu)
        board.down = error

    def _show_values(self, gpu: int, board: _Board, reading: Reading) -> None:
        stand_in, profile = self._stand_in, board.model.profile
        if reading.energy_mj is None:
            stand_in.fail(gpu, "nvmlDeviceGetTotalEnergyConsumption", NOT_SUPPORTED)
            stand_in.fail_field(gpu, ENERGY, NOT_SUPPORTED)
        elif reading.energy_mj < board.shown_mj:
            board.base_mj = 0
        board.shown_mj = reading.energy_mj or 0
        if reading.memory_temperature_c is not None:
            stand_in.field(gpu, MEMORY_TEMPERATURE, MODE_STATIC, UINT, value=int(reading.memory_temperature_c))
        stand_in.field(gpu, ENFORCED_LIMIT, MODE_STATIC, UINT, value=round(reading.power_limit_w * 1000))
        stand_in.apply(
            gpu,
            power_w=reading.power_w,
            energy_mj=board.base_mj + board.shown_mj,
            temperature_c=reading.temperature_c,
            average_w=math.nan if reading.power_average_w is None else reading.power_average_w,
            margin_c=int(profile.max_operating_c - reading.temperature_c),
            gpu_util=round(100 * reading.utilization),
            memory_used=reading.memory_used_bytes,
            memory_total=profile.memory_total_bytes,
            clocks_mhz=(round(reading.sm_clock_mhz),) * 2 + (2619, 1500),
            clock_reasons=reading.clock_events,
            limit_mw=round(reading.power_limit_w * 1000),
        )

"""Replay: a recorded readings file as a source, played at its own pace or faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.sources.fault import SourceFault
from joulegate.sources.trace_csv import EXTRA_COLUMNS, DeviceTrace, Trace, read_trace

_LONE_READING_S = 1.0


class ReplaySource:
    """The rows of ``path`` (``device,t_s,energy_mj`` or ``power_w`` or both, and ``EXTRA_COLUMNS``) as they come due.

    What was measured once is not live now, so everything is labelled simulated. The first call of ``drain`` is the
    beginning of the tape. At ``speed`` n the tape's seconds pass n times as fast and its joules are kept, so its watts
    are shown n times as high: counter and power still agree. With ``loop`` the tape starts again, which the meter sees
    as a counter that was reset.
    """

    name = "replay"

    def __init__(self, path: Path | str, *, speed: float = 1.0, loop: bool = False) -> None:
        """``speed`` is above 0; raises ``SourceFault`` otherwise."""
        if not 0 < speed < float("inf"):
            raise SourceFault(f"replay: speed is {speed}, it must be above 0")
        self.path = Path(path)
        self._speed = speed
        self._loop = loop
        self._trace: Trace | None = None
        self._tape: list[tuple[float, DeviceTrace, int]] = []
        self._length_s = 0.0
        self._next = 0
        self._origin_s: float | None = None
        self._missing: dict[str, int] = {}
        self._skipped_passes = 0

    def open(self) -> None:
        """Read the whole file; raises ``SourceFault`` (a ``TraceFault`` with line and column) when it is not right."""
        self._trace = read_trace(self.path, EXTRA_COLUMNS)
        rows = [(t_s, device, row) for device in self._trace.devices.values() for row, t_s in enumerate(device.t_s)]
        rows.sort(key=lambda entry: entry[0])
        first_s, last_s = rows[0][0], rows[-1][0]
        instants = len({t_s for t_s, _, _ in rows})
        pause_s = (last_s - first_s) / (instants - 1) if instants > 1 else _LONE_READING_S
        self._tape = [(t_s - first_s, device, row) for t_s, device, row in rows]
        self._length_s = last_s - first_s + pause_s
        self._next = 0
        self._origin_s = None

    def devices(self) -> Sequence[Device]:
        """The devices of the file."""
        return [self._device(index, device) for index, device in enumerate(self._devices())]

    def sensors(self) -> Sequence[Sensor]:
        """One line a device: it is a recording."""
        why = f"played back from {self.path}, recorded earlier; nothing is measured now"
        fix = "start with --source auto to measure this machine"
        return [Sensor(device, SensorStatus.SIMULATED, Method.SIMULATED, why, fix) for device in self._devices()]

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """Readings whose recorded time has passed, oldest first."""
        if not self._tape:
            return ()
        if self._origin_s is None:
            self._origin_s = now_s
        readings: list[Reading] = []
        while True:
            played_s = (now_s - self._origin_s) * self._speed
            while self._next < len(self._tape) and self._tape[self._next][0] <= played_s:
                readings.append(self._reading(*self._tape[self._next], self._origin_s, wall_s - now_s))
                self._next += 1
            if not self._loop or played_s < self._length_s:
                return readings
            passes = int(played_s / self._length_s)
            self._skipped_passes += passes - 1
            self._origin_s += passes * self._length_s / self._speed
            self._next = 0

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Readings that are missing on the tape, and passes that nobody fetched."""
        errors = {device: {"missing": count} for device, count in self._missing.items()}
        return {**errors, "replay": {"passes_skipped": self._skipped_passes}} if self._skipped_passes else errors

    def processes(self) -> Sequence[GpuProcess]:
        """None: the tape does not have them."""
        return ()

    def close(self) -> None:
        """Let the tape go."""
        self._tape = []

    @property
    def finished(self) -> bool:
        """Whether the tape is at its end and does not start again."""
        return not self._loop and self._next >= len(self._tape)

    def _devices(self) -> Mapping[str, DeviceTrace]:
        return {} if self._trace is None else self._trace.devices

    def _device(self, index: int, device: str) -> Device:
        pace = (
            "" if self._speed == 1 else f", played {self._speed:g} times as fast: watts are shown so many times higher"
        )
        return Device(
            id=device,
            name=f"replay of {self.path.name}",
            method=Method.SIMULATED,
            quality=Quality.SIMULATED,
            index=index,
            notes=(f"recorded in {self.path}{pace}",),
        )

    def _reading(self, tape_s: float, trace: DeviceTrace, row: int, origin_s: float, wall_offset_s: float) -> Reading:
        t_s = origin_s + tape_s / self._speed
        values = {name: column[row] for name, column in trace.extras.items()}
        energy_mj = None if trace.energy_mj is None else trace.energy_mj[row]
        power_w = None if trace.power_w is None else trace.power_w[row]
        if energy_mj is None and power_w is None and all(value is None for value in values.values()):
            self._missing[trace.device] = self._missing.get(trace.device, 0) + 1
            return Reading(trace.device, t_s, t_s + wall_offset_s, up=False, error="missing on the tape")
        memory_used_bytes, clock_events = values.get("memory_used_bytes"), values.get("clock_events")
        return Reading(
            device=trace.device,
            t_s=t_s,
            wall_s=t_s + wall_offset_s,
            energy_mj=energy_mj,
            power_w=self._paced(power_w),
            power_average_w=self._paced(values.get("power_average_w")),
            temperature_c=values.get("temperature_c"),
            memory_temperature_c=values.get("memory_temperature_c"),
            utilization=values.get("utilization"),
            memory_used_bytes=None if memory_used_bytes is None else int(memory_used_bytes),
            power_limit_w=self._paced(values.get("power_limit_w")),
            sm_clock_mhz=values.get("sm_clock_mhz"),
            clock_events=None if clock_events is None else int(clock_events),
        )

    def _paced(self, power_w: float | None) -> float | None:
        return None if power_w is None else power_w * self._speed

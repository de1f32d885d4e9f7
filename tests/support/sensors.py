"""What a plant looks like through a sensor: late, stepped, lossy, reset, stuck or lying; and the CSV text of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tests.support.plant import Floats, Item, PowerLine, Run

Windows = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Counter:
    """A cumulative energy counter. A refresh (``phase_s + k * step_s``) shows the energy used ``lag_s`` before it.

    ``step_s`` 0 refreshes at every read. ``gain`` scales what it counts (0.57: a lying counter). It restarts from 0 at
    each of ``resets_s`` and shows an old value in ``stuck_s`` (then it catches up).
    """

    step_s: float = 0.1
    phase_s: float = 0.0
    lag_s: float = 0.1
    gain: float = 1.0
    base_mj: int = 5_000_000
    resets_s: tuple[float, ...] = ()
    stuck_s: Windows = ()

    def read_mj(self, line: PowerLine, t_s: Floats) -> NDArray[np.int64]:
        """Values shown at ``t_s`` (ascending), whole millijoules."""
        shown_s = np.array(t_s)
        for start_s, end_s in self.stuck_s:
            shown_s = np.where((shown_s >= start_s) & (shown_s < end_s), start_s, shown_s)
        shown_s = self._refreshed(shown_s) - self.lag_s
        origin_j = float(line.energy_j(float(t_s[0]) - self.lag_s - 2 * self.step_s)) if len(t_s) else 0.0
        values_mj = self.base_mj + np.floor(1000 * self.gain * (line.energy_j(shown_s) - origin_j)).astype(np.int64)
        for reset_s in self.resets_s:
            since_j = line.energy_j(np.maximum(shown_s, reset_s - self.lag_s)) - line.energy_j(reset_s - self.lag_s)
            values_mj = np.where(t_s >= reset_s, np.floor(1000 * self.gain * since_j).astype(np.int64), values_mj)
        return np.asarray(values_mj, dtype=np.int64)

    def _refreshed(self, t_s: Floats) -> Floats:
        if self.step_s == 0:
            return t_s
        return np.asarray(np.floor((t_s - self.phase_s) / self.step_s + 1e-9) * self.step_s + self.phase_s)


@dataclass(frozen=True, slots=True)
class PowerMeter:
    """A power sensor: at each refresh the mean over the last ``window_s`` (0: the value of that instant)."""

    step_s: float = 0.0
    phase_s: float = 0.0
    window_s: float = 0.0
    gain: float = 1.0

    def read_w(self, line: PowerLine, t_s: Floats) -> Floats:
        """Watts shown at ``t_s``."""
        at_s = t_s if self.step_s == 0 else np.floor((t_s - self.phase_s) / self.step_s) * self.step_s + self.phase_s
        if self.window_s == 0:
            return self.gain * line.power_at_w(at_s)
        return self.gain * (line.energy_j(at_s) - line.energy_j(at_s - self.window_s)) / self.window_s


@dataclass(frozen=True, slots=True)
class Recording:
    """Polls of one device; ``None`` for a whole column that was not recorded, ``None`` in it for an empty cell."""

    t_s: Floats
    energy_mj: Sequence[int | None] | None = None
    power_w: Sequence[float | None] | None = None


def polls(
    start_s: float,
    end_s: float,
    period_s: float,
    *,
    rng: np.random.Generator | None = None,
    jitter_s: float = 0.0,
    drop: float = 0.0,
    gaps: Windows = (),
) -> Floats:
    """Poll times from ``start_s`` to ``end_s``, both included, on whole microseconds, strictly increasing."""
    rng = rng or np.random.default_rng(0)
    t_s = start_s + period_s * np.arange(round((end_s - start_s) / period_s) + 1)
    t_s = t_s + (rng.uniform(-jitter_s, jitter_s, len(t_s)) if jitter_s else 0.0)
    keep = rng.random(len(t_s)) >= drop
    for gap_start_s, gap_end_s in gaps:
        keep &= (t_s < gap_start_s) | (t_s >= gap_end_s)
    return np.unique(np.round(t_s[keep], 6))


def record(line: PowerLine, t_s: Floats, counter: Counter | None = None, power: PowerMeter | None = None) -> Recording:
    """Poll one device."""
    return Recording(
        t_s,
        None if counter is None else [int(value) for value in counter.read_mj(line, t_s)],
        None if power is None else [float(value) for value in power.read_w(line, t_s)],
    )


def readings_csv(recordings: Mapping[str, Recording]) -> str:
    """The recordings as the readings file of ``joulegate attribute``."""
    energy = any(recording.energy_mj is not None for recording in recordings.values())
    power = any(recording.power_w is not None for recording in recordings.values())
    lines = ["device,t_s" + ",energy_mj" * energy + ",power_w" * power]
    for device, recording in recordings.items():
        blank: list[None] = [None] * len(recording.t_s)
        energies, powers = recording.energy_mj or blank, recording.power_w or blank
        for t_s, energy_mj, power_w in zip(recording.t_s, energies, powers, strict=True):
            cells = [device, f"{t_s:.6f}"]
            cells += [_cell(energy_mj)] * energy + ["" if power_w is None else f"{power_w:.3f}"] * power
            lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def spans_csv(
    runs: Iterable[Run], *, classes: bool = True, starts: bool = True, arrivals: bool = False, work: bool = False
) -> str:
    """The runs as the spans file of ``joulegate attribute``; a batch has one row a member."""
    runs = tuple(runs)
    batches = any(len(run.job.items) > 1 for run in runs)
    header = "request_id,devices,start_s,end_s" + ",class" * classes + ",arrived_s" * arrivals
    header += ",images,steps,width,height" * work + ",batch_id" * batches
    lines = [header]
    for run in runs:
        for item in run.job.items or (Item(run.job.request_id),):
            cells = [item.request_id, "|".join(run.job.devices)]
            cells += [repr(run.started_s) if starts else "", repr(run.ended_s)]
            cells += [run.job.kind.name] * classes + [repr(run.job.arrived_s)] * arrivals
            cells += [_cell(value) for value in (item.images, item.steps, item.width, item.height)] * work
            cells += [run.job.request_id if len(run.job.items) > 1 else ""] * batches
            lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def _cell(value: int | None) -> str:
    return "" if value is None else str(value)

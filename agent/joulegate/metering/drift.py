"""When clocks or a power limit move, dynamic power moves with them: its scale over time, told apart from foreign load.

A foreign process adds watts, also while the device is idle; lower or higher clocks scale the dynamic power and leave
idle power alone. So a block of time is rescaled only where its idle intervals look as always.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.metering.calibration import Changes, Floats

BLOCK_S = 20.0
NOTICED = 0.05
IDLE_LIKE = 0.1
MIN_BUSY_S, MIN_IDLE_S = 1.0, 0.5


@dataclass(frozen=True, slots=True)
class Drift:
    """Scale of dynamic power in consecutive blocks that begin at ``start_s``."""

    start_s: Floats
    scale: Floats

    def at(self, t_s: Floats) -> Floats:
        """Scale at each time."""
        if not len(self.start_s):
            return np.ones(len(t_s))
        return self.scale[np.maximum(np.searchsorted(self.start_s, t_s, side="right") - 1, 0)]

    @property
    def steady(self) -> bool:
        """True when nothing moved."""
        return bool(np.all(self.scale == 1.0))


def find_drift(changes: Changes, dynamic_j: Floats, idle_w: float) -> Drift:
    """Compare each block's energy over idle power with ``dynamic_j``, what the model says of each interval."""
    if not len(changes.start_s):
        return Drift(np.empty(0), np.empty(0))
    block = ((changes.start_s - changes.start_s[0]) // BLOCK_S).astype(np.int64)
    count = int(block[-1]) + 1
    busy = dynamic_j > 0
    over_idle_j = changes.energy_j - idle_w * changes.duration_s

    def total(values: Floats, where: NDArray[np.bool_]) -> Floats:
        return np.asarray(np.bincount(block, values * where, minlength=count))

    busy_s, idle_s = total(changes.duration_s, busy), total(changes.duration_s, ~busy)
    scale = total(over_idle_j, busy) / np.maximum(total(dynamic_j, busy), 1e-9)
    idle_excess = np.abs(total(over_idle_j, ~busy)) / np.maximum(idle_w * idle_s, 1e-9)
    trusted = (busy_s >= MIN_BUSY_S) & (idle_s >= MIN_IDLE_S) & (idle_excess < IDLE_LIKE)
    moved = trusted & (np.abs(scale - 1.0) > NOTICED) & (scale > 0.2)
    starts = changes.start_s[0] + BLOCK_S * np.arange(count)
    return Drift(starts, np.where(moved, scale, 1.0))

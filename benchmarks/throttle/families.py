"""Parameter families: what kind of board and sink a host is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

LEAKAGE_PER_K = 0.004
LEAKAGE_AT_C = 50.0
SPEED_EXPONENT = 0.9


@dataclass(frozen=True, slots=True)
class Family:
    """One board with its cooling.

    ``sink_k_per_w`` is the sink's resistance at full fan and at the slowest; ``spread`` is the half-width of the
    boards' resistances around it. Power at clock f (1 = full) is ``idle_w + (max_w - idle_w) * f**exponent`` and
    leakage. No time constant of an H100 is public: these are assumed, not measured on hardware.
    """

    name: str
    about: str
    die_j_per_k: float = 100.0
    die_k_per_w: float = 0.035
    sink_j_per_k: float = 1300.0
    sink_k_per_w: tuple[float, float] = (0.027, 0.045)
    spread: float = 0.08
    preheat_k: float = 3.0
    idle_w: float = 90.0
    max_w: float = 700.0
    min_w: float = 200.0
    exponent: float = 2.2
    max_operating_c: float = 87.0
    slowdown_c: float = 89.0
    sensor_lag_s: int = 1
    rounding: Literal["nearest", "down"] = "nearest"
    image_s: float = 2.5
    memory_k_per_w: float | None = 0.03
    memory_lag_s: float = 10.0
    memory_max_operating_c: float = 95.0

    @property
    def inlet_shift_k(self) -> float:
        """Kelvin to add to a scenario's inlet, so that boards with other limits are pressed as hard."""
        return self.max_operating_c - 87.0

    def liquid(self) -> Family:
        """The same board on a cold plate: lags of about 3 s and 6 s, no fan."""
        plate_k_per_w = self.die_k_per_w * 0.7
        return dataclasses.replace(
            self,
            die_j_per_k=3.0 / self.die_k_per_w,
            sink_j_per_k=6.0 / plate_k_per_w,
            sink_k_per_w=(plate_k_per_w, plate_k_per_w),
        )

    def hot_memory(self) -> Family:
        """The same board with a stack whose limit binds before the core's."""
        return dataclasses.replace(self, memory_k_per_w=1.7 * self.die_k_per_w)


TUNED = (Family("h100", "die 3.5 s, sink 35-60 s, 90/700 W, f^2.2, 87/89 C, 2.5 s an image, 1 s late, rounded"),)
HELD_OUT = (
    Family(
        "slow",
        "lags 6 s and 90 s, spread 12 %, truncated",
        die_j_per_k=171.0,
        sink_j_per_k=3300.0,
        spread=0.12,
        rounding="down",
    ),
    Family(
        "quick",
        "lags 2 s and 25 s, spread 4 %, sensor 2 s late and truncated",
        die_j_per_k=57.0,
        sink_j_per_k=920.0,
        spread=0.04,
        sensor_lag_s=2,
        rounding="down",
    ),
    Family("cubic", "f^3, sensor 2 s late and truncated", exponent=3.0, sensor_lag_s=2, rounding="down"),
    Family(
        "l40s",
        "60/400 W, f^3, 83/86 C, 8 s an image, no memory sensor",
        die_j_per_k=70.0,
        die_k_per_w=0.066,
        sink_j_per_k=900.0,
        sink_k_per_w=(0.051, 0.085),
        idle_w=60.0,
        max_w=400.0,
        min_w=100.0,
        exponent=3.0,
        max_operating_c=83.0,
        slowdown_c=86.0,
        image_s=8.0,
        memory_k_per_w=None,
    ),
    Family(
        "b200",
        "140/1000 W, f^2.6, 90/93 C, 0.8 s an image, truncated",
        die_j_per_k=160.0,
        die_k_per_w=0.024,
        sink_j_per_k=1900.0,
        sink_k_per_w=(0.0195, 0.033),
        idle_w=140.0,
        max_w=1000.0,
        exponent=2.6,
        max_operating_c=90.0,
        slowdown_c=93.0,
        rounding="down",
        image_s=0.8,
        memory_k_per_w=0.021,
    ),
)
FAMILIES = {family.name: family for family in (*TUNED, *HELD_OUT)}

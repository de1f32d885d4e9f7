"""Uncertainty of one request's energy: a measurement part and an allocation part (notes/measurement.md, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

COVERAGE_FACTOR = 2.0
OFFSET_W = 5.0
"""Largest offset of a board's power sensor; taken as uniform."""

GAP_ERROR = 0.3
"""Relative standard error of energy that only the model could place inside a gap."""


@dataclass(frozen=True, slots=True)
class SensorError:
    """What is known of a device's energy line: largest relative gain error, error of its timing, its refresh period."""

    gain: float
    lag_s: float
    poll_s: float
    step_s: float

    @property
    def edge_s(self) -> float:
        """Standard uncertainty in seconds of where on the line an edge of a span falls."""
        return math.sqrt(self.lag_s**2 + self.poll_s**2 / 12 + (0.1 * self.step_s) ** 2 / 12)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What attribution saw of one span on one device; all energies in millijoules, as floats.

    ``offset_mj_per_w`` is the integral of dt/n in mJ/W, ``shared_mj`` the dynamic energy under competition weighted by
    sqrt((n-1)/n), ``idle_slope_mj_per_w`` the change of the result per watt of idle power, ``gap_mj`` what was placed
    inside gaps, ``start_w`` and ``end_w`` the span's own power at its two edges, ``uncovered_mj`` what the model says
    of time that no reading saw.
    """

    energy_mj: float
    offset_mj_per_w: float
    shared_mj: float
    idle_slope_mj_per_w: float
    gap_mj: float
    start_w: float
    end_w: float
    uncovered_mj: float
    duration_s: float
    edge_error_s: float
    share_error: float
    idle_error_w: float


def expanded(seen: Evidence, sensor: SensorError) -> tuple[float, float]:
    """(measurement, allocation) uncertainty in millijoules at k = 2.

    Gain and offset are uniform, the rest is taken as normal; parts are independent and add in quadrature. An edge
    cannot be wrong by more than the span is long.
    """
    gain = seen.energy_mj * sensor.gain / math.sqrt(3)
    offset = seen.offset_mj_per_w * OFFSET_W / math.sqrt(3)
    edge_s = min(math.hypot(sensor.edge_s, seen.edge_error_s), max(seen.duration_s, sensor.step_s) / 2)
    edges = 1000.0 * edge_s * math.hypot(seen.start_w, seen.end_w)
    measurement = math.sqrt(gain**2 + offset**2 + edges**2 + (GAP_ERROR * seen.uncovered_mj) ** 2)
    shared = seen.share_error * seen.shared_mj
    idle = seen.idle_error_w * seen.idle_slope_mj_per_w
    allocation = math.sqrt(shared**2 + idle**2 + (GAP_ERROR * seen.gap_mj) ** 2)
    return COVERAGE_FACTOR * measurement, COVERAGE_FACTOR * allocation

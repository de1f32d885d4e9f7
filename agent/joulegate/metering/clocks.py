"""Virtual clocks of one device: running integrals of which a span pays the difference from its start to its end.

They are what makes attribution cost the same however many spans are open, as in fair queueing.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class ClockTimes(NamedTuple):
    """Values of the clocks at one moment, or the difference between two moments.

    ``static_mj``: charged idle energy of one span. ``dynamic_mj_per_w``: dynamic energy of one span per watt of its
    class. ``shared_mj_per_w``: the same, weighted by sqrt((n-1)/n): what competition makes doubtful.
    ``offset_mj_per_w``: integral of dt/n. ``slope_per_w``: integral of dt/(n (P0 + D)), for the sensitivity to idle
    power. ``gap_static_mj`` and ``gap_dynamic_mj_per_w``: the parts that fell into gaps. ``covered_s``: seconds that
    readings cover. ``foreign_mj``: unattributed energy that passed meanwhile.
    """

    static_mj: float = 0.0
    dynamic_mj_per_w: float = 0.0
    shared_mj_per_w: float = 0.0
    offset_mj_per_w: float = 0.0
    slope_per_w: float = 0.0
    gap_static_mj: float = 0.0
    gap_dynamic_mj_per_w: float = 0.0
    covered_s: float = 0.0
    foreign_mj: float = 0.0

    def since(self, earlier: ClockTimes) -> ClockTimes:
        """What passed between ``earlier`` and this moment."""
        static, dynamic, shared, offset, slope, gap_static, gap_dynamic, covered, foreign = self
        static0, dynamic0, shared0, offset0, slope0, gap_static0, gap_dynamic0, covered0, foreign0 = earlier
        return ClockTimes(
            static - static0,
            dynamic - dynamic0,
            shared - shared0,
            offset - offset0,
            slope - slope0,
            gap_static - gap_static0,
            gap_dynamic - gap_dynamic0,
            covered - covered0,
            foreign - foreign0,
        )


class Clocks:
    """Advances all clocks of one device together."""

    __slots__ = (
        "_charged_w",
        "_gap",
        "_idle_w",
        "_scale",
        "covered_s",
        "dynamic_mj_per_w",
        "foreign_mj",
        "gap_dynamic_mj_per_w",
        "gap_static_mj",
        "offset_mj_per_w",
        "shared_mj_per_w",
        "slope_per_w",
        "static_mj",
    )

    def __init__(self) -> None:
        self.reset()
        self.tune(idle_w=0.0, charged_w=0.0, scale=1.0, gap=False)

    def reset(self) -> None:
        """Back to zero; allowed only while no span is open, and keeps the floats small and exact."""
        self.static_mj = self.dynamic_mj_per_w = self.shared_mj_per_w = self.offset_mj_per_w = 0.0
        self.slope_per_w = self.gap_static_mj = self.gap_dynamic_mj_per_w = self.covered_s = self.foreign_mj = 0.0

    def tune(self, *, idle_w: float, charged_w: float, scale: float, gap: bool) -> None:
        """How the clocks run from now on.

        ``idle_w`` is the device's idle power and ``charged_w`` what of it spans pay (0 under the marginal policy);
        ``scale`` is counter over model; ``gap`` while no reading tells the shape.
        """
        self._idle_w, self._charged_w, self._scale, self._gap = idle_w, charged_w, scale, gap

    def advance(self, dt_s: float, active: int, mean_w: float) -> float:
        """Let ``dt_s`` pass with ``active`` >= 1 spans of mean dynamic power ``mean_w``; the mJ that went to spans."""
        per_span = 1000.0 * dt_s / active
        scaled = self._scale * per_span
        charged_w = self._charged_w
        self.covered_s += dt_s
        self.static_mj += scaled * charged_w
        self.dynamic_mj_per_w += scaled
        self.offset_mj_per_w += per_span
        if active > 1:
            self.shared_mj_per_w += scaled * math.sqrt((active - 1) / active)
        if charged_w:
            self.slope_per_w += scaled / (self._idle_w + mean_w)
        if self._gap:
            self.gap_static_mj += scaled * charged_w
            self.gap_dynamic_mj_per_w += scaled
        return scaled * active * (charged_w + mean_w)

    def now(self) -> ClockTimes:
        """The clocks' values."""
        return ClockTimes(
            self.static_mj,
            self.dynamic_mj_per_w,
            self.shared_mj_per_w,
            self.offset_mj_per_w,
            self.slope_per_w,
            self.gap_static_mj,
            self.gap_dynamic_mj_per_w,
            self.covered_s,
            self.foreign_mj,
        )

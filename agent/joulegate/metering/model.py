"""The power model of one device: only the *shape* of an interval comes from it, never the amount."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FLOOR_W = 1e-3
"""No weight is ever zero, so that every millijoule has somewhere to go."""

UNKNOWN_SHARE_ERROR = 0.5
PRIOR_SHARE_ERROR = 0.4
CALIBRATED_SHARE_ERROR = 0.3
"""Relative standard error of a request's dynamic share by what is known of its class (notes/measurement.md, 4)."""


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Idle power and dynamic power by class, in watts.

    ``idle_w`` is the power with models resident and nothing running. ``dynamic_w`` has the classes that were learned;
    any other class draws ``default_dynamic_w``. ``dynamic_scale`` follows clocks and power limits.
    ``share_error`` is the relative standard error of a class's dynamic share. ``calibrated`` decides how much excess
    the foreign-load guard forgives.
    """

    idle_w: float
    default_dynamic_w: float
    dynamic_w: Mapping[str, float] = field(default_factory=dict)
    share_error: Mapping[str, float] = field(default_factory=dict)
    idle_error_w: float = 5.0
    dynamic_scale: float = 1.0
    calibrated: bool = False
    idle_known: bool = False

    def dynamic_of(self, power_class: str) -> float:
        """Dynamic watts of a class when it has the device for itself."""
        return max(FLOOR_W, self.dynamic_scale * self.dynamic_w.get(power_class, self.default_dynamic_w))

    def share_error_of(self, power_class: str) -> float:
        """Relative standard error of the class's dynamic share."""
        return self.share_error.get(power_class, PRIOR_SHARE_ERROR if self.calibrated else UNKNOWN_SHARE_ERROR)


UNKNOWN_MODEL = PowerModel(idle_w=60.0, default_dynamic_w=300.0)
"""Before anything is learned: the middle of the data-centre cards; equal classes, so only times decide."""

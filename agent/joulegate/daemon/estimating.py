"""An estimate with the CO2e of a place and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joulegate.carbon.energy_use import EnergyUse, Slice
from joulegate.carbon.figure import Missing, Range
from joulegate.carbon.footprint import footprint
from joulegate.carbon.tier import Tier
from joulegate.carbon.view import View
from joulegate.metering.prior import Estimate
from joulegate.metering.prior_wire import estimate_to_wire
from joulegate.units import MJ_PER_J


def with_co2e(answer: Estimate, view: View, now_s: float) -> dict[str, Any]:
    """The estimate as JSON, its CO2e by the intensity of ``now_s`` in ``view``; missing with its reason otherwise."""
    if answer.energy_j is None:
        return estimate_to_wire(answer, None, answer.why)
    grams = [
        _location_based(view, now_s, value * MJ_PER_J)
        for value in (answer.energy_j.low, answer.energy_j.central, answer.energy_j.high)
    ]
    low, central, high = grams
    if isinstance(low, Missing) or isinstance(central, Missing) or isinstance(high, Missing):
        why = next(figure.why for figure in grams if isinstance(figure, Missing))
        return estimate_to_wire(answer, None, why)
    co2e_g: Mapping[str, object] = {
        "low": low.low,
        "central": central.central,
        "high": high.high,
        "unit": central.unit,
        "tier": central.tier.value,
    }
    return estimate_to_wire(answer, co2e_g, None)


def _location_based(view: View, now_s: float, energy_mj: float) -> Range | Missing:
    use = EnergyUse((Slice(now_s - 1.0, now_s, energy_mj),), Tier.MODELLED)
    return footprint(use, view).location_based

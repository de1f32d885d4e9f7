"""An estimate as JSON: the contract of ``joulegate estimate --json`` and of ``GET /v1/estimate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joulegate.metering.prior import Estimate

NO_PLACE = "no place and no factor set were given to the estimate"
FIGURES = 6
"""Significant figures of joules; none of an estimate's is worth more."""


def estimate_to_wire(
    answer: Estimate, co2e_g: Mapping[str, object] | None = None, co2e_why: str | None = NO_PLACE
) -> dict[str, Any]:
    """A missing figure is null, and ``why`` or ``co2e_why`` says what it lacks."""
    energy_j = answer.energy_j
    return {
        "energy_j": None
        if energy_j is None
        else {name: float(f"{getattr(energy_j, name):.{FIGURES}g}") for name in ("low", "central", "high")},
        "prior": None if answer.prior is None else answer.prior.value,
        "co2e_g": co2e_g,
        "co2e_why": None if co2e_g is not None else co2e_why,
        "boundary": "the GPUs of the request, without host and cooling",
        "why": answer.why,
        "assumed": list(answer.assumed),
        "nearest": list(answer.nearest),
    }

"""How far a figure can be trusted: the words of the meter's own quality, so that both read alike on every surface."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Tier(StrEnum):
    """Best first; a figure made from several inputs carries the worst of theirs (law 3)."""

    MEASURED = "measured"
    APPORTIONED = "apportioned"
    MODELLED = "modelled"
    DEFAULT = "default"
    SIMULATED = "simulated"
    MISSING = "missing"


_ORDER = {tier: place for place, tier in enumerate(Tier)}


def weakest(tiers: Iterable[Tier]) -> Tier:
    """The worst of ``tiers``; of none it is ``measured``, which takes nothing from what it is joined to."""
    return max(tiers, key=_ORDER.__getitem__, default=Tier.MEASURED)

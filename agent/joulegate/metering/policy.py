"""Idle policies: who pays while a device waits. A policy moves idle energy; it never changes a total."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from joulegate.metering.accounts import UseShare
from joulegate.metering.apportion import apportion


class IdlePolicy(StrEnum):
    """Who pays for idle time.

    ``separate``: idle is nobody's bill (default). ``reserved``: an hour's idle by the time each request held the
    device. ``usage``: by its energy. ``marginal``: requests pay dynamic energy only (notes/measurement.md, 6.3).
    """

    SEPARATE = "separate"
    RESERVED = "reserved"
    USAGE = "usage"
    MARGINAL = "marginal"


def spread_idle(policy: IdlePolicy, idle_mj: int, shares: Sequence[UseShare]) -> list[int]:
    """Whole millijoules of one bucket's idle energy that each of its shares pays on top; all zero where none does.

    The caller orders ``shares`` by request id, so that ties fall the same way whatever the order of the input.
    """
    if policy not in (IdlePolicy.RESERVED, IdlePolicy.USAGE) or not shares:
        return [0] * len(shares)
    if policy is IdlePolicy.RESERVED:
        return apportion(idle_mj, [share.held_s for share in shares])
    return apportion(idle_mj, [float(share.energy_mj) for share in shares])

"""Our own energy counter for sources that have none, or one that wraps."""

from __future__ import annotations

_FIRST_START_MJ = 1_000_000


class EpochCounter:
    """Whole millijoules that never fall, except at a restart, which is always a fall.

    What a meter reads as a reset must be one: every epoch starts one millijoule below the one before it, so a restart
    is seen even when nothing was counted in between. Fractions are carried in microjoules, none is dropped.
    """

    def __init__(self) -> None:
        self._start_mj = _FIRST_START_MJ
        self._counted_uj = 0

    @property
    def energy_mj(self) -> int:
        """The counter now."""
        return self._start_mj + self._counted_uj // 1000

    def add_uj(self, energy_uj: int) -> None:
        """Count energy, which must not be negative."""
        if energy_uj < 0:
            raise ValueError(f"an energy counter cannot go back by {-energy_uj} uJ")
        self._counted_uj += energy_uj

    def restart(self) -> None:
        """Begin a new epoch: what happened since the last reading is not known."""
        self._start_mj -= 1
        self._counted_uj = 0

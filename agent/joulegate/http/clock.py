"""The machine's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """CLOCK_MONOTONIC and Unix time of this machine."""

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Unix seconds."""
        return time.time()

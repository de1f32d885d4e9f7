"""The gateway that enforces: one token bucket a tier, with the published rate and burst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TIERS = ("pro", "plus", "free")
SHARES = (0.10, 0.25, 0.65)
DEADLINES_S = (30.0, 30.0, 60.0)


class Bucket:
    """Images an engine may let in: ``rate_per_s`` of them, ``depth`` at once; no limit while the rate is None."""

    def __init__(self) -> None:
        self.rate_per_s: float | None = None
        self.depth = 1.0
        self._tokens, self._at_s = 0.0, 0.0

    def limit(self, t_s: float, rate_per_s: float | None, depth: float) -> None:
        """Put a new rate in force; tokens are kept up to the new depth, and a first limit starts full."""
        self._refill(t_s)
        if self.rate_per_s is None:
            self._tokens = depth
        self.rate_per_s, self.depth = rate_per_s, depth

    def take(self, t_s: float) -> bool:
        """Whether one image may pass now; it costs a token if so."""
        if self.rate_per_s is None:
            return True
        self._refill(t_s)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _refill(self, t_s: float) -> None:
        if self.rate_per_s is not None:
            self._tokens = min(self.depth, self._tokens + self.rate_per_s * (t_s - self._at_s))
        self._at_s = t_s


class Gateway:
    """The tiers' buckets, set from a recommendation's ``tiers``."""

    def __init__(self) -> None:
        self._buckets = [Bucket() for _ in TIERS]

    def apply(self, t_s: float, recommendation: Mapping[str, Any]) -> None:
        """Put the published tier limits in force."""
        for name, bucket in zip(TIERS, self._buckets, strict=True):
            tier = recommendation["tiers"][name]
            per_minute = tier["max_images_per_minute"]
            bucket.limit(t_s, None if per_minute is None else per_minute / 60.0, float(tier["burst"] or 1.0))

    def admits(self, tier: int, t_s: float) -> bool:
        """Whether an image of a tier, by its index, is let in."""
        return self._buckets[tier].take(t_s)

"""Recommendations, settings and clocks for tests of decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from joulegate.http.throttle_ports import Prepared
from joulegate.throttle.recommendation import Action, Binding, FailSafe, Recommendation, State, TierLimit
from joulegate.throttle.settings import ThrottleSettings, Tier

SETTINGS = ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", floor=0.02, quota="3/day")))
OPEN = TierLimit(Action.ADMIT, None, 1.0, 1.0, 0.0)
FREE = TierLimit(Action.LIMIT, 34.0, 0.09, 3.0, 0.0)


def recommendation(
    tiers: Mapping[str, TierLimit] | None = None,
    *,
    host: float | None = None,
    decision_id: str = "d1",
    t: float = 100.0,
) -> Recommendation:
    """A constrained host: pro and plus open, free limited, unless ``tiers`` says else."""
    return Recommendation(
        decision_id=decision_id,
        t=t,
        state=State.CONSTRAINED,
        binding=Binding.THERMAL,
        confidence=0.9,
        reasons=(),
        max_images_per_minute=host,
        admit_fraction=0.3,
        max_concurrency=24,
        power_cap_w={},
        host_power_cap_w=None,
        tiers={"pro": OPEN, "plus": OPEN, "free": FREE} | dict(tiers or {}),
        fail_safe=FailSafe(10.0, 0.25, 400.0),
        inputs={},
        ttl_s=10.0,
        poll_after_s=5.0,
        explain="",
    )


def limited(rate_per_minute: float, burst: float, retry_after_s: float = 0.0) -> TierLimit:
    """A tier held to a rate."""
    return replace(FREE, max_images_per_minute=rate_per_minute, burst=burst, retry_after_s=retry_after_s)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


class Board:
    """Holds the newest recommendation, as the daemon's reader does."""

    def __init__(self, clock: Clock, newest: Recommendation | None = None) -> None:
        self._clock = clock
        self._prepared: Prepared | None = None
        if newest is not None:
            self.post(newest)

    def post(self, newest: Recommendation) -> None:
        """Make it the newest, now."""
        self._prepared = Prepared(1, newest.decision_id, b"", b"", {}, b"", b"", newest, self._clock())

    def newest(self) -> Prepared | None:
        """The newest one."""
        return self._prepared

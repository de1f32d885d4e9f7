"""The example configuration is one that the daemon takes."""

from __future__ import annotations

from pathlib import Path

from joulegate.config import load

EXAMPLE = Path(__file__).resolve().parents[2] / "dashboards" / "policies" / "joulegate-throttle.toml"


def test_three_images_a_day_for_free():
    """It loads without a fault, free is the last tier and has three a day, and paid tiers come before it."""
    throttle = load(EXAMPLE, environ={}).settings.throttle
    pure = throttle.pure()
    assert [tier.name for tier in pure.tiers] == ["pro", "plus", "free"]
    free = pure.tier("somebody unknown")
    assert (free.name, free.quota, free.floor) == ("free", "3/day", 0.02)
    assert (free.tenant_day_min, free.tenant_day_max) == (1, 3)
    assert pure.actuators == ("rate",)
    assert (throttle.zone, throttle.quota_storage) == ("Europe/Berlin", "memory")

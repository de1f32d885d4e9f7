"""What an operator decides about throttling: tiers in the order of their priority, margins, budgets, actuators."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "rate"
POWER_CAP = "power_cap"
ACTUATORS = (RATE, POWER_CAP)


@dataclass(frozen=True, slots=True)
class Tier:
    """One class of callers.

    ``floor`` is the share of the host's capacity that the tier keeps. ``quota`` is counted per tenant, in the notation
    of the limits library (``3/day``). ``tenant_day_min`` and ``tenant_day_max`` bound ``images_per_tenant_day``, which
    is an output of capacity; without them it is the quota's own number. Only a ``deferrable`` tier is ever asked to
    wait for a cleaner grid, and for at most ``defer_max_s``.
    """

    name: str
    floor: float = 0.0
    quota: str | None = None
    tenant_day_min: int | None = None
    tenant_day_max: int | None = None
    deferrable: bool = False
    defer_max_s: float = 3600.0


DEFAULT_TIERS = (Tier("pro"), Tier("plus"), Tier("free", floor=0.02))


@dataclass(frozen=True, slots=True)
class ThrottleSettings:
    """Everything that a recommendation depends on beside the observations.

    ``margin_c`` stands between the operating limit and the target: sensors truncate and lag two seconds on some boards
    (2 K held everywhere in trials, 1.5 K did not). ``rate_margin_c`` is added where no power cap may be set, since
    images then run at full clock. ``host_power_limit_w`` bounds the sum of all devices. ``stale_floor`` is the share of
    a device's power limit that its cap decays to without telemetry.
    """

    tiers: tuple[Tier, ...] = DEFAULT_TIERS
    actuators: tuple[str, ...] = ACTUATORS
    margin_c: float = 2.0
    rate_margin_c: float = 3.0
    host_power_limit_w: float | None = None
    ttl_s: float = 10.0
    poll_after_s: float = 5.0
    act_after_s: float = 3.0
    stale_after_s: float = 10.0
    stale_floor: float = 4.0 / 7.0
    stale_admit_fraction: float = 0.25

    @property
    def sets_power(self) -> bool:
        """Whether somebody applies the caps; else the plan rests on the rate alone."""
        return POWER_CAP in self.actuators

    def tier(self, name: str | None) -> Tier:
        """The tier of that name; an unknown one is treated as the last, which promises least."""
        return next((tier for tier in self.tiers if tier.name == name), self.tiers[-1])

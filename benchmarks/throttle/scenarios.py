"""What happens to the host: load, inlet, fans, work per image, sensors, budgets, boards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Points = tuple[tuple[float, float], ...]


def step(before: float, after: float, *at_s: float) -> Points:
    """``before`` until the first time, then ``after``, and ``before`` again from the second time on."""
    points = [(0.0, before)]
    for t_s, value in zip(at_s, (after, before), strict=False):
        points += [(t_s, points[-1][1]), (t_s + 1.0, value)]
    return tuple(points)


def flash(base: float, factor: float, at_s: float, lasts_s: float) -> Points:
    """``base``, growing ``factor`` times within a minute, and back after ``lasts_s``."""
    end_s = at_s + lasts_s
    return ((0.0, base), (at_s, base), (at_s + 60, base * factor), (end_s, base * factor), (end_s + 60, base))


@dataclass(frozen=True, slots=True)
class Absence:
    """A board that is gone from ``from_s`` to ``to_s``; ``listed`` as not up, or left out of the observation."""

    device: int
    from_s: int
    to_s: int
    listed: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """One hour of a host.

    Points are (second, value), joined by straight lines: ``load`` in multiples of what the host can do at full clock,
    ``inlet_c``, ``sink_factor`` on the sinks' resistance, ``work_factor`` on an image, ``grid_g_per_kwh``.
    ``events_s`` are the seconds after which a minute of heat is not counted against a controller.
    """

    name: str
    load: Points
    kind: Literal["calm", "thermal", "other", "extra"]
    inlet_c: Points = ((0.0, 27.0),)
    sink_factor: Points = ((0.0, 1.0),)
    work_factor: Points = ((0.0, 1.0),)
    grid_g_per_kwh: Points = ((0.0, 380.0),)
    events_s: tuple[float, ...] = ()
    base_load: float | None = None
    cooling: Literal["air", "liquid"] = "air"
    hot_memory: bool = False
    sessions: bool = False
    lost_s: tuple[int, int] | None = None
    energy_share: float | None = None
    co2e_share: float | None = None
    devices: int = 8
    absences: tuple[Absence, ...] = ()
    duration_s: int = 3600

    def load_points(self) -> tuple[Sequence[float], Sequence[float]]:
        """Seconds and loads, as ``numpy.interp`` wants them."""
        return [t_s for t_s, _ in self.load], [load for _, load in self.load]


def _flash(name: str, kind: Literal["thermal", "other", "extra"] = "thermal", **more: object) -> Scenario:
    settings: dict[str, object] = {"inlet_c": ((0.0, 41.0),), "events_s": (600.0,), **more}
    return Scenario(name, flash(0.35, 10.0, 600.0, 2100.0), kind, base_load=0.35, **settings)  # type: ignore[arg-type]


_DAY = tuple((60.0 * n, 0.9 - 0.45 * math.cos(2 * math.pi * n / 60)) for n in range(61))

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", ((0.0, 0.8),), "calm"),
        Scenario("hot_steady", ((0.0, 1.3),), "thermal", inlet_c=((0.0, 41.0),), events_s=(0.0,)),
        _flash("flash10"),
        _flash("flash10_liquid", cooling="liquid", inlet_c=((0.0, 44.0),)),
        Scenario("ambient", ((0.0, 1.15),), "thermal", inlet_c=step(27.0, 42.0, 900.0), events_s=(900.0,)),
        Scenario("fanfail", ((0.0, 1.15),), "thermal", sink_factor=step(1.0, 2.6, 900.0, 2400.0), events_s=(900.0,)),
        Scenario("diurnal", _DAY, "other", inlet_c=((0.0, 36.0),), sessions=True),
        Scenario("workshift", ((0.0, 0.9),), "other", work_factor=step(1.0, 1.8, 1200.0), events_s=(1200.0,)),
        _flash("stale", "other", events_s=(600.0, 630.0), lost_s=(630, 750)),
        Scenario("budget", ((0.0, 1.15),), "other", energy_share=3.6 / 5.6),
        _flash("devices4", "extra", devices=4),
        _flash("devices72", "extra", devices=72),
        Scenario(
            "device_returns",
            ((0.0, 1.15),),
            "extra",
            inlet_c=((0.0, 41.0),),
            events_s=(0.0, 1200.0, 1500.0, 2100.0, 2400.0),
            absences=(Absence(2, 1200, 1500, listed=True), Absence(5, 2100, 2400, listed=False)),
        ),
        Scenario(
            "memory", ((0.0, 1.15),), "extra", inlet_c=step(27.0, 35.0, 900.0), events_s=(900.0,), hot_memory=True
        ),
        Scenario(
            "co2",
            ((0.0, 1.15),),
            "extra",
            grid_g_per_kwh=((0.0, 150.0), (900.0, 150.0), (1800.0, 450.0), (3600.0, 450.0)),
            co2e_share=0.65,
        ),
    )
}
CORE = tuple(name for name, scenario in SCENARIOS.items() if scenario.kind != "extra")
EXTRA = tuple(name for name, scenario in SCENARIOS.items() if scenario.kind == "extra")

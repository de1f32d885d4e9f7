"""The memory of the recommender: everything that its next word depends on beside the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulegate.throttle.budgets import Budgets
from joulegate.throttle.demand import Demand
from joulegate.throttle.device import DeviceTrack
from joulegate.throttle.ladder import Ladder
from joulegate.throttle.tiering import Shares
from joulegate.throttle.work import WorkModel, new_work_model


@dataclass(slots=True)
class Memory:
    """What was learned and last said. ``t`` is the time of the newest observation, ``rate`` in units a second."""

    t: float | None = None
    devices: dict[str, DeviceTrack] = field(default_factory=dict)
    work: WorkModel = field(default_factory=new_work_model)
    demand: Demand = field(default_factory=Demand)
    budgets: Budgets = field(default_factory=Budgets)
    shares: Shares = field(default_factory=Shares)
    ladder: Ladder = field(default_factory=Ladder)
    rate: float | None = None
    heading: float = 0.0

    @property
    def short(self) -> bool:
        """Whether demand or backlog is held back."""
        return self.demand.over or self.demand.late

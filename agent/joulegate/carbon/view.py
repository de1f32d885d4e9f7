"""What energy is looked at with: a site, a factor set and the grid's intensities, as they stand."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulegate.carbon.choice import Choice, choose
from joulegate.carbon.energy_use import EnergyUse
from joulegate.carbon.factors import FactorSet
from joulegate.carbon.figure import Missing, Range
from joulegate.carbon.intensity import G_PER_KWH, Step, Weighted, weigh
from joulegate.carbon.record import FactorRef
from joulegate.carbon.site import Site


@dataclass(frozen=True, slots=True)
class View:
    """Site, factors and grid as they stand: made once per change of any of them, used for every request.

    ``choice`` is the static factor; ``steps`` the grid's intensities over time, which rule wherever they reach.
    """

    site: Site
    factors: FactorSet | None
    steps: tuple[Step, ...] = ()
    choice: Choice = field(init=False)
    water: Choice = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", choose(self.site, self.factors))
        object.__setattr__(self, "water", choose(self.site, self.factors, water=True))

    @property
    def static(self) -> Range | None:
        """The static factor as a range in g/kWh."""
        factor = self.choice.factor
        return None if factor is None else Range(factor.low, factor.value, factor.high, G_PER_KWH, self.choice.tier)

    def intensity(self, use: EnergyUse) -> Weighted | Missing:
        """The mean intensity of the time in which ``use`` was."""
        factor = self.choice.factor
        name = "" if factor is None else f"{factor.source.name}: {factor.place.code} {factor.period}"
        return weigh(use, self.steps, self.static, name, self.choice.why)

    def reference(self, intensity: Weighted) -> FactorRef | None:
        """The static factor, if any of ``intensity`` came from it."""
        if self.factors is None or self.choice.factor is None or intensity.covered >= 1:
            return None
        return FactorRef(self.factors.id, self.factors.hash, self.choice.factor)

"""A span on one device from its announcement to its final figures, which are read off the device's clocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from joulegate.metering.accounts import Cell, UseShare
from joulegate.metering.clocks import ClockTimes
from joulegate.metering.model import FLOOR_W, PowerModel
from joulegate.metering.reading import Method
from joulegate.metering.uncertainty import Evidence

CONTENDED_SHARE = 0.05
"""A span that saw this much foreign energy, relative to its own, loses quality."""

_NO_METHOD: frozenset[Method] = frozenset()
_ALONE = {method: frozenset({method}) for method in Method}
_START_OF_TIME = ClockTimes()


@dataclass(frozen=True, slots=True)
class SpanUse:
    """One span's final figures on one device. ``energy_mj`` is ``None`` when no reading saw any of it."""

    span_id: str
    device: str
    power_class: str
    start_s: float
    end_s: float
    energy_mj: int | None
    evidence: Evidence
    shares: tuple[UseShare, ...]
    methods: frozenset[Method]
    shared: bool
    partial: bool
    gap: bool
    late: bool
    contended: bool


@dataclass(frozen=True, slots=True)
class OwnPower:
    """Dynamic watts of one span and the relative standard error of its share, where they were learned for itself."""

    dynamic_w: float
    share_error: float


class OpenSpan:
    """A span that has no final figure yet. Mutable, one a device; ``Partition`` is the only one that moves it on."""

    __slots__ = (
        "base",
        "covered_s",
        "dynamic_w",
        "edge_error_s",
        "end_s",
        "end_w",
        "energy_mj",
        "exact_mj",
        "foreign_mj",
        "gap_mj",
        "gone",
        "known",
        "late",
        "methods",
        "offset_mj_per_w",
        "own_power",
        "power_class",
        "settled_s",
        "share_error",
        "shared_mj",
        "shares",
        "slope_mj_per_w",
        "span_id",
        "start_s",
        "start_w",
    )

    def __init__(
        self, span_id: str, start_s: float, power_class: str, edge_error_s: float, own_power: OwnPower | None
    ) -> None:
        self.span_id = span_id
        self.start_s = start_s
        self.end_s: float | None = None
        self.power_class = power_class
        self.edge_error_s = edge_error_s
        self.own_power = own_power
        self.dynamic_w = self.share_error = 0.0
        self.known = True
        """False while the model has no figure for its class."""
        self.base: ClockTimes = _START_OF_TIME
        self.settled_s = 0.0
        self.energy_mj = 0
        self.exact_mj = self.shared_mj = self.offset_mj_per_w = self.slope_mj_per_w = 0.0
        self.gap_mj = self.covered_s = self.foreign_mj = 0.0
        self.start_w = self.end_w = 0.0
        self.shares: list[UseShare] = []
        self.methods = _NO_METHOD
        self.late = False
        self.gone = False
        """True once it was dropped; its edges then mean nothing."""

    def dynamic_by(self, model: PowerModel) -> float:
        """Dynamic watts by the model."""
        own = self.own_power
        if own is None:
            return model.dynamic_of(self.power_class)
        return max(FLOOR_W, model.dynamic_scale * own.dynamic_w)

    def weigh(self, model: PowerModel) -> None:
        """Take dynamic power and its error from the model."""
        own = self.own_power
        self.dynamic_w = self.dynamic_by(model)
        self.known = own is not None or self.power_class in model.dynamic_w
        error = model.share_error_of(self.power_class) if own is None else own.share_error
        self.share_error = max(self.share_error, error)

    def begin(self, now: ClockTimes, t_s: float) -> None:
        """Pay from this moment on."""
        self.base, self.settled_s = now, t_s

    def owed_mj(self, passed: ClockTimes) -> float:
        """What it owes for what passed on the clocks."""
        return passed.static_mj + self.dynamic_w * passed.dynamic_mj_per_w

    def settle(self, now: ClockTimes, t_s: float, cell: Cell | None, charged_w: float) -> None:
        """Pay what is owed up to ``t_s`` into the bucket's accounts; ``charged_w`` is the idle power that spans pay."""
        passed = now.since(self.base)
        held_s = t_s - self.settled_s
        self.begin(now, t_s)
        if passed.covered_s <= 0 or cell is None:
            return
        exact_mj = self.owed_mj(passed)
        energy_mj = cell.settle(exact_mj)
        self.exact_mj += exact_mj
        self.take(UseShare(cell.key, energy_mj, held_s), cell.method)
        self.shared_mj += self.dynamic_w * passed.shared_mj_per_w
        self.offset_mj_per_w += passed.offset_mj_per_w
        if charged_w:
            self.slope_mj_per_w += passed.dynamic_mj_per_w - (charged_w + self.dynamic_w) * passed.slope_per_w
        self.gap_mj += passed.gap_static_mj + self.dynamic_w * passed.gap_dynamic_mj_per_w
        self.covered_s += passed.covered_s
        self.foreign_mj += passed.foreign_mj

    def take(self, share: UseShare, method: Method) -> None:
        """Add a share; shares of one bucket become one, however often the span is settled there."""
        self.energy_mj += share.energy_mj
        last = self.shares[-1] if self.shares else None
        if last is not None and last.key == share.key:
            share = UseShare(share.key, last.energy_mj + share.energy_mj, last.held_s + share.held_s)
            self.shares[-1] = share
        else:
            self.shares.append(share)
        if method not in self.methods:
            self.methods = self.methods | {method} if self.methods else _ALONE[method]

    def receive(self, shares: Iterable[UseShare], method: Method) -> None:
        """Take energy that was placed elsewhere (an earlier run, closed accounts): a guess, as in a gap."""
        for share in shares:
            self.exact_mj += share.energy_mj
            self.gap_mj += share.energy_mj
            self.covered_s += share.held_s
            self.take(share, method)

    def use(self, device: str, frontier_s: float, model: PowerModel) -> SpanUse:
        """Final figures; a span that has not ended is cut off at ``frontier_s`` and partial."""
        end_s = self.end_s if self.end_s is not None else max(self.start_s, frontier_s)
        missing_s = max(0.0, end_s - self.start_s - self.covered_s)
        partial = missing_s > 1e-6 or self.end_s is None
        evidence = Evidence(
            energy_mj=self.exact_mj,
            offset_mj_per_w=self.offset_mj_per_w,
            shared_mj=self.shared_mj,
            idle_slope_mj_per_w=abs(self.slope_mj_per_w),
            gap_mj=self.gap_mj,
            start_w=self.start_w,
            end_w=self.end_w,
            uncovered_mj=1000.0 * (model.idle_w + self.dynamic_by(model)) * missing_s if partial else 0.0,
            duration_s=end_s - self.start_s,
            edge_error_s=self.edge_error_s,
            share_error=self.share_error,
            idle_error_w=model.idle_error_w,
        )
        return SpanUse(
            span_id=self.span_id,
            device=device,
            power_class=self.power_class,
            start_s=self.start_s,
            end_s=end_s,
            energy_mj=self.energy_mj if self.covered_s > 0 else None,
            evidence=evidence,
            shares=tuple(self.shares),
            methods=self.methods,
            shared=self.shared_mj > 0,
            partial=partial,
            gap=self.gap_mj > 0,
            late=self.late,
            contended=self.foreign_mj > CONTENDED_SHARE * max(self.exact_mj, 1.0),
        )

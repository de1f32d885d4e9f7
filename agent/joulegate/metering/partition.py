"""Attribution: one device's energy line is cut at span edges and every millijoule is placed exactly once.

The counter gives the amount, the power model only the shape. Idle power is split equally among the active spans (which
is its Shapley value, notes/measurement.md, section 2); dynamic power is time-sliced: of n active spans, one owes
``(P0 + D)/n``. Intervals are collected into stretches of at least ``GUARD_S``; a stretch is first explained (what does
the model say?), then settled (the counter's energy is placed by the model's shape).

Law 1 holds in whole millijoules per bucket: spans are rounded with a carried residue, and the account that balances the
bucket is idle, or ``unattributed`` where the device was never idle.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from joulegate.metering.clocks import Clocks, ClockTimes
from joulegate.metering.interval import Interval, Kind
from joulegate.metering.model import FLOOR_W, PowerModel
from joulegate.metering.reading import Method
from joulegate.metering.uncertainty import Evidence

GUARD_S = 1.0
"""Foreign load is judged over at least this much time, so that a single late counter step accuses nobody."""

GUARD_TOLERANCE = 0.15
GUARD_TOLERANCE_UNCALIBRATED = 1.0

CONTENDED_SHARE = 0.05
"""A span that saw this much foreign energy, relative to its own, loses quality."""

_END, _START, _EMPTY_END = 0, 1, 2


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


_START_OF_TIME = ClockTimes()


@dataclass(slots=True)
class _Open:
    """A span from its announcement to its settlement."""

    span_id: str
    start_s: float
    end_s: float | None
    power_class: str
    edge_error_s: float
    own_power: OwnPower | None = None
    dynamic_w: float = 0.0
    share_error: float = 0.0
    base: ClockTimes = _START_OF_TIME
    settled_s: float = 0.0
    energy_mj: int = 0
    exact_mj: float = 0.0
    seen: list[float] = field(default_factory=lambda: [0.0] * 6)
    start_w: float = 0.0
    end_w: float = 0.0
    shares: list[UseShare] = field(default_factory=list)
    methods: set[Method] = field(default_factory=set)
    late: bool = False


_GAP, _COVERED = 3, 4
"""Places in ``_Open.seen`` that claims add to; the others are filled by settlement."""


@dataclass(slots=True)
class _Piece:
    """The part of an interval that lies in one bucket."""

    interval: Interval
    start_s: float
    end_s: float
    bucket: int
    energy_mj: int = 0
    model_mj: float = 0.0
    excess_mj: float = 0.0
    certain: bool = True


@dataclass(slots=True)
class _Past:
    """Idle and unattributed energy of a settled piece, which a late span may still claim."""

    start_s: float
    end_s: float
    idle_mj: float
    unattributed_mj: float
    cell: Cell


class Partition:
    """Places the energy of one device.

    Feed spans (``add``, ``end``) and intervals (``place``) in any interleaving;
    time only moves forward with the intervals. ``bucket_s`` is the length of an accounting bucket and
    ``bucket_origin_s`` what must be added to span times to get the axis on which buckets are cut. With ``charge_idle``
    False spans owe dynamic power only. ``history_s`` is how long closed intervals stay open to claims of late spans.
    """

    def __init__(
        self,
        device: str,
        model: PowerModel,
        *,
        bucket_s: float,
        bucket_origin_s: float = 0.0,
        epoch: int = 0,
        charge_idle: bool = True,
        guard_tolerance: float = GUARD_TOLERANCE,
        history_s: float = 0.0,
    ) -> None:
        self.device = device
        self.epoch = epoch
        self.frontier_s: float | None = None
        """Everything before this moment is settled and final."""
        self._model = model
        self._bucket_s = bucket_s
        self._origin_s = bucket_origin_s
        self._charge_idle = charge_idle
        self._tolerance = guard_tolerance
        self._history_s = history_s
        self._edges: list[tuple[float, int, str]] = []
        self._spans: dict[str, _Open] = {}
        self._active: dict[str, _Open] = {}
        self._active_w = 0.0
        self._any_unknown = False
        self._clocks = Clocks()
        self._pieces: list[_Piece] = []
        self._placed_s: float | None = None
        self._cell: Cell | None = None
        self._touched: dict[BucketKey, Cell] = {}
        self._finished: list[SpanUse] = []
        self._history: deque[_Past] = deque()

    # Spans

    def add(
        self,
        span_id: str,
        start_s: float,
        end_s: float | None = None,
        *,
        power_class: str = "",
        edge_error_s: float = 0.0,
        own_power: OwnPower | None = None,
    ) -> None:
        """Open a span; one that is already known changes nothing. ``end_s`` may come later, by ``end``.

        ``own_power`` is what is known of this very span's draw; without it, its class decides.
        """
        if span_id in self._spans:
            return
        span = _Open(span_id, start_s, None, power_class, edge_error_s, own_power)
        self._spans[span_id] = span
        if self.frontier_s is not None and start_s < self.frontier_s:
            self._claim(span, min(self.frontier_s, self.frontier_s if end_s is None else end_s))
        heapq.heappush(self._edges, (start_s, _START, span_id))
        if end_s is not None:
            self.end(span_id, end_s)

    def end(self, span_id: str, end_s: float) -> None:
        """Close an open span. An end that lies before what is settled takes effect there, and marks the span late."""
        span = self._spans.get(span_id)
        if span is None or span.end_s is not None:
            return
        span.end_s = max(end_s, span.start_s)
        if span_id in self._active and self.frontier_s is not None and end_s < self.frontier_s:
            span.late = True
        heapq.heappush(self._edges, (span.end_s, _END if span.end_s > span.start_s else _EMPTY_END, span_id))

    def adopt(self, span_id: str, shares: Iterable[UseShare], method: Method) -> None:
        """Give a span what an earlier run had placed on it already (after ``add``, before time moves)."""
        span = self._spans[span_id]
        for share in shares:
            span.energy_mj += share.energy_mj
            span.exact_mj += share.energy_mj
            span.shares.append(share)
            span.methods.add(method)
            span.seen[_COVERED] += share.held_s
            span.seen[_GAP] += share.energy_mj

    @property
    def active_spans(self) -> int:
        """How many spans run at the frontier."""
        return len(self._active)

    @property
    def unfinished_spans(self) -> int:
        """How many spans have no final figure yet."""
        return len(self._spans)

    @property
    def model(self) -> PowerModel:
        """The power model in use."""
        return self._model

    def set_model(self, model: PowerModel) -> None:
        """Use another power model from the frontier on; what is settled stays."""
        self._settle_active()
        self._model = model
        self._any_unknown = True
        for span in self._active.values():
            self._weigh(span)
        self._active_w = math.fsum(span.dynamic_w for span in self._active.values())

    def provisional_mj(self, span_id: str, now_s: float) -> float | None:
        """What an unfinished span owes so far: by settled energy, and by the model from the frontier to ``now_s``."""
        span = self._spans.get(span_id)
        if span is None:
            return None
        until_s = now_s if span.end_s is None else min(now_s, span.end_s)
        from_s = span.start_s if self.frontier_s is None else max(span.start_s, self.frontier_s)
        power_w = self._model.idle_w * self._charge_idle + self._dynamic_w(span)
        ahead_mj = 1000.0 * max(0.0, until_s - from_s) * power_w / max(1, len(self._active))
        owed_mj = self._owed_mj(span, self._clocks.now().since(span.base)) if span_id in self._active else 0.0
        return span.exact_mj + owed_mj + ahead_mj

    # Time

    def place(self, interval: Interval, lag_s: float) -> None:
        """Place one interval of the line. What lies before an interval that was placed already is cut off."""
        start_s, end_s = interval.start_s - lag_s, interval.end_s - lag_s
        if self._placed_s is None:
            self._skip_to(start_s)
        elif start_s > self._placed_s:
            self.flush()
            self._skip_to(start_s)
        start_s = self._placed_s if self._placed_s is not None else start_s
        end_s = max(end_s, math.nextafter(start_s, math.inf))
        if interval.energy_mj is None:
            self._cross(interval, start_s, end_s)
            return
        self._pieces.extend(self._cut(interval, start_s, end_s))
        self._placed_s = end_s
        if end_s - self._pieces[0].start_s >= GUARD_S:
            self.flush()

    def flush(self) -> None:
        """Settle what is collected, also when it is shorter than the guard's stretch."""
        if not self._pieces:
            return
        pieces, self._pieces = self._pieces, []
        edges = self._take_edges(pieces[-1].end_s)
        self._explain(pieces, edges)
        self._divide(pieces)
        self._judge(pieces)
        edges.reverse()
        for piece in pieces:
            self._settle(piece, edges)
        self.frontier_s = pieces[-1].end_s
        if self._cell is not None:
            self._cell.balance(complete=False)
        self._forget()

    def finish(self) -> None:
        """End of the data: every span is settled where time stands; those that ran on are partial."""
        self.flush()
        if self.frontier_s is not None:
            self._pass_edges(self.frontier_s)
        self._complete_cell()
        for span in sorted(self._spans.values(), key=lambda s: (s.start_s, s.span_id)):
            self._emit(span)
        self._spans.clear()
        self._active.clear()
        self._edges.clear()

    def drop(self, span_id: str) -> list[SpanUse]:
        """Stop waiting for a span that ended where no reading looks; its figure is what was settled so far."""
        span = self._spans.pop(span_id, None)
        if span is None:
            return []
        self._edges = [edge for edge in self._edges if edge[2] != span_id]
        heapq.heapify(self._edges)
        if self._active.pop(span_id, None) is not None:
            self._settle_span(span, self._cell.last_s if self._cell is not None else span.settled_s)
            self._active_w = math.fsum(other.dynamic_w for other in self._active.values())
        before = len(self._finished)
        self._emit(span)
        return [self._finished.pop(before)]

    def take_finished(self) -> list[SpanUse]:
        """Spans that became final since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def take_cells(self) -> list[Cell]:
        """Buckets whose accounts changed since the last call."""
        touched, self._touched = self._touched, {}
        return list(touched.values())

    # Cutting and explaining

    def _cut(self, interval: Interval, start_s: float, end_s: float) -> list[_Piece]:
        pieces = []
        while True:
            bucket = math.floor((start_s + self._origin_s) / self._bucket_s)
            boundary_s = (bucket + 1) * self._bucket_s - self._origin_s
            if boundary_s >= end_s or boundary_s <= start_s:
                pieces.append(_Piece(interval, start_s, end_s, bucket))
                return pieces
            pieces.append(_Piece(interval, start_s, boundary_s, bucket))
            start_s = boundary_s

    def _take_edges(self, before_s: float) -> list[tuple[float, int, str]]:
        edges = []
        while self._edges and self._edges[0][0] < before_s:
            edges.append(heapq.heappop(self._edges))
        return edges

    def _explain(self, pieces: list[_Piece], edges: list[tuple[float, int, str]]) -> None:
        """What the model says of each piece, walking the edges without touching any span."""
        position, active, active_w = 0, len(self._active), self._active_w
        unknown = sum(1 for span in self._active.values() if not self._known(span)) if self._any_unknown else 0
        idle_w = max(FLOOR_W, self._model.idle_w)
        for piece in pieces:
            t = piece.start_s
            piece.certain = self._model.calibrated or (self._model.idle_known and not active)
            while position < len(edges) and edges[position][0] < piece.end_s:
                edge_s, kind, span_id = edges[position]
                position += 1
                if edge_s > t:
                    piece.model_mj += 1000.0 * (edge_s - t) * (idle_w + (active_w / active if active else 0.0))
                    t = edge_s
                span, step = self._spans[span_id], 1 if kind == _START else -1
                active += step
                active_w = active_w + step * self._dynamic_w(span) if active else 0.0
                piece.certain = piece.certain and self._model.calibrated
                if not self._known(span):
                    self._any_unknown = True
                    piece.certain = False
                    unknown += step
            piece.certain = piece.certain and not unknown
            piece.model_mj += 1000.0 * (piece.end_s - t) * (idle_w + (active_w / active if active else 0.0))

    def _known(self, span: _Open) -> bool:
        return span.own_power is not None or span.power_class in self._model.dynamic_w

    @staticmethod
    def _divide(pieces: list[_Piece]) -> None:
        groups: dict[int, list[_Piece]] = {}
        for piece in pieces:
            groups.setdefault(id(piece.interval), []).append(piece)
        for group in groups.values():
            energy_mj = group[0].interval.energy_mj or 0
            model_mj = math.fsum(piece.model_mj for piece in group)
            for piece in group[:-1]:
                piece.energy_mj = min(energy_mj, int(energy_mj * (piece.model_mj / model_mj)))
            group[-1].energy_mj = energy_mj - sum(piece.energy_mj for piece in group[:-1])

    def _judge(self, pieces: list[_Piece]) -> None:
        """The foreign-load guard: energy beyond the model's tolerance goes to where it exceeds the model."""
        energy_mj = sum(piece.energy_mj for piece in pieces)
        model_mj = math.fsum(piece.model_mj for piece in pieces)
        certain = all(piece.certain for piece in pieces)
        tolerance = self._tolerance if certain else max(self._tolerance, GUARD_TOLERANCE_UNCALIBRATED)
        if energy_mj <= (1 + tolerance) * model_mj:
            return
        excess_mj = energy_mj - model_mj * (1.0 if certain else 1 + tolerance)
        over = [max(0.0, piece.energy_mj - piece.model_mj) for piece in pieces]
        share = excess_mj / math.fsum(over)
        for piece, over_mj in zip(pieces, over, strict=True):
            piece.excess_mj = min(over_mj * share, float(piece.energy_mj))

    # Settling

    def _settle(self, piece: _Piece, edges: list[tuple[float, int, str]]) -> None:
        """Place one piece's energy; ``edges`` are the stretch's, newest first, and are used up on the way."""
        cell = self._enter(piece)
        scale = (piece.energy_mj - piece.excess_mj) / piece.model_mj
        idle_w = max(FLOOR_W, self._model.idle_w)
        charged_w = idle_w if self._charge_idle else 0.0
        gap = piece.interval.kind is Kind.GAP
        spans_mj = idle_mj = 0.0
        self._clocks.foreign_mj += piece.excess_mj
        t = piece.start_s
        while True:
            edge_s = edges[-1][0] if edges else math.inf
            stop_s = min(edge_s, piece.end_s)
            if stop_s > t:
                active = len(self._active)
                if active:
                    mean_w = self._active_w / active
                    spans_mj += self._clocks.advance(
                        stop_s - t, active, idle_w=idle_w, charged_w=charged_w, mean_w=mean_w, scale=scale, gap=gap
                    )
                idle_mj += 1000.0 * scale * (stop_s - t) * (idle_w - charged_w if active else idle_w)
                t = stop_s
            if edge_s >= piece.end_s:
                break
            _, kind, span_id = edges.pop()
            self._cross_edge(self._spans[span_id], kind, t, scale)
        self._book(cell, piece, spans_mj, idle_mj)

    def _enter(self, piece: _Piece) -> Cell:
        key = BucketKey(self.epoch, piece.bucket)
        if self._cell is None or self._cell.key != key:
            self._complete_cell()
            self._cell = Cell(key, piece.interval.method, first_s=piece.start_s)
        return self._cell

    def _book(self, cell: Cell, piece: _Piece, spans_mj: float, idle_mj: float) -> None:
        cell.device_mj += piece.energy_mj
        cell.exact_spans_mj += spans_mj
        cell.exact_idle_mj += idle_mj
        cell.exact_unattributed_mj += piece.excess_mj
        cell.last_s = piece.end_s
        self._touched[cell.key] = cell
        if self._history_s:
            self._history.append(_Past(piece.start_s, piece.end_s, idle_mj, piece.excess_mj, cell))

    def _dynamic_w(self, span: _Open) -> float:
        own = span.own_power
        if own is None:
            return self._model.dynamic_of(span.power_class)
        return max(FLOOR_W, self._model.dynamic_scale * own.dynamic_w)

    def _weigh(self, span: _Open) -> None:
        own = span.own_power
        span.dynamic_w = self._dynamic_w(span)
        error = self._model.share_error_of(span.power_class) if own is None else own.share_error
        span.share_error = max(span.share_error, error)

    def _power_w(self, span: _Open, scale: float) -> float:
        idle_w = self._model.idle_w if self._charge_idle else 0.0
        return scale * (idle_w + span.dynamic_w) / max(1, len(self._active))

    def _cross_edge(self, span: _Open, kind: int, t_s: float, scale: float) -> None:
        if kind == _START:
            self._weigh(span)
            span.base, span.settled_s = self._clocks.now(), t_s
            self._active[span.span_id] = span
            self._active_w += span.dynamic_w
            span.start_w = self._power_w(span, scale)
            return
        span.end_w = self._power_w(span, scale)
        self._settle_span(span, t_s)
        del self._active[span.span_id]
        self._active_w -= span.dynamic_w
        if not self._active:
            self._active_w = 0.0
            self._clocks.reset()
        self._emit(span)
        del self._spans[span.span_id]

    def _owed_mj(self, span: _Open, passed: ClockTimes) -> float:
        return passed.static_mj + span.dynamic_w * passed.dynamic_mj_per_w

    def _settle_span(self, span: _Open, t_s: float) -> None:
        now = self._clocks.now()
        passed = now.since(span.base)
        span.base = now
        held_s, span.settled_s = t_s - span.settled_s, t_s
        cell = self._cell
        if passed.covered_s <= 0 or cell is None:
            return
        exact_mj = self._owed_mj(span, passed)
        energy_mj = cell.settle(exact_mj)
        span.exact_mj += exact_mj
        span.energy_mj += energy_mj
        span.shares.append(UseShare(cell.key, energy_mj, held_s))
        span.methods.add(cell.method)
        idle_w = max(FLOOR_W, self._model.idle_w) if self._charge_idle else 0.0
        slope = passed.dynamic_mj_per_w - (idle_w + span.dynamic_w) * passed.slope_per_w if idle_w else 0.0
        gap_mj = passed.gap_static_mj + span.dynamic_w * passed.gap_dynamic_mj_per_w
        shared_mj = span.dynamic_w * passed.shared_mj_per_w
        news = (shared_mj, passed.offset_mj_per_w, slope, gap_mj, passed.covered_s, passed.foreign_mj)
        span.seen = [total + new for total, new in zip(span.seen, news, strict=True)]

    def _settle_active(self) -> None:
        self.flush()
        if self._cell is not None:
            for span in self._active.values():
                self._settle_span(span, self._cell.last_s)

    def _complete_cell(self) -> None:
        cell = self._cell
        if cell is None:
            return
        for span in self._active.values():
            self._settle_span(span, cell.last_s)
        cell.balance(complete=True)
        self._touched[cell.key] = cell
        self._cell = None

    def _emit(self, span: _Open) -> None:
        end_s = span.end_s if span.end_s is not None else max(span.start_s, self.frontier_s or span.start_s)
        shared_mj, offset, slope, gap_mj, covered_s, foreign_mj = span.seen
        missing_s = max(0.0, end_s - span.start_s - covered_s)
        partial = missing_s > 1e-6 or span.end_s is None
        full_w = self._model.idle_w + self._dynamic_w(span)
        evidence = Evidence(
            energy_mj=span.exact_mj,
            offset_mj_per_w=offset,
            shared_mj=shared_mj,
            idle_slope_mj_per_w=abs(slope),
            gap_mj=gap_mj,
            start_w=span.start_w,
            end_w=span.end_w,
            uncovered_mj=1000.0 * full_w * missing_s if partial else 0.0,
            duration_s=end_s - span.start_s,
            edge_error_s=span.edge_error_s,
            share_error=span.share_error,
            idle_error_w=self._model.idle_error_w,
        )
        use = SpanUse(
            span_id=span.span_id,
            device=self.device,
            power_class=span.power_class,
            start_s=span.start_s,
            end_s=end_s,
            energy_mj=span.energy_mj if covered_s > 0 else None,
            evidence=evidence,
            shares=tuple(span.shares),
            methods=frozenset(span.methods),
            shared=shared_mj > 0,
            partial=partial,
            gap=gap_mj > 0,
            late=span.late,
            contended=foreign_mj > CONTENDED_SHARE * max(span.exact_mj, 1.0),
        )
        self._finished.append(use)

    # Where no reading looked

    def _pass_edges(self, until_s: float) -> None:
        """Spans start and end before ``until_s`` without cost: no reading covers that time."""
        for edge_s, kind, span_id in self._take_edges(until_s):
            self._cross_edge(self._spans[span_id], kind, edge_s, 1.0)

    def _skip_to(self, t_s: float) -> None:
        self._pass_edges(t_s)
        self._placed_s = self.frontier_s = t_s

    def _cross(self, interval: Interval, start_s: float, end_s: float) -> None:
        """A reset or a hole: its energy can only be estimated, outside the law, and a new epoch begins after it."""
        self.flush()
        cell = self._cell
        self._complete_cell()
        for piece in self._cut(interval, start_s, end_s):
            edges = self._take_edges(piece.end_s)
            self._explain([piece], edges)
            if interval.estimate_mj is not None:
                piece.model_mj = interval.estimate_mj * (piece.end_s - piece.start_s) / (end_s - start_s)
            key = BucketKey(self.epoch, piece.bucket)
            if cell is None or cell.key != key:
                cell = Cell(key, interval.method, first_s=piece.start_s, last_s=piece.start_s)
            cell.estimated_mj += round(piece.model_mj)
            cell.last_s = piece.end_s
            self._touched[key] = cell
            for edge_s, kind, span_id in edges:
                self._cross_edge(self._spans[span_id], kind, edge_s, 1.0)
        self.epoch += 1
        self._placed_s = self.frontier_s = end_s

    # Late spans

    def _claim(self, span: _Open, until_s: float) -> None:
        """Serve a span that came after its intervals were settled from their idle and unattributed accounts."""
        span.late = True
        need_w = (1 + self._tolerance) * (self._model.idle_w + self._dynamic_w(span))
        for past in self._history:
            overlap_s = min(past.end_s, until_s) - max(past.start_s, span.start_s)
            if overlap_s <= 0:
                continue
            part = overlap_s / (past.end_s - past.start_s)
            idle_mj, foreign_mj = past.idle_mj * part, past.unattributed_mj * part
            free_mj = idle_mj + foreign_mj
            if free_mj <= 0:
                continue
            if self._model.calibrated:
                free_mj = min(free_mj, 1000.0 * need_w * overlap_s)
            self._hand_over(span, past, free_mj, idle_mj / (idle_mj + foreign_mj), overlap_s)

    def _hand_over(self, span: _Open, past: _Past, free_mj: float, idle_part: float, overlap_s: float) -> None:
        cell = past.cell
        energy_mj = min(int(free_mj), cell.idle_mj + cell.unattributed_mj)
        past.idle_mj -= energy_mj * idle_part
        past.unattributed_mj -= energy_mj * (1 - idle_part)
        cell.exact_unattributed_mj = max(0.0, cell.exact_unattributed_mj - energy_mj * (1 - idle_part))
        cell.claimed_mj += energy_mj
        cell.balance(complete=cell is not self._cell)
        self._touched[cell.key] = cell
        span.energy_mj += energy_mj
        span.exact_mj += energy_mj
        span.shares.append(UseShare(cell.key, energy_mj, overlap_s))
        span.methods.add(cell.method)
        span.seen[_COVERED] += overlap_s
        span.seen[_GAP] += energy_mj

    def _forget(self) -> None:
        if self.frontier_s is None:
            return
        while self._history and self._history[0].end_s < self.frontier_s - self._history_s:
            self._history.popleft()

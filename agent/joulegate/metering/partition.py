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
from dataclasses import dataclass

from joulegate.metering.accounts import BucketKey, Cell, UseShare
from joulegate.metering.clocks import Clocks
from joulegate.metering.interval import Interval, Kind
from joulegate.metering.model import FLOOR_W, PowerModel
from joulegate.metering.open_span import OpenSpan, OwnPower, SpanUse
from joulegate.metering.reading import Method

__all__ = ["GUARD_S", "BucketKey", "Cell", "OwnPower", "Partition", "SpanUse", "UseShare"]

GUARD_S = 1.0
"""Foreign load is judged over at least this much time, so that a single late counter step accuses nobody."""

GUARD_TOLERANCE = 0.15
GUARD_TOLERANCE_UNCALIBRATED = 1.0

_END, _START, _EMPTY_END = 0, 1, 2

_Edge = tuple[float, int, str, OpenSpan]
"""Time, kind, span id, span: no two are alike in the first three, so a heap never compares spans."""


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
    False spans owe dynamic power only. ``guard_s`` is the shortest stretch over which foreign load is judged.
    ``history_s`` is how long closed intervals stay open to claims of late spans.
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
        guard_s: float = GUARD_S,
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
        self._guard_s = guard_s
        self._history_s = history_s
        self._edges: list[_Edge] = []
        self._spans: dict[str, OpenSpan] = {}
        self._active: dict[str, OpenSpan] = {}
        self._active_w = 0.0
        self._unknown = 0
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
        span = OpenSpan(span_id, start_s, power_class, edge_error_s, own_power)
        self._spans[span_id] = span
        if self.frontier_s is not None and start_s < self.frontier_s:
            self._claim(span, self.frontier_s if end_s is None else min(self.frontier_s, end_s))
        heapq.heappush(self._edges, (start_s, _START, span_id, span))
        if end_s is not None:
            self.end(span_id, end_s)

    def end(self, span_id: str, end_s: float) -> None:
        """Close an open span. An end that lies before what is settled takes effect there, and marks the span late."""
        span = self._spans.get(span_id)
        if span is None or span.end_s is not None:
            return
        if self.frontier_s is not None and end_s < self.frontier_s and span_id in self._active:
            span.late = True
        if end_s > span.start_s:
            span.end_s = end_s
            heapq.heappush(self._edges, (end_s, _END, span_id, span))
        else:
            span.end_s = span.start_s
            heapq.heappush(self._edges, (span.start_s, _EMPTY_END, span_id, span))

    def adopt(self, span_id: str, shares: Iterable[UseShare], method: Method) -> None:
        """Give a span what an earlier run had placed on it already (after ``add``, before time moves)."""
        self._spans[span_id].receive(shares, method)

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
        self.flush()
        if self._cell is not None:
            self._settle_active(self._cell)
        self._model = model
        for span in self._active.values():
            span.weigh(model)
        self._active_w = math.fsum(span.dynamic_w for span in self._active.values())
        self._unknown = sum(not span.known for span in self._active.values())

    def reanchor(self, bucket_origin_s: float) -> None:
        """Cut buckets on another axis from the frontier on; a new epoch keeps the old axis's buckets apart."""
        self.flush()
        self._complete_cell()
        self._origin_s = bucket_origin_s
        self.epoch += 1

    def provisional_mj(self, span_id: str, now_s: float) -> float | None:
        """What an unfinished span owes so far: by settled energy, and by the model from the frontier to ``now_s``."""
        span = self._spans.get(span_id)
        if span is None:
            return None
        until_s = now_s if span.end_s is None else min(now_s, span.end_s)
        from_s = span.start_s if self.frontier_s is None else max(span.start_s, self.frontier_s)
        power_w = self._model.idle_w * self._charge_idle + span.dynamic_by(self._model)
        ahead_mj = 1000.0 * max(0.0, until_s - from_s) * power_w / max(1, len(self._active))
        owed_mj = span.owed_mj(self._clocks.now().since(span.base)) if span_id in self._active else 0.0
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
        if end_s - self._pieces[0].start_s >= self._guard_s:
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
        span.gone = True
        if span_id in self._active:
            held_until_s = span.settled_s if self._cell is None else self._cell.last_s
            span.settle(self._clocks.now(), held_until_s, self._cell, self._charged_w)
            self._deactivate(span)
        return [span.use(self.device, self.frontier_s or span.start_s, self._model)]

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

    def _take_edges(self, before_s: float) -> list[_Edge]:
        edges = []
        heap, pop = self._edges, heapq.heappop
        while heap and heap[0][0] < before_s:
            edge = pop(heap)
            if not edge[3].gone:
                edges.append(edge)
        return edges

    def _explain(self, pieces: list[_Piece], edges: list[_Edge]) -> None:
        """What the model says of each piece, walking the edges ahead of the spans' accounts."""
        model = self._model
        calibrated, idle_w = model.calibrated, max(FLOOR_W, model.idle_w)
        active, active_w, unknown = len(self._active), self._active_w, self._unknown
        position, count = 0, len(edges)
        for piece in pieces:
            t, end_s, model_mj = piece.start_s, piece.end_s, 0.0
            certain = calibrated or (model.idle_known and not active)
            while position < count and edges[position][0] < end_s:
                edge_s, kind, _, span = edges[position]
                position += 1
                if edge_s > t:
                    model_mj += 1000.0 * (edge_s - t) * (idle_w + (active_w / active if active else 0.0))
                    t = edge_s
                if kind == _START:
                    span.weigh(model)
                    active += 1
                    active_w += span.dynamic_w
                    unknown += not span.known
                else:
                    active -= 1
                    active_w = active_w - span.dynamic_w if active else 0.0
                    unknown -= not span.known
                certain = certain and calibrated and span.known
            piece.certain = certain and not unknown
            piece.model_mj = model_mj + 1000.0 * (end_s - t) * (idle_w + (active_w / active if active else 0.0))

    @staticmethod
    def _divide(pieces: list[_Piece]) -> None:
        """Each interval's energy over its pieces, by the model."""
        first = 0
        while first < len(pieces):
            interval = pieces[first].interval
            last = first
            while last + 1 < len(pieces) and pieces[last + 1].interval is interval:
                last += 1
            energy_mj = left_mj = interval.energy_mj or 0
            if last > first:
                model_mj = math.fsum(piece.model_mj for piece in pieces[first : last + 1])
                for piece in pieces[first:last]:
                    piece.energy_mj = min(left_mj, int(energy_mj * (piece.model_mj / model_mj)))
                    left_mj -= piece.energy_mj
            pieces[last].energy_mj = left_mj
            first = last + 1

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

    @property
    def _charged_w(self) -> float:
        """Idle power that spans pay."""
        return max(FLOOR_W, self._model.idle_w) if self._charge_idle else 0.0

    def _settle(self, piece: _Piece, edges: list[_Edge]) -> None:
        """Place one piece's energy; ``edges`` are the stretch's, newest first, and are used up on the way."""
        cell = self._enter(piece)
        clocks, active_spans = self._clocks, self._active
        scale = (piece.energy_mj - piece.excess_mj) / piece.model_mj
        idle_w, charged_w = max(FLOOR_W, self._model.idle_w), self._charged_w
        clocks.tune(idle_w=idle_w, charged_w=charged_w, scale=scale, gap=piece.interval.kind is Kind.GAP)
        clocks.foreign_mj += piece.excess_mj
        spans_mj = idle_mj = 0.0
        t, end_s = piece.start_s, piece.end_s
        while True:
            edge_s = edges[-1][0] if edges else math.inf
            stop_s = min(edge_s, end_s)
            if stop_s > t:
                active = len(active_spans)
                if active:
                    spans_mj += clocks.advance(stop_s - t, active, self._active_w / active)
                idle_mj += 1000.0 * scale * (stop_s - t) * (idle_w - charged_w if active else idle_w)
                t = stop_s
            if edge_s >= end_s:
                break
            _, kind, _, span = edges.pop()
            if kind == _START:
                self._activate(span, t, scale)
            else:
                self._close(span, t, scale)
        self._book(cell, piece, spans_mj, idle_mj)

    def _enter(self, piece: _Piece) -> Cell:
        cell = self._cell
        if cell is None or cell.key.bucket != piece.bucket or cell.key.epoch != self.epoch:
            self._complete_cell()
            cell = self._cell = Cell(BucketKey(self.epoch, piece.bucket), piece.interval.method, first_s=piece.start_s)
        cell.device_mj += piece.energy_mj
        return cell

    def _book(self, cell: Cell, piece: _Piece, spans_mj: float, idle_mj: float) -> None:
        cell.exact_spans_mj += spans_mj
        cell.exact_idle_mj += idle_mj
        cell.exact_unattributed_mj += piece.excess_mj
        cell.last_s = piece.end_s
        self._touched[cell.key] = cell
        if self._history_s:
            self._history.append(_Past(piece.start_s, piece.end_s, idle_mj, piece.excess_mj, cell))

    def _power_w(self, span: OpenSpan, scale: float) -> float:
        """The span's own part of the device's power, now; no less than the model knows, whatever a reading missed."""
        idle_w = self._model.idle_w if self._charge_idle else 0.0
        if self._model.calibrated:
            scale = max(scale, 1.0)
        return scale * (idle_w + span.dynamic_w) / max(1, len(self._active))

    def _activate(self, span: OpenSpan, t_s: float, scale: float) -> None:
        span.begin(self._clocks.now(), t_s)
        self._active[span.span_id] = span
        self._active_w += span.dynamic_w
        self._unknown += not span.known
        span.start_w = self._power_w(span, scale)

    def _deactivate(self, span: OpenSpan) -> None:
        del self._active[span.span_id]
        self._active_w -= span.dynamic_w
        self._unknown -= not span.known
        if not self._active:
            self._active_w = 0.0
            self._clocks.reset()

    def _close(self, span: OpenSpan, t_s: float, scale: float) -> None:
        span.end_w = self._power_w(span, scale)
        span.settle(self._clocks.now(), t_s, self._cell, self._charged_w)
        self._deactivate(span)
        del self._spans[span.span_id]
        self._emit(span)

    def _settle_active(self, cell: Cell) -> None:
        now, charged_w = self._clocks.now(), self._charged_w
        for span in self._active.values():
            span.settle(now, cell.last_s, cell, charged_w)

    def _complete_cell(self) -> None:
        cell = self._cell
        if cell is None:
            return
        self._settle_active(cell)
        cell.balance(complete=True)
        self._touched[cell.key] = cell
        self._cell = None

    def _emit(self, span: OpenSpan) -> None:
        self._finished.append(span.use(self.device, self.frontier_s or span.start_s, self._model))

    # Where no reading looked

    def _cross_edges(self, edges: list[_Edge]) -> None:
        for edge_s, kind, _, span in edges:
            if kind == _START:
                self._activate(span, edge_s, 1.0)
            else:
                self._close(span, edge_s, 1.0)

    def _pass_edges(self, until_s: float) -> None:
        """Spans start and end before ``until_s`` without cost: no reading covers that time."""
        edges = self._take_edges(until_s)
        for _, kind, _, span in edges:
            if kind == _START:
                span.weigh(self._model)
        self._cross_edges(edges)

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
            self._cross_edges(edges)
        self.epoch += 1
        self._placed_s = self.frontier_s = end_s

    # Late spans

    def _claim(self, span: OpenSpan, until_s: float) -> None:
        """Serve a span that came after its intervals were settled from their idle and unattributed accounts."""
        span.late = True
        need_w = (1 + self._tolerance) * (self._model.idle_w + span.dynamic_by(self._model))
        for past in reversed(self._history):
            if past.end_s <= span.start_s:
                break
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

    def _hand_over(self, span: OpenSpan, past: _Past, free_mj: float, idle_part: float, overlap_s: float) -> None:
        cell = past.cell
        energy_mj = min(int(free_mj), cell.idle_mj + cell.unattributed_mj)
        past.idle_mj -= energy_mj * idle_part
        past.unattributed_mj -= energy_mj * (1 - idle_part)
        cell.exact_unattributed_mj = max(0.0, cell.exact_unattributed_mj - energy_mj * (1 - idle_part))
        cell.claimed_mj += energy_mj
        cell.balance(complete=cell is not self._cell)
        self._touched[cell.key] = cell
        span.receive([UseShare(cell.key, energy_mj, overlap_s)], cell.method)

    def _forget(self) -> None:
        if self.frontier_s is None:
            return
        while self._history and self._history[0].end_s < self.frontier_s - self._history_s:
            self._history.popleft()

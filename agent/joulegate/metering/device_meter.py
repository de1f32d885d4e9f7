"""The meter of one device, live: readings become intervals, intervals are placed, and what is learned is used."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from joulegate.metering.accounts import BucketKey, Cell, UseShare
from joulegate.metering.conditions import Conditions
from joulegate.metering.entry import BUCKET_S, Account, Position
from joulegate.metering.interval import GAP_S, EnergyLine, Interval
from joulegate.metering.learning import Held, Learner
from joulegate.metering.open_span import SpanUse
from joulegate.metering.partition import Partition
from joulegate.metering.policy import IdlePolicy
from joulegate.metering.reading import CLOCK_EVENTS, Device, Method, Quality, Reading
from joulegate.metering.snapshot import DeviceState, DeviceTotals
from joulegate.metering.span import Span
from joulegate.metering.uncertainty import SensorError, expanded

HISTORY_S = 900.0
NO_TOTALS = DeviceTotals()
STALE_S = 10.0
STEPPED_S = 1.0
"""A wall clock that moved by more than this against the monotonic one was set, or the machine slept."""

UNATTRIBUTED_SHARE = 0.05
_POLL_PRIOR_S = 0.05

MEAN_S = 1.0
"""What the driver's average power is the mean of (notes/measurement.md, 1.1)."""

_NAMED_BY_LINE = (Method.COUNTER, Method.INSTANT, Method.AVERAGE)
"""Devices whose line says itself how it measures; any other's counter is RAPL, a model or a simulation (law 3)."""


class DeviceMeter:
    """Meters ``device``.

    ``origin_s`` is Unix time minus the monotonic clock, ``hold_s`` how long intervals wait for
    spans that are told late, ``lag_s`` a lag that is given instead of learned.
    """

    def __init__(
        self,
        device: Device,
        *,
        origin_s: float,
        hold_s: float,
        idle_policy: IdlePolicy = IdlePolicy.SEPARATE,
        tolerance: float = 0.15,
        lag_s: float | None = None,
        totals: DeviceTotals = NO_TOTALS,
    ) -> None:
        self.device = device
        self.conditions = Conditions()
        self.totals = totals
        self.learner = Learner(device, lag_s)
        self._origin_s = origin_s
        self._hold_s = hold_s
        power = device.method if device.method in (Method.AVERAGE, Method.MODEL) else Method.INSTANT
        self._line = EnergyLine(power, hole_s=5 * GAP_S, gap_s=GAP_S)
        self.partition = Partition(
            device.id,
            self.learner.model,
            bucket_s=BUCKET_S,
            bucket_origin_s=origin_s,
            charge_idle=idle_policy is not IdlePolicy.MARGINAL,
            guard_tolerance=tolerance,
            history_s=HISTORY_S,
        )
        self._waiting: deque[Interval] = deque()
        self._placed: deque[tuple[float, Interval]] = deque()
        self._line_end_s: float | None = None
        """Where the newest placed interval ends, in the sensor's time and in the spans'."""
        self._placed_end_s: float | None = None
        self._counter: tuple[int | None, float] | None = None
        self._accounts: dict[BucketKey, Account] = {}
        self._base: dict[BucketKey, Account] = {}
        self._held: dict[str, Held] = {}
        self._reading: Reading | None = None
        self._up = False
        self._event_s: dict[str, float] = {}
        self._poll_s = _POLL_PRIOR_S
        self.unattributed_lately = False

    # In

    def restore(self, position: Position, accounts: Sequence[Account], *, same_boot: bool) -> None:
        """Go on where an earlier run stood: the energy since then becomes one long interval, or a new epoch.

        Where the wall clock was set meanwhile, buckets of two runs may overlap: an epoch of its own keeps them apart.
        """
        stepped = abs(position.wall_s - position.t_s - self._origin_s) > STEPPED_S
        continues = same_boot and position.counter_mj is not None
        self.partition.epoch = position.epoch if continues and not stepped else position.epoch + 1
        self._base = {BucketKey(a.epoch, a.bucket_s // BUCKET_S): a for a in accounts}
        if continues and position.counter_mj is not None:
            self._line.start_from(position.counter_mj, position.t_s)
            self._counter = (position.counter_mj, position.t_s)

    def reanchor(self, origin_s: float) -> None:
        """The wall clock was set, or the machine slept: buckets are cut by ``origin_s`` from here on."""
        self._origin_s = origin_s
        self.partition.reanchor(origin_s)

    def feed(self, reading: Reading) -> None:
        """One reading; readings come in order of time."""
        if not reading.up:
            self._up = False
            return
        last = self._reading
        if last is not None and reading.t_s <= last.t_s:
            return
        self._up, self._reading = True, reading
        if self._counter is None and reading.energy_mj is not None:
            self._counter = (reading.energy_mj, reading.t_s)
        if last is not None:
            self._count_events(last, reading.t_s - last.t_s)
        self.learner.see_reading(reading)
        self.conditions.add(reading)
        for raw in self._line.feed(reading):
            interval = raw if self.device.method in _NAMED_BY_LINE else replace(raw, method=self.device.method)
            self._waiting.append(interval)
            self.learner.see_interval(interval)

    def _count_events(self, reading: Reading, held_s: float) -> None:
        if held_s < GAP_S:
            self._poll_s += 0.01 * (held_s - self._poll_s)
        mask = reading.clock_events or 0
        if not mask:
            return
        for bit, name in enumerate(CLOCK_EVENTS):
            if mask >> bit & 1 and held_s < STALE_S:
                self._event_s[name] = self._event_s.get(name, 0.0) + held_s

    def open(self, span: Span) -> None:
        """A span uses this device."""
        power_class = span.power_class or span.model or ""
        ended_s = math.inf if span.ended_s is None else span.ended_s
        self._held.setdefault(span.request_id, (span.started_s, ended_s, power_class))
        self.partition.add(
            span.request_id,
            span.started_s,
            span.ended_s,
            power_class=power_class,
            edge_error_s=span.edge_error_s,
        )

    def end(self, span_id: str, ended_s: float) -> None:
        """An open span let the device go."""
        held = self._held.get(span_id)
        if held is not None:
            self._held[span_id] = (held[0], ended_s, held[2])
        self.partition.end(span_id, ended_s)

    def drop(self, span_id: str) -> list[SpanUse]:
        """Stop waiting for a span that ended where no reading looks."""
        self._held.pop(span_id, None)
        return self.partition.drop(span_id)

    # Time

    def advance(self, now_s: float) -> list[SpanUse]:
        """Place what has waited long enough; returns the spans that became final."""
        lag_s = self.learner.lag.lag_s
        while self._waiting and self._waiting[0].end_s - lag_s <= now_s - self._hold_s:
            self._place(self._waiting.popleft(), lag_s)
        finished = self._take_finished()
        frontier_s = self.partition.frontier_s
        if frontier_s is not None and self.learner.fit(frontier_s, self._held.values()):
            self.partition.set_model(self.learner.model)
            finished += self._take_finished()
        self._advance_counter()
        return finished

    def _place(self, interval: Interval, lag_s: float) -> None:
        """Place one interval; where a newly learned lag would tear a hole into the line, the interval is stretched."""
        start_s, end_s = interval.start_s - lag_s, interval.end_s - lag_s
        before_s = self._placed_end_s
        if before_s is not None:
            if start_s > before_s and interval.start_s == self._line_end_s:
                interval = replace(interval, start_s=before_s + lag_s)
            start_s = min(start_s, before_s)
        self.partition.place(interval, lag_s)
        self._line_end_s = interval.end_s
        self._placed_end_s = max(end_s, start_s if before_s is None else before_s)
        self._placed.append((self._placed_end_s, interval))

    def _take_finished(self) -> list[SpanUse]:
        finished = self.partition.take_finished()
        for use in finished:
            self._held.pop(use.span_id, None)
            self.learner.see_span(use.start_s, use.end_s, use.power_class)
        return finished

    def _advance_counter(self) -> None:
        """The counter's place is that of the newest interval that is settled whole."""
        frontier_s = self.partition.frontier_s
        while frontier_s is not None and self._placed and self._placed[0][0] <= frontier_s + 1e-9:
            _, interval = self._placed.popleft()
            if interval.counter_mj is not None:
                self._counter = (interval.counter_mj, interval.end_s)
            elif self._counter is None or interval.method is not Method.COUNTER:
                self._counter = (None, interval.end_s)

    def finish(self) -> list[SpanUse]:
        """The run ends: settle everything that readings reach."""
        while self._waiting:
            self._place(self._waiting.popleft(), self.learner.lag.lag_s)
        self.partition.flush()
        finished = self._take_finished()
        self._advance_counter()
        return finished

    # Out

    @property
    def quality(self) -> Quality:
        """What this device's figures can be at best, now."""
        if not self._up and self._reading is None:
            return Quality.MISSING
        return self.device.quality

    def span_power_w(self, power_class: str) -> float | None:
        """What one span of this class draws now: by the model once it was learned, before by the newest reading."""
        model, busy = self.learner.model, max(1, self.partition.active_spans)
        if model.calibrated:
            return (model.idle_w + model.dynamic_of(power_class)) / busy
        reading = self._reading
        if reading is None:
            return None
        power_w = reading.power_w if reading.power_w is not None else reading.power_average_w
        return None if power_w is None else power_w / busy

    def sensor_error(self) -> SensorError:
        """What is known of the sensor's errors; power alone puts an edge anywhere in what one reading stands for."""
        gain, lag_error_s = self.device.gain_error, self.learner.lag.error_s
        step_s = self._line.step_s or self.device.step_s or self._poll_s
        if self.device.method not in (Method.INSTANT, Method.AVERAGE):
            return SensorError(gain, lag_error_s, self._poll_s, step_s)
        held_s = MEAN_S if self.device.method is Method.AVERAGE else step_s
        return SensorError(gain, lag_error_s, math.hypot(max(self._poll_s, step_s), held_s), held_s)

    def uncertainty_of(self, use: SpanUse) -> tuple[float, float]:
        """(measurement, allocation) of a use in millijoules, k = 2."""
        return expanded(use.evidence, self.sensor_error())

    def bucket_start_s(self, key: BucketKey) -> int:
        """Unix second at which a bucket starts."""
        return key.bucket * BUCKET_S

    def take_accounts(self) -> list[Account]:
        """Accounts that changed, as totals of their buckets; the device's totals move with them."""
        changed = []
        for cell in self.partition.take_cells():
            account = self._account(cell)
            self._move_totals(self._accounts.get(cell.key) or self._base.get(cell.key), account)
            self._accounts[cell.key] = account
            changed.append(account)
            self.unattributed_lately = cell.unattributed_mj > UNATTRIBUTED_SHARE * max(1, cell.device_mj)
        if changed:
            self._forget()
        return changed

    def _forget(self) -> None:
        """Accounts that no late span can reach any more."""
        oldest = self._oldest_bucket()
        for accounts in (self._accounts, self._base):
            for key in [k for k in accounts if k.bucket < oldest]:
                del accounts[key]

    def _oldest_bucket(self) -> int:
        frontier_s = self.partition.frontier_s or 0.0
        return math.floor((frontier_s + self._origin_s - HISTORY_S) / BUCKET_S) - 1

    def _account(self, cell: Cell) -> Account:
        base = self._base.get(cell.key)
        fresh = Account(
            device=self.device.id,
            epoch=cell.key.epoch,
            bucket_s=self.bucket_start_s(cell.key),
            device_mj=cell.device_mj,
            requests_mj=cell.requests_mj,
            idle_mj=cell.idle_mj,
            unattributed_mj=cell.unattributed_mj,
            estimated_mj=cell.estimated_mj,
            method=self.device.method if self.device.method is Method.SIMULATED else cell.method,
            quality=self.device.quality,
        )
        if base is None:
            return fresh
        return replace(
            fresh,
            device_mj=fresh.device_mj + base.device_mj,
            requests_mj=fresh.requests_mj + base.requests_mj,
            idle_mj=fresh.idle_mj + base.idle_mj,
            unattributed_mj=fresh.unattributed_mj + base.unattributed_mj,
            estimated_mj=fresh.estimated_mj + base.estimated_mj,
        )

    def _move_totals(self, before: Account | None, after: Account) -> None:
        t = self.totals
        self.totals = DeviceTotals(
            t.device_mj + after.device_mj - (before.device_mj if before else 0),
            t.requests_mj + after.requests_mj - (before.requests_mj if before else 0),
            t.idle_mj + after.idle_mj - (before.idle_mj if before else 0),
            t.unattributed_mj + after.unattributed_mj - (before.unattributed_mj if before else 0),
            t.estimated_mj + after.estimated_mj - (before.estimated_mj if before else 0),
        )

    def position(self, boot_id: str) -> Position | None:
        """Where the energy line stands: all that was placed, and not a joule more."""
        if self._counter is None:
            return None
        counter_mj, t_s = self._counter
        return Position(
            device=self.device.id,
            epoch=self.partition.epoch,
            counter_mj=counter_mj,
            total_mj=self.totals.device_mj,
            t_s=t_s,
            wall_s=t_s + self._origin_s,
            boot_id=boot_id,
        )

    def state(self, now_s: float, errors: Mapping[str, int]) -> DeviceState:
        """The device now, for the snapshot."""
        reading = self._reading
        model = self.learner.model
        return DeviceState(
            device=self.device,
            up=self._up and reading is not None and now_s - reading.t_s < STALE_S,
            quality=self.quality,
            reading=reading,
            age_s=None if reading is None else max(0.0, now_s - reading.t_s),
            totals=self.totals,
            epoch=self.partition.epoch,
            idle_w=model.idle_w if model.idle_known else None,
            lag_s=self.learner.lag.lag_s if self.learner.lag.known else None,
            step_s=self._line.step_s or self.device.step_s,
            calibrated=model.calibrated,
            active_spans=self.partition.active_spans,
            clock_event_s=dict(self._event_s),
            errors=dict(errors),
            warnings=self.device.notes,
        )

    def adopt(self, span_id: str, shares: Sequence[tuple[int, int, float]]) -> None:
        """Give a restored span what an earlier run had placed on it: (bucket start, millijoules, seconds held)."""
        keyed = [UseShare(BucketKey(self.partition.epoch, b // BUCKET_S), mj, held_s) for b, mj, held_s in shares]
        self.partition.adopt(span_id, keyed, self.device.method)

"""The sampler: the one thread that talks to NVML, and the watchdog that replaces it when a call hangs."""

from __future__ import annotations

import threading
import time
from collections import deque

from joulegate.metering.reading import Reading
from joulegate.sources.nvml.events import EventWatch
from joulegate.sources.nvml.faults import HOST, NvmlFault, Revoked
from joulegate.sources.nvml.fleet import INIT_ALLOWANCE_S, Fleet
from joulegate.sources.nvml.gpu import Rates
from joulegate.sources.nvml.library import Lane
from joulegate.sources.nvml.processes import ProcessWatch

MOST_ABANDONED = 8
"""Threads that may hang in the driver at the same time; with one more the sampler waits for one to return."""

_QUEUE = 100_000
_WATCH_S = 0.25
_PATIENCE_S = 0.5
"""A call about one device that takes longer is left to its thread, so that the others' readings have no hole.

With the watchdog's period this stays under the second from which on a meter calls it one.
"""
_DOZE_S = 0.25
_JOIN_S = 2.0
_RESTART_S = 1.0


class Sampler:
    """Owns the sampling thread. A thread whose call hangs is left behind, its device blanked, and a new one goes on.

    ``readings`` is bounded: when nobody drains it, the oldest readings fall out and are counted.
    """

    def __init__(self, rates: Rates, allowance_s: float, processes: ProcessWatch, *, events: bool = True) -> None:
        self.readings: deque[Reading] = deque(maxlen=_QUEUE)
        self.fleet = Fleet(rates, allowance_s, self._publish)
        self.processes = processes
        self.settled = threading.Event()
        self.fault: NvmlFault | None = None
        self.hangs_at_start = False
        self.events = EventWatch(self.fleet) if events else None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watch_s = min(_WATCH_S, allowance_s / 2)
        self._abandoned: set[Lane] = set()
        self._lane: Lane | None = None
        self._thread: threading.Thread | None = None
        self._watchdog = threading.Thread(target=self._watch, name="joulegate-nvml-watchdog", daemon=True)

    def start(self) -> None:
        """Begin: the first thread initialises the library."""
        with self._lock:
            self._open_lane()
        self._watchdog.start()

    def stop(self) -> None:
        """Stop sampling and let the library go; a hung thread is left to the driver."""
        self._stop.set()
        if self.events is not None:
            self.events.stop()
        hangs = self._lane is None
        for thread in (None if hangs else self._thread, self._watchdog):
            if thread is not None and thread.is_alive():
                thread.join(_JOIN_S)

    @property
    def abandoned(self) -> int:
        """Threads that hang in the driver now."""
        return len(self._abandoned)

    def _publish(self, reading: Reading) -> None:
        if len(self.readings) == _QUEUE:
            self.fleet.tally.count("READINGS_DROPPED")
        self.readings.append(reading)

    def _open_lane(self) -> None:
        lane = Lane(HOST, INIT_ALLOWANCE_S)
        self._lane = lane
        self._thread = threading.Thread(target=self._serve, args=(lane,), name="joulegate-nvml", daemon=True)
        self._thread.start()

    def _serve(self, lane: Lane) -> None:
        try:
            self._sample(lane)
        except Revoked:
            with self._lock:
                self._abandoned.discard(lane)
                self.fleet.unhang(lane.subject)
                if self._lane is None and not self._stop.is_set() and not self._host_hangs():
                    self.fleet.unhang(HOST)
                    self._open_lane()

    def _sample(self, lane: Lane) -> None:
        while not self._stop.is_set():
            try:
                self._turns(lane)
            except NvmlFault as fault:
                self.fault = fault
                self.settled.set()
                return
            except Revoked:
                raise
            except Exception as defect:  # noqa: BLE001 - a defect of ours on one device must not end all sampling; counted
                self.fleet.break_down(lane.subject, f"INTERNAL_{type(defect).__name__.upper()}")
                self._stop.wait(_RESTART_S)
        if not self._abandoned:
            self.fleet.stop(lane)

    def _turns(self, lane: Lane) -> None:
        """Turn after turn, each at its absolute time, until told to stop."""
        fleet = self.fleet
        if not fleet.started:
            fleet.start(lane)
        while not self._stop.is_set():
            due_s = fleet.turn(lane)
            self.processes.turn(lane, fleet)
            if not self.settled.is_set() and fleet.settled:
                self.settled.set()
                if self.events is not None:
                    self.events.start()
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, _DOZE_S))

    def _watch(self) -> None:
        while not self._stop.wait(self._watch_s):
            with self._lock:
                now_s = time.monotonic()
                for left in self._abandoned:
                    if left.subject in self.fleet.slots and left.takes(now_s, left.allowance_s):
                        self.fleet.hang(left.subject, left.function)
                lane = self._lane
                if lane is None or not lane.stuck(now_s, self._patience_s(lane)):
                    continue
                self._abandon(lane, now_s)
            if self.fleet.settled:
                self.settled.set()

    def _patience_s(self, lane: Lane) -> float:
        one_device = self.settled.is_set() and lane.subject in self.fleet.slots
        return min(_PATIENCE_S, lane.allowance_s) if one_device else lane.allowance_s

    def _abandon(self, lane: Lane, now_s: float) -> None:
        """Leave a slow or hung thread behind and go on with a new one, unless all of NVML hangs or too many do."""
        self._abandoned.add(lane)
        self._lane = None
        if lane.takes(now_s, lane.allowance_s):
            self.fleet.hang(lane.subject, lane.function)
        else:
            self.fleet.leave(lane.subject)
        if lane.subject == HOST and not self.fleet.started:
            self.hangs_at_start = True
            self.settled.set()
        if self._host_hangs() or len(self._abandoned) >= MOST_ABANDONED:
            self.fleet.hang(HOST, lane.function)
        else:
            self._open_lane()

    def _host_hangs(self) -> bool:
        return any(lane.subject == HOST for lane in self._abandoned)

"""The fleet: every GPU that NVML tells of, by UUID, through losses, resets and driver reloads."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from joulegate.metering.reading import Device, Method, Quality, Reading
from joulegate.sources.nvml.faults import HOST, HUNG, Action, NvmlFault, Rule, Tally
from joulegate.sources.nvml.gpu import Gpu, Rates
from joulegate.sources.nvml.library import Lane
from joulegate.sources.nvml.probe import probe

INIT_ALLOWANCE_S = 20.0
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_SILENT_S = 5.0
_REINIT_ALONE_S, _REINIT_SHARED_S, _REINIT_ONCE_S = 30.0, 600.0, 10.0
_TRIES_BEFORE_REINIT = 3
_TOGETHER_S = 0.002
_EVENTS_LEAVE_S = 2.0


class Slot:
    """One GPU's place in the fleet: it stays while the GPU comes and goes.

    ``gpu`` is ``None`` while it is gone, ``former`` what it was before, ``rule`` why it is gone, ``hung`` the subject
    of the call that does not return and keeps this device from being read; ``left`` while that call may still do so.
    """

    __slots__ = (
        "attempts",
        "device",
        "due_s",
        "former",
        "gpu",
        "hung",
        "left",
        "retry_s",
        "rule",
        "silent_s",
        "slow_due_s",
        "tally",
        "tried",
    )

    def __init__(self, uuid: str, index: int) -> None:
        self.device = Device(uuid, "NVIDIA GPU", Method.COUNTER, Quality.MISSING, index=index)
        self.gpu: Gpu | None = None
        self.former: Gpu | None = None
        self.tally = Tally()
        self.rule: Rule | None = None
        self.hung = ""
        self.left = False
        self.tried = False
        self.attempts = 0
        self.retry_s = self.due_s = self.slow_due_s = 0.0
        self.silent_s: float | None = None

    @property
    def newest(self) -> Device:
        """What is known of the device now."""
        gpu = self.gpu
        return self.device if gpu is None else gpu.device


class Fleet:
    """All GPUs. One thread at a time works in it, the one that holds the lane; others only read."""

    def __init__(self, rates: Rates, allowance_s: float, publish: Callable[[Reading], None]) -> None:
        self.slots: dict[str, Slot] = {}
        self.unidentified: dict[int, Rule] = {}
        self.tally = Tally()
        self.started = False
        self.restarted = 0
        self.hung_indexes: set[int] = set()
        self.events_lock = threading.Lock()
        self._rates, self._allowance_s, self._publish = rates, allowance_s, publish
        self._count: int | None = None
        self._count_due_s = 0.0
        self._reinit_due_s = math.inf
        self._reinit_s = -math.inf
        self._initialised = False

    @property
    def settled(self) -> bool:
        """True when every GPU found was probed, or failed to be."""
        return self.started and all(slot.tried or slot.hung for slot in tuple(self.slots.values()))

    def start(self, lane: Lane) -> None:
        """Initialise the library in this thread and list the devices; raises ``NvmlFault``."""
        if not self._initialised:
            self._ask_host(lane, "nvmlInit", allowance_s=INIT_ALLOWANCE_S)
            self._initialised = True
        self._enumerate(lane)
        self.started = True

    def turn(self, lane: Lane) -> float:
        """Do what is due and return the time of the next duty (monotonic seconds)."""
        now_s = time.monotonic()
        offset_s = time.time() - now_s
        for slot in tuple(self.slots.values()):
            if slot.hung:
                continue
            if slot.gpu is None:
                if slot.retry_s <= now_s:
                    self._revive(lane, slot)
            elif slot.due_s <= now_s + _TOGETHER_S:
                self._poll(lane, slot, slot.gpu, offset_s)
        if self._count_due_s <= now_s:
            self._recount(lane)
        if self._reinit_due_s <= now_s:
            if any(slot.hung for slot in tuple(self.slots.values())):
                self._reinit_due_s = now_s + _FIRST_RETRY_S
            else:
                self._reinit(lane)
        return self._next_due_s()

    def leave(self, subject: str) -> None:
        """A call about this device takes long: it is not read meanwhile, and nothing is said of it yet."""
        slot = self.slots[subject]
        slot.hung, slot.left = subject, True

    def hang(self, subject: str, function: str) -> None:
        """The watchdog found a call about ``subject`` hanging: blank that device only (or all, when it is ``HOST``)."""
        rule = replace(HUNG, why=f"{function} does not return")
        if subject.startswith("index:"):
            index = int(subject.removeprefix("index:"))
            self.hung_indexes.add(index)
            self.unidentified[index] = rule
            return
        if subject not in self.slots:
            self.tally.count(HUNG.name)
        for uuid, slot in tuple(self.slots.items()):
            if subject not in (uuid, HOST) or (slot.hung and not slot.left):
                continue
            slot.hung, slot.left = slot.hung or subject, False
            slot.tally.count(HUNG.name)
            self._lose(slot, rule)

    def unhang(self, subject: str) -> None:
        """The hung call about ``subject`` has returned: try again what it kept from being read."""
        if subject.startswith("index:"):
            self.hung_indexes.discard(int(subject.removeprefix("index:")))
            self._count, self._count_due_s = None, 0.0
        for slot in tuple(self.slots.values()):
            if slot.hung == subject:
                slot.retry_s = 0.0
                slot.hung, slot.left = "", False

    def stop(self, lane: Lane) -> None:
        """Let the library go."""
        if self._initialised:
            self._initialised = False
            with suppress(NvmlFault):
                self._ask_host(lane, "nvmlShutdown")

    def break_down(self, subject: str, name: str) -> None:
        """A defect of our own surfaced while working on ``subject``: count it there and start that device over."""
        slot = self.slots.get(subject)
        (self.tally if slot is None else slot.tally).count(name)
        if slot is not None:
            self._lose(slot, Rule(name, Action.LOST, "the agent failed on this device's answers", "report this defect"))

    def _poll(self, lane: Lane, slot: Slot, gpu: Gpu, offset_s: float) -> None:
        lane.subject, lane.allowance_s = slot.device.id, self._allowance_s
        now_s = time.monotonic()
        # A grid common to all devices of one period: they wake the thread once, and lateness never adds up.
        slot.due_s = (math.floor(now_s / gpu.period_s + 0.5) + 1) * gpu.period_s
        try:
            reading = gpu.fast(lane, offset_s)
            if slot.slow_due_s <= now_s:
                slot.slow_due_s = now_s + self._rates.slow_s
                gpu.slow(lane)
        except NvmlFault as fault:
            self._faulty(slot, fault.rule, now_s)
            return
        if reading is None:
            self._faulty(slot, None, now_s)
            return
        slot.silent_s = None
        self._publish(reading)

    def _faulty(self, slot: Slot, rule: Rule | None, now_s: float) -> None:
        """Act on a failed poll; one that may pass makes the device lost only after five silent seconds."""
        action = Action.NO_DATA if rule is None else rule.action
        if rule is not None and action is Action.LOST:
            self._lose(slot, rule)
        elif action is Action.REINIT and now_s >= self._reinit_s + _REINIT_ONCE_S:
            self._reinit_due_s = now_s
        elif rule is not None and action in (Action.REINIT, Action.UNAVAILABLE):
            self._lose(slot, rule)
            self._reinit_due_s = min(self._reinit_due_s, self._earliest_reinit_s(now_s))
        elif slot.silent_s is None:
            slot.silent_s = now_s
        elif now_s - slot.silent_s > _SILENT_S:
            self._lose(slot, rule or Rule("NO_DATA", Action.LOST, "the GPU gives no sample any more"))

    def _lose(self, slot: Slot, rule: Rule) -> None:
        """The GPU is gone: say so once in the stream of readings, and look for it later."""
        was_up = slot.gpu is not None
        slot.device, slot.former, slot.gpu = slot.newest, slot.gpu or slot.former, None
        slot.rule, slot.silent_s = rule, None
        now_s = time.monotonic()
        slot.retry_s = now_s + _pause_s(slot.attempts)
        slot.tried = True
        if was_up:
            self._publish(Reading(slot.device.id, now_s, time.time(), up=False, error=rule.name))

    def _revive(self, lane: Lane, slot: Slot) -> None:
        """Look for the GPU by its UUID and probe it anew."""
        lane.subject, lane.allowance_s = slot.device.id, self._allowance_s
        try:
            handle = lane.ask(slot.tally, "nvmlDeviceGetHandleByUUID", slot.device.id)
            found = probe(lane, handle, slot.device.id, slot.tally)
            gpu = Gpu(handle, found, slot.tally, self._rates, slot.former)
            gpu.slow(lane)
        except NvmlFault as fault:
            self._still_gone(slot, fault.rule)
            return
        slot.device, slot.rule, slot.attempts, slot.tried = gpu.device, None, 0, True
        now_s = time.monotonic()
        # Slow reads of different devices fall into different turns.
        slot.slow_due_s = now_s + self._rates.slow_s * (0.5 + (gpu.device.index or 0) % 8 / 16)
        slot.due_s = now_s
        slot.gpu = gpu

    def _still_gone(self, slot: Slot, rule: Rule) -> None:
        slot.attempts += 1
        slot.rule, slot.tried = rule, True
        now_s = time.monotonic()
        slot.retry_s = now_s + _pause_s(slot.attempts)
        broken = rule.action in (Action.REINIT, Action.UNAVAILABLE)
        enough = _TRIES_BEFORE_REINIT if self._any_up() else 1
        if broken or (slot.attempts >= enough and rule.action in (Action.LOST, Action.NO_DATA)):
            self._reinit_due_s = min(self._reinit_due_s, self._earliest_reinit_s(now_s))

    def _earliest_reinit_s(self, now_s: float) -> float:
        """When the library may be initialised anew: rarely while other devices are well, they pause for it."""
        if self._any_up():
            return max(now_s, self._reinit_s + _REINIT_SHARED_S)
        first = self._reinit_s == -math.inf
        return now_s if first else max(now_s + _FIRST_RETRY_S, self._reinit_s + _REINIT_ONCE_S)

    def _any_up(self) -> bool:
        return any(slot.gpu is not None for slot in tuple(self.slots.values()))

    def _reinit(self, lane: Lane) -> None:
        """Initialise the library anew: handles of before a driver reload are dead, and open ones block a reset."""
        self._reinit_due_s = math.inf
        self._reinit_s = time.monotonic()
        self.tally.count("REINITIALISED")
        self.restarted += 1
        # The events thread leaves its call twice a second; one that hangs is not waited for.
        apart = self.events_lock.acquire(timeout=_EVENTS_LEAVE_S)
        try:
            self._start_over(lane)
        finally:
            if apart:
                self.events_lock.release()

    def _start_over(self, lane: Lane) -> None:
        with suppress(NvmlFault):
            self._ask_host(lane, "nvmlShutdown")
        self._initialised = False
        try:
            self._ask_host(lane, "nvmlInit", allowance_s=INIT_ALLOWANCE_S)
        except NvmlFault as fault:
            for slot in tuple(self.slots.values()):
                self._lose(slot, fault.rule)
            self._reinit_due_s = self._reinit_s + _REINIT_ALONE_S
            return
        for slot in tuple(self.slots.values()):
            slot.device, slot.former, slot.gpu = slot.newest, slot.gpu or slot.former, None
            slot.retry_s = 0.0
        self._initialised = True
        self._count, self._count_due_s = None, 0.0

    def _recount(self, lane: Lane) -> None:
        """A device added later appears; one that could not be named at first is asked again."""
        self._count_due_s = time.monotonic() + self._rates.count_s
        if not self._initialised:
            return
        try:
            count = int(self._ask_host(lane, "nvmlDeviceGetCount"))
            if count != self._count or self.unidentified:
                self._enumerate(lane)
        except NvmlFault as fault:
            if fault.rule.action in (Action.REINIT, Action.UNAVAILABLE):
                self._reinit_due_s = min(self._reinit_due_s, self._earliest_reinit_s(time.monotonic()))

    def _enumerate(self, lane: Lane) -> None:
        """Find the UUID behind every index. Devices are known by UUID only: an index may name another GPU tomorrow."""
        count = int(self._ask_host(lane, "nvmlDeviceGetCount"))
        for index in range(count):
            if index in self.hung_indexes:
                continue
            lane.subject, lane.allowance_s = f"index:{index}", self._allowance_s
            try:
                handle = lane.ask(self.tally, "nvmlDeviceGetHandleByIndex", index)
                uuid = lane.ask(self.tally, "nvmlDeviceGetUUID", handle)
            except NvmlFault as fault:
                if fault.rule.action in (Action.REINIT, Action.UNAVAILABLE):
                    raise
                self.unidentified[index] = fault.rule
                continue
            self.unidentified.pop(index, None)
            if uuid not in self.slots:
                self.slots[uuid] = Slot(uuid, index)
        self._count = count
        self._count_due_s = time.monotonic() + self._rates.count_s

    def _ask_host(self, lane: Lane, function: str, *, allowance_s: float | None = None) -> Any:
        lane.subject, lane.allowance_s = HOST, allowance_s or self._allowance_s
        return lane.ask(self.tally, function)

    def _next_due_s(self) -> float:
        due_s = min(self._count_due_s, self._reinit_due_s)
        for slot in tuple(self.slots.values()):
            if not slot.hung:
                due_s = min(due_s, slot.retry_s if slot.gpu is None else slot.due_s)
        return due_s


def _pause_s(attempts: int) -> float:
    return float(min(_FIRST_RETRY_S * 2.0 ** min(attempts, 10), _LAST_RETRY_S))

"""Events: XID errors as the driver reports them, waited for in a thread of their own and counted per device."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from joulegate.sources.nvml.faults import HOST, Action, NvmlFault
from joulegate.sources.nvml.fleet import Fleet
from joulegate.sources.nvml.library import EVENT_GPU_UNAVAILABLE, EVENT_XID, Handle, Lane, address_of

XIDS: Mapping[int, str] = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "preemptive cleanup after earlier errors",
    46: "GPU stopped processing",
    48: "double-bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    63: "ECC page retirement or row remapping recorded",
    64: "ECC page retirement or row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high single-bit ECC error rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP firmware timeout",
    120: "GSP firmware error",
}
"""What the commonest Xids mean (NVIDIA's Xid catalogue)."""

_WAIT_MS = 500
_BREATH_S = 0.02
_PAUSE_S = 5.0
_JOIN_S = 1.5
_WANTED = EVENT_XID | EVENT_GPU_UNAVAILABLE


class EventWatch:
    """Waits for events of every device that is up. A driver without events costs one try in five seconds, no more."""

    def __init__(self, fleet: Fleet) -> None:
        self.newest: dict[str, str] = {}
        self._fleet = fleet
        self._lane = Lane(HOST, 2 * _WAIT_MS / 1e3)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._set: Handle = None
        self._known: tuple[int, frozenset[str]] | None = None
        self._uuids: dict[int, str] = {}

    def start(self) -> None:
        """Begin to wait, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="joulegate-nvml-events", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the wait within its half second."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            pause_s = _BREATH_S
            with self._fleet.events_lock:
                try:
                    if self._register():
                        self._wait()
                    else:
                        pause_s = _PAUSE_S
                except NvmlFault as fault:
                    pause_s = self._after(fault)
            # Between two waits the lock is free, so that the sampler may initialise the library anew.
            self._stop.wait(pause_s)
        self._free()

    def _register(self) -> bool:
        """An event set over the devices that are up now; False when none of them has events."""
        up = {
            uuid: slot.gpu.probe.event_types for uuid, slot in tuple(self._fleet.slots.items()) if slot.gpu is not None
        }
        known = (self._fleet.restarted, frozenset(up))
        if known == self._known:
            return bool(self._uuids)
        if self._known is not None and self._known[0] == known[0]:
            self._free()
        self._set, self._known, self._uuids = None, known, {}
        wanted = {uuid: types & _WANTED for uuid, types in up.items() if types & EVENT_XID}
        if not wanted:
            return False
        self._set = self._lane.ask(self._fleet.tally, "nvmlEventSetCreate")
        for uuid, types in wanted.items():
            self._add(uuid, types)
        return bool(self._uuids)

    def _add(self, uuid: str, types: int) -> None:
        """Register one device; one that refuses does not keep the others from being heard."""
        tally = self._fleet.slots[uuid].tally
        try:
            handle = self._lane.ask(tally, "nvmlDeviceGetHandleByUUID", uuid)
            self._lane.ask(tally, "nvmlDeviceRegisterEvents", handle, types, self._set)
        except NvmlFault as fault:
            if fault.rule.action in (Action.REINIT, Action.UNAVAILABLE):
                raise
            return
        self._uuids[address_of(handle)] = uuid

    def _wait(self) -> None:
        event = self._lane.ask(self._fleet.tally, "nvmlEventSetWait_v2", self._set, _WAIT_MS)
        slot = self._fleet.slots.get(self._uuids.get(address_of(event.device), ""))
        if slot is None:
            self._fleet.tally.count("EVENT_OF_UNKNOWN_DEVICE")
            return
        if event.eventType & EVENT_XID:
            number = int(event.eventData)
            slot.tally.count(f"XID_{number}")
            text = f"Xid {number}, {XIDS.get(number, 'see the Xid catalogue')}"
        else:
            slot.tally.count("GPU_UNAVAILABLE")
            text = "the driver reports the GPU as unavailable"
        self.newest[slot.device.id] = f"{text}, at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"

    def _after(self, fault: NvmlFault) -> float:
        """Seconds to pause after a failed call. Time out is the normal end of a wait; else register anew."""
        if fault.rule.name == "TIMEOUT":
            return _BREATH_S
        if fault.rule.action is Action.ABSENT:
            self._set, self._uuids = None, {}
        elif fault.rule.action in (Action.REINIT, Action.UNAVAILABLE):
            self._set, self._known = None, None
        else:
            self._free()
            self._known = None
        return _PAUSE_S

    def _free(self) -> None:
        if self._set is not None:
            try:
                self._lane.ask(self._fleet.tally, "nvmlEventSetFree", self._set)
            except NvmlFault as fault:
                self._fleet.tally.count(fault.rule.name)
            self._set = None

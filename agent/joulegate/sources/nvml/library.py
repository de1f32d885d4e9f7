"""The library: the one module that imports ``pynvml``, guarded calls into it, and batches of field values."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from joulegate.sources.nvml.faults import FUNCTION_NOT_FOUND, Action, NvmlFault, Revoked, Tally

Handle = Any
Field = tuple[int, int]
"""A field id and its scope. Only ids up to 198 are used: later ones changed meaning between driver releases."""

ENERGY, MEMORY_TEMPERATURE = 83, 82
POWER_AVERAGE, POWER_INSTANT = 185, 186
POWER_LIMIT_MIN, POWER_LIMIT_MAX, POWER_LIMIT_ENFORCED = 187, 188, 190
SHUTDOWN_T_LIMIT, SLOWDOWN_T_LIMIT, MEMORY_MAX_T_LIMIT, GPU_MAX_T_LIMIT = 193, 194, 195, 196
SCOPE_GPU, SCOPE_MODULE = 0, 1

EVENT_XID, EVENT_GPU_UNAVAILABLE = 0x8, 0x4000

_ITEM = "IIqqIIQ"
_ITEM_BYTES = 40
_UNSIGNED_INT, _UNSIGNED_LONG, _UNSIGNED_LONG_LONG = 1, 2, 3
_MEMBERS = {0: struct.Struct("=d"), 4: struct.Struct("=q"), 5: struct.Struct("=i"), 6: struct.Struct("=H")}


class Lane:
    """One thread's way into NVML. Every call passes here: it is timed, counted and can be given up from outside.

    ``subject`` names what the calls are about, for the watchdog; ``allowance_s`` is how long one may take.
    """

    __slots__ = ("_entered_s", "_lock", "allowance_s", "function", "revoked", "subject")

    def __init__(self, subject: str, allowance_s: float) -> None:
        self._lock = threading.Lock()
        self._entered_s: float | None = None
        self.subject, self.allowance_s = subject, allowance_s
        self.function = ""
        self.revoked = False

    def takes(self, now_s: float, long_s: float) -> bool:
        """Whether a call is under way that has taken ``long_s``."""
        entered_s = self._entered_s
        return entered_s is not None and now_s - entered_s >= long_s

    def stuck(self, now_s: float, patience_s: float) -> bool:
        """Revoke the lane once its call has taken ``patience_s``; True at that moment only. For the watchdog."""
        with self._lock:
            if self.revoked or not self.takes(now_s, patience_s):
                return False
            self.revoked = True
            return True

    def ask(self, tally: Tally, function: str, *arguments: object) -> Any:
        """Call ``pynvml.<function>``; raises ``NvmlFault`` (counted in ``tally``) or ``Revoked``.

        ``None`` is an empty answer: ``pynvml`` raises code 0 where a list of process utilizations has no rows.
        """
        call = getattr(pynvml, function, None)
        if call is None:
            raise self._fault(tally, FUNCTION_NOT_FOUND, function)
        self._enter(function)
        try:
            return call(*arguments)
        except pynvml.NVMLError as error:
            code = int(error.value)
        except pynvml.NVMLLibraryMismatchError:
            code = FUNCTION_NOT_FOUND
        finally:
            self._leave()
        if code:
            raise self._fault(tally, code, function)
        return None

    def fetch(self, tally: Tally, batch: FieldBatch) -> None:
        """Fill ``batch`` in one call; raises ``NvmlFault`` when the call itself failed, or ``Revoked``."""
        self._enter("nvmlDeviceGetFieldValues")
        try:
            code = batch.call()
        finally:
            self._leave()
        if code:
            raise self._fault(tally, code, "nvmlDeviceGetFieldValues")

    def _enter(self, function: str) -> None:
        self.function = function
        self._entered_s = time.monotonic()

    def _leave(self) -> None:
        with self._lock:
            self._entered_s = None
            revoked = self.revoked
        if revoked:
            raise Revoked

    @staticmethod
    def _fault(tally: Tally, code: int, function: str) -> NvmlFault:
        fault = NvmlFault(code, function)
        if fault.rule.action not in (Action.NO_DATA, Action.ABSENT):
            tally.count(fault.rule.name)
        return fault


class FieldBatch:
    """Several fields of one device, read in one call into memory that is reused from call to call."""

    __slots__ = ("_array", "_struct", "call", "fields")

    def __init__(self, handle: Handle, fields: Sequence[Field]) -> None:
        """Lay out ``fields``; raises ``NvmlFault`` where the library has no field values. Call after the init."""
        self.fields = tuple(fields)
        self._array = (pynvml.c_nvmlFieldValue_t * len(self.fields))()
        for item, (number, scope) in zip(self._array, self.fields, strict=True):
            item.fieldId, item.scopeId = number, scope
        self._struct = struct.Struct("=" + _ITEM * len(self.fields))
        if ctypes.sizeof(self._array) != _ITEM_BYTES * len(self.fields):
            raise NvmlFault(FUNCTION_NOT_FOUND, "nvmlFieldValue_t")
        self.call = self._bound(handle)

    def pair(self) -> tuple[int, int] | None:
        """Both values of a batch of two that are u64 and u32 without an error; ``None`` where anything is different.

        This is what nearly every fast poll gives, at a third of the cost of ``values``.
        """
        flat = self._struct.unpack_from(self._array)
        if len(flat) != 2 * len(_ITEM) or flat[5] or flat[12]:
            return None
        if flat[4] != _UNSIGNED_LONG_LONG or flat[11] != _UNSIGNED_INT:
            return None
        return flat[6], flat[13] & 0xFFFF_FFFF

    def values(self) -> list[tuple[int, int | float | None]]:
        """(return code, value) of each field in order; the value is ``None`` where the code is not 0."""
        flat = self._struct.unpack_from(self._array)
        return [
            (flat[at + 5], None if flat[at + 5] else _number(flat[at + 4], flat[at + 6]))
            for at in range(0, len(flat), len(_ITEM))
        ]

    def _bound(self, handle: Handle) -> Callable[[], int]:
        try:
            # Indexing gives a function object of our own, so that pynvml's own callers do not see these argtypes.
            function = pynvml.nvmlLib["nvmlDeviceGetFieldValues"]
        except AttributeError as missing:
            raise NvmlFault(FUNCTION_NOT_FOUND, "nvmlDeviceGetFieldValues") from missing
        function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        device = ctypes.cast(handle, ctypes.c_void_p)
        count, pointer = len(self.fields), ctypes.cast(self._array, ctypes.c_void_p)

        def call() -> int:
            return int(function(device, count, pointer))

        return call


def _number(kind: int, raw: int) -> int | float | None:
    """The union member that ``kind`` (nvmlValueType_t) names; ``None`` for a type this version does not know."""
    if kind in (_UNSIGNED_LONG, _UNSIGNED_LONG_LONG):
        return raw
    if kind == _UNSIGNED_INT:
        return raw & 0xFFFF_FFFF
    member = _MEMBERS.get(kind)
    return None if member is None else member.unpack_from(raw.to_bytes(8, sys.byteorder))[0]


def address_of(handle: Handle) -> int:
    """A handle as a number, to find the device that an event names."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0

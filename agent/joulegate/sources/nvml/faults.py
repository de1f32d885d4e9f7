"""NVML's error codes: the table of what each one means for the agent (notes/measurement.md, section 1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

HOST = "nvml"
"""Device id under which faults of the library itself are counted."""


class Action(StrEnum):
    """What a return code asks of the agent."""

    NO_DATA = "no_data"
    """There is no new sample; not an error."""
    ABSENT = "absent"
    """This device or driver does not have the call: remember it; where it worked before, ask again more slowly."""
    DENIED = "denied"
    """The call needs a right that the agent lacks: do without it."""
    REINIT = "reinit"
    """Initialise the library again, once."""
    LOST = "lost"
    """The GPU is gone: close its epoch, look for its UUID with back-off."""
    UNAVAILABLE = "unavailable"
    """The library or the driver cannot be used at all."""
    FAULT = "fault"
    """Count it; the device is lost when it gives nothing else for some seconds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One code: its name in nvml.h without the prefix, what to do, why for a person, and a fix to type or look at."""

    name: str
    action: Action
    why: str
    fix: str = ""


_RESET = "look for an Xid in `dmesg`, then reset it with `nvidia-smi --gpu-reset -i <id>` or restart the machine"
_RIGHTS = "run the agent as a user who may open /dev/nvidia*, or give its container the `utility` driver capability"
_DRIVER = "load the NVIDIA driver (`nvidia-smi` must list the GPU); in a container start it with the NVIDIA runtime"

RULES: Mapping[int, Rule] = {
    1: Rule("UNINITIALIZED", Action.REINIT, "the library was not initialised in this process", "restart the agent"),
    2: Rule("INVALID_ARGUMENT", Action.ABSENT, "this driver does not know the argument"),
    3: Rule("NOT_SUPPORTED", Action.ABSENT, "this GPU does not offer it"),
    4: Rule("NO_PERMISSION", Action.DENIED, "the driver refuses it to this user", _RIGHTS),
    5: Rule("ALREADY_INITIALIZED", Action.NO_DATA, "the library was initialised already"),
    6: Rule("NOT_FOUND", Action.NO_DATA, "there is no newer sample"),
    7: Rule("INSUFFICIENT_SIZE", Action.FAULT, "the list grew while it was read"),
    8: Rule("INSUFFICIENT_POWER", Action.LOST, "the GPU's power cables are not attached", "attach its power cables"),
    9: Rule("DRIVER_NOT_LOADED", Action.UNAVAILABLE, "the NVIDIA driver is not loaded", _DRIVER),
    10: Rule("TIMEOUT", Action.NO_DATA, "no event within the time given"),
    11: Rule("IRQ_ISSUE", Action.FAULT, "the kernel reports an interrupt problem with the GPU", _RESET),
    12: Rule(
        "LIBRARY_NOT_FOUND",
        Action.UNAVAILABLE,
        "libnvidia-ml.so.1 was not found",
        "install the NVIDIA driver; in a container start it with the NVIDIA runtime",
    ),
    13: Rule("FUNCTION_NOT_FOUND", Action.ABSENT, "this driver is older than the call", "update the NVIDIA driver"),
    14: Rule("CORRUPTED_INFOROM", Action.FAULT, "the GPU's infoROM is damaged", "have the GPU serviced"),
    15: Rule("GPU_IS_LOST", Action.LOST, "the GPU has fallen off the bus", _RESET),
    16: Rule("RESET_REQUIRED", Action.LOST, "the GPU wants a reset", _RESET),
    17: Rule("OPERATING_SYSTEM", Action.LOST, "the operating system blocks the GPU", _RESET),
    18: Rule(
        "LIB_RM_VERSION_MISMATCH",
        Action.UNAVAILABLE,
        "the driver in the kernel and libnvidia-ml.so.1 have different versions",
        "reload the NVIDIA kernel modules or restart the machine, then restart the agent",
    ),
    19: Rule("IN_USE", Action.FAULT, "the GPU is held by something else for now"),
    20: Rule("MEMORY", Action.FAULT, "the machine is out of memory"),
    21: Rule("NO_DATA", Action.NO_DATA, "there is no sample"),
    22: Rule("VGPU_ECC_NOT_SUPPORTED", Action.ABSENT, "this virtual GPU does not offer it"),
    23: Rule("INSUFFICIENT_RESOURCES", Action.FAULT, "the GPU lacks a resource for the call"),
    24: Rule("FREQ_NOT_SUPPORTED", Action.ABSENT, "this GPU does not offer the frequency"),
    25: Rule("ARGUMENT_VERSION_MISMATCH", Action.ABSENT, "this driver knows another version of the call"),
    26: Rule("DEPRECATED", Action.ABSENT, "this driver has dropped the call"),
    27: Rule("NOT_READY", Action.FAULT, "the GPU or the driver is not ready yet"),
    28: Rule("GPU_NOT_FOUND", Action.LOST, "the GPU is no longer there", _RESET),
    29: Rule("INVALID_STATE", Action.FAULT, "the GPU is in the wrong state for the call"),
    30: Rule("RESET_TYPE_NOT_SUPPORTED", Action.ABSENT, "this GPU does not offer that kind of reset"),
    999: Rule("UNKNOWN", Action.FAULT, "the driver gives no reason", _RESET),
}
"""Every nvmlReturn_t from 1 to 30 and 999 (nvidia-ml-py 13.615.71)."""

NO_PERMISSION = 4
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13

HUNG = Rule(
    "TIMEOUT",
    Action.LOST,
    "a call into the driver does not return",
    "look for an Xid or a hung task in `dmesg`; the device is tried again as soon as the call returns",
)


def rule_of(code: int) -> Rule:
    """The rule of a return code; a code newer than the table is counted under its number."""
    return RULES.get(code) or Rule(f"ERROR_{code}", Action.FAULT, f"the driver returned code {code}")


class NvmlFault(Exception):
    """A call returned an error code."""

    def __init__(self, code: int, function: str) -> None:
        super().__init__(code, function)
        self.code, self.function = code, function
        self.rule = rule_of(code)

    def __str__(self) -> str:
        return f"{self.function}: {self.rule.name} ({self.code}), {self.rule.why}"


class Revoked(Exception):
    """The call took so long that another thread was given this one's work: let go of everything at once."""


class Tally:
    """Faults of one device by name. Written by one thread at a time, read by any."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count(self, name: str) -> None:
        """One more of ``name``."""
        self._counts[name] = self._counts.get(name, 0) + 1

    def counts(self) -> dict[str, int]:
        """A copy, name -> count."""
        return dict(self._counts)

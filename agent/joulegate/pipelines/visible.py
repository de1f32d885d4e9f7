"""Which devices a process uses: CUDA's own rules of visibility, and the names people give to devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

GPU_SCOPES = frozenset({"gpu", "module", "board"})
"""Scopes that CUDA_VISIBLE_DEVICES speaks of; a package or a host is used by every process on it."""


class Identified(Protocol):
    """What visibility needs to know of a device; ``metering.reading.Device`` has it."""

    @property
    def id(self) -> str:
        """UUID, or the source's own id."""

    @property
    def index(self) -> int | None:
        """The driver's number."""

    @property
    def scope(self) -> str:
        """What its energy covers."""


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device as the daemon tells a client of it."""

    id: str
    index: int | None
    scope: str


def visible_devices(devices: Sequence[Identified], environ: Mapping[str, str]) -> tuple[str, ...]:
    """Ids of the devices that a process with ``environ`` sees, in CUDA's order, then those that are no GPUs.

    CUDA_VISIBLE_DEVICES holds indices, UUIDs or unique beginnings of them, or MIG ids; unset means all, empty means
    none, and what follows an unusable item is hidden (CUDA C Programming Guide, "CUDA Environment Variables").
    Indices are taken as the driver's, which is CUDA's order with CUDA_DEVICE_ORDER=PCI_BUS_ID or with equal GPUs.
    """
    gpus = [device for device in devices if device.scope in GPU_SCOPES]
    others = tuple(device.id for device in devices if device.scope not in GPU_SCOPES)
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpu.id for gpu in gpus) + others
    seen: list[str] = []
    for item in wanted.split(","):
        gpu_id = _find_gpu(item.strip(), gpus)
        if gpu_id is None:
            break
        if gpu_id not in seen:
            seen.append(gpu_id)
    return tuple(seen) + others


def resolve_devices(names: Iterable[str], visible: Sequence[str]) -> tuple[str, ...]:
    """Device ids of ``names``, each once.

    ``cuda:N`` or ``N`` counts among the visible ones, as in torch, and a unique beginning of an id is enough. A name
    that is none of these stays as it is, so that the receiver can say that it is unknown.
    """
    return tuple(dict.fromkeys(_resolve(name, visible) for name in names))


def device_names(devices: object) -> tuple[str, ...]:
    """What a caller gave as ``devices=``, one or several of index, UUID or ``torch.device``, as names to resolve."""
    if isinstance(devices, Iterable) and not isinstance(devices, str):
        return tuple(_name(device) for device in devices)
    return (_name(devices),)


def _name(device: object) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _resolve(name: str, visible: Sequence[str]) -> str:
    if name in visible:
        return name
    number = "0" if name == "cuda" else name.removeprefix("cuda:")
    if number.isdecimal() and number.isascii():
        return visible[int(number)] if int(number) < len(visible) else name
    return _only(device_id for device_id in visible if name and device_id.startswith(name)) or name


def _find_gpu(item: str, gpus: Sequence[Identified]) -> str | None:
    if item.isdecimal() and item.isascii():
        return _only(gpu.id for position, gpu in enumerate(gpus) if _number(gpu, position) == int(item))
    if not item.startswith(("GPU-", "MIG-")):
        return None
    exact = _only(gpu.id for gpu in gpus if gpu.id.startswith(item))
    if exact is not None or item.startswith("GPU-"):
        return exact
    parent = item.removeprefix("MIG-").partition("/")[0]
    if parent.startswith("GPU-"):
        return _only(gpu.id for gpu in gpus if gpu.id.startswith(parent))
    return _only(gpu.id for gpu in gpus)  # a bare MIG UUID does not name its GPU: only the sole one can be meant


def _number(gpu: Identified, position: int) -> int:
    return position if gpu.index is None else gpu.index


def _only(ids: Iterable[str]) -> str | None:
    found = tuple(ids)
    return found[0] if len(found) == 1 else None

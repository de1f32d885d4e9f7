"""Entries, spans and accounts that the tests of the ledger write, with only what a test cares about spelled out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from joulegate.metering.entry import Account, DeviceUse, Position, RequestEntry, Share, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work

EPOCH_S = 1_760_000_400  # a whole hour
GPU = "GPU-8f0d3c2a"


def entry(request_id: str, shares: Iterable[tuple[str, int, int]] = ((GPU, EPOCH_S, 700),), **fields) -> RequestEntry:
    """A final entry whose shares are (device, bucket_s, energy_mj); devices and total follow from them."""
    parts = tuple(Share(request_id, *part) for part in shares)
    by_device: dict[str, int] = {}
    for part in parts:
        by_device[part.device] = by_device.get(part.device, 0) + part.energy_mj
    plain = RequestEntry(
        request_id=request_id,
        status=Status.FINAL,
        outcome=Outcome.OK,
        work=Work(2, 30, 1024, 768),
        started_s=EPOCH_S + 1.25,
        ended_s=EPOCH_S + 4.1,
        start_source=StartSource.ENGINE,
        energy_mj=sum(by_device.values()) if parts else None,
        u_measurement_mj=11,
        u_allocation_mj=7,
        method=Method.COUNTER,
        quality=Quality.MEASURED if parts else Quality.MISSING,
        model="sdxl",
        tier="free",
        tenant="acme",
        arrived_s=EPOCH_S + 0.1,
        devices={
            device: DeviceUse(energy_mj, 251.7, 300.1, 71.0, 0.93, 9_000_000_000, {"sw_thermal": 0.3})
            for device, energy_mj in by_device.items()
        },
        shares=parts,
        flags=("contended", "late"),
    )
    return replace(plain, **fields)


def span(request_id: str, *, started_s: float = 100.0, ended_s: float | None = None, **fields) -> Span:
    """A span of one member, open unless it is given an end."""
    plain = Span(
        request_id=request_id,
        devices=(GPU,),
        started_s=started_s,
        ended_s=ended_s,
        arrived_s=started_s - 2.0,
        start_source=StartSource.FIFO,
        power_class="sdxl@30",
        members=(Member(request_id, Work(1, 20, 512, None)),),
        model="sdxl",
        tier="free",
        edge_error_s=0.004,
    )
    return replace(plain, **fields)


def account(bucket_s: int = EPOCH_S, device: str = GPU, epoch: int = 0, **mj) -> Account:
    """An account that keeps law 1: what is not said is 0, the device's own energy is the sum."""
    requests_mj, idle_mj, unattributed_mj = (mj.get(name, 0) for name in ("requests_mj", "idle_mj", "unattributed_mj"))
    return Account(
        device=device,
        epoch=epoch,
        bucket_s=bucket_s,
        device_mj=mj.get("device_mj", requests_mj + idle_mj + unattributed_mj),
        requests_mj=requests_mj,
        idle_mj=idle_mj,
        unattributed_mj=unattributed_mj,
        estimated_mj=mj.get("estimated_mj", 0),
        method=Method.COUNTER,
        quality=mj.get("quality", Quality.MEASURED),
    )


def position(device: str = GPU, wall_s: float = EPOCH_S + 5.0, boot_id: str = "boot-1") -> Position:
    """Where a device's line stands."""
    return Position(
        device=device, epoch=1, counter_mj=9_876, total_mj=12_345, t_s=105.5, wall_s=wall_s, boot_id=boot_id
    )

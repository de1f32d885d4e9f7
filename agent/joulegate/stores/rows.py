"""Rows: how entries and spans become what SQLite stores, and back.

What SQLite or JSON cannot hold is dealt with here, so that one odd value never blocks the ledger: an optional figure
that is not finite or wider than 64 bits is stored as missing (law 2), text that is not Unicode is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from joulegate.metering.entry import DeviceUse, RequestEntry, Share, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work
from joulegate.stores.fault import LedgerFault

Value = str | int | float | None

ENTRY_COLUMNS = (
    "request_id", "outcome", "images", "steps", "width", "height", "arrived_s", "started_s", "ended_s", "start_source",
    "energy_mj", "u_measurement_mj", "u_allocation_mj", "method", "quality", "model", "tier", "tenant", "batch_id",
    "flags",
)  # fmt: skip
USE_COLUMNS = (
    "energy_mj", "power_mean_w", "power_max_w", "temperature_max_c", "utilization_mean", "memory_max_bytes",
    "clock_event_s",
)  # fmt: skip
SPAN_COLUMNS = (
    "span", "request_id", "boot_id", "arrived_t_s", "arrived_wall_s", "started_t_s", "started_wall_s", "ended_t_s",
    "ended_wall_s", "start_source", "power_class", "batch_id", "model", "tier", "tenant", "outcome", "edge_error_s",
    "devices",
)  # fmt: skip
MEMBER_COLUMNS = ("span", "place", "request_id", "images", "steps", "width", "height")

_WIDEST = 2**63
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Moment(NamedTuple):
    """One instant on both axes: CLOCK_MONOTONIC and Unix seconds."""

    t_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry as stored.

    ``values`` are those of ``ENTRY_COLUMNS``, ``uses`` (device id, values of ``USE_COLUMNS``) sorted by device,
    ``shares`` (bucket, device id, mJ) sorted and without repeats.
    """

    values: tuple[Value, ...]
    uses: tuple[tuple[str, tuple[Value, ...]], ...]
    shares: tuple[tuple[int, str, int], ...]


def text(value: str) -> str:
    """``value`` as SQLite can store it: a lone surrogate becomes its escape."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def optional_text(value: str | None) -> str | None:
    """As ``text``; ``None`` stays."""
    return None if value is None else text(value)


def real(value: float | None) -> float | None:
    """A finite float or missing; adding zero turns -0.0, which SQLite does not keep, into 0.0."""
    return None if value is None or not math.isfinite(value) else float(value) + 0.0


def whole(value: int | None) -> int | None:
    """An integer of at most 64 bits or missing."""
    return None if value is None or not -_WIDEST <= value < _WIDEST else int(value)


def time_of(value: float, name: str, request_id: str) -> float:
    """A time that must be there; raises ``LedgerFault`` when it is not finite."""
    if (known := real(value)) is None:
        raise LedgerFault(
            f"cannot write request {request_id!r} to the ledger: its {name} is {value!r}; "
            "report this as a bug of joulegate with this line"
        )
    return known


def storable_work(work: Work) -> Work:
    """``work`` with figures that SQLite cannot hold made missing."""
    figures = (work.images, work.steps, work.width, work.height)
    if all(figure is None or -_WIDEST <= figure < _WIDEST for figure in figures):
        return work
    return Work(*map(whole, figures))


def storable(entry: RequestEntry) -> RequestEntry:
    """``entry`` with the id and the work under which it is stored and counted."""
    work, request_id = storable_work(entry.work), text(entry.request_id)
    model, tier = optional_text(entry.model), optional_text(entry.tier)
    if work is entry.work and request_id == entry.request_id and (model, tier) == (entry.model, entry.tier):
        return entry
    return replace(entry, work=work, request_id=request_id, model=model, tier=tier)


def row_of(entry: RequestEntry) -> EntryRow:
    """The stored form of a ``storable`` entry; raises ``LedgerFault`` when it is not final."""
    if entry.status is not Status.FINAL:
        raise LedgerFault(
            f"cannot write request {entry.request_id!r} to the ledger: its figures are still {entry.status}; "
            "report this as a bug of joulegate with this line"
        )
    work = entry.work
    values = (
        entry.request_id, str(entry.outcome), work.images, work.steps, work.width, work.height,
        real(entry.arrived_s), time_of(entry.started_s, "start", entry.request_id),
        time_of(entry.ended_s, "end", entry.request_id), str(entry.start_source),
        None if entry.energy_mj is None else int(entry.energy_mj), whole(entry.u_measurement_mj),
        whole(entry.u_allocation_mj), None if entry.method is None else str(entry.method), str(entry.quality),
        entry.model, entry.tier, optional_text(entry.tenant), optional_text(entry.batch_id),
        ",".join(entry.flags),
    )  # fmt: skip
    uses = tuple((text(device), _use_values(entry.devices[device])) for device in sorted(entry.devices))
    return EntryRow(values, uses, _share_rows(entry.shares))


def _use_values(use: DeviceUse) -> tuple[Value, ...]:
    events = {name: known for name, seconds in use.clock_event_s.items() if (known := real(seconds)) is not None}
    return (
        int(use.energy_mj), real(use.power_mean_w), real(use.power_max_w), real(use.temperature_max_c),
        real(use.utilization_mean), whole(use.memory_max_bytes),
        _encode(events) if events else None,
    )  # fmt: skip


def _share_rows(shares: Sequence[Share]) -> tuple[tuple[int, str, int], ...]:
    energy_mj: dict[tuple[int, str], int] = {}
    for share in shares:
        key = (int(share.bucket_s), text(share.device))
        energy_mj[key] = energy_mj.get(key, 0) + int(share.energy_mj)
    return tuple((bucket_s, device, energy_mj[bucket_s, device]) for bucket_s, device in sorted(energy_mj))


def entry_of(row: EntryRow) -> RequestEntry:
    """The entry that ``row`` stores."""
    v: dict[str, Any] = dict(zip(ENTRY_COLUMNS, row.values, strict=True))
    return RequestEntry(
        request_id=v["request_id"],
        status=Status.FINAL,
        outcome=Outcome(v["outcome"]),
        work=Work(v["images"], v["steps"], v["width"], v["height"]),
        started_s=v["started_s"],
        ended_s=v["ended_s"],
        start_source=StartSource(v["start_source"]),
        energy_mj=v["energy_mj"],
        u_measurement_mj=v["u_measurement_mj"],
        u_allocation_mj=v["u_allocation_mj"],
        method=None if v["method"] is None else Method(v["method"]),
        quality=Quality(v["quality"]),
        model=v["model"],
        tier=v["tier"],
        tenant=v["tenant"],
        arrived_s=v["arrived_s"],
        batch_id=v["batch_id"],
        devices={device: _use_of(values) for device, values in row.uses},
        shares=tuple(Share(v["request_id"], device, bucket_s, mj) for bucket_s, device, mj in row.shares),
        flags=tuple(v["flags"].split(",")) if v["flags"] else (),
    )


def _use_of(values: Sequence[Any]) -> DeviceUse:
    return DeviceUse(*(*values[:-1], json.loads(values[-1]) if values[-1] else {}))


def member_ids(span: Span) -> tuple[str, ...]:
    """Ids of the requests that a span stands for, as stored; a span without members is its own."""
    return tuple(text(member.request_id) for member in span.members) or (text(span.request_id),)


def span_row(number: int, span: Span, boot_id: str, now: Moment) -> tuple[Value, ...]:
    """Values of ``SPAN_COLUMNS``; ``now`` ties the span's monotonic times to the wall clock."""
    ahead_s = now.wall_s - now.t_s
    started_s = time_of(span.started_s, "start", span.request_id)
    arrived_s, ended_s = real(span.arrived_s), real(span.ended_s)
    return (
        number, text(span.request_id), boot_id,
        arrived_s, None if arrived_s is None else arrived_s + ahead_s,
        started_s, started_s + ahead_s,
        ended_s, None if ended_s is None else ended_s + ahead_s,
        str(span.start_source), text(span.power_class), optional_text(span.batch_id), optional_text(span.model),
        optional_text(span.tier), optional_text(span.tenant), str(span.outcome), real(span.edge_error_s) or 0.0,
        _device_list(span.devices),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _device_list(devices: tuple[str, ...]) -> str:
    return json.dumps(devices)


def member_rows(number: int, span: Span) -> Iterable[tuple[Value, ...]]:
    """Values of ``MEMBER_COLUMNS`` for each member of ``span``; place -1 marks the span that names none."""
    for place, member in enumerate(span.members or (Member(span.request_id),), 0 if span.members else -1):
        work = storable_work(member.work)
        yield number, place, text(member.request_id), work.images, work.steps, work.width, work.height


def span_of(values: Sequence[Any], members: Iterable[Sequence[Any]], boot_id: str, now: Moment) -> Span:
    """The journalled span on the monotonic axis of ``boot_id``; one of another boot is carried over by wall time."""
    v: dict[str, Any] = dict(zip(SPAN_COLUMNS, values, strict=True))
    same_boot = same_axis(v["boot_id"], boot_id)

    def at(name: str) -> float | None:
        if same_boot or v[f"{name}_wall_s"] is None:
            return v[f"{name}_t_s"]  # type: ignore[no-any-return]
        return float(v[f"{name}_wall_s"] - (now.wall_s - now.t_s))

    started_s = at("started")
    assert started_s is not None
    return Span(
        request_id=v["request_id"],
        devices=tuple(json.loads(v["devices"])),
        started_s=started_s,
        ended_s=at("ended"),
        arrived_s=at("arrived"),
        start_source=StartSource(v["start_source"]),
        power_class=v["power_class"],
        members=tuple(Member(row[2], Work(*row[3:7])) for row in members if row[1] >= 0),
        batch_id=v["batch_id"],
        model=v["model"],
        tier=v["tier"],
        tenant=v["tenant"],
        outcome=Outcome(v["outcome"]),
        edge_error_s=v["edge_error_s"],
    )


def same_axis(boot_id: str, other_boot_id: str) -> bool:
    """Whether monotonic times of two boots can be compared; an unknown boot is like no other."""
    return bool(boot_id) and boot_id == other_boot_id


def pending_entry(span: Mapping[str, Any], member: Sequence[Any]) -> RequestEntry:
    """What the journal knows of a request whose span has ended: everything but its figures."""
    return RequestEntry(
        request_id=member[2],
        status=Status.PENDING,
        outcome=Outcome(span["outcome"]),
        work=Work(*member[3:7]),
        started_s=span["started_wall_s"],
        ended_s=span["ended_wall_s"],
        start_source=StartSource(span["start_source"]),
        energy_mj=None,
        u_measurement_mj=None,
        u_allocation_mj=None,
        method=None,
        quality=Quality.MISSING,
        model=span["model"],
        tier=span["tier"],
        tenant=span["tenant"],
        arrived_s=span["arrived_wall_s"],
        batch_id=span["batch_id"],
    )

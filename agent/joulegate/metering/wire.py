"""Spans and entries as JSON objects: what the socket and HTTP carry, checked field by field.

A span comes with CLOCK_MONOTONIC seconds (``started_s``, ``ended_s``, ``arrived_s``: processes of this machine) or with
RFC 3339 times (``started``, ``ended``, ``arrived``: ``POST /v1/spans``), which the pair (now_s, wall_s) converts.
An entry has the field names of the HTTP contract, and beside the joules the whole millijoules and Unix seconds they
were made from, so that ``entry_from_wire(entry_to_wire(entry)) == entry``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar, cast

from joulegate.metering.entry import DeviceUse, RequestEntry, Share, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work
from joulegate.units import optional_j

MAX_TEXT = 256
"""Longest id or label, in characters."""
MAX_COUNT = 2**31 - 1
"""Largest count of images, steps or pixels a side; it also fits every store."""
MAX_DEVICES = 256
MAX_MEMBERS = 1024
MAX_EDGE_ERROR_S = 3600.0

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_UNFIT_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_WORK_FIELDS = tuple(field.name for field in fields(Work))
_LABELS = ("model", "tier", "tenant", "batch_id")

E = TypeVar("E", bound=StrEnum)


VIEWS = ("co2e_g", "water_l", "cost")
"""Views on energy that may stand beside it; ``null`` where nobody gave them."""


class WireFault(ValueError):
    """One line that names the field and says what is wrong with it."""


def text_fault(text: object, limit: int = MAX_TEXT) -> str | None:
    """Why ``text`` cannot be an id or a label, or ``None`` when it can (empty is fine here)."""
    if not isinstance(text, str):
        return f"must be text, not {type(text).__name__}"
    if len(text) > limit:
        return f"must be at most {limit} characters, it has {len(text)}"
    if text.isprintable() or not any(unicodedata.category(char) in _UNFIT_CATEGORIES for char in text):
        return None
    return "must not have control characters"


def span_from_wire(message: Mapping[str, object], *, now_s: float, wall_s: float) -> Span:
    """The span in a decoded JSON object; unknown keys are ignored. Raises ``WireFault``.

    ``now_s`` (CLOCK_MONOTONIC) and ``wall_s`` (Unix) are one moment on both clocks. Without ``devices`` the span names
    none: the receiver puts in those the sender sees. Without a start the arrival stands for it, and says so.
    """
    request_id = _identifier(message, "request_id")
    members = _members(message, request_id)
    arrived_s = _moment(message, "arrived", now_s - wall_s)
    started_s = _moment(message, "started", now_s - wall_s)
    ended_s = _moment(message, "ended", now_s - wall_s)
    default_source = StartSource.ARRIVAL if started_s is None else StartSource.DECLARED
    if started_s is None:
        started_s = arrived_s
    if started_s is None:
        raise WireFault("started: is missing")
    if ended_s is not None and ended_s < started_s:
        raise WireFault(f"ended: is {started_s - ended_s:.6g} s before the start")
    if arrived_s is not None and arrived_s > started_s:
        raise WireFault(f"arrived: is {arrived_s - started_s:.6g} s after the start")
    labels = {name: _label(message, name) for name in _LABELS}
    power_class = _label(message, "class")
    return Span(
        request_id=request_id,
        devices=_devices(message),
        started_s=started_s,
        ended_s=ended_s,
        arrived_s=arrived_s,
        start_source=_word(message, "start_source", StartSource, default_source),
        power_class=(labels["model"] or "") if power_class is None else power_class,
        members=members,
        outcome=_word(message, "outcome", Outcome, Outcome.OK),
        edge_error_s=_number(message.get("edge_error_s", 0.0), "edge_error_s", 0.0, MAX_EDGE_ERROR_S),
        **labels,
    )


def span_to_wire(span: Span) -> dict[str, object]:
    """``span`` as a JSON object with monotonic seconds; what is absent or a default is left out."""
    wire: dict[str, object] = {
        "request_id": span.request_id,
        "devices": list(span.devices),
        "started_s": span.started_s,
        "start_source": span.start_source.value,
        "class": span.power_class,
        "outcome": span.outcome.value,
        "edge_error_s": span.edge_error_s,
    }
    known = {"ended_s": span.ended_s, "arrived_s": span.arrived_s, **{name: getattr(span, name) for name in _LABELS}}
    wire.update((name, value) for name, value in known.items() if value is not None)
    if len(span.members) == 1 and span.members[0].request_id == span.request_id:
        return wire | _work_to_wire(span.members[0].work)
    wire["members"] = [{"request_id": member.request_id} | _work_to_wire(member.work) for member in span.members]
    return wire


def end_from_wire(message: Mapping[str, object]) -> tuple[str, float, Outcome]:
    """Request id, end (CLOCK_MONOTONIC seconds) and outcome of a message that ends a span. Raises ``WireFault``."""
    ended_s = _number(message.get("ended_s"), "ended_s", 0.0)
    return _identifier(message, "request_id"), ended_s, _word(message, "outcome", Outcome, Outcome.OK)


def entry_to_wire(entry: RequestEntry) -> dict[str, object]:
    """``entry`` with the field names of the HTTP contract; what is missing is ``None``, never 0."""
    uncertain = entry.u_measurement_mj is not None or entry.u_allocation_mj is not None
    return {
        "request_id": entry.request_id,
        "status": entry.status.value,
        "model": entry.model,
        "tier": entry.tier,
        "tenant": entry.tenant,
        "batch_id": entry.batch_id,
        **{name: getattr(entry.work, name) for name in _WORK_FIELDS},
        "arrived": rfc3339(entry.arrived_s),
        "started": rfc3339(entry.started_s),
        "ended": rfc3339(entry.ended_s),
        "arrived_wall_s": entry.arrived_s,
        "started_wall_s": entry.started_s,
        "ended_wall_s": entry.ended_s,
        "start_source": entry.start_source.value,
        "queue_s": entry.queue_s,
        "energy_j": optional_j(entry.energy_mj),
        "energy_mj": entry.energy_mj,
        "uncertainty_j": {
            "measurement": optional_j(entry.u_measurement_mj),
            "allocation": optional_j(entry.u_allocation_mj),
        }
        if uncertain
        else None,
        "u_measurement_mj": entry.u_measurement_mj,
        "u_allocation_mj": entry.u_allocation_mj,
        "method": None if entry.method is None else entry.method.value,
        "quality": entry.quality.value,
        "outcome": entry.outcome.value,
        "devices": {device: _use_to_wire(use) for device, use in entry.devices.items()},
        "shares": [
            {"device": share.device, "bucket_s": share.bucket_s, "energy_mj": share.energy_mj} for share in entry.shares
        ],
        "flags": list(entry.flags),
        **{name: (entry.views or {}).get(name) for name in VIEWS},
    }


def entry_from_wire(message: Mapping[str, object]) -> RequestEntry:
    """The entry that ``entry_to_wire`` wrote. Raises ``WireFault``."""
    request_id = _identifier(message, "request_id")
    method = message.get("method")
    return RequestEntry(
        request_id=request_id,
        status=_word(message, "status", Status),
        outcome=_word(message, "outcome", Outcome),
        work=_work(message, ""),
        arrived_s=_optional_number(message, "arrived_wall_s"),
        started_s=_number(message.get("started_wall_s"), "started_wall_s"),
        ended_s=_number(message.get("ended_wall_s"), "ended_wall_s"),
        start_source=_word(message, "start_source", StartSource),
        energy_mj=_optional_int(message, "energy_mj"),
        u_measurement_mj=_optional_int(message, "u_measurement_mj"),
        u_allocation_mj=_optional_int(message, "u_allocation_mj"),
        method=None if method is None else _word(message, "method", Method),
        quality=_word(message, "quality", Quality),
        devices={device: _use(device, use) for device, use in _mapping(message.get("devices"), "devices").items()},
        shares=tuple(_share(request_id, share) for share in _list(message.get("shares"), "shares")),
        flags=tuple(_text(flag, "flags") for flag in _list(message.get("flags"), "flags")),
        views=_views(message),
        **{name: _label(message, name) for name in _LABELS},
    )


def _views(message: Mapping[str, object]) -> Mapping[str, object] | None:
    found = {name: _mapping(message[name], name) for name in VIEWS if message.get(name) is not None}
    return found or None


def rfc3339(wall_s: float | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC with microseconds; ``None`` stays ``None``."""
    if wall_s is None:
        return None
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def wall_s_from_rfc3339(text: object, field: str) -> float:
    """Unix seconds of an RFC 3339 time with its offset from UTC. Raises ``WireFault`` naming ``field``."""
    if not isinstance(text, str) or _RFC3339.fullmatch(text) is None:
        raise WireFault(f"{field}: must be an RFC 3339 time with an offset, such as 2025-03-30T12:00:00Z")
    try:
        wall_s = datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        raise WireFault(f"{field}: is not a time of the calendar") from None
    if wall_s < 0:
        raise WireFault(f"{field}: is before 1970")
    return wall_s


def _text(value: object, field: str) -> str:
    fault = text_fault(value)
    if fault is not None:
        raise WireFault(f"{field}: {fault}")
    return cast("str", value)


def _identifier(message: Mapping[str, object], field: str, where: str = "") -> str:
    if message.get(field) is None:
        raise WireFault(f"{where}{field}: is missing")
    identifier = _text(message[field], where + field)
    if not identifier:
        raise WireFault(f"{where}{field}: must not be empty")
    return identifier


def _label(message: Mapping[str, object], field: str) -> str | None:
    value = message.get(field)
    return None if value is None else _text(value, field)


def _number(value: object, field: str, least: float = -math.inf, most: float = math.inf) -> float:
    if value is None:
        raise WireFault(f"{field}: is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireFault(f"{field}: must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise WireFault(f"{field}: is too large") from None
    if not math.isfinite(number):
        raise WireFault(f"{field}: must be finite")
    if number < least:
        raise WireFault(f"{field}: must be at least {least:g}")
    if number > most:
        raise WireFault(f"{field}: must be at most {most:g}")
    return number


def _optional_number(message: Mapping[str, object], field: str) -> float | None:
    return None if message.get(field) is None else _number(message[field], field)


def _integer(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireFault(f"{field}: must be a whole number")
    return value


def _optional_int(message: Mapping[str, object], field: str) -> int | None:
    return None if message.get(field) is None else _integer(message[field], field)


def _count(message: Mapping[str, object], field: str, where: str) -> int | None:
    value = message.get(field)
    if value is None:
        return None
    count = _integer(value, where + field)
    if not 1 <= count <= MAX_COUNT:
        raise WireFault(f"{where}{field}: must be from 1 to {MAX_COUNT}")
    return count


def _word(message: Mapping[str, object], field: str, kind: type[E], default: E | None = None) -> E:
    value = message.get(field)
    if value is None and default is not None:
        return default
    for word in kind:
        if word.value == value:
            return word
    raise WireFault(f"{field}: must be one of {', '.join(kind)}")


def _moment(message: Mapping[str, object], name: str, monotonic_minus_wall_s: float) -> float | None:
    """A time given as ``name``_s (monotonic seconds, which win) or as ``name`` (RFC 3339)."""
    if message.get(name + "_s") is not None:
        return _number(message[name + "_s"], name + "_s", 0.0)
    if message.get(name) is not None:
        return wall_s_from_rfc3339(message[name], name) + monotonic_minus_wall_s
    return None


def _list(value: object, field: str, most: int | None = None) -> list[object]:
    if not isinstance(value, list):
        raise WireFault(f"{field}: must be a list")
    if most is not None and len(value) > most:
        raise WireFault(f"{field}: must have at most {most} items, it has {len(value)}")
    return value


def _mapping(value: object, field: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise WireFault(f"{field}: must be an object")
    return value


def _distinct(names: Iterable[str], field: str) -> tuple[str, ...]:
    seen: dict[str, None] = {}
    for name in names:
        if name in seen:
            raise WireFault(f"{field}: names {name!r} twice")
        seen[name] = None
    return tuple(seen)


def _devices(message: Mapping[str, object]) -> tuple[str, ...]:
    value = message.get("devices")
    if value is None:
        return ()
    devices = _list(value, "devices", MAX_DEVICES)
    return _distinct((_identifier({"devices": device}, "devices") for device in devices), "devices")


def _work(message: Mapping[str, object], where: str) -> Work:
    return Work(*(_count(message, name, where) for name in _WORK_FIELDS))


def _work_to_wire(work: Work) -> dict[str, object]:
    known = ((name, getattr(work, name)) for name in _WORK_FIELDS)
    return {name: value for name, value in known if value is not None}


def _members(message: Mapping[str, object], request_id: str) -> tuple[Member, ...]:
    value = message.get("members")
    if value is None:
        return (Member(request_id, _work(message, "")),)
    members = []
    for position, item in enumerate(_list(value, "members", MAX_MEMBERS)):
        where = f"members[{position}]."
        member = _mapping(item, where[:-1])
        members.append(Member(_identifier(member, "request_id", where), _work(member, where)))
    _distinct((member.request_id for member in members), "members")
    return tuple(members)


def _use_to_wire(use: DeviceUse) -> dict[str, object]:
    return {
        "energy_j": optional_j(use.energy_mj),
        "energy_mj": use.energy_mj,
        "power_mean_w": use.power_mean_w,
        "power_max_w": use.power_max_w,
        "temperature_max_c": use.temperature_max_c,
        "utilization_mean": use.utilization_mean,
        "memory_max_bytes": use.memory_max_bytes,
        "clock_event_s": dict(use.clock_event_s),
    }


def _use(device: str, value: object) -> DeviceUse:
    where = f"devices.{device}"
    use = _mapping(value, where)
    events = _mapping(use.get("clock_event_s"), where + ".clock_event_s")
    return DeviceUse(
        energy_mj=_integer(use.get("energy_mj"), where + ".energy_mj"),
        power_mean_w=_optional_number(use, "power_mean_w"),
        power_max_w=_optional_number(use, "power_max_w"),
        temperature_max_c=_optional_number(use, "temperature_max_c"),
        utilization_mean=_optional_number(use, "utilization_mean"),
        memory_max_bytes=_optional_int(use, "memory_max_bytes"),
        clock_event_s={name: _number(seconds, f"{where}.clock_event_s") for name, seconds in events.items()},
    )


def _share(request_id: str, value: object) -> Share:
    share = _mapping(value, "shares")
    return Share(
        request_id=request_id,
        device=_identifier(share, "device", "shares."),
        bucket_s=_integer(share.get("bucket_s"), "shares.bucket_s"),
        energy_mj=_integer(share.get("energy_mj"), "shares.energy_mj"),
    )

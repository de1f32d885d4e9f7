"""Where the energy of a period went: totals, their quality, and groups of requests, exact to the millijoule."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from joulegate.metering.entry import BUCKET_S
from joulegate.stores.sql import select
from joulegate.units import S_PER_HOUR

DIMENSIONS = ("model", "tier", "tenant", "device", "hour")

_OF_SHARE = {
    "model": "e.model",
    "tier": "e.tier",
    "tenant": "e.tenant",
    "device": "d.id",
    "hour": f"s.bucket_s - s.bucket_s % {S_PER_HOUR}",
}
_OF_ACCOUNT = {"device": "d.id", "hour": f"a.bucket_s - a.bucket_s % {S_PER_HOUR}"}
_SUMS = ("sum(device_mj)", "sum(requests_mj)", "sum(idle_mj)", "sum(unattributed_mj)", "sum(estimated_mj)")
_WITHIN = "bucket_s >= ? AND bucket_s < ?"
_DEVICE_QUALITIES = select(
    ("quality", "sum(device_mj)"), f"FROM accounts WHERE {_WITHIN} GROUP BY quality ORDER BY quality"
)


@dataclass(frozen=True, slots=True)
class EnergyTotals:
    """All devices: ``device_mj == requests_mj + idle_mj + unattributed_mj``; ``estimated_mj`` is outside the law.

    ``pending_mj`` is the part of ``requests_mj`` that is placed on requests which are not final yet.
    """

    device_mj: int = 0
    requests_mj: int = 0
    idle_mj: int = 0
    unattributed_mj: int = 0
    estimated_mj: int = 0
    pending_mj: int = 0


@dataclass(frozen=True, slots=True)
class EnergyGroup:
    """What agrees in ``keys`` (dimension to value, in the order asked for; ``hour`` is the Unix second of its start).

    Grouped by device and hour alone, a group has all its accounts, and ``pending_mj`` is in ``requests_mj``. Else what
    is pending stands in groups of its own, marked ``pending``, whose model, tier and tenant are ``None``, and accounts
    are ``None``. ``requests`` counts final ones with energy here, ``qualities_mj`` splits their energy by quality.
    """

    keys: Mapping[str, str | int | None]
    requests: int
    requests_mj: int
    qualities_mj: Mapping[str, int]
    pending_mj: int = 0
    device_mj: int | None = None
    idle_mj: int | None = None
    unattributed_mj: int | None = None
    estimated_mj: int | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """The range [``from_s``, ``to_s``) in whole buckets, as answered.

    The groups' ``requests_mj`` add up to that of ``totals``; there are none when none were asked for. ``qualities_mj``
    splits ``totals.device_mj`` by the quality of the readings, ``request_qualities_mj`` what is final of
    ``totals.requests_mj`` by the quality of the requests; only qualities that occur are there.
    """

    from_s: int
    to_s: int
    totals: EnergyTotals
    qualities_mj: Mapping[str, int]
    request_qualities_mj: Mapping[str, int]
    groups: tuple[EnergyGroup, ...]


@dataclass(frozen=True, slots=True)
class HourAccount:
    """One hour of one device's accounts over all epochs, ``device_mj`` split by quality; law 1 holds."""

    device: str
    hour_s: int
    qualities_mj: Mapping[str, int]
    device_mj: int
    requests_mj: int
    idle_mj: int
    unattributed_mj: int
    estimated_mj: int


@dataclass(slots=True)
class _Final:
    """Energy of final requests under one key, by quality, and their number."""

    requests: int = 0
    qualities_mj: dict[str, int] = field(default_factory=dict)

    @property
    def energy_mj(self) -> int:
        return sum(self.qualities_mj.values())


_Key = tuple[Any, ...]
_Sums = tuple[int, int, int, int, int]


def snapped(from_s: float, to_s: float, step_s: int) -> tuple[int, int]:
    """The range widened to whole steps; raises ``ValueError`` when it is not finite or ends before it starts."""
    if not (math.isfinite(from_s) and math.isfinite(to_s) and from_s <= to_s):
        raise ValueError(f"not a range of time: from {from_s} to {to_s}")
    return math.floor(from_s / step_s) * step_s, math.ceil(to_s / step_s) * step_s


def energy_between(connection: sqlite3.Connection, from_s: float, to_s: float, by: Sequence[str]) -> EnergyTable:
    """Totals and groups of a range; the caller holds one read transaction."""
    if unknown := [name for name in by if name not in DIMENSIONS]:
        raise ValueError(f"cannot group by {unknown[0]!r}; known: {', '.join(DIMENSIONS)}")
    span = snapped(from_s, to_s, BUCKET_S)
    by = tuple(dict.fromkeys(by))
    shared = tuple(name for name in by if name in _OF_ACCOUNT)
    final = _final(connection, span, by)
    accounts = _accounts(connection, span, shared)
    totals = (
        EnergyTotals(*(sum(column) for column in zip(*accounts.values(), strict=True))) if accounts else EnergyTotals()
    )
    request_qualities_mj: dict[str, int] = {}
    for of_key in final.values():
        for quality, energy_mj in of_key.qualities_mj.items():
            request_qualities_mj[quality] = request_qualities_mj.get(quality, 0) + energy_mj
    make = _account_groups if shared == by else _request_groups
    return EnergyTable(
        *span,
        totals=replace(totals, pending_mj=totals.requests_mj - sum(request_qualities_mj.values())),
        qualities_mj=dict(connection.execute(_DEVICE_QUALITIES, span)),
        request_qualities_mj=request_qualities_mj,
        groups=make(by, shared, final, accounts) if by else (),
    )


def _account_groups(
    by: tuple[str, ...], _shared: tuple[str, ...], final: Mapping[_Key, _Final], accounts: Mapping[_Key, _Sums]
) -> tuple[EnergyGroup, ...]:
    groups = []
    for key in sorted(accounts.keys() | final.keys()):
        of_key = final.get(key, _Final())
        device_mj, requests_mj, idle_mj, unattributed_mj, estimated_mj = accounts.get(key, (0, 0, 0, 0, 0))
        groups.append(
            EnergyGroup(
                keys=dict(zip(by, key, strict=True)),
                requests=of_key.requests,
                requests_mj=requests_mj,
                qualities_mj=of_key.qualities_mj,
                pending_mj=requests_mj - of_key.energy_mj,
                device_mj=device_mj,
                idle_mj=idle_mj,
                unattributed_mj=unattributed_mj,
                estimated_mj=estimated_mj,
            )
        )
    return tuple(groups)


def _request_groups(
    by: tuple[str, ...], shared: tuple[str, ...], final: Mapping[_Key, _Final], accounts: Mapping[_Key, _Sums]
) -> tuple[EnergyGroup, ...]:
    groups = []
    pending_mj = {key: sums[1] for key, sums in accounts.items()}
    for key, of_key in final.items():
        keys = dict(zip(by, key, strict=True))
        groups.append(EnergyGroup(keys, of_key.requests, of_key.energy_mj, of_key.qualities_mj))
        place = tuple(keys[name] for name in shared)
        pending_mj[place] = pending_mj.get(place, 0) - of_key.energy_mj
    for place, energy_mj in pending_mj.items():
        if energy_mj:
            keys = dict.fromkeys(by) | dict(zip(shared, place, strict=True))
            groups.append(EnergyGroup(keys, 0, energy_mj, {}, pending_mj=energy_mj, pending=True))
    return tuple(groups)


def _final(connection: sqlite3.Connection, span: tuple[int, int], by: Sequence[str]) -> dict[_Key, _Final]:
    numbers = ", ".join(str(number) for number in range(1, len(by) + 2))
    columns = (*(_OF_SHARE[name] for name in by), "e.quality", "sum(s.energy_mj)", "count(DISTINCT s.seq)")
    tables = "FROM shares s JOIN entries e USING (seq)" + _names_for(by)
    final: dict[_Key, _Final] = {}
    for *key, quality, energy_mj, requests in connection.execute(
        select(columns, f"{tables} WHERE {_WITHIN} GROUP BY {numbers} ORDER BY {numbers}"), span
    ):
        of_key = final.setdefault(tuple(key), _Final())
        of_key.requests += requests
        of_key.qualities_mj[quality] = energy_mj
    return final


def _accounts(connection: sqlite3.Connection, span: tuple[int, int], by: Sequence[str]) -> dict[_Key, _Sums]:
    numbers = ", ".join(str(number) for number in range(1, len(by) + 1))
    order = f"GROUP BY {numbers} ORDER BY {numbers}" if numbers else ""
    columns = (*(_OF_ACCOUNT[name] for name in by), *_SUMS)
    rows = connection.execute(select(columns, f"FROM accounts a{_names_for(by)} WHERE {_WITHIN} {order}"), span)
    return {tuple(row[:-5]): row[-5:] for row in rows if row[-1] is not None}


def _names_for(by: Sequence[str]) -> str:
    return " JOIN devices d USING (device)" if "device" in by else ""


def hours_between(connection: sqlite3.Connection, from_s: float, to_s: float) -> tuple[HourAccount, ...]:
    """Accounts by hour and device for the whole hours that the range touches."""
    span = snapped(from_s, to_s, S_PER_HOUR)
    columns = (_OF_ACCOUNT["hour"], "d.id", "quality", "sum(device_mj)")
    tables = "FROM accounts a JOIN devices d USING (device)"
    qualities_mj: dict[_Key, dict[str, int]] = {}
    for hour_s, device, quality, device_mj in connection.execute(
        select(columns, f"{tables} WHERE {_WITHIN} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"), span
    ):
        qualities_mj.setdefault((hour_s, device), {})[quality] = device_mj
    return tuple(
        HourAccount(device, hour_s, qualities_mj[hour_s, device], *sums)
        for (hour_s, device), sums in _accounts(connection, span, ("hour", "device")).items()
    )

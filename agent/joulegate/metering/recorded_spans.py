"""The log of requests as spans: batches become one span each, and starts that are missing are inferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from joulegate.metering.queueing import infer_starts
from joulegate.metering.span import Member, StartSource, Work


class SpanLike(Protocol):
    """One request of the log."""

    @property
    def request_id(self) -> str: ...  # noqa: D102

    @property
    def devices(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def start_s(self) -> float | None: ...  # noqa: D102

    @property
    def end_s(self) -> float: ...  # noqa: D102

    @property
    def power_class(self) -> str: ...  # noqa: D102

    @property
    def images(self) -> int | None: ...  # noqa: D102

    @property
    def steps(self) -> int | None: ...  # noqa: D102

    @property
    def width(self) -> int | None: ...  # noqa: D102

    @property
    def height(self) -> int | None: ...  # noqa: D102

    @property
    def batch_id(self) -> str | None: ...  # noqa: D102

    @property
    def arrived_s(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Group:
    """One span: a request, or the members of a batch, ordered by request id."""

    span_id: str
    devices: tuple[str, ...]
    start_s: float
    end_s: float
    power_class: str
    members: tuple[Member, ...]
    start_source: StartSource
    arrivals_s: tuple[float | None, ...]


def group_spans(spans: Sequence[SpanLike], slots: int | None) -> list[Group]:
    """Requests and batches as spans, sorted by start and id, with missing starts inferred for ``slots`` workers."""
    rows_of = _rows_by_span(spans)
    starts = _starts(rows_of, slots)
    works: dict[tuple[int | None, ...], Work] = {}
    groups = []
    for span_id, rows in rows_of.items():
        first = rows[0]
        members = []
        for row in rows:
            asked = (row.images, row.steps, row.width, row.height)
            work = works.get(asked) or works.setdefault(asked, Work(*asked))
            members.append(Member(row.request_id, work))
        groups.append(
            Group(
                span_id,
                first.devices,
                starts[span_id],
                first.end_s,
                first.power_class,
                tuple(members),
                StartSource.FIFO if first.start_s is None else StartSource.DECLARED,
                tuple([row.arrived_s for row in rows]),
            )
        )
    groups.sort(key=lambda group: (group.start_s, group.span_id))
    return groups


def _rows_by_span(spans: Sequence[SpanLike]) -> dict[str, list[SpanLike]]:
    rows_of: dict[str, list[SpanLike]] = {}
    batches: set[str] = set()
    for span in spans:
        if span.batch_id is None:
            rows_of[f"r{span.request_id}"] = [span]
        else:
            key = f"b{span.batch_id}"
            rows_of.setdefault(key, []).append(span)
            batches.add(key)
    for key in batches:
        rows_of[key].sort(key=lambda row: row.request_id)
    return rows_of


def _starts(rows_of: Mapping[str, list[SpanLike]], slots: int | None) -> Mapping[str, float]:
    """Start of each span; where it is missing, a FIFO server with ``slots`` workers behind each set of devices."""
    starts: dict[str, float] = {}
    lacking: set[tuple[str, ...]] = set()
    for key, rows in rows_of.items():
        start_s = rows[0].start_s
        if start_s is None:
            lacking.add(tuple(sorted(rows[0].devices)))
        else:
            starts[key] = start_s
    servers: dict[tuple[str, ...], list[str]] = {server: [] for server in lacking}
    if lacking:
        for key, rows in rows_of.items():
            servers.get(tuple(sorted(rows[0].devices)), []).append(key)
    for keys in servers.values():
        keys.sort()
        arrivals = [_arrival(rows_of[key]) for key in keys]
        ends = [rows_of[key][0].end_s for key in keys]
        known = [starts.get(key) for key in keys]
        starts |= dict(zip(keys, infer_starts(arrivals, ends, slots or 1, known), strict=True))
    return starts


def _arrival(rows: Sequence[SpanLike]) -> float:
    """A batch is complete when its last member has arrived."""
    known = [row.arrived_s for row in rows if row.arrived_s is not None]
    if known:
        return max(known)
    start_s = rows[0].start_s
    return rows[0].end_s if start_s is None else start_s

"""Reading the answers of providers: every member is checked, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from joulegate.sources.grid.fault import FaultKind, GridFault
from joulegate.sources.grid.intensity import Intensity
from joulegate.sources.grid.series import merged


def malformed(who: str, what: str) -> GridFault:
    """The fault of an answer that is not of the shape that was agreed."""
    return GridFault(FaultKind.MALFORMED, f"{who}: {what}; the answer is not used")


def member(value: Any, name: str, who: str) -> Any:
    """``value[name]`` of a JSON object; raises ``GridFault`` where there is none."""
    if not isinstance(value, Mapping) or name not in value:
        raise malformed(who, f"the answer has no {name}")
    return value[name]


def objects(value: Any, name: str, who: str) -> Sequence[Mapping[str, Any]]:
    """``value[name]`` as a list of objects; raises ``GridFault``."""
    found = member(value, name, who)
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise malformed(who, f"{name} is not a list of objects")
    return found


def number(value: Any, name: str, who: str) -> float:
    """A JSON number; raises ``GridFault`` for text, booleans and null."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(who, f"{name} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise malformed(who, f"{name} is beyond all numbers") from None


def moment_s(value: Any, name: str, who: str) -> float:
    """Unix seconds of an ISO 8601 time with its offset; a time without one is nobody's and raises ``GridFault``."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise malformed(who, f"{name} is not a time") from None
    if moment.tzinfo is None:
        raise malformed(who, f"{name} has no offset from UTC")
    return moment.timestamp()


def optional_moment_s(value: Any, name: str, who: str) -> float | None:
    """As ``moment_s``; ``None`` stays ``None``."""
    return None if value is None else moment_s(value, name, who)


def in_utc(wall_s: float, pattern: str) -> str:
    """Unix seconds as text in UTC, in the provider's pattern."""
    return datetime.fromtimestamp(wall_s, UTC).strftime(pattern)


def require_same(asked: str, answered: object, what: str, who: str) -> None:
    """Raise ``GridFault`` unless the provider answers for what it was asked: never another place's number."""
    if not isinstance(answered, str | int) or str(answered).casefold() != asked.casefold():
        raise GridFault(
            FaultKind.WRONG_ZONE,
            f"{who}: asked for {what} {asked}, answered for {str(answered)[:40]}; not used, check grid.zone",
        )


def in_order(points: Iterable[Intensity], who: str) -> tuple[Intensity, ...]:
    """``points`` by time, see ``merged``; raises ``GridFault`` where there is none: no answer is not a clean grid."""
    ordered = merged(points)
    if not ordered:
        raise GridFault(FaultKind.NO_DATA, f"{who}: the answer holds no figure for the time that was asked for")
    return ordered

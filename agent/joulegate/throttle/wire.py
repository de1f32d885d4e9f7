"""Text: canonical JSON, and memory as plain values and back."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from joulegate.throttle.recommendation import Recommendation


def encode(recommendation: Recommendation) -> str:
    """One line of compact JSON."""
    return canonical(recommendation.wire())


def canonical(value: object) -> str:
    """Compact JSON whose numbers read back to the same bits; raises ``ValueError`` for nan and infinity."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def plain(value: Any) -> Any:
    """A record of records, lists and dicts as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of ``plain`` for annotated records; raises ``ValueError`` where the value does not fit."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        if value is None and type(None) in arguments:
            return None
        return from_plain(next(part for part in arguments if part is not type(None)), value)
    if origin in {dict, Mapping}:
        return {str(key): from_plain(arguments[1], item) for key, item in _checked(dict, value).items()}
    if origin in {list, tuple}:
        items = [from_plain(arguments[0], item) for item in _checked(list, value)]
        return tuple(items) if origin is tuple else items
    return value if kind is Any else _scalar(kind, value)


def _checked(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{value!r:.60} is not {kind.__name__}")
    return value


def _scalar(kind: Any, value: Any) -> Any:
    if issubclass(kind, enum.Enum):
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _checked(kind, value)


def _record(kind: Any, value: Any) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(value, Mapping) or set(value) != names:
        raise ValueError(f"{kind.__name__} does not fit")
    hints = typing.get_type_hints(kind)
    return kind(**{name: from_plain(hints[name], value[name]) for name in names})

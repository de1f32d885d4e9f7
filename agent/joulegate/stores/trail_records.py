"""Records of the audit trail: what was seen, what was recommended, and a hash chain over both.

A trail is JSON Lines of two kinds. A *base* says what the decisions after it rest on: code, configuration, and the
adviser's checkpoint (``None`` for a fresh one). A *decision* holds one observation and the recommendation made of it;
what was not plain JSON is kept as the ``line`` of text that was given. ``hash`` is SHA-256 over the record without it,
as JSON with sorted keys, no spaces and ASCII escapes; ``previous`` is the hash of the record before. Bases stand at the
begin of every segment and every minute or so, so that any long enough part of a trail can be recomputed by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.wire import from_plain, plain

SCHEMA = "joulegate.decisions/v1"
MOST_BRACKETS = 900
"""A line with more of them is kept as text: JSON that is nested about this deep is read or refused by chance."""

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
in_order = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


class Why(StrEnum):
    """Why a base stands where it does."""

    START = "start"
    """A new adviser that knows nothing."""
    RESTORED = "restored"
    """An adviser that went on from an earlier base."""
    CONTINUED = "continued"
    """The same adviser: its checkpoint is what recomputing gives."""
    GAP = "gap"
    """Decisions before it are not in the trail; ``gap`` says how many and why."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the decisions from ``sequence`` on rest on. ``gap`` is set where decisions before it were not written."""

    sequence: int
    why: Why
    code: Mapping[str, str]
    settings: ThrottleSettings
    settings_hash: str
    checkpoint: Mapping[str, Any] | None
    gap: str | None = None

    def members(self) -> dict[str, Any]:
        """Members of the record, but for its place in the chain."""
        return {
            "sequence": self.sequence,
            "kind": "base",
            "schema": SCHEMA,
            "why": self.why.value,
            "gap": self.gap,
            "code": dict(self.code),
            "configuration": plain(self.settings),
            "configuration_hash": self.settings_hash,
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True, slots=True)
class Decided:
    """Decision number ``sequence``: ``observation`` (or ``line``, where that was text) and the JSON that was sent."""

    sequence: int
    recommendation: str
    observation: Any = None
    line: str | None = None

    def members(self) -> dict[str, Any]:
        """Members of the record, but for its place in the chain; raises ``ValueError`` for what is not JSON."""
        given = {"observation": self.observation} if self.line is None else {"line": self.line}
        return {
            "sequence": self.sequence,
            "kind": "decision",
            **given,
            "recommendation": json.loads(self.recommendation),
        }


class Chain:
    """Puts records one after another. ``last`` is the hash of the newest, ``None`` before the first."""

    def __init__(self, last: str | None = None) -> None:
        self.last = last

    def line(self, record: Base | Decided) -> str:
        """The record as a line with its newline, and the chain moved on."""
        members = {**record.members(), "previous": self.last}
        members["hash"] = hash_of(members)
        text = in_order(members)
        self.last = members["hash"]
        return text + "\n"


def hash_of(members: Mapping[str, Any]) -> str:
    """The hash that belongs to a record; raises ``ValueError`` where a number is not finite."""
    without = {name: value for name, value in members.items() if name != "hash"}
    return hashlib.sha256(canonical(without).encode("ascii")).hexdigest()


def decided_of(sequence: int, line: str, recommendation: str) -> Decided:
    """A decision on a line of text: kept as JSON where it is plain JSON, else as the text itself."""
    if line.count("[") + line.count("{") > MOST_BRACKETS:
        return Decided(sequence, recommendation, line=line)
    try:
        observation = json.loads(line)
        in_order(observation)
    except (ValueError, RecursionError):
        return Decided(sequence, recommendation, line=line)
    return Decided(sequence, recommendation, observation)


def settings_of(configuration: object) -> ThrottleSettings:
    """Settings as a base holds them; raises ``ValueError`` for those of another version."""
    settings = from_plain(ThrottleSettings, configuration)
    assert isinstance(settings, ThrottleSettings)
    return settings

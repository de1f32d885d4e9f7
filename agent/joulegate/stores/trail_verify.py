"""A recorded trail, recomputed: is every record where and what it was, and does the same code say the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulegate.stores.trail_records import SCHEMA, Why, canonical, hash_of, in_order, settings_of
from joulegate.throttle.adviser import Adviser, settings_hash
from joulegate.throttle.recommendation import Recommendation
from joulegate.throttle.wire import encode

SHOWN = 80
"""Characters of a value in a line for a person."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of its kind: where it is, and one line about it; ``count`` is how many there are."""

    kind: str
    sequence: int | None
    where: str
    what: str
    count: int = 1


@dataclass(slots=True)
class Outcome:
    """What was found. ``decisions`` were read, of which ``recomputed`` could be made again.

    ``gaps`` are losses that the trail names itself, ``notes`` what a reader should know and is no difference.
    """

    decisions: int = 0
    recomputed: int = 0
    bases: int = 0
    gaps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every decision was made again and nothing differs."""
        return not self.differences and self.recomputed == self.decisions > 0

    def differ(self, kind: str, sequence: int | None, where: str, what: str) -> None:
        """Keep the first difference of each kind and count the rest."""
        first = self.differences.get(kind)
        if first is None:
            self.differences[kind] = Difference(kind, sequence, where, what)
        else:
            self.differences[kind] = Difference(kind, first.sequence, first.where, first.what, first.count + 1)


class Verifier:
    """Takes the records of a trail in order. ``code`` is the code that recomputes, see ``trail_code``."""

    def __init__(self, code: Mapping[str, str], *, configuration_hash: str | None = None) -> None:
        """``configuration_hash`` is what every base must rest on; ``None`` takes what they say."""
        self.outcome = Outcome()
        self._code = code
        self._wanted_hash = configuration_hash
        self._adviser: Adviser | None = None
        self._last_hash: str | None = None
        self._expected: int | None = None
        self._configuration_hash: str | None = None

    def take(self, record: object, where: str) -> None:
        """One record; ``where`` is its file and line."""
        if not isinstance(record, Mapping) or not _has_shape(record):
            self.unreadable(where, "it is not a record of a trail")
            return
        sequence = record["sequence"]
        self._check_chain(record, sequence, where)
        if record["kind"] == "base":
            self.outcome.bases += 1
            self._take_base(record, sequence, where)
        else:
            self.outcome.decisions += 1
            self._take_decision(record, sequence, where)

    def unreadable(self, where: str, why: str) -> None:
        """A line that holds no record; what follows cannot be recomputed until the next base."""
        self.outcome.differ("format", None, where, why)
        self._adviser = None

    def _check_chain(self, record: Mapping[str, Any], sequence: int, where: str) -> None:
        if not _hash_holds(record):
            self.outcome.differ("hash", sequence, where, "the record was changed after it was written")
        if self._last_hash is not None and record["previous"] != self._last_hash:
            what = f"it follows {_short(record['previous'])}, but the record before it is {_short(self._last_hash)}"
            self.outcome.differ("chain", sequence, where, what)
        self._last_hash = record["hash"]
        gap = record.get("gap")
        if self._expected is not None and sequence != self._expected and not (gap and sequence > self._expected):
            what = f"record {self._expected} was expected: records were removed, repeated or put in between"
            self.outcome.differ("sequence", sequence, where, what)
            self._adviser = None
        self._expected = sequence if record["kind"] == "base" else sequence + 1
        if gap:
            self.outcome.gaps.append(f"before {sequence}: {gap}")

    def _take_base(self, record: Mapping[str, Any], sequence: int, where: str) -> None:
        self._note_code(record.get("code"), sequence)
        running, self._adviser = self._adviser, None
        try:
            settings = settings_of(record["configuration"])
            checkpoint = record["checkpoint"]
            self._adviser = Adviser(settings) if checkpoint is None else Adviser.restored(settings, checkpoint)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.outcome.differ("base", sequence, where, f"it cannot be used: {' '.join(str(error).split())}")
            return
        self._check_configuration(settings_hash(settings), record, sequence, where)
        if running is not None and record["why"] == Why.CONTINUED and _json(running.checkpoint()) != _json(checkpoint):
            what = "the model that it holds is not what recomputing gives"
            self.outcome.differ("checkpoint", sequence, where, what)

    def _check_configuration(self, here: str, record: Mapping[str, Any], sequence: int, where: str) -> None:
        recorded = record["configuration_hash"]
        if here != recorded:
            what = f"configuration_hash: recorded {_short(recorded)}, recomputed {_short(here)}"
            self.outcome.differ("configuration", sequence, where, what)
        elif self._wanted_hash is not None and here != self._wanted_hash:
            what = f"recorded with configuration {_short(here)}, the one given is {_short(self._wanted_hash)}"
            self.outcome.differ("configuration", sequence, where, what)
        elif self._configuration_hash not in {None, here}:
            self.outcome.notes.append(f"from {sequence} on with another configuration, {_short(here)}")
        self._configuration_hash = here

    def _note_code(self, code: object, sequence: int) -> None:
        recorded = code if isinstance(code, Mapping) else {}
        others = [
            f"{name} {_short(recorded.get(name))} there, {_short(here)} here"
            for name, here in self._code.items()
            if recorded.get(name) != here
        ]
        note = f"recorded by other code: {'; '.join(others)}"
        if others and note not in {known.partition(" (from ")[0] for known in self.outcome.notes}:
            self.outcome.notes.append(f"{note} (from {sequence} on)")

    def _take_decision(self, record: Mapping[str, Any], sequence: int, where: str) -> None:
        if self._adviser is None:
            return
        recorded = record.get("recommendation")
        again = json.loads(encode(replay(self._adviser, record)))
        self.outcome.recomputed += 1
        if _json(recorded) == _json(again):
            return
        member, was, now = first_difference(recorded, again)
        what = f"{member}: recorded {_shown(was)}, recomputed {_shown(now)}"
        self.outcome.differ("recommendation", sequence, where, what)


def _has_shape(record: Mapping[str, Any]) -> bool:
    members = {"base": ("schema", "why", "configuration", "configuration_hash", "checkpoint")}
    needed = members.get(str(record.get("kind")), ("recommendation",))
    shaped = (
        record.get("kind") in {"base", "decision"}
        and type(record.get("sequence")) is int
        and isinstance(record.get("hash"), str)
        and "previous" in record
        and all(name in record for name in needed)
    )
    return bool(shaped and record.get("schema", SCHEMA) == SCHEMA)


def _hash_holds(record: Mapping[str, Any]) -> bool:
    try:
        return bool(hash_of(record) == record["hash"])
    except (ValueError, RecursionError):
        return False


def _json(value: object) -> str:
    """A value as text in which any difference shows, also that of 1 and 1.0."""
    try:
        return canonical(value)
    except (ValueError, TypeError):
        return repr(value)


def first_difference(recorded: object, recomputed: object, path: str = "") -> tuple[str, object, object]:
    """The path of the first member that differs, and both its values."""
    if isinstance(recorded, Mapping) and isinstance(recomputed, Mapping):
        for name in (*recorded, *(name for name in recomputed if name not in recorded)):
            was, now = recorded.get(name), recomputed.get(name)
            if _json(was) != _json(now) or (name in recorded) != (name in recomputed):
                return first_difference(was, now, f"{path}.{name}" if path else str(name))
    if isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for index, (was, now) in enumerate(zip(recorded, recomputed, strict=True)):
            if _json(was) != _json(now):
                return first_difference(was, now, f"{path}[{index}]")
    return path or "recommendation", recorded, recomputed


def _shown(value: object) -> str:
    try:
        text = in_order(value)
    except (ValueError, TypeError):
        text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) > 40 else text


def model_before(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The adviser's checkpoint before the last of these records, which begin with a base; ``None`` if it is not had."""
    base, *decisions, _ = records if len(records) > 1 else (None, None)
    if base is None or base["kind"] != "base":
        return None
    try:
        settings, checkpoint = settings_of(base["configuration"]), base["checkpoint"]
        adviser = Adviser(settings) if checkpoint is None else Adviser.restored(settings, checkpoint)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    for record in decisions:
        replay(adviser, record)
    return adviser.checkpoint()


def replay(adviser: Adviser, record: Mapping[str, Any]) -> Recommendation:
    """Give the adviser what a recorded decision was made of."""
    line = record.get("line")
    return adviser.advise(record.get("observation")) if line is None else adviser.advise_line(str(line))

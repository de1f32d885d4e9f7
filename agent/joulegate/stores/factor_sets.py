"""Factor sets as files: the one that ships with the package, those of the state folder, and which of them is pinned.

A set is a JSON file with one factor a line, ``<id>.json``; it is written once and never changed. ``pinned.json`` beside
them names the set in use. Without it the shipped set is used.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from joulegate.carbon.factors import SCHEMA, FactorSet, factor_from_wire

FOLDER = "factors"
PIN_FILE = "pinned.json"
SHIPPED = "shipped"
SHIPPED_FILE = "factors.json"
HASH_PREFIX_MIN = 6
_FILE_MAX_BYTES = 64 * 1024 * 1024


class FactorSetFault(Exception):
    """A factor set cannot be read, written or found; the text is one line: what, where and what to do."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A set and where it lies; ``path`` is ``None`` for the shipped one."""

    factors: FactorSet
    path: Path | None
    pinned: bool


def rendered(factors: FactorSet) -> str:
    """The file's text: a header and one factor a line, so that two sets can also be compared with ``diff``."""
    header = {
        "schema": SCHEMA,
        "id": factors.id,
        "name": factors.name,
        "hash": factors.hash,
        "built_at": factors.built_at,
        "generator": factors.generator,
        "left_out": list(factors.left_out),
    }
    head = json.dumps(header, ensure_ascii=False, indent=1)[:-2]
    rows = ",\n".join(json.dumps(factor.to_wire(), ensure_ascii=False, sort_keys=True) for factor in factors.factors)
    return f'{head},\n "factors": [\n{rows}\n ]\n}}\n'


def parsed(text: str, where: str) -> FactorSet:
    """The set of a file's text. Raises ``FactorSetFault`` when it is not one, or is not what its hash says."""
    try:
        document: Any = json.loads(text)
        if document["schema"] != SCHEMA:
            raise FactorSetFault(
                f"{where}: this is a set of schema {document['schema']}, this joulegate reads {SCHEMA}; build it again"
            )
        factors = FactorSet.of(
            document["name"],
            [factor_from_wire(row) for row in document["factors"]],
            built_at=document["built_at"],
            generator=document["generator"],
            left_out=document["left_out"],
        )
        promised = document["hash"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FactorSetFault(
            f"{where}: not a factor set ({type(error).__name__}: {_one_line(error)}); "
            "give a file that `joulegate factors build` wrote"
        ) from error
    if factors.hash != promised:
        raise FactorSetFault(
            f"{where}: the factors were changed after they were built (hash {factors.hash[:12]}, "
            f"the file says {str(promised)[:12]}); build the set again"
        )
    return factors


def read_set(path: Path) -> FactorSet:
    """The set in ``path``; raises ``FactorSetFault``."""
    try:
        if path.stat().st_size > _FILE_MAX_BYTES:
            raise FactorSetFault(
                f"{path}: too large for a factor set; give a file that `joulegate factors build` wrote"
            )
        return parsed(path.read_bytes().decode("utf-8"), str(path))
    except OSError as error:
        raise FactorSetFault(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise FactorSetFault(f"{path}: not a factor set (no UTF-8 text)") from error


@cache
def shipped_set() -> FactorSet:
    """The set that came with the package, read once per process."""
    text = files("joulegate.stores").joinpath("data", SHIPPED_FILE).read_text(encoding="utf-8")
    return parsed(text, f"the shipped {SHIPPED_FILE}")


def write_set(factors: FactorSet, path: Path) -> None:
    """Write the set to ``path`` in one step; raises ``FactorSetFault`` with nothing written."""
    _write(path, rendered(factors))


class FactorSets:
    """The sets that a state folder knows, and the choice among them."""

    def __init__(self, state_dir: Path) -> None:
        """Look below ``state_dir``; nothing is read or created yet."""
        self.folder = state_dir / FOLDER

    def path_of(self, factors: FactorSet) -> Path:
        """Where the set lies or would lie."""
        return self.folder / f"{factors.id}.json"

    def save(self, factors: FactorSet) -> Path:
        """Keep the set; one that is there already stays as it is. Returns its path; raises ``FactorSetFault``."""
        path = self.path_of(factors)
        if path.exists():
            read_set(path)
            return path
        _write(path, rendered(factors))
        return path

    def known(self) -> tuple[KnownSet, ...]:
        """The shipped set and those of the folder, by name; raises ``FactorSetFault`` for a file that is none."""
        pinned = self.pinned_hash()
        found = {shipped_set().hash: KnownSet(shipped_set(), None, pinned in (None, shipped_set().hash))}
        for path in self._paths():
            factors = read_set(path)
            found.setdefault(factors.hash, KnownSet(factors, path, pinned == factors.hash))
        return tuple(found.values())

    def find(self, reference: str) -> FactorSet:
        """The set meant by ``shipped``, an id, the beginning of a hash, or a file; raises ``FactorSetFault``."""
        if reference == SHIPPED:
            return shipped_set()
        matches = [known.factors for known in self.known() if _means(reference, known.factors)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise FactorSetFault(f"{reference}: more than one set begins so; give the whole id")
        if Path(reference).is_file():
            return read_set(Path(reference))
        names = ", ".join([SHIPPED, *(known.factors.id for known in self.known())])
        raise FactorSetFault(f"{reference}: no such factor set or file; known are {names}")

    def by_hash(self, digest: str) -> FactorSet | None:
        """The set with exactly this hash, as entries refer to it, or ``None`` when it is not here."""
        return next((known.factors for known in self.known() if known.factors.hash == digest), None)

    def in_use(self) -> FactorSet:
        """The pinned set, else the shipped one. Raises ``FactorSetFault`` when the pinned one is gone."""
        digest = self.pinned_hash()
        if digest is None:
            return shipped_set()
        found = self.by_hash(digest)
        if found is None:
            raise FactorSetFault(
                f"{self.folder / PIN_FILE}: the pinned set {digest[:12]} is not in {self.folder}; "
                "bring its file back or run `joulegate factors pin --clear`"
            )
        return found

    def pin(self, factors: FactorSet) -> None:
        """Use ``factors`` from now on; it is kept in the folder first. Raises ``FactorSetFault``."""
        if factors.hash != shipped_set().hash:
            self.save(factors)
        _write(self.folder / PIN_FILE, json.dumps({"hash": factors.hash, "id": factors.id}) + "\n")

    def clear_pin(self) -> bool:
        """Use the shipped set again; whether there was a pin."""
        path = self.folder / PIN_FILE
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FactorSetFault(f"{path}: cannot be removed ({error.strerror or error})") from error
        return True

    def pinned_hash(self) -> str | None:
        """The hash in the pin file, or ``None``; raises ``FactorSetFault`` when the file is damaged."""
        path = self.folder / PIN_FILE
        try:
            digest = json.loads(path.read_bytes())["hash"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FactorSetFault(f"{path}: cannot be read ({error.strerror or error}); check its owner") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FactorSetFault(f"{path}: damaged; run `joulegate factors pin --clear`") from error
        return str(digest)

    def _paths(self) -> Sequence[Path]:
        try:
            return sorted(path for path in self.folder.glob("*.json") if path.name != PIN_FILE)
        except OSError as error:
            raise FactorSetFault(f"{self.folder}: cannot be read ({error.strerror or error})") from error


def _means(reference: str, factors: FactorSet) -> bool:
    return reference == factors.id or (len(reference) >= HASH_PREFIX_MIN and factors.hash.startswith(reference))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _write(path: Path, text: str) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise FactorSetFault(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)

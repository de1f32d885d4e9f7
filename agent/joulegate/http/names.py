"""Names from outside as label values: of bounded number and length, and always encodable."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
"""The label value that stands for all names beyond the bound."""
MAX_NAME_LENGTH = 120


class BoundedNames:
    """The first ``bound`` names keep their own label value, all later ones share ``other``.

    A name keeps what it was given for as long as the agent lives, so that a counter never moves to another series.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._kept: set[str] = set()

    def label(self, name: str) -> str:
        """The label value of ``name``."""
        value = clean(name)
        if value not in self._kept and len(self._kept) < self._bound:
            self._kept.add(value)
        return value if value in self._kept else OTHER

    def folded(self, names: Iterable[str]) -> int:
        """How many of ``names`` share ``other`` because of the bound."""
        return len({clean(name) for name in names} - self._kept)


def clean(name: str) -> str:
    """``name`` as a label value: encodable, of bounded length."""
    return name.encode("utf-8", "replace").decode("utf-8")[:MAX_NAME_LENGTH]

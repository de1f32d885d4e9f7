"""SQL made of the column names that this package itself defines; values are always bound, never written into it."""

from __future__ import annotations

from collections.abc import Iterable


def insert(table: str, columns: Iterable[str], *, verb: str = "INSERT") -> str:
    """``INSERT`` (or another ``verb``) of one row with a placeholder for each column."""
    names = tuple(columns)
    return " ".join((verb, "INTO", table, f"({', '.join(names)})", "VALUES", f"({', '.join('?' * len(names))})"))


def select(columns: Iterable[str], rest: str, *, of: str = "") -> str:
    """``SELECT`` of ``columns``, each of the table alias ``of``, and the ``rest`` from ``FROM`` on."""
    return " ".join(("SELECT", ", ".join(f"{of}{name}" for name in columns), rest))

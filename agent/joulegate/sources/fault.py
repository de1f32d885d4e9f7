"""The one exception that sources raise to their caller."""

from __future__ import annotations


class SourceFault(Exception):
    """A source cannot be used; the text is one line for a person: what, where, and what to do."""

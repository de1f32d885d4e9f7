"""How an example stands at the foot of a help text."""

from __future__ import annotations


def example(*lines: str) -> str:
    """An epilog with one shell line an argument."""
    # \b keeps the help formatter from joining the lines into a paragraph.
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)

"""A parser of the part of RFC 9651 that the RateLimit fields use: lists of strings with integer parameters."""

from __future__ import annotations

import re

STRING = re.compile(r'"((?:[\x20-\x21\x23-\x5B\x5D-\x7E]|\\["\\])*)"')
PARAMETER = re.compile(r"; *([a-z*][a-z0-9_\-.*]*)=(-?[0-9]{1,15})(?![0-9.])")
SEPARATOR = re.compile(r"[ \t]*,[ \t]*(?=.)")

Item = tuple[str, dict[str, int]]


def parse_list(field: str) -> list[Item]:
    """Items of a List (RFC 9651, 4.2.1): text and parameters; raises ValueError for what is not one."""
    items: list[Item] = []
    at = 0
    while True:
        text = STRING.match(field, at)
        if text is None:
            raise ValueError(f"no String at {at} of {field!r}")
        at = text.end()
        parameters: dict[str, int] = {}
        while parameter := PARAMETER.match(field, at):
            parameters[parameter[1]] = int(parameter[2])
            at = parameter.end()
        items.append((re.sub(r"\\(.)", r"\1", text[1]), parameters))
        if at == len(field):
            return items
        separator = SEPARATOR.match(field, at)
        if separator is None:
            raise ValueError(f"neither comma nor end at {at} of {field!r}")
        at = separator.end()

"""What is served of the newest recommendation by path: whole answers with their headers, made once a recommendation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from joulegate.http.envelope import HEADERS
from joulegate.http.problems import Problem, unavailable
from joulegate.http.throttle_bytes import part_etag
from joulegate.http.throttle_ports import Prepared, ThrottleReader

ROOT = "/v1/throttle"
TIERS = f"{ROOT}/tiers/"
SCALE = f"{ROOT}/scale"
CACHING = "max-age=5, must-revalidate"
"""A client reads again after the time that the plan assumes; a stale permit is unsafe, so none may be served late."""

MAX_TIERS_NAMED = 20
MAX_SHOWN = 100
_MAX_TAGS_BYTES = 8192
_TAG = re.compile(rb'"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class Page:
    """One answer and its 304, ready to be sent any number of times; nobody changes them."""

    etag: bytes
    whole: Response
    unchanged: Response

    def answer(self, tags: bytes | None) -> Response:
        """What a request gets whose ``If-None-Match`` is ``tags``."""
        return self.unchanged if tags is not None and matches(self.etag, tags) else self.whole


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of one recommendation by their (decoded) path."""

    prepared: Prepared
    by_path: Mapping[str, Page]

    def tier(self, name: str) -> Page:
        """The page of a tier; raises the 404 problem that names those there are."""
        page = self.by_path.get(TIERS + name)
        if page is None:
            raise _unknown_tier(name, self.prepared.tiers)
        return page


class Desk:
    """Gives the pages of the newest recommendation; they are made when it is first asked for."""

    def __init__(self, reader: ThrottleReader) -> None:
        self._reader = reader
        self._pages: Pages | None = None

    def newest(self) -> Pages | None:
        """The pages, or ``None`` before the first recommendation."""
        prepared, pages = self._reader.newest(), self._pages
        if prepared is None:
            return None
        if pages is None or pages.prepared is not prepared:
            pages = self._pages = pages_of(prepared)
        return pages

    def present(self) -> Pages:
        """The pages; raises a 503 problem before the first recommendation."""
        pages = self.newest()
        if pages is None:
            raise unavailable("no-recommendation", "no recommendation has been made yet; the agent is starting", 1.0)
        return pages


def pages_of(prepared: Prepared) -> Pages:
    """Every page of ``prepared``."""
    pages = {
        ROOT: _page(prepared.etag, prepared.body),
        SCALE: _page(part_etag(prepared.decision_id, "scale"), prepared.scale),
    }
    for name, body in prepared.tiers.items():
        pages[TIERS + name] = _page(part_etag(prepared.decision_id, f"tiers/{name}"), body)
    return Pages(prepared, pages)


def matches(etag: bytes, tags: bytes) -> bool:
    """Whether ``tags``, the value of If-None-Match, names ``etag`` (RFC 9110, 13.1.2: ``W/`` makes no difference).

    What is no list of tags, or too long to be one, matches nothing: the answer is then whole.
    """
    if tags == etag:
        return True
    if len(tags) > _MAX_TAGS_BYTES:
        return False
    return tags.strip() == b"*" or etag in _TAG.findall(tags)


def tags_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The value of If-None-Match, its lines joined; ``None`` without one."""
    lines = [value for name, value in headers if name == b"if-none-match"]
    return b", ".join(lines) if lines else None


def _page(etag: bytes, body: bytes) -> Page:
    headers = {**HEADERS, "Cache-Control": CACHING, "ETag": etag.decode("ascii")}
    return Page(etag, Response(body, 200, headers, "application/json"), Response(None, 304, headers))


def _unknown_tier(name: str, known: Iterable[str]) -> Problem:
    names = sorted(known)
    listed = ", ".join(each[:MAX_SHOWN] for each in names[:MAX_TIERS_NAMED]) or "none"
    more = f" and {len(names) - MAX_TIERS_NAMED} more" if len(names) > MAX_TIERS_NAMED else ""
    return Problem(404, "unknown-tier", f"no tier {name[:MAX_SHOWN]!r} here; the tiers are: {listed}{more}")

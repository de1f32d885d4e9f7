"""The newest recommendation and a few before it, for everybody who asks; published from the adviser's thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from joulegate.http.throttle_bytes import prepare
from joulegate.http.throttle_ports import Prepared
from joulegate.throttle.silence import silent

KEPT = 64


class Board:
    """Implements ``http.throttle_ports.ThrottleReader``: reading is one load of a reference.

    What is kept is a tuple that is replaced whole, so that readers need no lock. Whoever waits shares one future of the
    server's loop; ``publish`` only asks that loop to resolve it. ``clock`` is that of ``Prepared.made_s``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._silent: Prepared | None = None
        self._kept: tuple[Prepared, ...] = ()
        self._next: asyncio.Future[None] = loop.create_future()

    def publish(self, prepared: Prepared) -> None:
        """Show a new one; from any one thread, while the loop is open."""
        self._kept = (*self._kept, prepared)[-KEPT:]
        self._loop.call_soon_threadsafe(self._wake)

    def newest(self) -> Prepared | None:
        """The newest one, or ``None`` before the first; once its time to live is over, what it is worth then."""
        kept = self._kept
        if not kept:
            return None
        newest = kept[-1]
        age_s = self._clock() - newest.made_s
        return newest if age_s <= newest.recommendation.ttl_s else self._outlived(newest, age_s)

    def _outlived(self, newest: Prepared, age_s: float) -> Prepared:
        """Prepared once for each that was outlived, so that a silent adviser costs its readers nothing."""
        if self._silent is None or self._silent.sequence != newest.sequence:
            self._silent = prepare(silent(newest.recommendation, age_s), newest.sequence, newest.made_s)
        return self._silent

    def after(self, sequence: int) -> Sequence[Prepared]:
        """The kept ones later than ``sequence``, oldest first."""
        return tuple(prepared for prepared in self._kept if prepared.sequence > sequence)

    async def changed(self, sequence: int, timeout_s: float) -> Prepared | None:
        """Wait for one later than ``sequence`` and give the newest; ``None`` after ``timeout_s`` seconds."""
        until_s = self._loop.time() + timeout_s
        while True:
            newest = self.newest()
            if newest is not None and newest.sequence > sequence:
                return newest
            left_s = until_s - self._loop.time()
            if left_s <= 0.0:
                return None
            await asyncio.wait((self._next,), timeout=left_s)

    def _wake(self) -> None:
        waited_for, self._next = self._next, self._loop.create_future()
        waited_for.set_result(None)

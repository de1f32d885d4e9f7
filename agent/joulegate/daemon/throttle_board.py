"""The newest recommendation and a few before it, for everybody who asks; published from the adviser's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from joulegate.http.throttle_ports import Prepared

KEPT = 64


class Board:
    """Implements ``http.throttle_ports.ThrottleReader``: reading is one load of a reference.

    What is kept is a tuple that is replaced whole, so that readers need no lock. Whoever waits shares one future of the
    server's loop; ``publish`` only asks that loop to resolve it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._kept: tuple[Prepared, ...] = ()
        self._next: asyncio.Future[None] = loop.create_future()

    def publish(self, prepared: Prepared) -> None:
        """Show a new one; from any one thread, while the loop is open."""
        self._kept = (*self._kept, prepared)[-KEPT:]
        self._loop.call_soon_threadsafe(self._wake)

    def newest(self) -> Prepared | None:
        """The newest one, or ``None`` before the first."""
        kept = self._kept
        return kept[-1] if kept else None

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

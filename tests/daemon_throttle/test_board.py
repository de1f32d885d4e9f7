"""The board: newest, kept and awaited recommendations, published from another thread."""

from __future__ import annotations

import asyncio
import threading
import time

from joulegate.daemon.throttle_board import KEPT, Board
from joulegate.http.throttle_bytes import prepare
from joulegate.throttle.adviser import Adviser
from joulegate.throttle.settings import ThrottleSettings

RECOMMENDATION = Adviser(ThrottleSettings()).advise(None)


def prepared(sequence: int):
    """One with this number."""
    return prepare(RECOMMENDATION, sequence, 0.0)


async def test_the_newest_and_those_before():
    """None before the first; the newest at once; the last 64 are kept, oldest first."""
    board = Board(asyncio.get_running_loop())
    assert board.newest() is None
    assert board.after(0) == ()
    for sequence in range(1, KEPT + 11):
        board.publish(prepared(sequence))
    assert board.newest().sequence == KEPT + 10
    assert [one.sequence for one in board.after(0)] == list(range(11, KEPT + 11))
    assert [one.sequence for one in board.after(KEPT + 8)] == [KEPT + 9, KEPT + 10]


async def test_whoever_waits_is_woken_from_another_thread():
    """All who wait get the newest as soon as there is one later than what they know, and none sooner."""
    board = Board(asyncio.get_running_loop())
    board.publish(prepared(1))
    waiting = [asyncio.create_task(board.changed(sequence, 20.0)) for sequence in (0, 1, 1, 2)]
    assert (await waiting[0]).sequence == 1
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting[1:])
    threading.Thread(target=board.publish, args=(prepared(2),)).start()
    assert [(await task).sequence for task in waiting[1:3]] == [2, 2]
    assert not waiting[3].done()
    threading.Thread(target=board.publish, args=(prepared(3),)).start()
    assert (await waiting[3]).sequence == 3


async def test_waiting_ends():
    """After the timeout there is none; no waiting at all is possible too; and one who gives up disturbs nobody."""
    board = Board(asyncio.get_running_loop())
    assert await board.changed(0, 0.0) is None
    assert await board.changed(0, 0.01) is None
    gives_up, stays = (asyncio.create_task(board.changed(0, 20.0)) for _ in range(2))
    await asyncio.sleep(0)
    gives_up.cancel()
    await asyncio.gather(gives_up, return_exceptions=True)
    board.publish(prepared(1))
    assert (await stays).sequence == 1


async def test_no_wake_up_is_missed():
    """A reader that follows a fast writer ends at the newest, whatever the order in which the threads run."""
    board, last = Board(asyncio.get_running_loop()), 300

    def write() -> None:
        for sequence in range(1, last + 1):
            board.publish(prepared(sequence))
            if sequence % 50 == 0:
                time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while seen < last:
        newest = await board.changed(seen, 20.0)
        assert newest.sequence > seen
        seen = newest.sequence
    writer.join()

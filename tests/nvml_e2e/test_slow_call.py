"""A driver that is slow for one board: what it may cost the others, and what a pause in the polls may not teach."""

from __future__ import annotations

import itertools
import time

import pytest
from tests.nvml.client import Client
from tests.nvml.stand_in import StandIn

from joulegate.sources.nvml.selfcheck import CounterCheck

FIELDS = "nvmlDeviceGetFieldValues"
SLOW_S = 2.5


def test_a_call_that_takes_long_keeps_no_other_board_waiting(stand_in: StandIn):
    """Within its allowance a slow call is no fault of its board, and the other board has no hole in its readings."""
    slow, other = stand_in.add("h100"), stand_in.add("h100")
    with Client(stand_in.environment) as client:
        client.open()
        client.until(lambda: client.up(stand_in.uuid(slow)))
        stand_in.hang(slow, FIELDS, int(SLOW_S * 1000))
        time.sleep(1.0)
        readings = client.drain()
        time.sleep(SLOW_S)
        stand_in.hang(slow, FIELDS, 0)
        readings += client.until(lambda: [*client.drain()])
        assert client.until(lambda: client.up(stand_in.uuid(slow)))
        assert client.ask("errors") == {}
    times_s = [reading["t_s"] for reading in readings if reading["device"] == stand_in.uuid(other)]
    assert all(reading["up"] for reading in readings)
    assert max(after - before for before, after in itertools.pairwise(times_s)) < 0.8 * SLOW_S


@pytest.mark.parametrize("pause_at_s", [0.2, 1.0, 1.4, 1.55, 3.0])
def test_a_pause_in_the_polls_is_no_reason_to_doubt_a_counter(pause_at_s: float):
    """Polls that pause for most of a second at any moment leave an honest counter agreeing with its power."""
    check, verdicts = CounterCheck(), []
    for poll in range(400):
        t_s = poll * 0.05 + (0.8 if poll * 0.05 > pause_at_s else 0.0)
        verdict = check.observe(t_s, int(max(0.0, (t_s - 0.1) // 0.1) * 0.1 * 100_000), 100.0)
        verdicts += [] if verdict is None else [verdict]
    assert len(verdicts) >= 2
    assert all(verdict.agrees for verdict in verdicts), [str(verdict) for verdict in verdicts]


def test_a_lying_counter_is_found_out_all_the_same():
    """A counter that gains 0.57 of the energy is found out within two seconds of even polls."""
    check = CounterCheck()
    verdicts = [
        check.observe(poll * 0.05, int(max(0.0, (poll * 0.05 - 0.1) // 0.1) * 0.1 * 57_000), 100.0)
        for poll in range(42)
    ]
    assert [verdict.agrees for verdict in verdicts if verdict is not None] == [False]

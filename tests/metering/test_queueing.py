"""Inferred starts against a server that is simulated event by event."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.queueing import infer_starts

JOBS = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 80)), min_size=1, max_size=60)


def served(jobs: list[tuple[int, int]], slots: int) -> tuple[list[float], list[float], list[float]]:
    """Arrivals, starts and ends of a first-in-first-out server, second by second."""
    order = sorted(range(len(jobs)), key=lambda i: jobs[i][0])
    starts, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    waiting, running, t = list(order), [], 0
    while waiting:
        running = [i for i in running if ends[i] > t]
        while waiting and len(running) < slots and jobs[waiting[0]][0] <= t:
            index = waiting.pop(0)
            starts[index], ends[index] = float(t), float(t + jobs[index][1])
            running.append(index)
        t += 1
    return [float(arrival) for arrival, _ in jobs], starts, ends


@given(JOBS, st.integers(1, 5))
def test_starts_of_a_fifo_server_are_found_exactly(jobs: list[tuple[int, int]], slots: int) -> None:
    """From arrivals and ends alone every start of a FIFO server with any number of slots comes back.

    Requests that arrive in the same second may be served in either order; their starts are the same as a set.
    """
    arrivals, starts, ends = served(jobs, slots)
    found = infer_starts(arrivals, ends, slots)
    by_arrival: dict[float, tuple[list[float], list[float]]] = {}
    for arrival, start, guess in zip(arrivals, starts, found, strict=True):
        true_starts, guesses = by_arrival.setdefault(arrival, ([], []))
        true_starts.append(start)
        guesses.append(guess)
    for true_starts, guesses in by_arrival.values():
        assert sorted(guesses) == sorted(true_starts)


@given(JOBS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(jobs: list[tuple[int, int]], slots: int, random: object) -> None:
    """Any order of the requests gives each of them the same start."""
    arrivals, _, ends = served(jobs, slots)
    plain = infer_starts(arrivals, ends, slots)
    places = list(range(len(jobs)))
    random.shuffle(places)  # type: ignore[attr-defined]
    mixed = infer_starts([arrivals[i] for i in places], [ends[i] for i in places], slots)
    pairs = sorted((arrivals[i], ends[i], start) for i, start in zip(places, mixed, strict=True))
    assert pairs == sorted(zip(arrivals, ends, plain, strict=True))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=40), st.integers(1, 3))
def test_start_lies_between_arrival_and_end(times: list[tuple[float, float]], slots: int) -> None:
    """On any log, also of a server that is not FIFO, a start is never before the arrival nor after the end."""
    arrivals, ends = [min(pair) for pair in times], [max(pair) for pair in times]
    for arrival, end, start in zip(arrivals, ends, infer_starts(arrivals, ends, slots), strict=True):
        assert arrival <= start <= end


def test_known_starts_are_kept_and_hold_their_slot() -> None:
    """A start that is given is not inferred, and the next request waits for its end."""
    assert infer_starts([0.0, 1.0, 2.0], [5.0, 9.0, 12.0], 1, [None, 6.0, None]) == [0.0, 6.0, 9.0]
    assert infer_starts([0.0, 1.0, 2.0], [5.0, 9.0, 12.0], 2) == [0.0, 1.0, 5.0]


@pytest.mark.parametrize("slots", [1, 7])
def test_no_request(slots: int) -> None:
    """An empty log has no starts."""
    assert infer_starts([], [], slots) == []

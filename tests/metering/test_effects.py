"""What single requests draw: found where intervals tell, in windows as in one piece, and left alone in a crowd."""

from __future__ import annotations

import numpy as np
import pytest
from tests.metering.recordings import Recording, record

from joulegate.metering import effects
from joulegate.metering.effects import Effects, request_effects


def found_in(made: Recording, mean_w: float = 450.0) -> Effects | None:
    """Effects without classes."""
    return request_effects(
        made.changes,
        made.starts_s,
        made.ends_s,
        np.zeros(len(made.starts_s), dtype=np.int64),
        np.array([mean_w]),
        idle_w=95.0,
        scale=np.ones(len(made.changes.start_s)),
    )


@pytest.mark.parametrize("seed", range(3))
def test_own_power_is_found(seed: int) -> None:
    """Of requests that overlap now and then the own power is known to a percent; where not, its error says so."""
    made = record(np.random.default_rng(seed), 200, {"a": 450.0}, spread=0.25)
    found = found_in(made)
    assert found is not None
    off = np.abs(found.dynamic_w - made.dynamic_w)
    assert np.median(off / made.dynamic_w) < 0.01
    assert np.mean(off <= 3 * found.error_w + 0.03 * made.dynamic_w) > 0.9


def test_order_of_requests_changes_nothing() -> None:
    """Results come back in the order in which the requests were given."""
    made = record(np.random.default_rng(3), 60, {"a": 450.0}, spread=0.2)
    mixed = np.random.default_rng(0).permutation(60)
    plain = found_in(made)
    other = found_in(
        Recording(made.changes, made.starts_s[mixed], made.ends_s[mixed], made.classes, made.dynamic_w[mixed])
    )
    assert plain is not None
    assert other is not None
    assert other.dynamic_w == pytest.approx(plain.dynamic_w[mixed])


def test_long_recordings_are_solved_in_windows() -> None:
    """More overlaps than one window holds give the figures of the truth just as well, request for request."""
    made = record(np.random.default_rng(4), 3000, {"a": 450.0}, spread=0.25, pause_s=1.2, step_s=0.004)
    times = effects._ShareTimes(made.changes, made.starts_s, made.ends_s)
    assert times.counts.sum() > effects.WINDOW_OVERLAPS
    windows = effects._windows(made.starts_s, made.ends_s, times.counts)
    assert len(windows) > 1
    assert [begin for begin, _ in windows[1:]] == [end for _, end in windows[:-1]]
    assert (windows[0][0], windows[-1][1]) == (0, 3000)
    found = found_in(made)
    assert found is not None
    off = np.abs(found.dynamic_w / made.dynamic_w - 1)
    assert np.median(off) < 0.005
    seam = windows[0][1]
    assert np.median(off[seam - 20 : seam + 20]) < 0.01


def test_share_times_of_overlaps_add_up_to_busy_time() -> None:
    """Over all requests the share times of an interval are the time in which any of them ran."""
    made = record(np.random.default_rng(5), 50, {"a": 450.0})
    times = effects._ShareTimes(made.changes, made.starts_s, made.ends_s)
    overlaps = times.overlaps(np.arange(50))
    shares = np.bincount(overlaps.row, overlaps.share_s, minlength=len(made.changes.start_s))
    busy_j = made.changes.energy_j - 9.5
    assert shares == pytest.approx(busy_j / 450.0, abs=2e-3)


def test_crowd_is_left_to_its_classes() -> None:
    """With hundreds at once, with one request, or with none inside the readings, nothing is claimed."""
    rng = np.random.default_rng(6)
    assert found_in(record(rng, 3000, {"a": 450.0}, pause_s=0.005)) is None
    assert found_in(record(rng, 1, {"a": 450.0})) is None
    made = record(rng, 20, {"a": 450.0})
    outside = Recording(made.changes, made.starts_s + 1e6, made.ends_s + 1e6, made.classes, made.dynamic_w)
    assert found_in(outside) is None


def test_strangers_are_nobodys_effect() -> None:
    """A burst of foreign power within a request of a steady class does not become its own."""
    made = record(np.random.default_rng(7), 100, {"a": 450.0}, spread=0.02)
    burst = (made.changes.start_s > made.starts_s[50]) & (made.changes.end_s < made.starts_s[50] + 1.5)
    made.changes.energy_j[burst] += 60.0
    found = found_in(made)
    assert found is not None
    assert np.max(np.abs(found.dynamic_w / made.dynamic_w - 1)) < 0.15

"""The queue before the boards and the gateway before the queue."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.throttle.arrivals import Arrivals
from benchmarks.throttle.gateway import Bucket, Gateway
from benchmarks.throttle.service import Service

DT_S = 0.25


def arrivals(*rows: tuple[float, int, float]) -> Arrivals:
    """Requests by hand: when, tier, seconds of work."""
    t_s, tier, work_s = zip(*rows, strict=True)
    return Arrivals(np.array(t_s), np.array(tier), np.array(work_s))


def work(service: Service, seconds: float, speed: list[float], start_s: float = 0.0) -> float:
    """Let it work; the board-seconds that were busy."""
    steps = round(seconds / DT_S)
    return sum(float(service.advance(start_s + n * DT_S, DT_S, np.array(speed)).sum()) for n in range(steps)) * DT_S


def test_one_board_works_first_in_first_out_without_a_gap():
    """Images end one work time after the other to the float, though neither is a multiple of the step."""
    service = Service(1, arrivals((0.0, 2, 2.1), (0.0, 0, 1.3), (0.0, 1, 0.07), (0.0, 2, 1.0)))
    for image in range(4):
        service.admit(image)
    assert service.waiting == [1, 1, 2]
    busy_s = work(service, 6.0, [1.0])
    assert service.started_s == pytest.approx([0.0, 2.1, 3.4, 3.47])
    assert service.done_s == pytest.approx([2.1, 3.4, 3.47, 4.47])
    assert busy_s == pytest.approx(4.47)
    assert (service.done, service.waiting) == (4, [0, 0, 0])


def test_speed_and_work_factor_stretch_an_image():
    """Half the speed doubles an image's time, and a work factor multiplies the work of what begins under it."""
    service = Service(2, arrivals((0.0, 2, 2.0), (0.0, 2, 2.0), (0.0, 2, 2.0)))
    for image in range(3):
        service.admit(image)
    work(service, 1.0, [1.0, 0.5])
    service.work_factor = 1.8
    work(service, 9.0, [1.0, 0.5], start_s=1.0)
    assert service.done_s == pytest.approx([2.0, 4.0, 5.6])


def test_the_board_that_idles_longest_is_next():
    """Images are spread: two that come one after the other run on two boards."""
    service = Service(2, arrivals((0.0, 2, 0.5), (1.0, 2, 5.0), (3.0, 2, 5.0)))
    service.admit(0)
    work(service, 1.0, [1.0, 1.0])
    service.admit(1)
    busy = service.advance(1.0, DT_S, np.ones(2))
    assert busy.tolist() == [0.0, 1.0]


def test_a_board_that_goes_takes_its_image_with_it():
    """The image on a removed board never ends, nothing is put on it until it is back, and nothing waits for ever."""
    service = Service(2, arrivals(*[(0.0, 2, 1.0)] * 4))
    for image in range(4):
        service.admit(image)
    work(service, 0.5, [1.0, 1.0])
    service.remove(1)
    work(service, 1.0, [1.0, 0.0], start_s=0.5)
    assert math.isnan(service.done_s[1])
    service.restore(1)
    work(service, 2.0, [1.0, 1.0], start_s=1.5)
    assert np.isnan(service.done_s).tolist() == [False, True, False, False]
    assert service.done_s[3] == pytest.approx(2.5)


def test_bucket_lets_a_burst_through_and_then_the_rate():
    """A bucket of 3 at one a second passes 3 at once, then one a second, and never saves up more than its depth."""
    bucket = Bucket()
    assert all(bucket.take(0.0) for _ in range(100))
    bucket.limit(1.0, 1.0, 3.0)
    assert [bucket.take(1.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(t_s) for t_s in (1.5, 2.0, 2.0, 3.0)] == [False, True, False, True]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_a_new_limit_keeps_tokens_but_not_more_than_its_depth():
    """Until the change the old rate counts; after it no more tokens are there than the new depth holds."""
    bucket = Bucket()
    bucket.limit(0.0, 1.0, 10.0)
    assert all(bucket.take(0.0) for _ in range(10))
    bucket.limit(6.0, 0.0, 4.0)
    assert [bucket.take(9.0) for _ in range(5)] == [True, True, True, True, False]
    bucket.limit(10.0, None, 1.0)
    assert all(bucket.take(10.0) for _ in range(50))


def test_gateway_sets_each_tier_by_its_name():
    """Published images a minute become the tier's rate; null is no limit; tiers do not share."""
    gateway = Gateway()
    tiers = {
        "free": {"max_images_per_minute": 30.0, "burst": 1},
        "plus": {"max_images_per_minute": 0.0, "burst": 2},
        "pro": {"max_images_per_minute": None, "burst": 1},
    }
    gateway.apply(0.0, {"tiers": tiers})
    passed = [sum(gateway.admits(tier, 0.1 * n) for n in range(101)) for tier in range(3)]
    assert passed == [101, 2, 6]

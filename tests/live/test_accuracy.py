"""The live meter against simulated boards whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.live.rides import Ride, board, device_of, host, outcomes, randomised, table
from tests.support.plant import serve
from tests.support.scenarios import four_class_jobs

from joulegate.sources.gpu_profiles import H100

RIDES, REQUESTS, DURATION_S = 22, 100, 240.0


def test_u_covers(capsys: pytest.CaptureFixture[str]) -> None:
    """Over two thousand requests on boards as one may meet them: 93 to 99 % of the truths lie within U."""
    found = [one for seed in range(RIDES) for one in randomised(seed, REQUESTS, DURATION_S)]
    with capsys.disabled():
        print(f"\nlive coverage over {RIDES} randomised rides\n{table(found)}")
    assert len(found) >= 2000
    assert 0.93 <= np.mean([one.inside for one in found]) <= 0.99
    for group in ("lone", "shared", "short"):
        mine = [one for one in found if one.group == group]
        assert np.mean([one.inside for one in mine]) >= 0.90, group


@pytest.mark.parametrize("lag_known", [True, False])
def test_calibrated_error(lag_known: bool) -> None:
    """Once calibrated, on an even board, half of all requests are within 1 %, whether the lag was told or learned."""
    rng = np.random.default_rng(5)
    profile = replace(H100.ideal(), sensor=replace(H100.sensor, lag_s=0.13, noise=0.0))
    runs = serve(four_class_jobs(rng, 250, 600.0, 0.0, 110.0), 4)
    ride = Ride(board(profile), host(), runs, jitter=rng)
    ride.meter.add_device(device_of(profile, lag_known=lag_known))
    ride.drive(max(run.ended_s for run in runs) + 8.0)
    late = outcomes(ride)[100:]
    assert np.median([abs(one.error) for one in late]) < 0.01
    assert abs(ride.meter.devices["twin-0"].learner.lag.lag_s - 0.13) < 0.02
    ride.books.shares_close()


def test_a_request_that_never_leaves_does_not_teach_idle_power() -> None:
    """With one long request always running, idle power is still learned from what is idle, not from it."""
    rng = np.random.default_rng(9)
    short = serve(four_class_jobs(rng, 60, 120.0, 0.0, 110.0), 2)
    long = replace(short[0], job=replace(short[0].job, request_id="long"), started_s=150.0, ended_s=400.0)
    ride = Ride(board(H100.ideal()), host(), [*(run for run in short if run.ended_s < 240), long])
    ride.meter.add_device(device_of(H100))
    ride.drive(330.0)
    assert ride.meter.devices["twin-0"].learner.model.idle_w == pytest.approx(95.0, rel=0.1)

"""Who gets what: paid first, floors, bursts, fractions, the queue."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.throttle_contract.plant import Board, Run, Story, drive
from tests.throttle_contract.promises import Json, Talk, about, codes, observation, reversals, steady

from joulegate.throttle.settings import ThrottleSettings, Tier

ARRIVALS = {"pro": 0.2, "plus": 0.6, "free": 3.2}
DONE = 1.0


def crowded(
    t: float, temperature_c: float = 58, power_w: float = 500.0, queue: float = 20.0, **changes: object
) -> Json:
    """Two saturated devices that finish one image a second while four a second are asked for."""
    told: Json = {"images_done": DONE, "arrivals": ARRIVALS, "queue": {"pro": 0, "plus": 2, "free": queue}}
    return observation(t, steady(t, temperature_c, power_w), **(told | changes))


def settled(settings: ThrottleSettings | None = None, seconds: int = 300, **changes: object) -> Json:
    """The answer after a while of this."""
    talk = Talk(settings)
    for k in range(seconds):
        said = talk(crowded(float(k), **changes))  # type: ignore[arg-type]
    return said


def test_capacity_is_measured() -> None:
    """A host that is saturated at an image a second is told to start about sixty a minute."""
    said = settled(queue=3.0)
    assert said["max_images_per_minute"] == pytest.approx(60.0, rel=0.15)
    assert "DEMAND_EXCEEDS_CAPACITY" in codes(said)
    reason = about(said, "DEMAND_EXCEEDS_CAPACITY")[0]
    assert reason["observed"] == pytest.approx(240.0, rel=0.1)
    assert reason["limit"] == pytest.approx(said["max_images_per_minute"], rel=0.1)


def test_capacity_is_cost_weighted() -> None:
    """Fractional units count as they are: half as much work done is half the rate."""
    whole, half = settled(queue=3.0), settled(queue=3.0, images_done=DONE / 2)
    assert half["max_images_per_minute"] == pytest.approx(whole["max_images_per_minute"] / 2, rel=0.15)


def test_paid_first() -> None:
    """Short of capacity, the first tiers get what they ask for and the last one what is left, at least its floor."""
    said = settled(queue=3.0)
    tiers = said["tiers"]
    for name in ("pro", "plus"):
        assert tiers[name]["admit_fraction"] == 1.0
        limit = tiers[name]["max_images_per_minute"]
        assert limit is None or limit >= ARRIVALS[name] * 60.0
    assert tiers["free"]["action"] == "limit"
    assert tiers["free"]["max_images_per_minute"] <= 60.0 - 48.0 + 15.0
    assert tiers["free"]["max_images_per_minute"] >= 0.02 * said["max_images_per_minute"]
    assert tiers["free"]["retry_after_s"] > 0


def test_fractions_fit_the_demand() -> None:
    """A tier's fraction times what it asks for is its limit, and so for the host."""
    said = settled(queue=3.0)
    free = said["tiers"]["free"]
    assert free["admit_fraction"] * ARRIVALS["free"] * 60.0 == pytest.approx(free["max_images_per_minute"], rel=0.15)
    assert said["admit_fraction"] * 240.0 == pytest.approx(said["max_images_per_minute"], rel=0.15)


def test_shrinking_takes_from_the_last() -> None:
    """The less capacity, the less the last tier has; an earlier tier loses only once the later are at their floors."""
    settings = ThrottleSettings(tiers=(Tier("pro"), Tier("plus", 0.1), Tier("free", 0.05)))
    rows = []
    for done in (4.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.1):
        said = settled(settings, queue=3.0, images_done=done)
        rows.append(said)
        short = [name for name, limit in said["tiers"].items() if limit["admit_fraction"] < 0.98]
        for earlier, later in (("pro", "plus"), ("plus", "free")):
            if earlier in short:
                floor = {"plus": 0.1, "free": 0.05}[later] * said["max_images_per_minute"]
                assert said["tiers"][later]["max_images_per_minute"] == pytest.approx(floor, rel=0.1)
    free = [said["tiers"]["free"]["max_images_per_minute"] for said in rows]
    known = [float("inf") if limit is None else limit for limit in free]
    assert all(later <= earlier * 1.02 for earlier, later in pairwise(known))


@pytest.mark.parametrize("floors", [(0.0, 0.0, 0.0), (0.2, 0.3, 0.5), (0.0, 0.0, 0.9), (0.5, 0.0, 0.0)])
def test_floors_hold(floors: tuple[float, float, float]) -> None:
    """Whatever the floors, each tier keeps its share of the host's rate (asserted in each line by the promises)."""
    tiers = tuple(Tier(name, floor) for name, floor in zip(("pro", "plus", "free"), floors, strict=True))
    said = settled(ThrottleSettings(tiers=tiers), 120, queue=3.0)
    assert said["max_images_per_minute"] is not None


def test_one_tier() -> None:
    """A single tier gets the host's rate, however few there are to rank."""
    talk = Talk(ThrottleSettings(tiers=(Tier("all"),)))
    said = talk.all(crowded(float(k)) | {"queue": {"all": 3}, "arrivals": {"all": 4}} for k in range(300))[-1]
    assert said["tiers"]["all"]["max_images_per_minute"] == pytest.approx(said["max_images_per_minute"], rel=0.5)
    assert said["tiers"]["all"]["action"] == "limit"


def test_no_demand_is_no_refusal() -> None:
    """Nobody asks: nothing is refused, nothing bound."""
    talk = Talk()
    for k in range(120):
        said = talk(observation(float(k), steady(float(k), 40, 70.0), images_done=0, arrivals={"free": 0}, queue={}))
    assert said["binding"] is None
    assert all(limit["action"] == "admit" for limit in said["tiers"].values())


def test_standing_queue_binds_with_hysteresis() -> None:
    """A backlog of many seconds lowers the rate below capacity as queue; a little one after it does not flap."""
    talk = Talk()
    before = talk.all(crowded(float(k), queue=3.0) for k in range(200))[-1]
    for k in range(200, 260):
        said = talk(crowded(float(k), queue=90.0))
    assert "QUEUE_DELAY" in codes(said)
    assert said["binding"] == "queue"
    assert said["admit_fraction"] < before["admit_fraction"]
    assert sum(let_in(said).values()) < said["max_images_per_minute"]
    reason = about(said, "QUEUE_DELAY")[0]
    assert reason["observed"] > reason["limit"]
    bindings = [talk(crowded(float(k), queue=2.0 + 2.0 * (k % 2)))["binding"] for k in range(260, 500)]
    assert sum(a != b for a, b in pairwise(bindings)) <= 2


def let_in(said: Json) -> dict[str, float]:
    """Units a minute that the tiers' limits let in of what is asked for."""
    limits = {name: limit["max_images_per_minute"] for name, limit in said["tiers"].items()}
    return {
        name: min(60 * asked, float("inf") if limits[name] is None else limits[name])
        for name, asked in ARRIVALS.items()
    }


def test_longer_queue_is_never_looser() -> None:
    """The longer the queue, the less is let in."""
    rates = [sum(let_in(settled(queue=queue)).values()) for queue in (3.0, 12.0, 40.0, 200.0, 5000.0)]
    assert all(later <= earlier * 1.02 for earlier, later in pairwise(rates)), rates


def test_tenant_day_is_bounded() -> None:
    """The images per tenant and day stay within their bounds, and are the quota's own number without bounds."""
    settings = ThrottleSettings(
        tiers=(
            Tier("pro"),
            Tier("plus", quota="50/day"),
            Tier("free", 0.02, "3/day", tenant_day_min=1, tenant_day_max=6),
        )
    )
    talk = Talk(settings)
    for k in range(200):
        said = talk(crowded(float(k), 58 if k < 100 else 86, queue=3.0))
        assert said["tiers"]["pro"]["images_per_tenant_day"] is None
        assert said["tiers"]["plus"]["images_per_tenant_day"] == 50
        assert 1 <= said["tiers"]["free"]["images_per_tenant_day"] <= 6


def test_tighter_without_caps() -> None:
    """Where only the rate may act there are no caps, and at the same heat the rate is no looser than with caps."""
    capped = settled(temperature_c=83, queue=3.0)
    rate_only = settled(ThrottleSettings(actuators=("rate",)), temperature_c=83, queue=3.0)
    assert not rate_only["power_cap_w"]
    assert rate_only["max_images_per_minute"] <= capped["max_images_per_minute"] * 1.01
    assert rate_only["binding"] == "thermal"


def test_paid_is_served_through_a_flash(melting: Run) -> None:
    """Through a flash crowd in a hot aisle paid callers are let in and soon served.

    Paid demand alone is near what the hot host can do, and what was let in before anybody could act waits with it.
    """
    for tier in ("pro", "plus"):
        assert melting.admitted[tier] >= 0.95 * melting.asked[tier]
    waits = sorted(melting.waits_s["pro"] + melting.waits_s["plus"])
    assert waits[int(0.99 * len(waits))] <= 20.0
    assert melting.admitted["free"] > 0


@pytest.mark.parametrize("queue", [None, {"pro": 0, "plus": 2, "free": None}, {"free": "many"}])
def test_queue_lost(queue: Json | None) -> None:
    """Without the queue the plan goes on from arrivals, says so, and is not looser than with a short queue."""
    known, lost = settled(queue=3.0), Talk()
    said = lost.all(crowded(float(k)) | {"queue": queue} for k in range(300))[-1]
    assert said["max_images_per_minute"] <= known["max_images_per_minute"] * 1.1
    assert said["admit_fraction"] <= known["admit_fraction"] * 1.1
    assert said["tiers"]["free"]["admit_fraction"] <= known["tiers"]["free"]["admit_fraction"] * 1.2
    assert "queue" in str(said["reasons"])


def test_work_shift() -> None:
    """When an image becomes twice the work, the rate follows in minutes, the reason names it, waits stay bounded."""
    board = Board(air_c=22.0)
    story = Story(demand=lambda _: 1.6, turns={400.0: {"image_s": 7.0}}, event_s=400.0)
    run = drive(board, story, Talk(), 1000.0)
    late = run.numbers(800.0, lambda said: said["max_images_per_minute"])
    assert sum(late) / len(late) == pytest.approx(4 / 7.0 * 60.0, rel=0.15)
    assert any("WORK_PER_IMAGE_UP" in codes(said) for said in run.said if said["t"] > 400)
    assert run.good_between(700.0, 1000.0) >= 0.9 * 4 / 7.0
    assert reversals(run.numbers(200.0, lambda said: said["max_images_per_minute"])) <= 6

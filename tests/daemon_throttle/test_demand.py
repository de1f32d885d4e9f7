"""Demand: what is counted between two lines, and that nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from joulegate.daemon.throttle_demand import KEPT_CLASSES, MOST_NAME, DemandCount
from joulegate.metering.entry import DeviceUse, RequestEntry, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work
from joulegate.throttle.settings import ThrottleSettings

BEGAN_S = 1000.0
NOTHING = {"pro": 0.0, "plus": 0.0, "free": 0.0}


class Desk:
    """A gateway's questions and a clock that both go as they are told."""

    def __init__(self) -> None:
        self.t_s = 0.0
        self.asked: dict[str, float] = {}
        self.count = DemandCount(ThrottleSettings(), self.take, clock=lambda: self.t_s, began_s=BEGAN_S)

    def take(self) -> dict[str, float]:
        """As ``Deciding.take_arrivals``."""
        asked, self.asked = self.asked, {}
        return NOTHING | asked


def span(name: str, tier: str | None = "free", images: Iterable[int | None] = (1,)) -> Span:
    """A span that began, with a member for each number of images."""
    members = tuple(Member(f"{name}-{n}", Work(images=count)) for n, count in enumerate(images))
    return Span(name, ("GPU-0",), 5.0, tier=tier, members=members)


def entry(name: str, status: Status, *, outcome: Outcome = Outcome.OK, images: int | None = 2, ended_s: float = 2000.0):
    """A request that ended."""
    return RequestEntry(
        name,
        status,
        outcome,
        Work(images=images, steps=30),
        ended_s - 5.0,
        ended_s,
        StartSource.DECLARED,
        energy_mj=3_000_000,
        u_measurement_mj=0,
        u_allocation_mj=0,
        method=Method.COUNTER,
        quality=Quality.MEASURED,
        model="sdxl",
        devices={"GPU-0": DeviceUse(3_000_000)},
    )


def test_spans_are_the_demand_where_nobody_asks():
    """Images of the spans that began, by tier; a batch counts its members, an unknown tier is the last one."""
    desk = Desk()
    desk.count.began(span("a", "pro", (4,)))
    desk.count.began(span("b", "free", (1, None, 2)))
    desk.count.began(span("c", "nobody", (None,)))
    desk.count.began(span("d", None, ()))
    assert desk.count.take().arrivals == {"pro": 4.0, "plus": 0.0, "free": 6.0}
    assert desk.count.take().arrivals == NOTHING


def test_a_gateway_that_asks_is_the_demand():
    """From its first question on only questions count, also denied ones; a minute after the last, spans do again."""
    desk = Desk()
    desk.asked = {"free": 7.5}
    desk.count.began(span("a"))
    assert desk.count.take().arrivals == NOTHING | {"free": 7.5}
    desk.t_s = 59.0
    desk.count.began(span("b"))
    assert desk.count.take().arrivals == NOTHING
    desk.t_s = 61.0
    desk.count.began(span("c"))
    assert desk.count.take().arrivals == NOTHING | {"free": 1.0}


def test_images_are_done_once():
    """They count when the request ends well; its final figures, failures, and requests of an earlier run do not."""
    desk = Desk()
    desk.count.finished([entry("a", Status.PENDING), entry("b", Status.PENDING, outcome=Outcome.FAILED)])
    assert desk.count.take().images_done == 2.0
    desk.count.finished([entry("a", Status.FINAL), entry("b", Status.FINAL, outcome=Outcome.FAILED)])
    assert desk.count.take().images_done == 0.0
    desk.count.finished([entry("early", Status.FINAL, ended_s=BEGAN_S - 1.0)])
    assert desk.count.take().images_done == 0.0
    desk.count.finished([entry("at once", Status.FINAL, images=None)])
    assert desk.count.take().images_done == 1.0


def test_queues_are_forgotten():
    """The newest report of a tier counts for 15 s; where nobody reports there is none, which is not an empty one."""
    desk = Desk()
    assert desk.count.take().queue is None
    desk.count.report({"free": 3.0, "nobody": 2.0, "pro": 0.0})
    assert desk.count.take().queue == {"free": 5.0, "pro": 0.0}
    desk.t_s = 10.0
    desk.count.report({"free": 1.0})
    assert desk.count.take().queue == {"free": 1.0, "pro": 0.0}
    desk.t_s = 16.0
    assert desk.count.take().queue == {"free": 1.0}
    desk.t_s = 25.1
    assert desk.count.take().queue is None
    desk.count.report({"pro": 0.0})
    assert desk.count.take().queue == {"pro": 0.0}


def test_what_images_took_is_evidence_for_an_hour():
    """Final figures by model, GPUs and steps, over the last half hour to hour."""
    desk = Desk()
    desk.count.finished([entry("a", Status.PENDING), entry("a", Status.FINAL), entry("b", Status.FINAL)])
    one = {"model": "sdxl", "gpus": 1, "steps": 30, "images": 4, "energy_j": 6000.0}
    assert desk.count.take().work == [one]
    desk.t_s = 1801.0
    assert desk.count.take().work == [one]
    desk.count.finished([entry("c", Status.FINAL)])
    assert desk.count.take().work == [one | {"images": 6, "energy_j": 9000.0}]
    desk.t_s = 3602.0
    assert desk.count.take().work == [one | {"images": 2, "energy_j": 3000.0}]


@pytest.mark.parametrize("count", [5 * KEPT_CLASSES])
def test_names_from_outside_are_bounded(count: int):
    """However many models there are, few are kept; a name is short, and text that can be sent."""
    desk = Desk()
    for number in range(count):
        made = entry(f"r{number}", Status.FINAL)
        desk.count.finished([replace(made, model=f"\ud800{number}" + "x" * 10_000)])
    work = desk.count.take().work
    assert len(work) == KEPT_CLASSES
    assert {len(one["model"].encode()) for one in work} == {MOST_NAME}

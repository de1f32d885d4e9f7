"""Budgets: periods as clocks on site show them, and what a restart, a broken ledger and a new period do to them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.daemon.throttle_budget import BudgetMeter, Period, Used, period_of
from joulegate.metering.snapshot import DeviceTotals

BERLIN, KOLKATA, UTC = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata"), ZoneInfo("UTC")


def at(text: str, zone: ZoneInfo = UTC) -> float:
    """Unix seconds of a moment on a wall clock."""
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("moment", "period", "zone", "start", "end"),
    [
        ("2026-11-24T23:59:59", "day", BERLIN, "2026-11-24T00:00", "2026-11-25T00:00"),
        ("2026-03-29T12:00", "day", BERLIN, "2026-03-29T00:00", "2026-03-30T00:00"),
        ("2026-12-31T23:00", "month", BERLIN, "2026-12-01T00:00", "2027-01-01T00:00"),
        ("2028-02-29T10:00", "month", UTC, "2028-02-01T00:00", "2028-03-01T00:00"),
        ("2026-05-05T10:59", "hour", KOLKATA, "2026-05-05T10:00", "2026-05-05T11:00"),
        ("2026-05-05T10:00", "hour", UTC, "2026-05-05T10:00", "2026-05-05T11:00"),
    ],
)
def test_periods(moment: str, period: Period, zone: ZoneInfo, start: str, end: str):
    """Hours, days and months begin where clocks of the zone say so, across changes of clocks too."""
    assert period_of(at(moment, zone), period, zone) == (at(start, zone), at(end, zone))


def test_the_days_of_a_clock_change_are_shorter_and_longer():
    """A day is as long as it is."""
    short, long = (
        period_of(at("2026-03-29T12:00", BERLIN), "day", BERLIN),
        period_of(at("2026-10-25T12:00"), "day", BERLIN),
    )
    assert [(end - start) / 3600 for start, end in (short, long)] == [23, 25]


@given(st.floats(0, 4e9), st.sampled_from(["hour", "day", "month"]), st.sampled_from(["Europe/Berlin", "Asia/Kolkata"]))
def test_every_moment_is_in_its_period(wall_s: float, period: Period, zone: str):
    """Periods are half-open and join: the end of one is the start of the next."""
    start_s, end_s = period_of(wall_s, period, ZoneInfo(zone))
    assert start_s <= wall_s < end_s
    assert period_of(end_s, period, ZoneInfo(zone))[0] == end_s


class BrokenFault(Exception):
    """The ledger cannot be read."""


class Books:
    """A ledger of hours, and a meter over it."""

    def __init__(self, energy_j: float | None = 1000.0, co2e_g: float | None = None) -> None:
        self.hours_mj: dict[int, int] = {}
        self.broken = False
        self.reads: list[tuple[float, float]] = []
        self.budget = BudgetMeter(
            energy_j, co2e_g, "day", UTC, read=self.read, co2e_of=self.co2e_of, faults=(BrokenFault,)
        )

    def read(self, start_s: float, end_s: float) -> Used:
        """What the ledger has of the range."""
        if self.broken:
            raise BrokenFault("no ledger")
        self.reads.append((start_s, end_s))
        inside = {hour: mj for hour, mj in self.hours_mj.items() if start_s <= hour < end_s}
        return Used(inside, frozenset({"measured"}))

    def co2e_of(self, used: Used) -> float | None:
        """A gram for each joule."""
        return sum(used.hours_mj.values()) / 1000


def totals(**joules: float) -> Mapping[str, DeviceTotals]:
    """Totals of devices; a tenth of each is what was estimated across gaps."""
    return {
        device: DeviceTotals(device_mj=int(energy_j * 900), estimated_mj=int(energy_j * 100))
        for device, energy_j in joules.items()
    }


NOON_S = at("2026-05-05T12:00")


def test_the_period_is_counted_down():
    """What the ledger has of the period, and from then on what every device uses more, estimates included."""
    books = Books()
    books.hours_mj = {int(NOON_S - 7200): 300_000, int(at("2026-05-04T23:00")): 999_000}
    left = books.budget.left(NOON_S, totals(a=5000, b=70))
    assert left is not None
    assert (left.energy_j, left.co2e_g, left.until_s) == (700.0, None, at("2026-05-06T00:00"))
    assert books.budget.left(NOON_S + 1, totals(a=5100, b=70)).energy_j == 600.0
    assert books.budget.left(NOON_S + 2, totals(b=75)).energy_j == 595.0
    assert books.budget.left(NOON_S + 3, totals(a=5110, b=75, c=10_000)).energy_j == 585.0
    assert books.budget.left(NOON_S + 4, totals(a=6000, b=75, c=10_001)).energy_j == -306.0
    assert books.reads == [(at("2026-05-05T00:00"), NOON_S)]


def test_a_restart_refills_nothing():
    """A new process reads what this period has used already."""
    books = Books()
    books.hours_mj = {int(NOON_S): 900_000}
    again = BudgetMeter(1000.0, None, "day", UTC, read=books.read, co2e_of=books.co2e_of, faults=())
    left = again.left(NOON_S + 600, totals(a=900))
    assert left is not None
    assert left.energy_j == 100.0


def test_a_new_period_begins_full():
    """At midnight the count begins anew, from the ledger."""
    books = Books()
    before_s = at("2026-05-05T23:59:59")
    assert books.budget.left(before_s, totals(a=100)).energy_j == 1000.0
    assert books.budget.left(before_s + 0.5, totals(a=400)).energy_j == 700.0
    left = books.budget.left(before_s + 2, totals(a=410))
    assert (left.energy_j, left.until_s) == (1000.0, at("2026-05-07T00:00"))


def test_co2e_is_what_the_view_says():
    """Grams come from the view on the same energy, asked again after ten seconds."""
    books = Books(None, 50.0)
    books.hours_mj = {int(NOON_S - 3600): 20_000}
    assert books.budget.left(NOON_S, totals(a=0)).co2e_g == 30.0
    assert books.budget.left(NOON_S + 5, totals(a=5)).co2e_g == 30.0
    left = books.budget.left(NOON_S + 10, totals(a=5))
    assert (left.co2e_g, left.energy_j) == (25.0, None)


def test_a_ledger_that_cannot_be_read_is_tried_again():
    """Until then nothing is known of the budget, the reason is told, and the ledger is left in peace for a while."""
    books = Books()
    books.broken = True
    assert books.budget.left(NOON_S, totals(a=0)) is None
    assert books.budget.error == "no ledger"
    books.broken = False
    assert books.budget.left(NOON_S + 29, totals(a=1)) is None
    assert books.budget.left(NOON_S + 30, totals(a=1)).energy_j == 1000.0
    assert books.budget.error is None


def test_without_a_budget_nothing_is_asked():
    """No figure, no question to the ledger."""
    books = Books(None, None)
    assert books.budget.left(NOON_S, totals(a=1)) is None
    assert books.reads == []

"""Rules and windows: what a notation means, and when a tenant's day begins and ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.stores.quota import QuotaRule, parsed, rules_of, window_of
from joulegate.throttle.settings import Tier

DAY = parsed("3/day")[0]
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: str = "UTC") -> float:
    """Unix seconds of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("notation", "rules"),
    [
        ("3/day", [QuotaRule("day", 3, 86_400, daily=True)]),
        ("3 per day", [QuotaRule("day", 3, 86_400, daily=True)]),
        ("20/2 hours", [QuotaRule("2hour", 20, 7200, daily=False)]),
        ("10/hour;3/day", [QuotaRule("hour", 10, 3600, daily=False), QuotaRule("day", 3, 86_400, daily=True)]),
        ("5/day;3/day", [QuotaRule("day", 3, 86_400, daily=True)]),
        ("3/day;5/day", [QuotaRule("day", 3, 86_400, daily=True)]),
        ("100/month", [QuotaRule("month", 100, 30 * 86_400, daily=False)]),
    ],
)
def test_the_notation_is_the_librarys(notation: str, rules: list[QuotaRule]):
    """Quotas are written as the limits library does; of two for one window the smaller rules."""
    assert list(parsed(notation)) == rules


@pytest.mark.parametrize("notation", ["", "3", "three a day", "-3/day", "3/fortnight"])
def test_another_notation_is_refused(notation: str):
    """What is not in the notation raises ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        parsed(notation)


@pytest.mark.parametrize(
    ("tier", "number", "amounts"),
    [
        (Tier("free"), 5, {}),
        (Tier("free", quota="3/day"), 5, {"day": 3}),
        (Tier("free", quota="3/day", tenant_day_min=1, tenant_day_max=9), 5, {"day": 5}),
        (Tier("free", quota="3/day", tenant_day_min=1, tenant_day_max=9), 50, {"day": 9}),
        (Tier("free", quota="3/day", tenant_day_min=1, tenant_day_max=9), 0, {"day": 1}),
        (Tier("free", quota="3/day", tenant_day_min=1, tenant_day_max=9), None, {"day": 3}),
        (Tier("free", quota="3/day", tenant_day_max=2), None, {"day": 2}),
        (Tier("free", tenant_day_max=9), None, {"day": 9}),
        (Tier("free", tenant_day_min=2), None, {}),
        (Tier("free", tenant_day_min=2), 1, {"day": 2}),
        (Tier("free", quota="10/hour", tenant_day_max=9), 4, {"hour": 10, "day": 4}),
    ],
)
def test_the_days_number_stays_within_bounds(tier: Tier, number: int | None, amounts: dict[str, int]):
    """Only with bounds does the recommendation's number rule the day, and then within them; other windows stay."""
    assert {rule.policy: rule.amount for rule in rules_of(tier, number)} == amounts


@pytest.mark.parametrize(
    ("now", "name", "hours"),
    [
        ("2026-03-28T12:00", "2026-03-28", 24),
        ("2026-03-29T00:00", "2026-03-29", 23),
        ("2026-03-29T23:59:59", "2026-03-29", 23),
        ("2026-10-25T00:00", "2026-10-25", 25),
        ("2026-10-25T23:59:59", "2026-10-25", 25),
        ("2026-10-26T00:00", "2026-10-26", 24),
    ],
)
def test_days_in_berlin_follow_the_clock(now: str, name: str, hours: int):
    """In Berlin a day begins at midnight and lasts 23, 24 or 25 hours, and its counts are kept for all of it."""
    window = window_of(DAY, at(now, "Europe/Berlin"), BERLIN)
    assert (window.name, (window.end_s - window.start_s) / 3600) == (name, hours)
    assert window.start_s <= at(now, "Europe/Berlin") < window.end_s
    assert window.expiry_s > hours * 3600


def test_the_hour_that_comes_twice_is_one_day():
    """Both passes of the hour from two to three on the day that clocks go back lie in the same day."""
    first = at("2026-10-25T02:30", "Europe/Berlin")
    assert window_of(DAY, first, BERLIN) == window_of(DAY, first + 3600, BERLIN)


def test_a_midnight_that_comes_twice_is_one_day():
    """Where clocks go back to midnight, the day begins with the first of the two and holds both."""
    first = at("2026-11-01T00:30", "America/Havana")
    havana = ZoneInfo("America/Havana")
    assert window_of(DAY, first, havana) == window_of(DAY, first + 3600, havana)
    assert window_of(DAY, first, havana).end_s - window_of(DAY, first, havana).start_s == 25 * 3600


@pytest.mark.parametrize(
    ("zone", "date", "left_h"),
    [
        ("Pacific/Kiritimati", "2026-11-25", 14),
        ("Etc/GMT+12", "2026-11-24", 16),
        ("Asia/Kathmandu", "2026-11-24", 22.25 - 8),
    ],
)
def test_days_at_the_ends_of_the_world(zone: str, date: str, left_h: float):
    """At 20:00 UTC it is already tomorrow at UTC+14, and still early at UTC-12."""
    now_s = at("2026-11-24T20:00") if zone != "Asia/Kathmandu" else at("2026-11-24T04:00")
    window = window_of(DAY, now_s, ZoneInfo(zone))
    assert (window.name, (window.end_s - now_s) / 3600) == (date, left_h)


def test_a_day_that_does_not_begin_at_midnight():
    """Where clocks jump over midnight the day begins with its first moment, one hour short."""
    window = window_of(DAY, at("2026-09-06T12:00", "America/Santiago"), ZoneInfo("America/Santiago"))
    assert (window.end_s - window.start_s) / 3600 == 23


def test_a_day_that_was_skipped():
    """Where a whole day was left out, the next window begins when the one before ends."""
    apia = ZoneInfo("Pacific/Apia")
    before = window_of(DAY, at("2011-12-29T12:00", "Pacific/Apia"), apia)
    after = window_of(DAY, before.end_s, apia)
    assert (before.name, after.name) == ("2011-12-29", "2011-12-31")
    assert after.start_s == before.end_s


zones = st.sampled_from(
    [
        "Europe/Berlin",
        "Pacific/Kiritimati",
        "Etc/GMT+12",
        "Australia/Lord_Howe",
        "America/Santiago",
        "Africa/Cairo",
        "UTC",
    ]
)


@given(st.integers(int(at("2000-01-01")), int(at("2035-01-01"))), zones)
def test_days_tile_time(now_s: int, zone: str):
    """Every moment lies in exactly one day: within its window, which touches the next, with another name."""
    window = window_of(DAY, now_s, ZoneInfo(zone))
    assert window.start_s <= now_s < window.end_s
    following = window_of(DAY, window.end_s, ZoneInfo(zone))
    assert following.start_s == window.end_s
    assert following.name > window.name
    assert window_of(DAY, window.end_s - 0.5, ZoneInfo(zone)) == window
    assert window.name == datetime.fromtimestamp(now_s, ZoneInfo(zone)).date().isoformat()


def test_the_last_moment_of_a_day_is_in_it():
    """Even less than a microsecond before midnight it is still the day before, though calendars round."""
    midnight_s = at("2035-01-01")
    just_before_s = 2_051_222_399.9999998
    assert just_before_s < midnight_s
    assert window_of(DAY, just_before_s, ZoneInfo("UTC")).end_s == midnight_s


def test_other_windows_begin_at_whole_multiples():
    """An hour begins at the full hour UTC, whatever the zone."""
    rule = parsed("10/hour")[0]
    window = window_of(rule, at("2026-11-24T20:59:59.5"), ZoneInfo("Asia/Kathmandu"))
    assert datetime.fromtimestamp(window.start_s, UTC) == datetime(2026, 11, 24, 20, tzinfo=UTC)
    assert window.end_s - window.start_s == timedelta(hours=1).total_seconds()
    assert window.name != window_of(rule, window.end_s, ZoneInfo("UTC")).name

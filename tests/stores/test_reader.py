"""What readers see: pages, pending requests, and where the energy of a period went."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stores.examples import EPOCH_S, GPU, account, entry, span

from joulegate.metering.batch import Batch
from joulegate.metering.entry import Status
from joulegate.metering.reading import Quality
from joulegate.metering.span import Member, Work
from joulegate.stores import Ledger, LedgerFault, LedgerReader
from joulegate.stores.energy import EnergyTotals
from joulegate.stores.reader import BadCursor
from joulegate.stores.rows import Moment

HOUR_S = 3600


def walk(reader: LedgerReader, limit: int, **filters) -> list[str]:
    """Request ids over all pages."""
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = reader.requests(limit, cursor, **filters)
        ids += [item.request_id for item in page.items]
        if page.next is None:
            return ids
        cursor = page.next


def test_a_pending_request_is_known_without_a_figure(ledger: Ledger, reader: LedgerReader) -> None:
    """Once its span has ended a request is pending, in Unix time and with no energy; while it runs it is not listed."""
    ledger.commit(Batch(opened=(span("running"),), closed=(span("ended", ended_s=108.0),)))
    found = reader.request("ended")
    assert found is not None
    assert (found.status, found.energy_mj, found.method, found.quality) == (
        Status.PENDING, None, None, Quality.MISSING,
    )  # fmt: skip
    assert (found.arrived_s, found.started_s, found.ended_s) == (EPOCH_S + 98.0, EPOCH_S + 100.0, EPOCH_S + 108.0)
    assert (found.work, found.model, found.tier) == (Work(1, 20, 512, None), "sdxl", "free")
    assert reader.request("running") is None
    assert reader.request("nobody") is None
    assert [item.request_id for item in reader.requests().items] == ["ended"]


def test_members_of_a_batch_are_pending_one_by_one(ledger: Ledger, reader: LedgerReader) -> None:
    """Each request of a batch is listed by itself, as final as soon as it is."""
    members = (Member("m-1", Work(1)), Member("m-2", Work(2)), Member("m-3", Work(3)))
    ledger.commit(Batch(closed=(span("b", ended_s=105.0, members=members, batch_id="b"),)))
    ledger.commit(Batch(entries=(entry("m-2"),)))
    assert walk(reader, 1) == ["m-3", "m-1", "m-2"]
    assert walk(reader, 1, status="pending") == ["m-3", "m-1"]
    assert walk(reader, 1, status="final") == ["m-2"]
    found = reader.request("m-3")
    assert found is not None
    assert (found.work.images, found.batch_id) == (3, "b")


def test_newest_first_is_the_ledgers_own_order(open_ledger: Callable[..., Ledger], reader: LedgerReader) -> None:
    """A wall clock that jumps back does not put a newer entry behind an older one."""
    first = open_ledger(now=Moment(110.0, 9e9))
    first.commit(Batch(entries=(entry("before", started_s=9e9, ended_s=9e9 + 1),)))
    first.commit(Batch(entries=(entry("after", started_s=1e9, ended_s=1e9 + 1),)))
    assert walk(reader, 1) == ["after", "before"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
def test_pages_hold_every_request_once(ledger: Ledger, reader: LedgerReader, limit: int) -> None:
    """Whatever the page size, pending and final requests are each shown once, in order, and the last page ends it."""
    ledger.commit(Batch(entries=tuple(entry(f"f-{number}") for number in range(4))))
    ledger.commit(Batch(closed=tuple(span(f"p-{number}", ended_s=105.0) for number in range(3))))
    assert walk(reader, limit) == ["p-2", "p-1", "p-0", "f-3", "f-2", "f-1", "f-0"]


def test_pages_are_stable_while_requests_arrive(ledger: Ledger, reader: LedgerReader) -> None:
    """Entries that come between two pages neither shift nor repeat what is still to be shown."""
    ledger.commit(Batch(entries=tuple(entry(f"r-{number}") for number in range(4))))
    first = reader.requests(2)
    ledger.commit(Batch(entries=(entry("new-1"), entry("new-2")), closed=(span("p", ended_s=105.0),)))
    second = reader.requests(2, first.next)
    assert [item.request_id for item in (*first.items, *second.items)] == ["r-3", "r-2", "r-1", "r-0"]
    assert second.next is None


def test_a_request_that_becomes_final_between_pages_is_not_lost(ledger: Ledger, reader: LedgerReader) -> None:
    """A pending request that turns final before its page comes is shown on a later page."""
    ledger.commit(Batch(closed=tuple(span(f"p-{number}", ended_s=105.0) for number in range(3))))
    first = reader.requests(1)
    ledger.commit(Batch(entries=(entry("p-0"),)))
    rest: list[str] = []
    cursor = first.next
    while cursor is not None:
        page = reader.requests(1, cursor)
        rest += [item.request_id for item in page.items]
        cursor = page.next
    assert (first.items[0].request_id, rest) == ("p-2", ["p-1", "p-0"])


def test_filters_hold_for_pending_and_final(ledger: Ledger, reader: LedgerReader) -> None:
    """Model, tier and tenant narrow the list, and together they narrow it further."""
    ledger.commit(
        Batch(
            entries=(
                entry("a"),
                entry("b", tier="pro"),
                entry("c", model="flux", tenant="zeta"),
                entry("d", tier=None),
            ),
            closed=(span("e", ended_s=105.0, tier="pro", tenant="acme"),),
        )
    )
    assert walk(reader, 1, tier="pro") == ["e", "b"]
    assert walk(reader, 10, model="sdxl", tenant="acme") == ["e", "d", "b", "a"]
    assert walk(reader, 10, tier="free", tenant="zeta") == ["c"]
    assert walk(reader, 10, tier="nobody") == []
    assert walk(reader, 10, tier="pro", status="final") == ["b"]


def test_a_rare_filter_costs_bounded_pages(ledger: Ledger, tmp_path: Path) -> None:
    """A page looks at a bounded number of entries and hands on where it stopped, until the only match is found."""
    ledger.commit(Batch(entries=(entry("rare", tenant="rare"), *(entry(f"r-{number}") for number in range(19)))))
    reader = LedgerReader(tmp_path, scanned_rows=8)
    pages = [reader.requests(10, tenant="rare")]
    while (cursor := pages[-1].next) is not None:
        pages.append(reader.requests(10, cursor, tenant="rare"))
    assert [[item.request_id for item in page.items] for page in pages] == [[], [], ["rare"]]
    assert walk(reader, 10)[-1] == "rare"
    reader.close()


@pytest.mark.parametrize("cursor", ["x", "!!!", "cC4xLjI=x", "Zi54Lnk", "eC4xLjE", "é", "Zi4xLjEuMQ"])
def test_a_strange_cursor_is_refused(ledger: Ledger, reader: LedgerReader, cursor: str) -> None:
    """A cursor that this ledger never gave out is an error of its own kind, not an empty page."""
    with pytest.raises(BadCursor):
        reader.requests(10, cursor)


def fill_two_hours(ledger: Ledger) -> None:
    """Two hours, two devices, three final requests and one that is still pending."""
    later_s = EPOCH_S + HOUR_S
    ledger.commit(
        Batch(
            entries=(
                entry("a", [(GPU, EPOCH_S, 100), (GPU, EPOCH_S + 10, 50), ("GPU-b", EPOCH_S, 7)]),
                entry("b", [(GPU, EPOCH_S + 10, 30)], tier="pro", quality=Quality.APPORTIONED),
                entry("c", [("GPU-b", later_s, 11)], model=None),
            ),
            accounts=(
                account(requests_mj=100, idle_mj=40, unattributed_mj=2, estimated_mj=5),
                account(EPOCH_S + 10, requests_mj=95, idle_mj=1),
                account(EPOCH_S, "GPU-b", requests_mj=7, quality=Quality.SIMULATED),
                account(later_s, "GPU-b", epoch=1, requests_mj=11, idle_mj=3),
                account(later_s, "GPU-b", epoch=2, requests_mj=4, idle_mj=20),
            ),
        )
    )


def test_totals_keep_law_1_and_say_what_is_pending(ledger: Ledger, reader: LedgerReader) -> None:
    """Totals of a range are sums over all devices and epochs, with what is placed on pending requests beside them."""
    fill_two_hours(ledger)
    table = reader.energy(EPOCH_S, EPOCH_S + 2 * HOUR_S)
    assert table.totals == EnergyTotals(283, 217, 64, 2, 5, pending_mj=19)
    assert table.qualities_mj == {"measured": 276, "simulated": 7}
    assert table.request_qualities_mj == {"measured": 168, "apportioned": 30}
    assert table.groups == ()


def test_a_range_is_widened_to_whole_buckets(ledger: Ledger, reader: LedgerReader) -> None:
    """Any instant inside a bucket brings in all of it, and the answer says which range it is for."""
    fill_two_hours(ledger)
    table = reader.energy(EPOCH_S + 9.99, EPOCH_S + 10.01)
    assert (table.from_s, table.to_s, table.totals.device_mj) == (EPOCH_S, EPOCH_S + 20, 245)
    table = reader.energy(EPOCH_S, EPOCH_S + 10)
    assert (table.from_s, table.to_s, table.totals.device_mj) == (EPOCH_S, EPOCH_S + 10, 149)
    assert reader.energy(5.0, 5.0).totals == EnergyTotals()
    with pytest.raises(ValueError, match="range"):
        reader.energy(20.0, 10.0)
    with pytest.raises(ValueError, match="range"):
        reader.energy(float("nan"), 10.0)


def test_groups_of_requests_add_up_with_the_pending_one(ledger: Ledger, reader: LedgerReader) -> None:
    """Grouped by what requests have, energy that is not final yet stands in groups of its own, and nothing is lost."""
    fill_two_hours(ledger)
    table = reader.energy(EPOCH_S, EPOCH_S + 2 * HOUR_S, ("model", "tier"))
    shown = {
        (group.keys["model"], group.keys["tier"], group.pending): (group.requests, group.requests_mj)
        for group in table.groups
    }
    assert shown == {
        (None, "free", False): (1, 11),
        ("sdxl", "free", False): (1, 157),
        ("sdxl", "pro", False): (1, 30),
        (None, None, True): (0, 19),
    }
    assert list(table.groups[0].keys) == ["model", "tier"]
    assert all(group.device_mj is None for group in table.groups)


def test_groups_of_devices_and_hours_have_all_accounts(ledger: Ledger, reader: LedgerReader) -> None:
    """Grouped by device and hour, law 1 holds in each group and pending energy is part of its requests."""
    fill_two_hours(ledger)
    table = reader.energy(EPOCH_S, EPOCH_S + 2 * HOUR_S, ("hour", "device"))
    shown = {
        (group.keys["hour"], group.keys["device"]): (
            group.requests, group.device_mj, group.requests_mj, group.pending_mj, group.idle_mj,
            group.unattributed_mj, group.estimated_mj, group.qualities_mj,
        )
        for group in table.groups
    }  # fmt: skip
    assert shown == {
        (EPOCH_S, GPU): (2, 238, 195, 15, 41, 2, 5, {"measured": 150, "apportioned": 30}),
        (EPOCH_S, "GPU-b"): (1, 7, 7, 0, 0, 0, 0, {"measured": 7}),
        (EPOCH_S + HOUR_S, "GPU-b"): (1, 38, 15, 4, 23, 0, 0, {"measured": 11}),
    }


@pytest.mark.parametrize(
    "by",
    [("model",), ("tenant", "device"), ("hour",), ("tier", "hour", "device", "model", "tenant"), ("device", "device")],
)
def test_groups_always_add_up_to_the_totals(ledger: Ledger, reader: LedgerReader, by: tuple[str, ...]) -> None:
    """Whatever the grouping, requests' energy over all groups is that of the totals, to the millijoule."""
    fill_two_hours(ledger)
    table = reader.energy(EPOCH_S, EPOCH_S + 2 * HOUR_S, by)
    assert sum(group.requests_mj for group in table.groups) == table.totals.requests_mj == 217


def test_an_unknown_dimension_is_refused(ledger: Ledger, reader: LedgerReader) -> None:
    """Only the five dimensions of the contract can be grouped by."""
    with pytest.raises(ValueError, match="request_id"):
        reader.energy(0, 10, ("request_id",))


def test_hours_hold_each_devices_accounts(ledger: Ledger, reader: LedgerReader) -> None:
    """An hour of a device sums its buckets and epochs and splits them by the quality of the readings."""
    fill_two_hours(ledger)
    shown = [
        (hour.hour_s, hour.device, hour.device_mj, hour.requests_mj, hour.idle_mj, hour.qualities_mj)
        for hour in reader.accounts_by_hour(EPOCH_S + 1, EPOCH_S + HOUR_S + 1)
    ]
    assert shown == [
        (EPOCH_S, GPU, 238, 195, 41, {"measured": 238}),
        (EPOCH_S, "GPU-b", 7, 7, 0, {"simulated": 7}),
        (EPOCH_S + HOUR_S, "GPU-b", 38, 15, 23, {"measured": 38}),
    ]


def test_readers_of_many_threads_never_stop_the_writer(ledger: Ledger, reader: LedgerReader) -> None:
    """While threads read, every commit succeeds, and no reader ever sees half of one."""
    torn: list[tuple[int, int]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            table = reader.energy(EPOCH_S, EPOCH_S + 10, ("model",))
            if table.totals.pending_mj:
                torn.append((table.totals.requests_mj, table.totals.pending_mj))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 61):
        ledger.commit(
            Batch(entries=(entry(f"r-{number}", [(GPU, EPOCH_S, 3)]),), accounts=(account(requests_mj=3 * number),))
        )
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []
    assert reader.energy(EPOCH_S, EPOCH_S + 10).totals.requests_mj == 180


def test_a_reader_made_before_its_ledger_says_so(tmp_path: Path) -> None:
    """Without a ledger in the folder a query says what to start, and works once the ledger is there."""
    early = LedgerReader(tmp_path / "state")
    with pytest.raises(LedgerFault, match=r"there is none yet.*joulegate run"):
        early.requests()
    with Ledger(tmp_path / "state") as writer:
        writer.commit(Batch(entries=(entry("r-1"),)))
        assert early.request("r-1") == entry("r-1")
    early.close()


def test_a_query_that_takes_too_long_is_given_up(ledger: Ledger, tmp_path: Path) -> None:
    """A query past its limit ends with one line, and the next one works."""
    ledger.commit(Batch(entries=tuple(entry(f"r-{number}") for number in range(3_000))))
    hurried = LedgerReader(tmp_path, query_limit_s=0.0)
    with pytest.raises(LedgerFault, match="took too long"):
        hurried.energy(0, 2e9, ("model", "tier", "tenant", "device", "hour"))
    assert hurried.request("r-1") is not None
    hurried.close()

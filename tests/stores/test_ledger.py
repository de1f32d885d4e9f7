"""What the ledger keeps, counts once and gives back after a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.stores.examples import EPOCH_S, GPU, account, entry, position, span

from joulegate.metering.batch import Batch, Restored
from joulegate.metering.entry import Status
from joulegate.metering.reading import Quality
from joulegate.metering.snapshot import DeviceTotals
from joulegate.metering.span import Member, Outcome, Work
from joulegate.stores import Ledger, LedgerFault, LedgerReader
from joulegate.stores.rows import Moment


def test_a_new_ledger_has_nothing_to_restore(ledger: Ledger) -> None:
    """The first start finds an empty state and no fault."""
    assert ledger.restore() == Restored()


def test_an_entry_comes_back_as_it_was_written(ledger: Ledger, reader: LedgerReader) -> None:
    """Every field of an entry, shares and device figures included, survives the ledger unchanged."""
    written = entry(
        "r-1", [("GPU-a", EPOCH_S, 300), ("GPU-b", EPOCH_S, 5), ("GPU-a", EPOCH_S + 10, 40)], batch_id="b-7", flags=()
    )
    ledger.commit(Batch(entries=(written,)))
    found = reader.request("r-1")
    assert found is not None
    assert sorted(found.shares, key=repr) == sorted(written.shares, key=repr)
    assert replace(found, shares=()) == replace(written, shares=())


def test_an_entry_without_a_reading_stays_without_a_figure(ledger: Ledger, reader: LedgerReader) -> None:
    """Missing energy, uncertainty and method are null in the ledger, not zero."""
    written = entry("r-1", (), u_measurement_mj=None, u_allocation_mj=None, method=None)
    ledger.commit(Batch(entries=(written,)))
    assert reader.request("r-1") == written
    assert written.energy_mj is None


def test_a_final_entry_never_changes(ledger: Ledger, reader: LedgerReader) -> None:
    """The same request id again, with other figures, in the same or a later batch, changes nothing and is counted."""
    ledger.commit(Batch(entries=(entry("r-1"), entry("r-1", [(GPU, EPOCH_S, 1)]))))
    ledger.commit(Batch(entries=(entry("r-1", [(GPU, EPOCH_S, 2)]),)))
    assert reader.request("r-1") == entry("r-1")
    assert (ledger.counts.entries, ledger.counts.repeated_entries) == (1, 2)
    assert ledger.restore().requests[0].requests == 1


def test_pending_spans_survive_a_restart(open_ledger: Callable[..., Ledger]) -> None:
    """Open and closed spans are restored field by field on the same boot, and their monotonic times are untouched."""
    first = open_ledger()
    running, ended = span("r-1", tenant="acme"), span("r-2", ended_s=108.25, outcome=Outcome.FAILED)
    first.commit(Batch(opened=(running, replace(ended, ended_s=None, outcome=Outcome.OK))))
    first.commit(Batch(closed=(ended,)))
    first.close()
    restored = open_ledger(now=Moment(500.0, 99.0)).restore()
    assert restored.spans == (running, ended)
    assert restored.earlier_boot == frozenset()


def test_spans_of_an_earlier_boot_are_carried_over_by_wall_time(open_ledger: Callable[..., Ledger]) -> None:
    """After a reboot the same wall instants are given on the new monotonic axis, and the spans are named."""
    first = open_ledger(now=Moment(110.0, 2_000.0))
    first.commit(Batch(closed=(span("r-1", started_s=100.0, ended_s=105.0),)))
    first.close()
    restored = open_ledger(boot_id="boot-2", now=Moment(7.0, 2_030.0)).restore()
    (one,) = restored.spans
    assert (one.arrived_s, one.started_s, one.ended_s) == (-35.0, -33.0, -28.0)
    assert restored.earlier_boot == {"r-1"}


def test_an_unknown_boot_is_like_no_other(open_ledger: Callable[..., Ledger]) -> None:
    """Where the system names no boot, monotonic times of two runs are never compared."""
    first = open_ledger(boot_id="", now=Moment(110.0, 2_000.0))
    first.commit(Batch(opened=(span("r-1", started_s=100.0),)))
    first.close()
    (one,) = open_ledger(boot_id="", now=Moment(7.0, 2_030.0)).restore().spans
    assert one.started_s == -33.0


def test_an_entry_removes_its_span_from_the_journal(ledger: Ledger) -> None:
    """A final entry ends the pending state of its span, and a span of that request never opens again."""
    ledger.commit(Batch(opened=(span("r-1"), span("r-2"))))
    ledger.commit(Batch(entries=(entry("r-1"),)))
    ledger.commit(Batch(opened=(span("r-1"),), closed=(span("r-1", ended_s=104.0),)))
    assert [one.request_id for one in ledger.restore().spans] == ["r-2"]
    assert ledger.counts.repeated_spans == 2


def test_a_request_that_ends_within_one_batch_leaves_only_its_entry(ledger: Ledger, reader: LedgerReader) -> None:
    """Opened, closed and final in one batch: the entry is there, the journal is empty, nothing counts as a repeat."""
    ledger.commit(Batch(opened=(span("r-1"),), closed=(span("r-1", ended_s=103.0),), entries=(entry("r-1"),)))
    assert ledger.restore().spans == ()
    assert reader.request("r-1") == entry("r-1")
    assert ledger.counts.repeated_spans == 0


def test_a_known_span_changes_nothing(ledger: Ledger) -> None:
    """Opening an open span or closing a closed one again is counted and ignored; closing an open one replaces it."""
    ledger.commit(Batch(opened=(span("r-1"),)))
    ledger.commit(Batch(opened=(span("r-1", started_s=1.0),)))
    ledger.commit(Batch(closed=(span("r-1", started_s=101.0, ended_s=104.0),)))
    ledger.commit(Batch(closed=(span("r-1", ended_s=109.0),)))
    assert ledger.restore().spans == (span("r-1", started_s=101.0, ended_s=104.0),)
    assert ledger.counts.repeated_spans == 2


def test_a_batch_waits_for_its_last_member(open_ledger: Callable[..., Ledger]) -> None:
    """A span of several requests stays whole in the journal until each has an entry, also across a restart."""
    members = tuple(Member(name, Work(images=number)) for number, name in enumerate(("m-1", "m-2"), 1))
    batch = span("batch-1", ended_s=105.0, members=members, batch_id="batch-1")
    first = open_ledger()
    first.commit(Batch(closed=(batch,)))
    first.commit(Batch(entries=(entry("m-1"),)))
    assert first.restore().spans == (batch,)
    first.close()
    second = open_ledger()
    assert second.restore().spans == (batch,)
    second.commit(Batch(entries=(entry("m-2"),)))
    assert second.restore().spans == ()
    second.commit(Batch(closed=(batch,)))
    assert second.counts.repeated_spans == 1


def test_a_member_in_two_spans_ends_with_its_entry_in_both(ledger: Ledger) -> None:
    """A request named by two spans never keeps one of them pending for ever."""
    both = (Member("m-1"), Member("m-2"))
    ledger.commit(Batch(closed=(span("m-1", ended_s=104.0), span("b", ended_s=105.0, members=both))))
    ledger.commit(Batch(entries=(entry("m-2"),)))
    assert [one.request_id for one in ledger.restore().spans] == ["m-1"]
    ledger.commit(Batch(entries=(entry("m-1"),)))
    assert ledger.restore().spans == ()


def test_a_span_without_members_is_restored_without_members(open_ledger: Callable[..., Ledger]) -> None:
    """A span that names no member stands for its own request id and comes back as it was."""
    first = open_ledger()
    first.commit(Batch(opened=(span("r-1", members=()),)))
    first.close()
    second = open_ledger()
    assert second.restore().spans == (span("r-1", members=()),)
    second.commit(Batch(entries=(entry("r-1"),)))
    assert second.restore().spans == ()


def test_an_account_written_again_replaces_itself_in_the_totals(open_ledger: Callable[..., Ledger]) -> None:
    """Device totals are the sum over accounts as they stand, epoch by epoch, after rewrites and restarts."""
    first = open_ledger()
    first.commit(Batch(accounts=(account(requests_mj=10, idle_mj=5), account(requests_mj=30, idle_mj=6))))
    first.commit(Batch(accounts=(account(requests_mj=40, idle_mj=2, unattributed_mj=9, estimated_mj=4),)))
    first.commit(Batch(accounts=(account(epoch=1, requests_mj=1), account(EPOCH_S + 10, requests_mj=100))))
    first.close()
    second = open_ledger()
    second.commit(Batch(accounts=(account(EPOCH_S + 10, requests_mj=120), account(device="GPU-b", idle_mj=3))))
    expected = {
        GPU: DeviceTotals(172, 161, 2, 9, 4),
        "GPU-b": DeviceTotals(device_mj=3, idle_mj=3),
    }
    assert second.restore().totals == expected
    second.close()
    assert open_ledger().restore().totals == expected


def test_positions_and_accounts_around_them_are_restored(open_ledger: Callable[..., Ledger]) -> None:
    """A restart gets the newest position of each device and the accounts near it, which it may still have to write."""
    first = open_ledger()
    near = account(requests_mj=10), account(EPOCH_S + 10, idle_mj=3), account(EPOCH_S, "GPU-b", idle_mj=8)
    far = account(EPOCH_S - 36_000, idle_mj=1), account(EPOCH_S - 36_000, "GPU-b", idle_mj=1)
    first.commit(Batch(accounts=(*near, *far), positions=(position(wall_s=1.0), position(), position("GPU-b"))))
    first.close()
    restored = open_ledger().restore()
    assert restored.positions == (position(), position("GPU-b"))
    assert set(restored.accounts) == set(near)


def test_request_totals_survive_a_restart(open_ledger: Callable[..., Ledger]) -> None:
    """Counts, images, energy and the histogram of joules per image go on where they stood."""
    first = open_ledger()
    first.commit(Batch(entries=(entry("a", [(GPU, EPOCH_S, 200_000)]), entry("b", [(GPU, EPOCH_S, 200_002)]))))
    first.commit(Batch(entries=(entry("c", (), model=None, tier=None, work=Work()),)))
    first.close()
    second = open_ledger()
    second.commit(Batch(entries=(entry("d", [(GPU, EPOCH_S, 90_000_000)], work=Work(1)),)))
    by_key = {(one.model, one.tier, one.quality): one for one in second.restore().requests}
    measured, missing = by_key["sdxl", "free", Quality.MEASURED], by_key["", "", Quality.MISSING]
    assert (measured.requests, measured.images, measured.energy_mj) == (3, 5, 90_400_002)
    assert measured.energy_j_buckets == (2, 4, 4, 4, 4, 4, 4, 4, 4)
    assert (missing.requests, missing.images, missing.energy_mj) == (1, 1, 0)
    assert missing.energy_j_buckets == (0,) * 9


def test_odd_values_do_not_block_the_ledger(ledger: Ledger, reader: LedgerReader) -> None:
    """A figure that no database holds is stored as missing, broken text is escaped, and the chain still verifies."""
    odd = entry("r-\ud800", work=Work(10**30, 20, 512, 512), arrived_s=float("nan"), tenant="\udfff", model="\ud83d")
    use = replace(
        odd.devices[GPU], power_mean_w=float("inf"), temperature_max_c=-0.0, clock_event_s={"x": float("nan")}
    )
    opened = span("s-\ud800", members=(Member("s-\ud800", Work(10**30)),), edge_error_s=float("nan"))
    ledger.commit(Batch(opened=(opened,), entries=(replace(odd, devices={GPU: use}), entry("healthy"))))
    found = reader.request("r-\ud800")
    assert found is not None
    assert (found.work, found.arrived_s, found.tenant) == (Work(None, 20, 512, 512), None, "\\udfff")
    assert (found.devices[GPU].power_mean_w, found.devices[GPU].temperature_max_c) == (None, 0.0)
    assert found.devices[GPU].clock_event_s == {}
    assert reader.request("healthy") == entry("healthy")
    assert list(reader.verify_chain()) == []


def test_a_pending_entry_is_refused(ledger: Ledger, reader: LedgerReader) -> None:
    """Figures that are not final never reach the ledger, and the rest of that batch is not written either."""
    with pytest.raises(LedgerFault, match=r"'r-2'.*still pending"):
        ledger.commit(Batch(entries=(entry("r-1"), entry("r-2", status=Status.PENDING))))
    assert reader.requests().items == ()


def test_an_account_that_breaks_law_1_is_refused(ledger: Ledger) -> None:
    """The ledger holds no account whose parts do not add up, and nothing of its batch."""
    with pytest.raises(LedgerFault, match="law_1") as caught:
        ledger.commit(Batch(entries=(entry("r-1"),), accounts=(account(requests_mj=5, device_mj=6),)))
    assert "\n" not in str(caught.value)
    assert ledger.restore() == Restored()
    ledger.commit(Batch(entries=(entry("r-1"),), accounts=(account(requests_mj=5),)))
    assert ledger.restore().totals[GPU].device_mj == 5

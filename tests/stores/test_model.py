"""The ledger against the simplest thing that could be right: a dictionary."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stores.examples import EPOCH_S, account, entry, span

from joulegate.metering.batch import Batch
from joulegate.metering.entry import Account, RequestEntry
from joulegate.metering.span import Span
from joulegate.stores import Ledger, LedgerReader

IDS = tuple(f"r-{number}" for number in range(8))
DEVICES = ("GPU-a", "GPU-b")
BUCKETS = (EPOCH_S, EPOCH_S + 10, EPOCH_S + 3600)

shares = st.lists(st.tuples(st.sampled_from(DEVICES), st.sampled_from(BUCKETS), st.integers(0, 10**7)), max_size=3)
entries = st.builds(
    lambda request_id, parts, tier: entry(request_id, parts, tier=tier),
    st.sampled_from(IDS), shares, st.sampled_from(["free", "pro", None]),
)  # fmt: skip
open_spans = st.builds(lambda one, t_s: span(one, started_s=t_s), st.sampled_from(IDS), st.floats(0, 1e6))
closed_spans = st.builds(
    lambda one, t_s: span(one, started_s=t_s, ended_s=t_s + 2.5), st.sampled_from(IDS), st.floats(0, 1e6)
)
accounts = st.builds(
    lambda bucket_s, device, epoch, mj: account(
        bucket_s, device, epoch, requests_mj=mj[0], idle_mj=mj[1], unattributed_mj=mj[2], estimated_mj=mj[3]
    ),
    st.sampled_from(BUCKETS), st.sampled_from(DEVICES), st.integers(0, 1), st.tuples(*[st.integers(0, 10**9)] * 4),
)  # fmt: skip
batches = st.builds(
    Batch,
    opened=st.lists(open_spans, max_size=4).map(tuple),
    closed=st.lists(closed_spans, max_size=4).map(tuple),
    entries=st.lists(entries, max_size=4).map(tuple),
    accounts=st.lists(accounts, max_size=4).map(tuple),
)


@dataclass
class Model:
    """First entry wins, the last account wins, a span is known by its request id."""

    entries: dict[str, RequestEntry] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    accounts: dict[tuple[str, int, int], Account] = field(default_factory=dict)

    def commit(self, batch: Batch) -> None:
        """What a batch means."""
        for one in batch.opened:
            if one.request_id not in self.entries:
                self.spans.setdefault(one.request_id, one)
        for one in batch.closed:
            before = self.spans.get(one.request_id)
            if one.request_id not in self.entries and (before is None or before.ended_s is None):
                self.spans[one.request_id] = one
        for new in batch.entries:
            self.entries.setdefault(new.request_id, new)
            self.spans.pop(new.request_id, None)
        for one in batch.accounts:
            self.accounts[one.device, one.epoch, one.bucket_s] = one


def merged(given: RequestEntry) -> RequestEntry:
    """The entry with shares of one device and bucket added up, as the ledger keeps them."""
    sums: dict[tuple[int, str], int] = {}
    for share in given.shares:
        key = (share.bucket_s, share.device)
        sums[key] = sums.get(key, 0) + share.energy_mj
    parts = [(device, bucket_s, mj) for (bucket_s, device), mj in sorted(sums.items())]
    return replace(given, shares=entry(given.request_id, parts).shares)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(batches, st.booleans()), max_size=8))
def test_the_ledger_does_what_a_dictionary_does(steps: list[tuple[Batch, bool]]) -> None:
    """Over random batches with repeats, any order and restarts, ledger and dictionary agree on everything they hold."""
    with tempfile.TemporaryDirectory() as folder:
        model, ledger, reader = Model(), Ledger(Path(folder), boot_id="b"), LedgerReader(Path(folder))
        for batch, restart in steps:
            ledger.commit(batch)
            model.commit(batch)
            if restart:
                ledger.close()
                ledger = Ledger(Path(folder), boot_id="b")
        restored = ledger.restore()
        assert {one.request_id: one for one in restored.spans} == model.spans
        assert {one: reader.request(one) for one in model.entries} == {
            one: merged(held) for one, held in model.entries.items()
        }
        listed = [item.request_id for item in reader.requests(1000, status="final").items]
        assert listed == list(reversed(model.entries))
        assert list(reader.verify_chain()) == []
        agree_on_energy(reader, model)
        assert sum(one.requests for one in restored.requests) == len(model.entries)
        assert sum(one.energy_mj for one in restored.requests) == sum(
            one.energy_mj or 0 for one in model.entries.values()
        )
        for device, totals in restored.totals.items():
            held = [one for one in model.accounts.values() if one.device == device]
            assert totals.device_mj == sum(one.device_mj for one in held)
            assert totals.idle_mj == sum(one.idle_mj for one in held)
            assert totals.estimated_mj == sum(one.estimated_mj for one in held)
        ledger.close()
        reader.close()


def agree_on_energy(reader: LedgerReader, model: Model) -> None:
    """The first bucket's totals and its groups by tier and device are those of the dictionary."""
    table = reader.energy(EPOCH_S, EPOCH_S + 10, ("tier", "device"))
    held = [one for one in model.accounts.values() if one.bucket_s == EPOCH_S]
    assert table.totals.device_mj == sum(one.device_mj for one in held)
    assert table.totals.device_mj == table.totals.requests_mj + table.totals.idle_mj + table.totals.unattributed_mj
    assert sum(group.requests_mj for group in table.groups) == table.totals.requests_mj
    expected: dict[tuple[str | None, str], int] = {}
    for one in model.entries.values():
        for share in one.shares:
            if share.bucket_s == EPOCH_S:
                key = (one.tier, share.device)
                expected[key] = expected.get(key, 0) + share.energy_mj
    shown = {
        (group.keys["tier"], group.keys["device"]): group.requests_mj for group in table.groups if not group.pending
    }
    assert shown == expected

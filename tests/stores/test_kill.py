"""Nothing acknowledged is lost: the writer is killed with SIGKILL again and again, at any instant."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.stores.examples import EPOCH_S

from joulegate.stores import Ledger, LedgerReader

KILLS = 30
ROOT = Path(__file__).parents[2]


def lines_until_killed(folder: Path, epoch: int, chance: random.Random) -> list[str]:
    """What one life of the writer printed in whole lines; every fourth is killed while it opens the ledger."""
    command = [sys.executable, "-m", "tests.stores.kill_writer", str(folder), str(epoch)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "agent"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
    ) as writer:
        assert writer.stdout is not None
        heard: list[str] = []
        if epoch % 4:
            assert writer.stdout.readline() == "ready\n"
            heard += [writer.stdout.readline() for _ in range(chance.randrange(60))]
            time.sleep(chance.uniform(0.0, 0.004))
        else:
            time.sleep(chance.uniform(0.1, 0.4))
        writer.kill()
        heard += writer.stdout.readlines()
    return [line for line in heard if line.endswith("\n")]


def test_kill_9_loses_no_acknowledged_request_and_counts_none_twice(tmp_path: Path) -> None:
    """After every kill each printed id is there exactly once, every bucket closes, and the chain verifies."""
    chance = random.Random(20260)
    final: set[str] = set()
    opened: set[str] = set()
    for epoch in range(KILLS):
        for line in lines_until_killed(tmp_path, epoch, chance):
            state, _, request_id = line.strip().partition(" ")
            if state in ("final", "open"):
                (final if state == "final" else opened).add(request_id)
        with Ledger(tmp_path) as ledger:
            restored = ledger.restore()
        reader = LedgerReader(tmp_path)
        listed = every_id(reader)
        pending = [span.request_id for span in restored.spans]
        assert len(listed) == len(set(listed))
        assert len(pending) == len(set(pending))
        assert final <= set(listed)
        assert opened <= set(listed) | set(pending)
        assert set(listed).isdisjoint(pending)
        assert sum(one.requests for one in restored.requests) == len(listed) == reader.head()[0]
        assert_closed(reader, sum(one.energy_mj for one in restored.requests))
        assert list(reader.verify_chain()) == []
        reader.close()
    print(f"{KILLS} kills, {len(final)} acknowledged entries, {len(opened)} acknowledged spans, none lost")
    assert len(final) > KILLS


def every_id(reader: LedgerReader) -> list[str]:
    """Ids of all entries."""
    ids: list[str] = []
    page = reader.requests(1000, status="final")
    ids += [item.request_id for item in page.items]
    while page.next is not None:
        page = reader.requests(1000, page.next, status="final")
        ids += [item.request_id for item in page.items]
    return ids


def assert_closed(reader: LedgerReader, energy_mj: int) -> None:
    """In every bucket the shares of the entries are what its accounts gave to requests, and law 1 holds."""
    total_mj = 0
    for bucket_s in range(EPOCH_S, EPOCH_S + 10_000, 10):
        table = reader.energy(bucket_s, bucket_s + 10)
        totals = table.totals
        assert totals.pending_mj == 0
        assert totals.device_mj == totals.requests_mj + totals.idle_mj + totals.unattributed_mj
        total_mj += totals.requests_mj
        if bucket_s > EPOCH_S and not totals.device_mj:
            break
    assert total_mj == energy_mj

"""How many finished requests the ledger takes a second, by batch size, and what reading them back costs.

Run: ``PYTHONPATH=agent python benchmarks/bench_ledger.py [--entries N] [--json]``. Every request goes its whole way:
its span is journalled as opened and as closed, its entry becomes final with two devices and four shares, with the
accounts and positions of eight devices in each batch. ``entries only`` leaves the journal out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from joulegate.metering.batch import Batch
from joulegate.metering.entry import Account, DeviceUse, Position, RequestEntry, Share, Status
from joulegate.metering.reading import Method, Quality
from joulegate.metering.span import Member, Outcome, Span, StartSource, Work
from joulegate.stores import Ledger, LedgerReader
from joulegate.stores.chain import FIRST_HASH, digest
from joulegate.stores.rows import row_of

DEVICES = tuple(f"GPU-{number:08x}-1111-2222-3333-444455556666" for number in range(8))
START_S = 1_760_000_400
PER_SECOND = 5_000


def entry_of(number: int) -> RequestEntry:
    second = number // PER_SECOND
    bucket_s = START_S + second // 10 * 10
    mine = DEVICES[number % 8], DEVICES[(number + 1) % 8]
    request_id = f"{number:032x}"
    return RequestEntry(
        request_id=request_id, status=Status.FINAL, outcome=Outcome.OK, work=Work(4, 30, 1024, 1024),
        started_s=START_S + second + 0.123, ended_s=START_S + second + 9.75, start_source=StartSource.ENGINE,
        energy_mj=4_000, u_measurement_mj=200, u_allocation_mj=90, method=Method.COUNTER, quality=Quality.APPORTIONED,
        model="sdxl", tier=("free", "plus", "pro")[number % 3], tenant=f"tenant-{number % 500}",
        arrived_s=START_S + second - 1.5,
        devices={one: DeviceUse(2_000, 601.25, 688.5, 71.0, 0.97, 31_000_000_000, {"sw_thermal": 0.5}) for one in mine},
        shares=tuple(Share(request_id, one, bucket_s + later, 1_000) for one in mine for later in (0, 10)),
    )  # fmt: skip


def span_of(number: int) -> Span:
    return Span(
        request_id=f"{number:032x}", devices=(DEVICES[number % 8], DEVICES[(number + 1) % 8]),
        started_s=1_000.0 + number, arrived_s=998.5 + number, model="sdxl", tier="free",
        members=(Member(f"{number:032x}", Work(4, 30, 1024, 1024)),),
    )  # fmt: skip


def ended(number: int) -> Span:
    return replace(span_of(number), ended_s=2_000.0 + number)


def device_rows(number: int) -> tuple[tuple[Account, ...], tuple[Position, ...]]:
    bucket_s = START_S + number // PER_SECOND // 10 * 10
    accounts = tuple(
        Account(one, 0, bucket_s, number, number, 0, 0, 0, Method.COUNTER, Quality.MEASURED) for one in DEVICES
    )
    positions = tuple(Position(one, 0, number, number, float(number), float(bucket_s), "boot") for one in DEVICES)
    return accounts, positions


def batches(entries: int, size: int, *, journal: bool) -> Iterator[Batch]:
    """One batch opens a group of requests, closes the group before and makes the one before that final."""
    for first in range(0, entries + (2 * size if journal else 0), size):
        accounts, positions = device_rows(first)
        final = first - 2 * size if journal else first
        yield Batch(
            opened=tuple(map(span_of, range(first, min(first + size, entries)))) if journal else (),
            closed=tuple(ended(one) for one in range(max(first - size, 0), min(first, entries))) if journal else (),
            entries=tuple(entry_of(one) for one in range(max(final, 0), final + size) if one < entries),
            accounts=accounts,
            positions=positions,
        )


def write(folder: Path, entries: int, size: int, *, journal: bool) -> dict[str, float]:
    """Entries a second of wall and of CPU time, and the times of single commits; making the batches is not counted."""
    commits_s: list[float] = []
    cpu_s = 0.0
    with Ledger(folder) as ledger:
        for batch in batches(entries, size, journal=journal):
            began_s, cpu_began_s = time.perf_counter(), time.thread_time()
            ledger.commit(batch)
            commits_s.append(time.perf_counter() - began_s)
            cpu_s += time.thread_time() - cpu_began_s
    ordered = sorted(commits_s)
    return {
        "entries_per_s": round(entries / sum(commits_s)),
        "entries_per_cpu_s": round(entries / cpu_s),
        "commit_median_ms": round(statistics.median(ordered) * 1e3, 3),
        "commit_p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 3),
    }


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that ``action`` takes."""
    began_s = time.perf_counter()
    action()
    return round((time.perf_counter() - began_s) * 1e3, 2)


def read(folder: Path, entries: int) -> dict[str, float]:
    """What a restart and each kind of query cost with ``entries`` in the ledger."""
    began_s = time.perf_counter()
    ledger = Ledger(folder)
    ledger.restore()
    restart_ms = round((time.perf_counter() - began_s) * 1e3, 2)
    reader = LedgerReader(folder)
    end_s = START_S + entries / PER_SECOND + 20
    verify_ms = timed(lambda: list(reader.verify_chain()))
    figures = {
        "restart_ms": restart_ms,
        "request_ms": timed(lambda: reader.request(f"{entries // 2:032x}")),
        "page_of_100_ms": timed(lambda: reader.requests(100)),
        "energy_totals_ms": timed(lambda: reader.energy(START_S, end_s)),
        "energy_by_model_tier_device_ms": timed(lambda: reader.energy(START_S, end_s, ("model", "tier", "device"))),
        "verify_entries_per_s": round(entries / verify_ms * 1e3),
        "bytes_per_entry": round((folder / "ledger.db").stat().st_size / entries),
    }
    reader.close()
    ledger.close()
    return figures


def chain_us(entries: int = 5_000) -> float:
    """CPU microseconds of one hash, canonical form included."""
    rows = [row_of(entry_of(number)) for number in range(entries)]
    began_s = time.thread_time()
    prev_hash = FIRST_HASH
    for seq, row in enumerate(rows, 1):
        prev_hash = digest(prev_hash, seq, row)
    return round((time.thread_time() - began_s) / entries * 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000, help="entries of the largest run (default 100000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    figures: dict[str, object] = {"chain_cpu_us_per_entry": chain_us()}
    with tempfile.TemporaryDirectory() as root:
        for size in (1, 10, 100, 1_000):
            few = min(given.entries, size * 200)
            figures[f"whole way, {size} a batch"] = write(Path(root, f"w{size}"), few, size, journal=True)
        large = Path(root, "large")
        figures["entries only, 1000 a batch"] = write(large, given.entries, 1_000, journal=False)
        figures[f"with {given.entries} entries"] = read(large, given.entries)
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        parts = value if isinstance(value, dict) else {"": value}
        print(name, *(f"{part} {figure}".strip() for part, figure in parts.items()), sep="\n    ")


if __name__ == "__main__":
    main()

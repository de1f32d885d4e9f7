"""Writes to a ledger until it is killed, and prints an id only after the commit that holds it has returned.

``open ID`` means that the span is journalled, ``final ID`` that the entry is written. Each batch holds the entries of
the spans that the batch before opened, with the account that goes with them: whole batches keep law 1 per bucket.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stores.examples import EPOCH_S, GPU, account, entry, position, span

from joulegate.metering.batch import Batch
from joulegate.stores import Ledger

BATCHES_A_BUCKET = 7
SIZE = 5


def main(folder: Path, epoch: int) -> None:
    """Write for ever, in buckets and an epoch of this life's own."""
    ledger = Ledger(folder)
    print("ready", flush=True)
    ended: tuple[str, ...] = ()
    placed_mj = 0
    for number in range(10**9):
        bucket_s = EPOCH_S + 10 * (number // BATCHES_A_BUCKET)
        placed_mj = 0 if number % BATCHES_A_BUCKET == 0 else placed_mj
        entries = tuple(entry(one, [(GPU, bucket_s, 3 + place)]) for place, one in enumerate(ended))
        placed_mj += sum(one.energy_mj or 0 for one in entries)
        opened = tuple(f"{epoch}-{number}-{place}" for place in range(SIZE))
        ledger.commit(
            Batch(
                opened=tuple(span(one) for one in opened),
                closed=tuple(span(one, ended_s=104.0) for one in opened[::2]),
                entries=entries,
                accounts=(account(bucket_s, epoch=epoch, requests_mj=placed_mj, idle_mj=number),),
                positions=(position(),),
            )
        )
        print("\n".join([*(f"final {one}" for one in ended), *(f"open {one}" for one in opened)]), flush=True)
        ended = opened


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

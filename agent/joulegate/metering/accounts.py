"""Accounts of one device's energy: the buckets in which law 1 closes, and what a span got of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulegate.metering.reading import Method


@dataclass(frozen=True, slots=True)
class BucketKey:
    """Where accounts are closed: an epoch and a bucket number (its start divided by the bucket's length)."""

    epoch: int
    bucket: int


@dataclass(slots=True)
class Cell:
    """One bucket's accounts in whole millijoules; ``device_mj == requests_mj + idle_mj + unattributed_mj`` always.

    The ``exact`` fields are the same before rounding, ``settled_mj`` is what spans were given so far, ``claimed_mj``
    what late spans took of the idle and unattributed accounts.
    """

    key: BucketKey
    method: Method
    device_mj: int = 0
    requests_mj: int = 0
    idle_mj: int = 0
    unattributed_mj: int = 0
    estimated_mj: int = 0
    first_s: float = math.inf
    last_s: float = -math.inf
    claimed_mj: int = 0
    settled_mj: int = 0
    exact_spans_mj: float = 0.0
    exact_settled_mj: float = 0.0
    exact_unattributed_mj: float = 0.0
    exact_idle_mj: float = 0.0

    def settle(self, exact_mj: float) -> int:
        """Whole millijoules for a span's part of this bucket; the rounding residue is carried to the next one.

        Never more than is left: above 2^53 mJ a float rounds by more than a millijoule.
        """
        self.exact_settled_mj += exact_mj
        whole = max(0, round(self.exact_settled_mj) - self.settled_mj)
        whole = min(whole, self.device_mj - self.claimed_mj - self.settled_mj)
        self.settled_mj += whole
        return whole

    def balance(self, *, complete: bool) -> None:
        """Bring the whole accounts in line with the exact ones; after completion, with what spans really got."""
        spans_mj = self.settled_mj if complete else max(self.settled_mj, round(self.exact_spans_mj))
        spans_mj = min(spans_mj, self.device_mj - self.claimed_mj)
        left_mj = self.device_mj - self.claimed_mj - spans_mj
        unattributed_mj = min(left_mj, round(self.exact_unattributed_mj)) if self.exact_idle_mj > 0 else left_mj
        self.requests_mj = spans_mj + self.claimed_mj
        self.unattributed_mj = unattributed_mj
        self.idle_mj = left_mj - unattributed_mj


@dataclass(frozen=True, slots=True)
class UseShare:
    """Energy of a span in one bucket, and the seconds it held the device there."""

    key: BucketKey
    energy_mj: int
    held_s: float

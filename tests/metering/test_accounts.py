"""Cells: whole millijoules whose residues are carried, and balances that always close."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.metering.accounts import BucketKey, Cell
from joulegate.metering.reading import Method


def cell_of(device_mj: int, **exact: float) -> Cell:
    """A cell with this much energy booked."""
    return Cell(BucketKey(0, 0), Method.COUNTER, device_mj=device_mj, **exact)


@given(st.lists(st.floats(0.0, 1e6), max_size=50))
def test_rounding_never_strays_by_a_millijoule(parts: list[float]) -> None:
    """However many parts are settled, their whole sum stays within half a millijoule of the exact one."""
    cell = cell_of(10**12)
    given_mj = 0
    exact_mj = 0.0
    for part in parts:
        given_mj += cell.settle(part)
        exact_mj += part
        assert abs(given_mj - exact_mj) <= 0.5 + 1e-6
    assert cell.settled_mj == given_mj


def test_no_more_is_settled_than_there_is() -> None:
    """Above 2^53 mJ the float sum rounds up; what spans get still fits into what the device used."""
    cell = cell_of(2**60 + 1)
    first = cell.settle(float(2**60 + 1))
    second = cell.settle(1000.0)
    assert first + second == 2**60 + 1


@given(st.integers(0, 10**9), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_balance_closes(device_mj: int, spans: float, foreign: float, complete: bool) -> None:
    """Requests, idle and unattributed add up to the device, before and after the bucket is complete."""
    spans_mj = device_mj * spans
    foreign_mj = (device_mj - spans_mj) * foreign
    cell = cell_of(
        device_mj,
        exact_spans_mj=spans_mj,
        exact_unattributed_mj=foreign_mj,
        exact_idle_mj=device_mj - spans_mj - foreign_mj,
    )
    cell.settle(spans_mj)
    cell.balance(complete=complete)
    assert cell.device_mj == cell.requests_mj + cell.idle_mj + cell.unattributed_mj
    assert cell.requests_mj == pytest.approx(spans_mj, abs=1)
    if cell.exact_idle_mj > 0:
        assert cell.unattributed_mj == pytest.approx(foreign_mj, abs=1)


def test_rounding_of_a_busy_device_is_unattributed() -> None:
    """Where the device was never idle there is no idle account to take the residue."""
    cell = cell_of(1001, exact_spans_mj=1000.4)
    cell.settle(1000.4)
    cell.balance(complete=True)
    assert (cell.requests_mj, cell.idle_mj, cell.unattributed_mj) == (1000, 0, 1)


def test_claims_come_off_idle_and_unattributed() -> None:
    """What late spans took is a request's, and the other accounts have that much less."""
    cell = cell_of(1000, exact_idle_mj=600.0, exact_unattributed_mj=400.0, claimed_mj=700)
    cell.balance(complete=True)
    assert (cell.requests_mj, cell.idle_mj, cell.unattributed_mj) == (700, 0, 300)

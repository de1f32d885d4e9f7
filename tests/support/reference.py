"""A slow, exact attribution for given model parameters, and brute-force Shapley values, in rational numbers.

It shares no code with the meter: every interval is cut at every span edge, every segment visits every span.
Times in seconds, powers in watts, energies in millijoules, all ``Fraction``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise, permutations


@dataclass(frozen=True, slots=True)
class Interval:
    """Energy between two counter changes, already shifted by the sensor's lag."""

    start_s: Fraction
    end_s: Fraction
    energy_mj: int


@dataclass(frozen=True, slots=True)
class Use:
    """One request on the device."""

    request_id: str
    start_s: Fraction
    end_s: Fraction
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """Idle power and dynamic power by class; ``tolerance`` (``None``: no guard) over stretches of ``guard_s``."""

    idle_w: Fraction
    dynamic_w: Mapping[str, Fraction]
    tolerance: Fraction | None = None
    guard_s: Fraction = Fraction(1)


@dataclass(slots=True)
class Accounts:
    """Exact, unrounded results: they add up to the energy of the intervals."""

    requests_mj: dict[str, Fraction] = field(default_factory=dict)
    idle_mj: Fraction = Fraction(0)
    unattributed_mj: Fraction = Fraction(0)


def attribute(intervals: Sequence[Interval], uses: Sequence[Use], model: Model) -> Accounts:
    """Partition every interval by the model's weights (design 4, notes/measurement.md 6.2 steps 3 to 5)."""
    accounts = Accounts({use.request_id: Fraction(0) for use in uses})
    for interval in intervals:
        weights = interval_weights(interval, uses, model)
        total = sum(weights.values(), Fraction(0))
        take = Fraction(interval.energy_mj)
        if model.tolerance is not None:
            take = min(take, 1000 * total * (1 + model.tolerance))
        accounts.unattributed_mj += interval.energy_mj - take
        for request_id, weight in weights.items():
            share = take * weight / total
            if request_id is None:
                accounts.idle_mj += share
            else:
                accounts.requests_mj[request_id] += share
    return accounts


def interval_weights(interval: Interval, uses: Sequence[Use], model: Model) -> dict[str | None, Fraction]:
    """Model energy (J) of each request, and of idle under ``None``, within one interval."""
    inside = {t for use in uses for t in (use.start_s, use.end_s) if interval.start_s < t < interval.end_s}
    cuts = [interval.start_s, *sorted(inside), interval.end_s]
    weights: dict[str | None, Fraction] = {}
    for start_s, end_s in pairwise(cuts):
        active = [use for use in uses if use.start_s <= start_s and use.end_s >= end_s]
        if not active:
            weights[None] = weights.get(None, Fraction(0)) + model.idle_w * (end_s - start_s)
        for use in active:
            owed = (model.idle_w + model.dynamic_w[use.kind]) * (end_s - start_s) / len(active)
            weights[use.request_id] = weights.get(use.request_id, Fraction(0)) + owed
    return weights


def shapley(uses: Sequence[Use], idle_w: Fraction, own_dynamic_j: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Shapley value (J) of v(S) = idle power x length of the union of S + dynamic energies of S, over all orders."""
    values = {use.request_id: Fraction(0) for use in uses}
    orders = list(permutations(uses))
    for order in orders:
        before = Fraction(0)
        for count, use in enumerate(order, start=1):
            with_it = idle_w * union_s(order[:count])
            values[use.request_id] += with_it - before + own_dynamic_j[use.request_id]
            before = with_it
    return {request_id: value / len(orders) for request_id, value in values.items()}


def union_s(uses: Sequence[Use]) -> Fraction:
    """Length of the union of the spans."""
    total, reached = Fraction(0), None
    for use in sorted(uses, key=lambda use: use.start_s):
        start_s = use.start_s if reached is None else max(use.start_s, reached)
        total += max(Fraction(0), use.end_s - start_s)
        reached = use.end_s if reached is None else max(reached, use.end_s)
    return total

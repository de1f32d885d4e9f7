"""Exact apportionment of whole millijoules (largest remainder): the parts always add up to the total."""

from __future__ import annotations

from collections.abc import Sequence

_WEIGHT_SCALE = 10**9


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` (>= 0) in proportion to ``weights`` (finite, >= 0) into whole parts that sum to it exactly.

    Weights are taken to nine decimal places of the largest, so the arithmetic is exact for any size of ``total``.
    Equal remainders are broken by position: the caller orders the weights by something that has a meaning, such as the
    request id. All weights zero gives equal parts; no weights with a total above zero raises ``ValueError``.
    """
    if not weights:
        if total:
            raise ValueError("nothing to apportion to")
        return []
    largest = max(weights)
    if largest <= 0:
        return apportion_whole(total, [1] * len(weights))
    return apportion_whole(total, [round(weight / largest * _WEIGHT_SCALE) for weight in weights])


def apportion_whole(total: int, weights: Sequence[int]) -> list[int]:
    """``apportion`` for weights that are whole numbers already (a batch's work units): no rounding at all."""
    divisor = sum(weights)
    if divisor == 0:
        weights = [1] * len(weights)
        divisor = len(weights)
    parts = [total * weight // divisor for weight in weights]
    left = total - sum(parts)
    if left:
        remainders = [total * weight % divisor for weight in weights]
        for index in sorted(range(len(parts)), key=lambda i: -remainders[i])[:left]:
            parts[index] += 1
    return parts

"""Labels and counts as a pipeline gives them, made fit for the wire; what is not usable is counted, never raised."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from joulegate.metering.span import Work
from joulegate.metering.wire import MAX_COUNT, MAX_TEXT, text_fault


class Labels(NamedTuple):
    """Clean labels, and how many were not usable as given."""

    model: str | None
    power_class: str
    tier: str | None
    tenant: str | None
    batch_id: str | None
    unusable: int


NO_LABELS = Labels(None, "", None, None, None, 1)


@lru_cache(maxsize=1024, typed=True)
def checked_labels(model: object, power_class: object, tier: object, tenant: object, batch_id: object) -> Labels:
    """Labels cut to the wire's length and free of control characters; the class is the model where none is given."""
    given = (model, tier, tenant, batch_id, power_class)
    clean = tuple(_label(label) for label in given)
    unusable = sum(before != after for before, after in zip(given, clean, strict=True))
    model_text, tier_text, tenant_text, batch_text, class_text = clean
    return Labels(model_text, class_text or model_text or "", tier_text, tenant_text, batch_text, unusable)


@lru_cache(maxsize=1024, typed=True)
def checked_work(images: object, steps: object, width: object, height: object) -> tuple[Work, int]:
    """Counts that are whole and positive (also numpy's), and how many are not."""
    given = (images, steps, width, height)
    clean = [_count(value) for value in given]
    return Work(*clean), sum(value is not None and after is None for value, after in zip(given, clean, strict=True))


def _label(label: object) -> str | None:
    if label is None:
        return None
    text = str(label)
    if text_fault(text) is None:
        return text
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT])


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    number = int(value.__index__())
    return number if 0 < number <= MAX_COUNT else None

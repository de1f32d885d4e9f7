"""Figures of a run, each from the recording alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from benchmarks.throttle.gateway import DEADLINES_S, TIERS
from benchmarks.throttle.loop import J_PER_KWH, Recording

BAND = 0.05
GRACE_S = 60.0
CAPPED = 0.98
FREE = len(TIERS) - 1


def reversals(series: Sequence[float], band: float = BAND) -> int:
    """How often a series turned round.

    It turns when it has come back from its last extreme by at least ``band`` times that extreme; a first move by the
    band gives the first direction and is no turn. Up-and-downs inside the band do not count however many they are.
    """
    direction, turns = 0, 0
    low = high = series[0]
    for value in series:
        low, high = min(low, value), max(high, value)
        down, up = value <= high * (1 - band) and value < high, value >= low * (1 + band) and value > low
        if direction >= 0 and down:
            turns += direction
            direction, low = -1, value
            high = value
        elif direction <= 0 and up:
            turns -= direction
            direction, high = 1, value
            low = value
        elif direction > 0:
            low = high
        elif direction < 0:
            high = low
    return turns


def jain(values: Sequence[float]) -> float:
    """Jain's fairness of some ratios: 1 when all are equal, 1/n when one has all."""
    total, squares = sum(values), sum(value * value for value in values)
    return total * total / (len(values) * squares) if squares else 1.0


def figures(recording: Recording) -> dict[str, Any]:
    """Every figure of a run by name; None where there is nothing to say."""
    case, arrivals, service = recording.case, recording.arrivals, recording.service
    hours = case.scenario.duration_s / 3600.0
    deadline_s = np.array(DEADLINES_S)[arrivals.tier]
    good = (service.done_s - arrivals.t_s) <= deadline_s
    judged = arrivals.t_s <= case.scenario.duration_s - max(DEADLINES_S)
    paid = arrivals.tier != FREE
    waited_s = np.where(np.isnan(service.started_s), case.scenario.duration_s, service.started_s) - arrivals.t_s
    paid_waits_s = waited_s[paid & service.admitted]
    return {
        "good": int(good.sum()),
        "refused": int((~service.admitted).sum()),
        "hot_s": sum(recording.hot_s),
        "hot_after_s": _hot_after(recording),
        "soft_s": recording.soft_s,
        "hard_s": recording.hard_s,
        "die_max_c": recording.die_max_c,
        "paid_p99_s": float(np.quantile(paid_waits_s, 0.99)) if len(paid_waits_s) else None,
        "paid_success": _share(good[paid & judged]),
        "free_success": _share(good[~paid & judged]),
        "rate_reversals_h": reversals(recording.published_per_minute) / hours,
        "tier_reversals_h": max(reversals(one) for one in zip(*recording.tier_per_minute, strict=True)) / hours,
        **_cap_figures(recording, hours),
        "rate_variation_h": _variation(np.array(recording.published_per_minute)[:, None]) / hours,
        "detect_s": _detection(recording),
        "free_jain": _free_jain(recording),
        "kwh": recording.energy_j / J_PER_KWH,
        "j_per_good": recording.energy_j / int(good.sum()) if good.any() else None,
        "co2e_g": recording.co2e_g,
        "overshoot": _overshoot(recording),
    }


def _share(flags: np.ndarray[Any, Any]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _hot_after(recording: Recording) -> float:
    """Hot board-seconds, those of the minute after each event left out."""
    events_s = recording.case.scenario.events_s
    return sum(
        hot_s
        for t_s, hot_s in zip(recording.t_s, recording.hot_s, strict=True)
        if not any(event_s < t_s <= event_s + GRACE_S for event_s in events_s)
    )


def _cap_figures(recording: Recording, hours: float) -> dict[str, float]:
    """Turns of the published caps: mean over the boards that ever had one, and the worst board."""
    caps_w = np.array(recording.published_cap_w)
    most_w = recording.case.family.max_w
    turns = [reversals(one) for one in caps_w.T.tolist() if min(one) < most_w]
    return {
        "cap_reversals_h": float(np.mean(turns)) / hours if turns else 0.0,
        "cap_reversals_worst_h": max(turns, default=0) / hours,
        "cap_variation_h": _variation(caps_w / most_w) / hours,
        "capped_s": float((caps_w < CAPPED * most_w).sum()),
    }


def _variation(columns: np.ndarray[Any, Any]) -> float:
    """Mean total way of the columns, in multiples of each one's greatest value."""
    way = np.abs(np.diff(columns, axis=0)).sum(axis=0)
    return float((way / np.maximum(columns.max(axis=0), 1e-9)).mean())


def _detection(recording: Recording) -> float | None:
    """Seconds from the (first) event to the first published cap under 98 % of a board's greatest."""
    if not recording.case.scenario.events_s:
        return None
    event_s = recording.case.scenario.events_s[0]
    least_w = [float(caps_w.min()) for caps_w in recording.published_cap_w]
    capped_w = CAPPED * recording.case.family.max_w
    found = [t_s for t_s, w in zip(recording.t_s, least_w, strict=True) if w < capped_w and t_s >= event_s]
    return found[0] - event_s if found else None


def _free_jain(recording: Recording) -> float | None:
    """Evenness in time of the free tier's admitted share, over the minutes whose demand was over the full capacity."""
    case, arrivals = recording.case, recording.arrivals
    minute = (arrivals.t_s // 60).astype(int)
    nominal = 60.0 * case.scenario.devices / case.family.image_s
    ratios = []
    for one in range(math.ceil(case.scenario.duration_s / 60)):
        now = minute == one
        free = now & (arrivals.tier == FREE)
        if now.sum() > nominal and free.any():
            ratios.append(float(recording.service.admitted[free].mean()))
    return jain(ratios) if ratios else None


def _overshoot(recording: Recording) -> float | None:
    if recording.budget_j is not None:
        return recording.energy_j / recording.budget_j - 1.0
    if recording.budget_g is not None:
        return recording.co2e_g / recording.budget_g - 1.0
    return None

"""One sentence for a person: who is held to what, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from joulegate.throttle.judging import Judgement
from joulegate.throttle.recommendation import Action, Code, Reason, State, TierLimit


def explain(
    state: State,
    judgement: Judgement,
    reasons: Sequence[Reason],
    tiers: Mapping[str, TierLimit],
    rate: float | None,
) -> str:
    """The sentence, with its numbers."""
    held = _held(tiers, rate)
    if judgement.binding is None:
        return f"{held}; nothing binds." if state is State.NOMINAL else f"{held}; nothing binds, the state is {state}."
    why = [text for text in map(_why, reasons) if text][:2]
    return f"{held}: {'; '.join(why) or judgement.binding.value}."


def _held(tiers: Mapping[str, TierLimit], rate: float | None) -> str:
    limited = [(name, limit) for name, limit in tiers.items() if limit.action is not Action.ADMIT]
    if not limited:
        if rate is None:
            return "No rate is limited yet"
        return f"Up to {rate * 60.0:.0f} images a minute may start"
    parts = [
        f"{name} held to {limit.max_images_per_minute:.0f} a minute"
        for name, limit in limited
        if limit.max_images_per_minute is not None
    ]
    text = ", ".join(parts) or "all tiers are held"
    return text[:1].upper() + text[1:]


def _why(reason: Reason) -> str:
    """The reason in words; nothing where it has no numbers or is no reason to hold back."""
    if reason.observed is None or reason.limit is None or reason.code not in _WORDS:
        return ""
    return _WORDS[reason.code](reason, reason.observed, reason.limit)


def _hot(reason: Reason, observed: float, limit: float) -> str:
    if reason.predicted is not None and reason.horizon_s is not None and reason.predicted > limit:
        reached = f"{reason.device} would reach {reason.predicted:.1f} C in {reason.horizon_s:.0f} s at full power"
        return f"{reached}, its target is {limit:.1f} C"
    return f"{reason.device} is at {observed:.0f} C of {limit:.1f} C and its cap recovers slowly"


def _budget(reason: Reason, observed: float, limit: float) -> str:
    kind = {Code.POWER_BUDGET: "host", Code.ENERGY_BUDGET: "energy budget"}.get(reason.code, "CO2e budget")
    left = f" ({reason.note})" if reason.note else ""
    return f"the {kind} allows {limit:.0f} W in the mean{left}, {observed:.0f} W are drawn"


def _asked(_reason: Reason, observed: float, limit: float) -> str:
    return f"demand is {observed / limit:.1f} times capacity" if limit > 0 else f"{observed:.0f} a minute are asked for"


def _unheard(reason: Reason, observed: float, limit: float) -> str:
    if reason.unit == "devices":
        return "no device is up"
    return f"{reason.device} has told nothing for {observed:.0f} s" if observed > limit else ""


_WORDS: Mapping[Code, Callable[[Reason, float, float], str]] = {
    Code.THERMAL_HEADROOM_LOW: _hot,
    Code.MEMORY_TEMP: _hot,
    Code.HW_SLOWDOWN: lambda reason, observed, _: f"{reason.device} slows its clocks at {observed:.0f} C",
    Code.POWER_BRAKE: lambda reason, observed, _: f"{reason.device} is held by its power brake at {observed:.0f} W",
    Code.POWER_BUDGET: _budget,
    Code.ENERGY_BUDGET: _budget,
    Code.CARBON_INTENSITY: _budget,
    Code.DEMAND_EXCEEDS_CAPACITY: _asked,
    Code.QUEUE_DELAY: lambda _, observed, limit: f"{observed:.0f} s of work wait, {limit:.0f} s are enough",
    Code.TELEMETRY_STALE: _unheard,
}

"""The adviser: one line in, one recommendation out, also for a line that cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from joulegate.throttle.memory import Memory
from joulegate.throttle.observation import UnusableObservation, read_observation
from joulegate.throttle.recommendation import (
    Action,
    Binding,
    Code,
    FailSafe,
    Reason,
    Recommendation,
    State,
    TierLimit,
)
from joulegate.throttle.recommender import recommend
from joulegate.throttle.settings import ThrottleSettings
from joulegate.throttle.wire import canonical, from_plain, plain

ID_LENGTH = 26
_DAILY = re.compile(r"^\s*(\d+)\s*(?:/|per)\s*(?:1\s*)?day\b", re.IGNORECASE)


def settings_hash(settings: ThrottleSettings) -> str:
    """SHA-256 of the configuration, in hexadecimal."""
    return hashlib.sha256(canonical(plain(settings)).encode()).hexdigest()


class Adviser:
    """Turns observations into recommendations. Its output depends on configuration and input alone.

    ``decision_id`` is a hash over the id before it and the line, so that equal runs have equal ids and no two lines of
    one run share one.
    """

    def __init__(self, settings: ThrottleSettings) -> None:
        self.settings = settings
        self.newest: Recommendation | None = None
        self._memory = Memory()
        self._last_id = settings_hash(settings)
        self._quotas = {
            tier.name: int(found[1]) for tier in settings.tiers if (found := _DAILY.match(tier.quota or ""))
        }

    def advise_line(self, line: str) -> Recommendation:
        """One line of JSON; what is not JSON is bad input."""
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError):
            self._chain(line)
            return self._repeated("the line is not JSON")
        return self.advise(raw)

    def advise(self, raw: object) -> Recommendation:
        """One decoded JSON value; never raises for what it holds."""
        self._chain(_text(raw))
        try:
            observation = read_observation(raw, self._memory.t)
        except UnusableObservation as fault:
            return self._repeated(str(fault))
        self.newest = recommend(observation, self._memory, self.settings, self._last_id[:ID_LENGTH], self._quotas)
        return self.newest

    def checkpoint(self) -> dict[str, Any]:
        """Everything the next recommendation depends on, as JSON values that read back to the same bits."""
        return {
            "settings": settings_hash(self.settings),
            "last_id": self._last_id,
            "memory": plain(self._memory),
            "newest": None if self.newest is None else plain(self.newest),
        }

    @classmethod
    def restored(cls, settings: ThrottleSettings, checkpoint: Mapping[str, Any]) -> Adviser:
        """The adviser that wrote ``checkpoint``; raises ``ValueError`` where it does not fit these settings."""
        adviser = cls(settings)
        if checkpoint.get("settings") != settings_hash(settings):
            raise ValueError("the checkpoint was made with another configuration")
        adviser._last_id = from_plain(str, checkpoint.get("last_id"))
        adviser._memory = from_plain(Memory, checkpoint.get("memory"))
        for track in adviser._memory.devices.values():
            if any(model is not None and not model.fits() for model in (track.core, track.memory)):
                raise ValueError(f"the thermal model of {track.id} does not fit")
        if "newest" not in checkpoint:
            raise ValueError("the checkpoint has no newest recommendation")
        newest = checkpoint["newest"]
        adviser.newest = None if newest is None else from_plain(Recommendation, newest)
        return adviser

    def _chain(self, text: str) -> None:
        whole = f"{self._last_id}\n{text}".encode("utf-8", "surrogatepass")
        self._last_id = hashlib.sha256(whole).hexdigest()

    def _repeated(self, why: str) -> Recommendation:
        """The last limits with the reason why the line changed nothing; before the first, what is safe."""
        before = self.newest or _before_the_first(self.settings)
        reason = Reason(Code.BAD_INPUT, note=why)
        rest = tuple(other for other in before.reasons if other.code is not Code.BAD_INPUT)
        return dataclasses.replace(before, decision_id=self._last_id[:ID_LENGTH], reasons=(reason, *rest))


def _text(raw: object) -> str:
    try:
        return json.dumps(raw, separators=(",", ":"), sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return repr(type(raw))


def _before_the_first(settings: ThrottleSettings) -> Recommendation:
    """Neither open nor closed: nothing was ever seen."""
    fraction = settings.stale_admit_fraction
    tiers = {tier.name: TierLimit(Action.LIMIT, None, fraction, 1.0, 5.0) for tier in settings.tiers}
    return Recommendation(
        decision_id="",
        t=None,
        state=State.UNKNOWN,
        binding=Binding.TELEMETRY,
        confidence=0.0,
        reasons=(Reason(Code.TELEMETRY_STALE, 0.0, 1.0, "observations", note="nothing was observed yet"),),
        max_images_per_minute=None,
        admit_fraction=fraction,
        max_concurrency=None,
        power_cap_w={},
        host_power_cap_w=None,
        tiers=tiers,
        fail_safe=FailSafe(settings.stale_after_s, fraction, None),
        inputs={"telemetry_age_s": None, "grid_age_s": None},
        ttl_s=settings.ttl_s,
        poll_after_s=settings.poll_after_s,
        explain="No observation could be used yet: a quarter is admitted until one can (0 observations).",
    )

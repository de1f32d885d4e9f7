"""What people run today: nothing, a queue limit, a fixed share, on/off, AIMD, the kernel's power allocator, a PI."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from benchmarks.throttle.admission import Admission, Capacity, open_limits, speed
from benchmarks.throttle.controller import Observation, Recommendation
from benchmarks.throttle.families import Family

DECIDE_S = 5


class Unlimited:
    """``none``: whatever comes is queued, the hardware looks after itself."""

    def advise(self, observation: Observation) -> Recommendation:
        """No limits."""
        del observation
        return {**open_limits(), "power_cap_w": {}}

    def close(self) -> None:
        """Nothing to do."""


class Rated:
    """A controller that limits by ``share`` of the measured capacity, and by caps if a subclass gives them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._admission, self._capacity = Admission(), Capacity(family.image_s)
        self._caps_w: dict[str, float] = {}
        self._newest: Recommendation = {}

    def advise(self, observation: Observation) -> Recommendation:
        """A new plan every five seconds, the newest one in between."""
        up = [row for row in observation["devices"] if row["up"]]
        boards = sum(speed(self._caps_w.get(row["id"], self.family.max_w), self.family.max_w) for row in up)
        if int(observation["t"]) % DECIDE_S == 0 or not self._newest:
            self._caps_w = self.caps_w(observation)
        limits = self._admission.limits(
            observation, self._capacity.learn(observation, boards) * self.share(observation)
        )
        if int(observation["t"]) % DECIDE_S == 0 or not self._newest:
            self._newest = {**limits, "power_cap_w": dict(self._caps_w)}
        return self._newest

    def share(self, observation: Observation) -> float:
        """The share of the capacity to hand out."""
        del observation
        return 1.0

    def caps_w(self, observation: Observation) -> dict[str, float]:
        """The caps to ask for."""
        del observation
        return {}

    def close(self) -> None:
        """Nothing to do."""

    def _seen_c(self, observation: Observation) -> dict[str, float]:
        return {row["id"]: row["temperature_c"] for row in observation["devices"] if row["temperature_c"] is not None}


class Static(Rated):
    """``static``: 60 % of what the host can do at full clock, whatever happens."""

    def advise(self, observation: Observation) -> Recommendation:
        """The same limit always, shared by demand."""
        nominal = 0.6 * len(observation["devices"]) / self.family.image_s
        limits = self._admission.limits(observation, nominal)
        return {**limits, "max_images_per_minute": 60.0 * nominal, "power_cap_w": {}}


class BangBang(Rated):
    """``bang_bang``: half the rate from 84 C until 78 C (3 K and 9 K under the limit)."""

    _half = False

    def share(self, observation: Observation) -> float:
        """A half or the whole."""
        hottest_c = max(self._seen_c(observation).values(), default=0.0)
        under_k = self.family.max_operating_c - hottest_c
        self._half = under_k <= 3.0 or (self._half and under_k > 9.0)
        return 0.5 if self._half else 1.0


class Aimd(Rated):
    """``aimd``: a board's cap falls by a tenth from 2 K under its limit, and rises by 10 W a decision."""

    def caps_w(self, observation: Observation) -> dict[str, float]:
        """Each board by its own temperature."""
        family, caps_w = self.family, {}
        for name, seen_c in self._seen_c(observation).items():
            cap_w = self._caps_w.get(name, family.max_w)
            cap_w = 0.9 * cap_w if seen_c >= family.max_operating_c - 2.0 else cap_w + 10.0
            caps_w[name] = float(np.clip(cap_w, family.min_w, family.max_w))
        return caps_w


class PowerAllocator(Rated):
    """``power_allocator``: the Linux governor with its defaults, every 5 s (drivers/thermal/gov_power_allocator.c).

    Sustainable power is the sum of the smallest; the control temperature is 2 K under the limit, the switch-on 9 K.
    """

    _held = 0.0

    def caps_w(self, observation: Observation) -> dict[str, float]:
        """The budget by PI, then divided by request, surplus by headroom."""
        family, seen_c = self.family, self._seen_c(observation)
        error_k = family.max_operating_c - 2.0 - max(seen_c.values(), default=0.0)
        if error_k > 7.0:
            self._held = 0.0
            return {}
        most_w, sustainable_w = family.max_w * len(seen_c), family.min_w * len(seen_c)
        hot, cold = sustainable_w / 7.0, 2.0 * sustainable_w / 7.0
        held = self._held + (cold / 10.0) * error_k
        if error_k < 0 and abs(held) < most_w:
            self._held = held
        budget_w = float(np.clip(sustainable_w + (hot if error_k < 0 else cold) * error_k + self._held, 0.0, most_w))
        asked_w = {row["id"]: row["power_w"] or family.min_w for row in observation["devices"] if row["id"] in seen_c}
        granted = {name: min(budget_w * w / sum(asked_w.values()), family.max_w) for name, w in asked_w.items()}
        surplus_w = budget_w - sum(granted.values())
        room_w = {name: family.max_w - w for name, w in granted.items()}
        more = min(surplus_w / sum(room_w.values()), 1.0) if sum(room_w.values()) > 0 else 0.0
        return {name: float(max(w + more * room_w[name], family.min_w)) for name, w in granted.items()}


class TunedPi(Rated):
    """``pi``: one PI a board with clamped integral, 2.5 K under the limit, gains chosen by hand on the tuned family."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._integral_w: dict[str, float] = {}

    def caps_w(self, observation: Observation) -> dict[str, float]:
        """Proportional and integral part, the integral held while the cap is at an end."""
        family, caps_w = self.family, {}
        scale = family.max_w / 700.0
        for name, seen_c in self._seen_c(observation).items():
            error_k = family.max_operating_c - 2.5 - seen_c
            wanted_w = self._integral_w.get(name, family.max_w) + 3.0 * scale * error_k
            held_w = wanted_w + 12.0 * scale * error_k
            caps_w[name] = float(np.clip(held_w, family.min_w, family.max_w))
            self._integral_w[name] = float(np.clip(wanted_w, family.min_w, family.max_w))
        return caps_w


BASELINES: dict[str, Callable[[Family], Unlimited | Rated]] = {
    "none": lambda _: Unlimited(),
    "queue_only": Rated,
    "static": Static,
    "bang_bang": BangBang,
    "aimd": Aimd,
    "power_allocator": PowerAllocator,
    "pi": TunedPi,
}

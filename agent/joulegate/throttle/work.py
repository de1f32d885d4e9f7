"""Work: how many images the devices finish per second of full clock, learned from what they did."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SPEED_EXPONENT = 0.43
"""Speed over dynamic power: clock^0.9 over clock^2.2; exponents of 0.33 to 0.6 changed goodput by 0.3 points in trials
(notes/throttle.md, 4.4)."""

FAST_S = 15.0
SLOW_S = 90.0
BASELINE_S = 1200.0
ENOUGH_IMAGES = 4.0
KEPT_IMAGES = 12.0
"""A window forgets nothing while it holds fewer: slow work on a small host is learned too."""

SURPRISE_SD = 3.5
COUNT_VARIANCE = 0.4
"""Busy devices finish images more evenly than a Poisson process would; images of mixed sizes less than a clock."""

IN_PROGRESS = 0.5
"""What a busy device has done, on average, of the image it is at."""

OPTIMISM = 1.0
SURE_IMAGES = 100.0
MIN_BUSY = 0.15
SATURATED, SATURATED_UNTOLD, SATURATED_ALONE = 0.8, 0.9, 0.98


def speed(power_w: float, idle_w: float, full_w: float) -> float:
    """Speed of a busy device at ``power_w`` as a share of that at ``full_w``."""
    if full_w <= idle_w:
        return 1.0
    share = (power_w - idle_w) / (full_w - idle_w)
    return math.pow(min(max(share, 0.0), 1.0), SPEED_EXPONENT)


def power_at(speed_share: float, idle_w: float, full_w: float) -> float:
    """The power at which a busy device has this share of its full speed: the inverse of ``speed``."""
    return idle_w + (full_w - idle_w) * math.pow(min(max(speed_share, 0.0), 1.0), 1.0 / SPEED_EXPONENT)


@dataclass(slots=True)
class Window:
    """Images and the speed-seconds that made them, both forgotten at one rate."""

    images: float = 0.0
    speed_s: float = 0.0

    def add(self, images: float, speed_s: float, keep: float) -> None:
        """Forget a little and add what is new."""
        if self.images < KEPT_IMAGES:
            keep = 1.0
        self.images = self.images * keep + images
        self.speed_s = self.speed_s * keep + speed_s

    @property
    def rate(self) -> float | None:
        """Images per speed-second, once there were enough to tell."""
        return self.images / self.speed_s if self.images >= ENOUGH_IMAGES and self.speed_s > 0.0 else None


@dataclass(slots=True)
class WorkModel:
    """Images a speed-second over a fast, a slow and a very slow window, and joules an image."""

    fast: Window
    slow: Window
    baseline: Window
    energy_j: float = 0.0
    energy_images: float = 0.0
    busy: float = 0.0
    seen: float = 0.0

    def learn(self, finished: float, busy: float, speed_s: float, energy_j: float, dt_s: float) -> None:
        """Take what was done in ``dt_s``: images finished, busy devices, their speed-seconds, and the energy of all."""
        if speed_s <= 0.0 and finished <= 0.0:
            self.busy = busy
            return
        images = max(0.0, finished + IN_PROGRESS * (busy - self.busy))
        self.busy = busy
        self.seen += finished
        for window, time_s in ((self.fast, FAST_S), (self.slow, SLOW_S), (self.baseline, BASELINE_S)):
            window.add(images, speed_s, math.exp(-dt_s / time_s))
        keep = math.exp(-dt_s / SLOW_S)
        self.energy_j = self.energy_j * keep + energy_j
        self.energy_images = self.energy_images * keep + finished
        if self._surprised():
            self.slow.images, self.slow.speed_s = self.fast.images, self.fast.speed_s

    def _surprised(self) -> bool:
        """Whether the last seconds cannot be told from the slow window by counting noise alone."""
        rate = self.slow.rate
        if rate is None:
            return False
        expected = rate * self.fast.speed_s
        noise = math.sqrt(COUNT_VARIANCE * expected + IN_PROGRESS * self.busy)
        return expected >= KEPT_IMAGES and abs(self.fast.images - expected) > SURPRISE_SD * noise

    @property
    def images_per_speed_s(self) -> float | None:
        """Images that one device at full clock finishes in a second; ``None`` until enough was seen."""
        rate = self.slow.rate if self.slow.rate is not None else self.fast.rate
        if rate is None:
            return None
        # A few images tell little, and a limit that is too low cannot be seen from what was done under it.
        doubt = OPTIMISM / math.sqrt(max(1.0, self.seen)) - OPTIMISM / math.sqrt(SURE_IMAGES)
        return rate * (1.0 + max(0.0, doubt))

    @property
    def joules_per_image(self) -> float | None:
        """Energy of all devices per image, idle included."""
        return self.energy_j / self.energy_images if self.energy_images >= ENOUGH_IMAGES else None

    @property
    def cost_ratio(self) -> float | None:
        """How much more work an image is now than over the last twenty minutes; 1 is as ever."""
        now, ever = self.images_per_speed_s, self.baseline.rate
        return None if not now or not ever else ever / now


def new_work_model() -> WorkModel:
    """A model that knows nothing yet."""
    return WorkModel(Window(), Window(), Window())


def saturated_from(*, queued: bool | None) -> float:
    """The utilization from which a device counts as always busy: it depends on whether work waits for it."""
    if queued is None:
        return SATURATED_UNTOLD
    return SATURATED if queued else SATURATED_ALONE


@dataclass(frozen=True, slots=True)
class Busy:
    """One device while something was done: its mean power and the share of time in which it worked."""

    power_w: float
    idle_w: float
    full_w: float
    utilization: float | None


def speed_seconds(devices: Iterable[Busy], dt_s: float, *, queued: bool | None) -> tuple[float, float]:
    """Busy devices (a mean over ``dt_s``) and their speed-seconds.

    Without a utilization a device counts as busy where work was waiting, else by its power.
    """
    total = total_s = 0.0
    for device in devices:
        busy = device.utilization
        if busy is None:
            busy = 1.0 if queued else (device.power_w - device.idle_w) / max(1.0, device.full_w - device.idle_w)
        if busy < MIN_BUSY:
            continue
        # A device that always has a next image is never idle, whatever its driver's window of utilization says.
        busy = 1.0 if busy >= saturated_from(queued=queued) else min(1.0, busy)
        busy_w = device.idle_w + (device.power_w - device.idle_w) / busy
        total += busy
        total_s += dt_s * busy * speed(busy_w, device.idle_w, device.full_w)
    return total, total_s

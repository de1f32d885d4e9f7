"""The image server: one FIFO queue before the boards, nothing is cancelled."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt
from benchmarks.throttle.arrivals import Arrivals
from benchmarks.throttle.gateway import TIERS

Array = npt.NDArray[np.float64]


class Service:
    """Boards that work on one image each, and the queue before them; an image is its index in ``arrivals``.

    ``work_factor`` multiplies the work of what is begun from now on.
    """

    def __init__(self, devices: int, arrivals: Arrivals) -> None:
        self.admitted = np.zeros(len(arrivals.t_s), dtype=bool)
        self.started_s = np.full(len(arrivals.t_s), math.nan)
        self.done_s = np.full(len(arrivals.t_s), math.nan)
        self.done = 0
        self.work_factor = 1.0
        self.waiting = [0] * len(TIERS)
        self._tier, self._work_s = arrivals.tier.tolist(), arrivals.work_s.tolist()
        self._queue: deque[int] = deque()
        self._left_s = np.full(devices, math.inf)
        self._image = [-1] * devices
        self._idle = deque(range(devices))

    def admit(self, image: int) -> None:
        """Put an image at the end of the queue."""
        self.admitted[image] = True
        self._queue.append(image)
        self.waiting[self._tier[image]] += 1

    def advance(self, t_s: float, dt_s: float, speed: Array) -> Array:
        """Work for ``dt_s`` at ``speed`` (full-clock seconds a second); the share of it that each board was busy."""
        while self._queue and self._idle:
            self._start(self._idle.popleft(), t_s, 0.0)
        budget_s = speed * dt_s
        busy = np.where(np.isinf(self._left_s), 0.0, 1.0)
        self._left_s -= budget_s
        for device in np.flatnonzero(self._left_s <= 0.0).tolist():
            busy[device] = 1.0 - self._finish(device, t_s, dt_s, float(budget_s[device]))
        return busy

    def remove(self, device: int) -> None:
        """A board is gone: the image on it is lost and nothing is put on it."""
        if device in self._idle:
            self._idle.remove(device)
        self._left_s[device] = math.inf

    def restore(self, device: int) -> None:
        """The board is back and idle."""
        self._idle.append(device)

    def _start(self, device: int, t_s: float, head_start_s: float) -> None:
        image = self._queue.popleft()
        self.waiting[self._tier[image]] -= 1
        self.started_s[image] = t_s
        self._image[device] = image
        self._left_s[device] = self._work_s[image] * self.work_factor - head_start_s

    def _finish(self, device: int, t_s: float, dt_s: float, budget_s: float) -> float:
        """End the image, and begin the next ones with what is left of the step; the share that stays unused."""
        while self._left_s[device] <= 0.0:
            spare_s = -float(self._left_s[device])
            at_s = t_s + dt_s * (1.0 - spare_s / budget_s)
            self.done_s[self._image[device]] = at_s
            self.done += 1
            if not self._queue:
                self._left_s[device] = math.inf
                self._idle.append(device)
                return spare_s / budget_s
            self._start(device, at_s, spare_s)
        return 0.0

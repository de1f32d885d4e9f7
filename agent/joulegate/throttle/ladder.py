"""The ladder of states: entered at once, left one level at a time."""

from __future__ import annotations

from dataclasses import dataclass

from joulegate.throttle.recommendation import State

LEVELS = (State.NOMINAL, State.WATCH, State.CONSTRAINED, State.CRITICAL, State.EMERGENCY)
DWELL_S = 60.0


@dataclass(slots=True)
class Ladder:
    """The state shown, since when it could be left, and whether it stands beside the ladder (stale, unknown)."""

    state: str = State.UNKNOWN.value
    calm_t: float | None = None

    def move(self, wanted: State, t: float) -> State:
        """The state to show when ``wanted`` holds now.

        Up at once; down one level after a minute in which no more was wanted; to and from stale and unknown at once.
        """
        now = State(self.state)
        if wanted not in LEVELS or now not in LEVELS or LEVELS.index(wanted) >= LEVELS.index(now):
            self.state, self.calm_t = wanted.value, None
        elif self.calm_t is None:
            self.calm_t = t
        elif t - self.calm_t >= DWELL_S:
            self.state, self.calm_t = LEVELS[LEVELS.index(now) - 1].value, t
        return State(self.state)

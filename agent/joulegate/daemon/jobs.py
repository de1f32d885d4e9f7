"""What is done now and then, by APScheduler; each job returns at once, so that none delays another."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from apscheduler.schedulers.background import BackgroundScheduler

TICK_S = 30.0
"""How often the grid is looked after; what is due is the monitor's to know."""

_JITTER_S = 5
"""A fleet that was started at once does not ask at once."""


class Refreshable(Protocol):
    """Something that renews itself in the background."""

    def start_refresh(self) -> bool:
        """Begin and return at once; ``False`` where the renewal before is still under way."""


class Jobs:
    """The scheduler's thread and what it runs."""

    def __init__(self) -> None:
        self._scheduler = BackgroundScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )

    def every(self, period_s: float, run: Callable[[], object], *, name: str, jitter_s: int = 0) -> None:
        """Run ``run`` now and every ``period_s``; a run that was missed is made up for once."""
        self._scheduler.add_job(
            run,
            "interval",
            seconds=period_s,
            jitter=jitter_s or None,
            next_run_time=datetime.now(UTC),
            id=name,
            name=name,
            replace_existing=True,
        )

    def start(self) -> None:
        """Begin."""
        self._scheduler.start()

    def stop(self) -> None:
        """End; a run under way ends by itself. Safe to call twice."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)


def refresh_grid(jobs: Jobs, monitor: Refreshable, *, tick_s: float = TICK_S) -> None:
    """Keep ``monitor`` fresh from the start of ``jobs`` on."""
    jobs.every(tick_s, monitor.start_refresh, name="grid-refresh", jitter_s=min(_JITTER_S, int(tick_s // 2)))

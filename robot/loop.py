"""A fixed rate on a steady clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class LoopTimes:
    """How punctual a loop was."""

    ticks: int = 0
    skipped: int = 0
    """Ticks whose time had passed before they could begin."""
    lateness: list[float] = field(default_factory=list)
    """Of each tick's beginning, s; the last `keep` of them."""
    keep: int = 5_000
    """So few that a quantile of them takes no tick's time."""

    def note(self, late: float) -> None:
        self.ticks += 1
        if len(self.lateness) >= 2 * self.keep:
            del self.lateness[: self.keep]
        self.lateness.append(late)

    def quantile(self, share: float) -> float:
        """Of the lateness, s; 0 before the first tick."""
        return float(np.quantile(self.lateness, share)) if self.lateness else 0.0


class ControlLoop:
    """Calls `tick` once a period until it returns False or `stop` is called."""

    def __init__(
        self,
        period: float,
        tick: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`period` in s."""
        self.times = LoopTimes()
        self._period, self._tick, self._clock, self._sleep = period, tick, clock, sleep
        self._stopped = threading.Event()

    def run(self) -> None:
        """In the calling thread. After a delay of more than a period, ticks are skipped: they never come in a burst."""
        due = self._clock()
        while not self._stopped.is_set():
            while (wait := due - self._clock()) > 0:
                self._sleep(wait)
            late = self._clock() - due
            if missed := int(late / self._period):
                self.times.skipped += missed
                due += missed * self._period
                late -= missed * self._period
            self.times.note(late)
            if not self._tick():
                return
            due += self._period

    def stop(self) -> None:
        self._stopped.set()

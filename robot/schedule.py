"""When a policy decides: once a decision period, and where scans come no more often than that, right after each."""

from __future__ import annotations

SLOW = 0.75
"""A scanner is slow if its scans come further apart than this share of a decision period."""


class DecisionSchedule:
    """Ticks of the control loop at which the policy is asked.

    A policy that kept its own time beside a scanner of the same rate would act on scans that are anything up to a whole period
    old, and always the same age: decided on arrival, they are one tick old. A scan that fails to come is waited for half a
    period longer; what comes more often leaves the policy its own time.
    """

    def __init__(self, ticks: int, period: float) -> None:
        """`ticks` in a decision period of `period` seconds."""
        self._ticks, self._period = ticks, period
        self._since: int | None = None
        """Ticks since the last decision."""
        self._arrived: float | None = None
        self._slow = self._fresh = False

    def restart(self) -> None:
        """Decide at the next tick."""
        self._since = None

    def scan(self, now: float) -> None:
        """A scan has come, at `now`, s."""
        self._slow = self._arrived is not None and now - self._arrived >= SLOW * self._period
        self._arrived, self._fresh = now, True

    def tick(self) -> bool:
        """Whether to decide at this tick; call it at each."""
        if self._since is not None:
            self._since += 1
            late = self._ticks + (self._ticks // 2 if self._slow else 0)
            if not (self._slow and self._fresh) and self._since < late:
                return False
        self._since, self._fresh = 0, False
        return True

"""How old the inputs are, on a steady clock."""

from __future__ import annotations

import math

CLOCK_TOLERANCE = 0.05
"""A measurement may come from so far in the future, s; more means that a clock has jumped."""


class Watchdog:
    """Of one input: what was measured when, and whether that is too long ago."""

    def __init__(self, name: str, timeout: float) -> None:
        """`timeout` in s; `name` stands in messages."""
        self.name, self.timeout = name, timeout
        self._measured: float | None = None
        self._reason: str | None = None

    def feed(self, measured: float, now: float, reason: str | None = None) -> None:
        """A message came: `measured` is the steady time of its content, s; `reason` says why the content is no good."""
        if measured > now + CLOCK_TOLERANCE or not math.isfinite(measured):
            reason = f"{self.name} comes from {measured - now:.2f} s in the future; synchronise the clocks"
        self._reason = reason
        if self._measured is None or reason is not None or measured >= self._measured:
            self._measured = min(measured, now) if math.isfinite(measured) else now

    def forget(self) -> None:
        """As if no message had ever come."""
        self._measured = self._reason = None

    def age(self, now: float) -> float:
        """s; inf before the first message."""
        return math.inf if self._measured is None else now - self._measured

    def problem(self, now: float) -> str | None:
        """Why the input must not be used now, or None."""
        if self._measured is None:
            return f"no {self.name} has come"
        if self._reason is not None:
            return self._reason
        if (age := self.age(now)) > self.timeout:
            return f"the last {self.name} is {age:.2f} s old"
        return None

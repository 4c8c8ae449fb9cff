"""How fast a client may ask."""

from __future__ import annotations


class RateLimit:
    """A token bucket that holds one second's worth, at least one request.

    Example: at 2 requests a second, three at once are two that pass and one that does not; half a second later one passes.
    """

    def __init__(self, per_second: float, now: float) -> None:
        self._rate = per_second
        self._capacity = max(1.0, per_second)
        self._tokens = self._capacity
        self._last = now

    def admit(self, now: float) -> bool:
        """Whether a request at the time `now` (s) may pass; one that may not costs nothing."""
        self._tokens = min(self._capacity, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

"""Repeated measurements as one number with its range, and what is asked of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Spread:
    """Median and range of repeats.

    Example: `Spread.of([3, 1, 2])` is `Spread(median=2, low=1, high=3, repeats=3)`.
    """

    median: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Raises `ValueError` for no values."""
        if not values:
            raise ValueError("no measurements to summarise")
        return Spread(float(median(values)), float(min(values)), float(max(values)), len(values))

    def text(self, digits: int | None = None) -> str:
        """`12.3 (11.8-13.0)`; by default with three significant digits of the median."""
        if 0 < abs(self.median) < 0.01:
            return f"{self.median:.1e}"
        if digits is None:
            digits = 2 if abs(self.median) < 10 else 1 if abs(self.median) < 100 else 0
        middle = f"{self.median:.{digits}f}"
        return middle if self.repeats == 1 else f"{middle} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Quotients of the repeats that ran side by side, so that what else the machine did cancels out."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


@dataclass(frozen=True)
class Target:
    """One thing that is asked of a measurement; `value` is None where it was not measured."""

    name: str
    relation: Literal[">=", "<=", "<"]
    wanted: float
    value: Spread | None
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Judged by the median; None where nothing was measured."""
        return None if self.value is None else _COMPARE[self.relation](self.value.median, self.wanted)

    @property
    def verdict(self) -> str:
        return {True: "met", False: "NOT MET", None: "not measured"}[self.met]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}

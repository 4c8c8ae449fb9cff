"""Averages of statistics over micro-batches and mini-batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Averages:
    """Weighted averages by name; `..._max` and `..._min` keep extremes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, stats: Mapping[str, Any], weight: float) -> None:
        for name, value in stats.items():
            value = float(value)
            if name.endswith(("_max", "_min")):
                choose = max if name.endswith("_max") else min
                self._sums[name], self._weights[name] = choose(self._sums.get(name, value), value), 1.0
            else:
                self._sums[name] = self._sums.get(name, 0.0) + value * weight
                self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        return {name: total / max(self._weights[name], 1e-12) for name, total in self._sums.items()}

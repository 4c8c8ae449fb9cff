"""Averages of statistics over micro-batches, ranks and mini-batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Averages:
    """Weighted averages by name; `..._max` and `..._min` keep extremes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._extremes: dict[str, float] = {}

    def add(self, stats: Mapping[str, Any], weight: float) -> None:
        """Extremes of nothing (weight 0) are none."""
        for name, value in stats.items():
            value = float(value)
            if not name.endswith(("_max", "_min")):
                self._sums[name] = self._sums.get(name, 0.0) + value * weight
                self._weights[name] = self._weights.get(name, 0.0) + weight
            elif weight:
                choose = max if name.endswith("_max") else min
                self._extremes[name] = choose(self._extremes.get(name, value), value)

    def to_tree(self) -> dict[str, dict[str, float]]:
        """Plain values, for `add_tree` in another process."""
        return {"sums": self._sums, "weights": self._weights, "extremes": self._extremes}

    def add_tree(self, tree: Mapping[str, Mapping[str, float]]) -> None:
        for name, value in tree["sums"].items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._weights[name] = self._weights.get(name, 0.0) + tree["weights"][name]
        self.add(tree["extremes"], 1.0)

    def result(self) -> dict[str, float]:
        return {name: total / max(self._weights[name], 1e-12) for name, total in self._sums.items()} | self._extremes

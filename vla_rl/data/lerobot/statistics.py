"""Statistics of a dataset's features, as LeRobot's `meta/stats.json` lists them.

Legend: N rows, D size of a feature, F frames, H x W image size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def vector_statistics(rows: Shaped[np.ndarray, "N D"]) -> dict[str, Any]:
    """Of each column."""
    values = np.asarray(rows, dtype=np.float64)
    result = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        **{name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()},
    }
    return {name: value.tolist() for name, value in result.items()} | {"count": [len(values)]}


class FrameHistogram:
    """How often each channel has each of its 256 values: all that statistics of frames need."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), dtype=np.int64)
        self.frames = 0

    def add(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        self.frames += len(frames)
        for channel in range(3):
            self.counts[channel] += np.bincount(frames[..., channel].ravel(), minlength=256)

    def merge(self, other: FrameHistogram) -> None:
        self.counts += other.counts
        self.frames += other.frames

    def statistics(self) -> dict[str, Any]:
        """Of each channel, in [0, 1], as nested lists of shape [3, 1, 1]."""
        levels = np.arange(256) / 255
        total = self.counts.sum(axis=1)
        mean = self.counts @ levels / total
        reached = np.cumsum(self.counts, axis=1) / total[:, None]
        result = {
            "min": [levels[np.flatnonzero(row)[0]] for row in self.counts],
            "max": [levels[np.flatnonzero(row)[-1]] for row in self.counts],
            "mean": mean,
            "std": np.sqrt(np.maximum(self.counts @ levels**2 / total - mean**2, 0)),
            **{name: [levels[np.searchsorted(row, q)] for row in reached] for name, q in QUANTILES.items()},
        }
        shaped = {name: np.asarray(value, dtype=np.float64).reshape(3, 1, 1).tolist() for name, value in result.items()}
        return shaped | {"count": [self.frames]}

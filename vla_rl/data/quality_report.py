"""The quality and the variety of a dataset as numbers: what `vla-rl data report` writes as JSON and draws.

Legend: T control steps, E episodes, K points of a resampled path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.data.dataset import DatasetInfo, ReadOptions
from vla_rl.data.demonstration import Demonstration
from vla_rl.data.formats import dataset_info, read_episodes
from vla_rl.data.quality import Quality, chunk_jump, path_distances, quality_of, resample, sparc_cutoff, warped_distances

MEASURES = (
    "sparc", "log_dimensionless_jerk", "action_variation", "path_length", "directness", "duration", "peak_speed",
    "gripper_switches", "no_ops",
)  # fmt: skip
PATH_POINTS = 61
"""Of a resampled path."""
MAX_PAIRED = 60
"""Episodes of a task that are compared with each other; pairs grow with the square."""
BAND = (0.05, 0.95)


@dataclass
class _Task:
    """What is kept of the episodes of one instruction."""

    paths: list[np.ndarray] = field(default_factory=list)
    starts: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    labels: list[Quality] = field(default_factory=list)


@dataclass(frozen=True)
class QualityReport:
    """Numbers of a dataset, its tasks and its episodes."""

    info: DatasetInfo
    tasks: dict[str, dict[str, Any]]
    """Of each instruction: episodes, successes, quartiles of each measure, spread, and the band of the hand's path."""
    episodes: list[dict[str, Any]]
    chunk_length: int | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "dataset": self.info.to_dict(),
            "sparc_cutoff_hz": sparc_cutoff(self.info.convention.fps),
            "chunk_length": self.chunk_length,
            "measures": {name: self.summary(name) for name in MEASURES},
            "tasks": self.tasks,
            "episodes": self.episodes,
        }

    def summary(self, measure: str) -> dict[str, float | int | None]:
        return quartiles([episode[measure] for episode in self.episodes])


def quality_report(path: Path, options: ReadOptions | None = None, chunk_length: int | None = None) -> QualityReport:
    """Measure every episode of a dataset, of any format and origin. Raises `DatasetError` for one that cannot be read.

    `chunk_length`: the policy committed to so many actions at a time; how much they jump where chunks meet is measured.
    """
    options = options or ReadOptions()
    without_frames = ReadOptions(cameras=(), limit=options.limit, stated=options.stated)
    tasks: dict[str, _Task] = {}
    episodes: list[dict[str, Any]] = []
    for _, demonstration in read_episodes(path, without_frames):
        task = tasks.setdefault(demonstration.instruction, _Task())
        label = quality_of(demonstration)
        episodes.append({"episode": len(episodes), "instruction": demonstration.instruction} | label.to_dict())
        if chunk_length is not None:
            jump = chunk_jump(demonstration.actions, chunk_length)
            episodes[-1]["chunk_jump"] = jump if np.isfinite(jump) else None
        _keep(task, demonstration, label)
    described = {instruction: _describe(task) for instruction, task in tasks.items()}
    return QualityReport(dataset_info(path, options), described, episodes, chunk_length)


def _keep(task: _Task, demonstration: Demonstration, label: Quality) -> None:
    positions = demonstration.proprio[:, :3].astype(np.float64)
    task.paths.append(resample(positions, PATH_POINTS))
    task.starts.append(positions[0])
    task.digests.append(hashlib.sha256(np.ascontiguousarray(demonstration.actions).tobytes()).hexdigest())
    task.labels.append(label)


def _describe(task: _Task) -> dict[str, Any]:
    paths = np.stack(task.paths)
    measures = {name: quartiles([getattr(label, name) for label in task.labels]) for name in MEASURES}
    return {
        "episodes": len(paths),
        "successes": sum(label.success for label in task.labels),
        "measures": measures,
        "spread": spread(paths, np.stack(task.starts), task.digests),
        "path": path_band(paths),
    }


def spread(paths: Float64[np.ndarray, "E K 3"], starts: Float64[np.ndarray, "E 3"], digests: Sequence[str]) -> dict[str, Any]:
    """How far apart the episodes of one task are; distances in m, None where there is no pair."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:MAX_PAIRED])
    distances, warped = path_distances(paths[chosen]), warped_distances(paths[chosen])
    nearest = None
    if len(chosen) > 1:
        square = np.full((len(chosen), len(chosen)), np.inf)
        first, second = np.triu_indices(len(chosen), 1)
        square[first, second] = square[second, first] = distances
        nearest = float(np.median(square.min(axis=1)))
    return {
        "compared": len(chosen),
        "pairwise_distance": float(distances.mean()) if len(distances) else None,
        "pairwise_warped_distance": float(warped.mean()) if len(warped) else None,
        "nearest_distance": nearest,
        "start_deviation": float(np.linalg.norm(starts.std(axis=0))),
        "repeated": len(digests) - len(set(digests)),
    }


def path_band(paths: Float64[np.ndarray, "E K 3"]) -> dict[str, Any]:
    """Median and 5-95% band of the hand's position over the course of the episode, m."""
    low, middle, high = (np.quantile(paths, q, axis=0) for q in (BAND[0], 0.5, BAND[1]))
    return {
        axis: {"median": middle[:, i].tolist(), "low": low[:, i].tolist(), "high": high[:, i].tolist()}
        for i, axis in enumerate("xyz")
    }


def quartiles(values: Sequence[float | int | None]) -> dict[str, float | int | None]:
    """Minimum, quartiles, maximum and number of the values that there are."""
    there = [float(value) for value in values if value is not None]
    numbers = np.quantile(there, [0, 0.25, 0.5, 0.75, 1]).tolist() if there else [None] * 5
    return dict(zip(("min", "q25", "median", "q75", "max"), numbers, strict=True)) | {"count": len(there)}

"""How good and how varied demonstrations are: smoothness of the hand's path, restlessness of the actions, spread.

Published smoothness measures take a speed profile; ours is that of the end effector, from stored positions. Data of
reinforcement learning often collapse to one way of doing a task, which smoothness alone rewards: read it beside the spread.

Legend: T control steps, N samples, E episodes, K points of a resampled path, Q pairs of episodes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from vla_rl.data.demonstration import Demonstration

NO_OP_NORM = 1e-4
"""An action that moves less than this, and leaves the gripper's command as it was, does nothing (OpenVLA's filter)."""


def sparc(speed: Float[np.ndarray, "N"], rate: float, cutoff: float = 10.0, threshold: float = 0.05) -> float:
    """Spectral arc length of a speed profile sampled at `rate` Hz; 0 is smoothest, more negative is jerkier.

    The length of the curve (frequency, amplitude) of the normalised spectrum from 0 up to `cutoff` Hz, as far as the
    amplitude reaches `threshold`, the frequency scaled to [0, 1]. The cutoff must lie below half the rate. NaN without
    movement. Balasubramanian et al., On the analysis of movement smoothness, 2015, eq. 5-6; zero-padding 16-fold.
    """
    if not 0 < cutoff < rate / 2:
        raise ValueError(f"a cutoff of {cutoff} Hz must lie below half the sampling rate of {rate} Hz")
    speed = np.asarray(speed, dtype=np.float64)
    if len(speed) < 2 or not np.abs(speed).max() > 0:
        return float("nan")
    size = 2 ** (int(np.ceil(np.log2(len(speed)))) + 4)
    amplitude = np.abs(np.fft.rfft(speed, size))
    amplitude /= amplitude.max()
    frequency = np.arange(len(amplitude)) * rate / size
    inside = np.flatnonzero((frequency <= cutoff) & (amplitude >= threshold))
    kept = slice(inside[0], inside[-1] + 1)
    frequency, amplitude = frequency[kept], amplitude[kept]
    if len(frequency) < 2:
        return float("nan")
    return -float(np.hypot(np.diff(frequency) / (frequency[-1] - frequency[0]), np.diff(amplitude)).sum())


def log_dimensionless_jerk(speed: Float[np.ndarray, "N"], rate: float) -> float:
    """-ln of the squared jerk's integral, made dimensionless by duration^3 / peak^2; higher is smoother, NaN at rest.

    Hogan and Sternad 2009; in the form of Balasubramanian et al. 2015, eq. 4.
    """
    speed = np.asarray(speed, dtype=np.float64)
    peak = np.abs(speed).max(initial=0.0)
    if len(speed) < 3 or peak == 0:
        return float("nan")
    jerk = np.diff(speed, 2) * rate**2
    integral = float((jerk**2).sum()) / rate
    return -float(np.log(integral * (len(speed) / rate) ** 3 / peak**2)) if integral > 0 else float("nan")


def action_variation(actions: Float[np.ndarray, "T 7"]) -> float:
    """Mean over steps of how far the arm's six commands change, summed over them (total variation a step)."""
    return float(np.abs(np.diff(actions[:, :6].astype(np.float64), axis=0)).sum(axis=1).mean()) if len(actions) > 1 else 0.0


def no_ops(actions: Float[np.ndarray, "T 7"]) -> Bool[np.ndarray, "T"]:
    """Which actions neither move the arm nor change the gripper's command; the first one counts as a change."""
    still = np.linalg.norm(actions[:, :6], axis=1) < NO_OP_NORM
    same = np.concatenate([[False], actions[1:, 6] == actions[:-1, 6]])
    return still & same


def chunk_jump(actions: Float[np.ndarray, "T 7"], chunk_length: int) -> float:
    """Mean change of the arm's commands where chunks meet, over that inside chunks; 1 is seamless. NaN without a seam."""
    change = np.abs(np.diff(actions[:, :6].astype(np.float64), axis=0)).sum(axis=1)
    seam = np.arange(1, len(actions)) % chunk_length == 0
    if not seam.any() or seam.all() or not change[~seam].mean() > 0:
        return float("nan")
    return float(change[seam].mean() / change[~seam].mean())


@dataclass(frozen=True)
class Quality:
    """Labels of one episode."""

    success: bool
    steps: int
    duration: float
    """s"""
    path_length: float
    """Of the end effector, m."""
    directness: float
    """Distance from the first position to the farthest one, over the path's length; 1 is one straight move."""
    peak_speed: float
    """m/s"""
    sparc: float | None
    log_dimensionless_jerk: float | None
    action_variation: float
    gripper_switches: int
    no_ops: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sparc_cutoff(rate: float) -> float:
    """10 Hz as published, but at most a quarter of the rate: at 20 Hz, 10 Hz is where the spectrum ends."""
    return min(10.0, rate / 4)


def quality_of(demonstration: Demonstration) -> Quality:
    """The labels of an episode. What has no value, because nothing moved, is None."""
    positions = demonstration.proprio[:, :3].astype(np.float64)
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    speed, rate = steps * demonstration.fps, demonstration.fps
    arm, gripper = demonstration.actions, demonstration.actions[:, 6]
    length = float(steps.sum())
    reach = float(np.linalg.norm(positions - positions[0], axis=1).max())
    return Quality(
        success=bool(demonstration.success),
        steps=len(demonstration),
        duration=len(demonstration) / rate,
        path_length=length,
        directness=reach / length if length > 0 else 0.0,
        peak_speed=float(speed.max(initial=0.0)),
        sparc=_finite(sparc(speed, rate, sparc_cutoff(rate))),
        log_dimensionless_jerk=_finite(log_dimensionless_jerk(speed, rate)),
        action_variation=action_variation(arm),
        gripper_switches=int(np.count_nonzero(np.diff(np.sign(gripper)))),
        no_ops=int(no_ops(arm).sum()),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# -- spread ------------------------------------------------------------------------------------------------------------
def resample(positions: Float64[np.ndarray, "T 3"], points: int) -> Float64[np.ndarray, "K 3"]:
    """A path at `points` equal fractions of its duration, interpolated."""
    at = np.linspace(0, len(positions) - 1, points)
    return np.stack([np.interp(at, np.arange(len(positions)), column) for column in positions.T], axis=1)


def path_distances(paths: Float64[np.ndarray, "E K 3"]) -> Float64[np.ndarray, "Q"]:
    """Mean distance (m) between equal fractions of the duration, of every pair of paths."""
    first, second = np.triu_indices(len(paths), 1)
    return np.linalg.norm(paths[first] - paths[second], axis=2).mean(axis=1)


def warped_distances(paths: Float64[np.ndarray, "E K 3"]) -> Float64[np.ndarray, "Q"]:
    """Dynamic time warping of every pair of paths: the least summed distance of an alignment, over 2K (m).

    Sakoe and Chiba 1978, symmetric form: a diagonal step counts twice, so that 2K is the weight of every alignment.
    """
    first, second = np.triu_indices(len(paths), 1)
    points = paths.shape[1]
    row = np.full((points + 1, len(first)), np.inf)
    row[0] = 0.0
    for i in range(points):
        cost = np.linalg.norm(paths[first, i][:, None] - paths[second], axis=2)
        above, row = row, np.full_like(row, np.inf)
        for j in range(points):
            one = cost[:, j]
            row[j + 1] = np.minimum(above[j] + 2 * one, np.minimum(above[j + 1], row[j]) + one)
    return row[points] / (2 * points)

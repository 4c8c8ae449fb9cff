"""Reward and end of one decision.

Legend: N environments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from vla_rl.sim.wheeled.settings import WheeledSettings


class Outcome(NamedTuple):
    reward: Float32[np.ndarray, "N"]
    success: Bool[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]
    truncated: Bool[np.ndarray, "N"]


def rewards(
    settings: WheeledSettings,
    before: Float64[np.ndarray, "N 2"],
    errors: Float64[np.ndarray, "N 4"],
    distances: Float64[np.ndarray, "N"],
    speeds: Float64[np.ndarray, "N"],
    clearances: Float64[np.ndarray, "N"],
    action_changes: Float32[np.ndarray, "N 2"],
    interventions: Bool[np.ndarray, "N"],
    late: Bool[np.ndarray, "N"],
) -> Outcome:
    """What a decision was worth.

    `before`: arc length and distance to the end before it, m; `errors`: of `Paths` after it; `distances` to the end, m;
    `speeds` forward, m/s; `clearances`: smallest since the decision, m, at most 0 in a collision; `late`: the time is up.
    """
    weights, robot = settings.reward, settings.robot
    to_goal = robot.view.reference == "goal"
    gained = before[:, 1] - distances if to_goal else errors[:, 0] - before[:, 0]
    reward = weights.progress * np.clip(gained / (settings.target_speed * robot.decision_period), -1, 1) - weights.time
    if not to_goal:
        reward -= weights.cross_track * np.clip(np.abs(errors[:, 1]) / robot.view.error_scale, 0, 2) ** 2
    reward -= weights.overspeed * np.maximum(speeds / settings.target_speed - 1, 0) ** 2
    reward -= weights.clearance * np.clip(1 - clearances / weights.clearance_distance, 0, 1) ** 2
    reward -= weights.smoothness * np.square(action_changes / 2).sum(axis=1)
    reward -= weights.intervention * interventions

    arrived = distances < settings.tolerance
    if not to_goal:
        arrived &= errors[:, 3] < settings.tolerance + robot.view.path_spacing
    failed = clearances <= 0
    if not to_goal:
        failed = failed | (np.abs(errors[:, 1]) > settings.off_path)
    success = arrived & ~failed
    reward += weights.success * success - weights.collision * failed
    terminated = success | failed
    return Outcome(reward.astype(np.float32), success, terminated, late & ~terminated)

"""N robots that drive side by side in one process: a `ControlSim` whose step is one decision of the policy.

Legend: N environments, R rows that are named, O observation size, K beams, C obstacles, W walls, Q queued commands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from vla_rl.driving.observation import ObservationBuilder
from vla_rl.driving.path import Paths
from vla_rl.driving.safety import COLLISION, SafetyLayer, command_of
from vla_rl.sim.base import SimError
from vla_rl.sim.control import ControlStep, episode_seed
from vla_rl.sim.wheeled import physics
from vla_rl.sim.wheeled.reward import Outcome, rewards
from vla_rl.sim.wheeled.scenario import Scenario, draw
from vla_rl.sim.wheeled.settings import WheeledSettings, task_settings


class WheeledControl:
    """The wheeled simulator: `sim.name=wheeled sim.id=tracking_slow`."""

    action_dim = 2

    def __init__(self, id: str, num_envs: int, **options: Any) -> None:
        """`options` change the task: sections and keys of `WheeledSettings`. Raises `SimError` for what there is not."""
        self.settings = task_settings(id, options)
        robot = self.settings.robot
        self.num_envs, self.max_episode_steps = num_envs, self.settings.max_steps
        self.builder = ObservationBuilder(robot, num_envs)
        """The robots' inputs, as their policies get them."""
        self.observation_dim = self.builder.size
        self.safety = SafetyLayer(robot, num_envs)
        self.scenarios: dict[int, Scenario] = {}
        """Of the present episode of each row."""
        self._seeds: list[int] = []
        self._episodes: list[int] = []
        self._rows = np.arange(num_envs)
        self._make_state(num_envs)

    def _make_state(self, rows: int) -> None:
        settings = self.settings
        robot, view = settings.robot, settings.robot.view
        scene = settings.scene
        discs, segments = scene.standing[1] + scene.moving[1], 4 * max(scene.boxes[1], 1)
        self.poses = np.zeros((rows, 3))
        """True (x, y, yaw), m and rad."""
        self.body, self.plant = np.zeros(rows, physics.BODY), np.zeros(rows, physics.PLANT)
        self.obstacles = np.zeros((rows, discs), physics.OBSTACLE)
        self.obstacle_counts, self.wall_counts = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.walls = np.zeros((rows, segments, 4))
        self.ranges: Float32[np.ndarray, "N K"] = np.full((rows, robot.scanner.beams), np.inf, np.float32)
        """The newest scan of each row as a driver sends it, m."""
        self.truth = Paths(rows, view.path_spacing, view.path_points)
        """Progress along the path, and errors, of the true poses."""
        self._queue = np.zeros((rows, 1 + math.ceil(settings.plant.delay[1] / robot.control_period), 2))
        self._random = np.zeros(rows, np.uint64)
        self._clearances = np.full(rows, np.inf)
        self._steps = np.zeros(rows, np.int64)
        self._actions = np.zeros((rows, 2), np.float32)
        self._slowed, self._error_sum = np.zeros(rows), np.zeros(rows)
        layout = robot.scanner
        angles = layout.angle_min + layout.angle_increment * np.arange(layout.beams)
        self._beams = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def reset(self, seeds: Sequence[int]) -> Float32[np.ndarray, "N O"]:
        if len(seeds) != self.num_envs:
            raise SimError(f"{len(seeds)} seeds for {self.num_envs} environments; give one for each")
        self._seeds, self._episodes = list(seeds), [0] * self.num_envs
        observation = np.empty((self.num_envs, self.observation_dim), np.float32)
        self._begin(self._rows, observation)
        return observation

    def step(self, actions: Float32[np.ndarray, "N D"]) -> ControlStep:
        self._check(actions)
        wanted = command_of(self.settings.robot, actions)
        before = self._advance(wanted)
        self._sense(self._rows)
        final = np.empty((self.num_envs, self.observation_dim), np.float32)
        self.builder.observe(self._rows, final)
        outcome = self._judge(actions, before)
        ended = np.flatnonzero(outcome.terminated | outcome.truncated)
        observation = final.copy()
        measures = self._measures(outcome) if len(ended) else {}
        if len(ended):
            for row in ended:
                self._episodes[row] += 1
            self._begin(ended, observation)
        return ControlStep(observation, outcome.reward, outcome.terminated, outcome.truncated, final, measures)

    def close(self) -> None:
        """There is nothing to give back."""

    def _check(self, actions: np.ndarray) -> None:
        if not self._seeds:
            raise SimError("the environments were never started; call reset first")
        if actions.shape != (self.num_envs, self.action_dim):
            raise SimError(f"the actions have shape {actions.shape}, not {(self.num_envs, self.action_dim)}")
        if not np.isfinite(actions).all():
            row = int(np.flatnonzero(~np.isfinite(actions).all(axis=1))[0])
            raise SimError(f"the action of row {row} is not finite: {actions[row]}")

    def _begin(self, rows: Int64[np.ndarray, "R"], observation: Float32[np.ndarray, "N O"]) -> None:
        """Start the next episode of the rows named, and write its first observation."""
        for row in rows:
            scenario = draw(self.settings, episode_seed(self._seeds[row], self._episodes[row]))
            self.scenarios[row] = scenario
            discs, segments = len(scenario.obstacles), len(scenario.walls)
            self.poses[row] = self.builder.poses[row] = scenario.pose
            self.builder.velocities[row] = 0
            self.obstacles[row, :discs], self.obstacle_counts[row] = scenario.obstacles, discs
            self.walls[row, :segments], self.wall_counts[row] = scenario.walls, segments
            self.plant[row], self._random[row] = scenario.plant, scenario.random
            self.builder.start(row, scenario.path)
            self.truth.set(row, scenario.path)
        self.body[rows] = np.zeros((), physics.BODY)
        self._clearances[rows], self._steps[rows] = np.inf, 0
        self._actions[rows], self._slowed[rows], self._error_sum[rows] = 0, 0, 0
        self.truth.locate(self.poses, rows)
        self._sense(rows)
        self.builder.observe(rows, observation)

    def _sense(self, rows: Int64[np.ndarray, "R"]) -> None:
        if self.settings.robot.view.sectors == 0:
            return
        layout = self.settings.robot.scanner
        physics.sweep(
            (layout.x, layout.y, layout.yaw), (layout.range_min, layout.range_max), self._beams, rows, self.plant, self.poses,
            self.obstacles, self.obstacle_counts, self.walls, self.wall_counts, self._random, self.ranges,
        )  # fmt: skip
        self.builder.scan(self.ranges, rows)

    def _advance(self, wanted: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N 2"]:
        """One decision period; returns progress (arc length, m) and distance to the end (m) before it."""
        robot, builder = self.settings.robot, self.builder
        before = np.stack([self.truth.errors[:, 0], self._goal_distances()], axis=1)
        self._clearances[self._clearances > 0] = np.inf
        self._interventions = np.zeros(self.num_envs, bool)
        for _ in range(robot.decision_ticks):
            self.safety.limit(wanted, builder.commands, builder.scans.points, builder.scan_poses, builder.poses, self._rows)
            self._interventions |= (self.safety.clips & COLLISION) > 0
            physics.advance(
                robot.control_period, robot.radius, self.settings.scene.yield_distance, self._rows, builder.commands, self._queue,
                self.plant, self.body, self.poses, builder.poses, builder.velocities, self.obstacles, self.obstacle_counts,
                self.walls, self.wall_counts, self._clearances, self._random,
            )  # fmt: skip
        self._steps += 1
        self.truth.locate(self.poses, self._rows)
        return before

    def _goal_distances(self) -> Float64[np.ndarray, "N"]:
        ends = self.truth.points[self._rows, self.truth.counts - 1]
        distances: Float64[np.ndarray, "N"] = np.hypot(*(ends - self.poses[:, :2]).T)
        return distances

    def _judge(self, actions: Float32[np.ndarray, "N 2"], before: Float64[np.ndarray, "N 2"]) -> Outcome:
        """Reward and end of this decision, and what the measures of an episode are made of."""
        bounded = np.clip(actions, -1, 1)
        outcome = rewards(
            self.settings, before, self.truth.errors, self._goal_distances(), self.body["forward"], self._clearances,
            bounded - self._actions, self._interventions, self._steps >= self.max_episode_steps,
        )  # fmt: skip
        self._actions = bounded
        self._slowed += self._interventions
        self._error_sum += np.abs(self.truth.errors[:, 1])
        return outcome

    def _measures(self, outcome: Outcome) -> dict[str, np.ndarray]:
        """Figures of whole episodes, of use in rows that have just ended."""
        length = self.truth.errors[:, 0] + np.maximum(self.truth.errors[:, 3], 1e-9)
        return {
            "success": outcome.success.astype(np.float64),
            "collision": (self._clearances <= 0).astype(np.float64),
            "cross_track": self._error_sum / self._steps,
            "completion": np.clip(self.truth.errors[:, 0] / length, 0, 1),
            "seconds": self._steps * self.settings.robot.decision_period,
            "slowed": self._slowed / self._steps,
        }



"""N robots that drive side by side in one process: a `ControlSim` whose step is one decision of the policy.

Legend: N environments, R rows that are named, O observation size, D action size, H x W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from vla_rl.driving.observation import ObservationBuilder
from vla_rl.driving.path import Paths
from vla_rl.driving.safety import COLLISION, SafetyLayer, command_of
from vla_rl.sim.base import SimError
from vla_rl.sim.control import ControlStep, episode_seed
from vla_rl.sim.wheeled.plant import Plants
from vla_rl.sim.wheeled.render import TopView
from vla_rl.sim.wheeled.reward import Outcome, rewards
from vla_rl.sim.wheeled.scenario import Scenario, draw
from vla_rl.sim.wheeled.settings import task_settings


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
        self.plants = Plants(self.settings, num_envs)
        self.truth = Paths(num_envs, robot.view.path_spacing, robot.view.path_points)
        """Progress along the path, and errors, of the true poses."""
        self._view: TopView | None = None
        """Of row 0's present episode, from its first picture on."""
        self._seeds: list[int] = []
        self._episodes: list[int] = []
        self._rows = np.arange(num_envs)
        self._steps = np.zeros(num_envs, np.int64)
        self._actions = np.zeros((num_envs, 2), np.float32)
        self._interventions = np.zeros(num_envs, bool)
        self._slowed, self._error_sum = np.zeros(num_envs), np.zeros(num_envs)

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

    @property
    def frame_rate(self) -> float:
        return 1 / self.settings.robot.decision_period

    def frame(self) -> UInt8[np.ndarray, "H W 3"]:
        if self._view is None:
            self._view = TopView(self.scenarios[0].path, self.settings.robot)
        discs, walls = self.plants.scene(0)
        return self._view.draw(self.plants.poses[0], discs, walls, self.builder.scans.points[0])

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
        if 0 in rows:
            self._view = None
        for row in rows:
            scenario = draw(self.settings, episode_seed(self._seeds[row], self._episodes[row]))
            self.scenarios[int(row)] = scenario
            self.plants.begin(row, scenario)
            self.builder.start(row, scenario.path)
            self.truth.set(row, scenario.path)
        self._steps[rows], self._actions[rows], self._slowed[rows], self._error_sum[rows] = 0, 0, 0, 0
        self.truth.locate(self.plants.poses, rows)
        self._sense(rows)
        self.builder.observe(rows, observation)

    def _sense(self, rows: Int64[np.ndarray, "R"]) -> None:
        """Hand odometry and, where it is used, a new scan to the builder."""
        self._measure(rows)
        if self.settings.robot.scans:
            self.plants.sweep(rows)
            self.builder.scan(self.plants.ranges, rows)

    def _measure(self, rows: Int64[np.ndarray, "R"]) -> None:
        self.builder.poses[rows], self.builder.velocities[rows] = self.plants.estimates[rows], self.plants.velocities[rows]

    def _advance(self, wanted: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N 2"]:
        """One decision period; returns arc length and distance to the end, m, before it."""
        builder, plants = self.builder, self.plants
        before = np.stack([self.truth.errors[:, 0], self._goal_distances()], axis=1)
        plants.forget_clearances()
        self._interventions[:] = False
        for _ in range(self.settings.robot.decision_ticks):
            self.safety.limit(wanted, builder.commands, builder.scans.points, builder.scan_poses, builder.poses, self._rows)
            self._interventions |= (self.safety.clips & COLLISION) > 0
            plants.advance(builder.commands, self._rows)
            self._measure(self._rows)
        self._steps += 1
        self.truth.locate(plants.poses, self._rows)
        return before

    def _goal_distances(self) -> Float64[np.ndarray, "N"]:
        ends = self.truth.points[self._rows, self.truth.counts - 1]
        distances: Float64[np.ndarray, "N"] = np.hypot(*(ends - self.plants.poses[:, :2]).T)
        return distances

    def _judge(self, actions: Float32[np.ndarray, "N 2"], before: Float64[np.ndarray, "N 2"]) -> Outcome:
        """Reward and end of this decision, and what the measures of an episode are made of."""
        bounded = np.clip(actions, -1, 1)
        outcome = rewards(
            self.settings, before, self.truth.errors, self._goal_distances(), self.plants.body["forward"],
            self.plants.clearances,
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
            "collision": (self.plants.clearances <= 0).astype(np.float64),
            "cross_track": self._error_sum / self._steps,
            "completion": np.clip(self.truth.errors[:, 0] / length, 0, 1),
            "seconds": self._steps * self.settings.robot.decision_period,
            "slowed": self._slowed / self._steps,
        }

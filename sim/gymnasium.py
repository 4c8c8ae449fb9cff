"""Gymnasium's continuous-control environments as a `ControlSim`: `sim.name=gymnasium sim.id=Hopper-v5`.

Legend: N environments, O observation size, D action size, H x W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float32, UInt8

from vla_rl.sim.base import SimError
from vla_rl.sim.control import ControlStep, episode_seed


class GymnasiumControl:
    """N copies of one environment in this process, stepped one after the other."""

    def __init__(self, id: str, num_envs: int, **options: Any) -> None:
        """`options` go to `gymnasium.make`. Raises `SimError` where there is no such environment, where it refuses the
        options, or where it has no time limit, no vector of bounded continuous actions, or no array as its observation."""
        try:
            self._envs = [gymnasium.make(id, disable_env_checker=True, **options) for _ in range(num_envs)]
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise SimError(f"Gymnasium cannot make the environment {id!r}: {reason}; set sim.id and sim.options") from None
        first = self._envs[0]
        observation, action = first.observation_space, first.action_space
        if not isinstance(action, Box) or len(action.shape) != 1 or not action.is_bounded():
            raise SimError(f"{id} has the actions {action}; off-policy control needs a vector of bounded continuous ones")
        if not isinstance(observation, Box):
            raise SimError(f"{id} has the observations {observation}; off-policy control needs one array of numbers")
        if first.spec is None or first.spec.max_episode_steps is None:
            raise SimError(f"{id} has no time limit, so its episodes need not end; set sim.options.max_episode_steps")
        self.num_envs = num_envs
        self.observation_dim, self.action_dim = int(np.prod(observation.shape)), action.shape[0]
        self.max_episode_steps: int = first.spec.max_episode_steps
        self._low, self._high = action.low.astype(np.float64), action.high.astype(np.float64)
        self._dtype = action.dtype
        self._seeds: list[int] = []
        self._episodes: list[int] = []

    def reset(self, seeds: Sequence[int]) -> Float32[np.ndarray, "N O"]:
        if len(seeds) != self.num_envs:
            raise SimError(f"{len(seeds)} seeds for {self.num_envs} environments; give one for each")
        self._seeds, self._episodes = list(seeds), [0] * self.num_envs
        return np.stack([self._begin(row) for row in range(self.num_envs)])

    def step(self, actions: Float32[np.ndarray, "N D"]) -> ControlStep:
        if not self._seeds:
            raise SimError("the environments were never started; call reset first")
        if actions.shape != (self.num_envs, self.action_dim):
            raise SimError(f"the actions have shape {actions.shape}, not {(self.num_envs, self.action_dim)}")
        if not np.isfinite(actions).all():
            raise SimError(f"an action is not finite: {actions[~np.isfinite(actions).all(1)][0]}")
        scaled = (self._low + 0.5 * (actions.clip(-1, 1) + 1.0) * (self._high - self._low)).astype(self._dtype)
        outcomes = [env.step(action) for env, action in zip(self._envs, scaled, strict=True)]
        final = np.stack([np.asarray(outcome[0], np.float32).ravel() for outcome in outcomes])
        reward = np.array([outcome[1] for outcome in outcomes], np.float32)
        terminated = np.array([outcome[2] for outcome in outcomes], bool)
        truncated = np.array([outcome[3] for outcome in outcomes], bool) & ~terminated
        observation = final.copy()
        for row in np.flatnonzero(terminated | truncated).tolist():
            self._episodes[row] += 1
            observation[row] = self._begin(row)
        return ControlStep(observation, reward, terminated, truncated, final)

    @property
    def frame_rate(self) -> float:
        return float(self._envs[0].metadata["render_fps"])

    def frame(self) -> UInt8[np.ndarray, "H W 3"]:
        if self._envs[0].render_mode != "rgb_array":
            raise SimError("Gymnasium makes no pictures of its own accord; set sim.options.render_mode=rgb_array")
        return np.asarray(self._envs[0].render(), np.uint8)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _begin(self, row: int) -> Float32[np.ndarray, "O"]:
        observation, _ = self._envs[row].reset(seed=episode_seed(self._seeds[row], self._episodes[row]))
        return np.asarray(observation, np.float32).ravel()

"""Environments that act into the replay buffer.

Legend: N environments, O observation size, D action size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from vla_rl.replay import ReplayBuffer
from vla_rl.sim.control import ControlSim


class Experience:
    """All environments of a simulator, their present observations, and the episodes that have ended."""

    def __init__(self, sim: ControlSim, replay: ReplayBuffer) -> None:
        self._sim, self._replay = sim, replay
        self.observation: Float32[np.ndarray, "N O"] | None = None
        """None before the first `restart`."""
        self._return, self._steps = np.zeros(sim.num_envs), np.zeros(sim.num_envs, np.int64)
        self._finished: list[dict[str, float]] = []

    def restart(self, seeds: Sequence[int]) -> None:
        """Leave all episodes and begin new ones; what was under way counts as no episode."""
        self.observation = self._sim.reset(seeds)
        self._return[:], self._steps[:] = 0.0, 0

    def advance(self, actions: Float32[np.ndarray, "N D"]) -> None:
        """One control step of all environments, into the replay buffer."""
        assert self.observation is not None, "restart comes first"
        outcome = self._sim.step(actions)
        self._replay.add(self.observation, actions, outcome.reward, outcome.terminated, outcome.final_observation)
        self.observation = outcome.observation
        self._return += outcome.reward
        self._steps += 1
        for row in np.flatnonzero(outcome.terminated | outcome.truncated):
            figures = {name: float(values[row]) for name, values in outcome.measures.items()}
            self._finished.append({"return": float(self._return[row]), "steps": float(self._steps[row]), **figures})
            self._return[row], self._steps[row] = 0.0, 0

    def take_finished(self) -> list[dict[str, float]]:
        """Return, control steps and the simulator's measures of each episode that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

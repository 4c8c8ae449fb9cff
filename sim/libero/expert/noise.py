"""Noise on the expert's actions, so that demonstrations show states off the straight path and how to come back.

The executed action is noisy and the label stays clean (DART, arXiv:1703.09327).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from vla_rl.sim.base import SimError


@dataclass(frozen=True)
class NoiseSettings:
    """Disturbance of the translation commands; rotation and gripper are executed as commanded.

    A noisy rotation would re-anchor the controller's orientation goal at every step and make the hand drift.
    """

    std: float = 0.1
    """Of the Gaussian noise on each component, in action units."""
    burst_probability: float = 0.02
    """That a push begins at a step."""
    burst_size: float = 0.6
    """Norm of a push, in action units; its direction is uniform."""
    burst_steps: tuple[int, int] = (3, 8)
    """Shortest and longest push, control steps."""

    @staticmethod
    def of(std: float) -> NoiseSettings:
        """Gaussian noise and pushes; none of either for 0."""
        return NoiseSettings(std=std) if std > 0 else NoiseSettings(std=0.0, burst_probability=0.0)

    def __post_init__(self) -> None:
        short, long = self.burst_steps
        if not (self.std >= 0 and 0 <= self.burst_probability <= 1 and self.burst_size >= 0 and 1 <= short <= long):
            raise SimError(f"noise must not be negative, its probability at most 1, its steps at least 1: {self}")


class ActionNoise:
    """Draws the noise of one episode from a generator."""

    def __init__(self, settings: NoiseSettings, rng: np.random.Generator) -> None:
        self._settings, self._rng = settings, rng
        self._push = np.zeros(3)
        self._left = 0

    def __call__(self, action: Float32[np.ndarray, "7"]) -> Float32[np.ndarray, "7"]:
        """The action to execute in place of `action`, within [-1, 1]."""
        settings, rng = self._settings, self._rng
        disturbance = rng.normal(size=3) * settings.std
        begins, direction = rng.random() < settings.burst_probability, rng.normal(size=3)
        length = int(rng.integers(*settings.burst_steps, endpoint=True))
        if begins and self._left == 0:
            self._left = length
            self._push = settings.burst_size * direction / np.linalg.norm(direction)
        if self._left > 0:
            self._left -= 1
            disturbance += self._push
        executed = action.copy()
        executed[:3] = np.clip(action[:3] + disturbance, -1.0, 1.0)
        return executed

"""Simulators for control from a state: one vector in, one action out at every control step, with no picture and no chunk.

`VectorSim` is for policies that see pictures and commit to chunks; here a step takes microseconds, and processes, frames
and chunks would cost more than the physics. `GymnasiumControl` and the wheeled simulator have this interface.

Legend: N environments, O observation size, D action size, H x W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

VALIDATION = 1_000_000
"""Evaluations have at most so many episodes."""
NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})


class ControlStep(NamedTuple):
    """The outcome of one control step of all rows."""

    observation: Float32[np.ndarray, "N O"]
    """What to act on next: where an episode has just ended, the first observation of the row's next episode."""
    reward: Float32[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]
    """The task ended: nothing follows, so no value is bootstrapped."""
    truncated: Bool[np.ndarray, "N"]
    """The time ran out (and the task did not end): the value of `final_observation` is bootstrapped."""
    final_observation: Float32[np.ndarray, "N O"]
    """What this step led to: the last observation of an episode that ended, elsewhere equal to `observation`."""
    measures: Mapping[str, np.ndarray] = NOTHING
    """Figures of whole episodes by name, [N] each, of use only in rows whose episode has just ended: `success`, ..."""


class ControlSim(Protocol):
    """N environments that advance together and restart by themselves.

    A row that `reset` started with seed s plays the episodes `episode_seed(s, 0)`, `episode_seed(s, 1)`, ...: what it does
    depends on s and its actions alone, not on other rows, nor on what the row did before.
    """

    num_envs: int
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    """Control steps after which an episode is truncated."""

    def reset(self, seeds: Sequence[int]) -> Float32[np.ndarray, "N O"]:
        """Restart every row with the seed of its own, of which there must be N. Raises `SimError` for another number."""
        ...

    def step(self, actions: Float32[np.ndarray, "N D"]) -> ControlStep:
        """One control step with actions in [-1, 1] per dimension, which the simulator scales to its own bounds.

        The arrays of the result are the caller's to keep. Raises `SimError` for an action that is not finite, and where
        `reset` was never called; then no row has moved.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Filmable(ControlSim, Protocol):
    """A simulator that can show what its first row does."""

    @property
    def frame_rate(self) -> float:
        """Pictures a second, one for each control step, at which a video plays in real time."""
        ...

    def frame(self) -> UInt8[np.ndarray, "H W 3"]:
        """Row 0 as it is now. Raises `SimError` where its options leave it without pictures."""
        ...


def episode_seed(seed: int, episode: int) -> int:
    """The seed, in [0, 2^63), of a row's `episode`-th episode since it was reset with `seed`; even exactly where `seed` is.

    Training resets with even seeds and evaluation with odd ones, so that no episode of one is ever an episode of the other.
    """
    high, low = np.random.SeedSequence([seed, episode]).generate_state(2, np.uint32)
    return (((int(high) << 30) ^ int(low)) << 1) | (seed & 1)


def training_seeds(run_seed: int, step: int, count: int) -> list[int]:
    """Even seeds for `reset`, drawn from the run's seed and the control steps that it has done."""
    drawn = np.random.SeedSequence([run_seed, step]).generate_state(count, np.uint64)
    return [int(value >> np.uint64(2)) << 1 for value in drawn]


def evaluation_seeds(count: int) -> list[int]:
    """Odd seeds, the same for every run."""
    return [2 * index + 1 for index in range(count)]


def validation_seeds(count: int) -> list[int]:
    """Other odd seeds: by them a run may choose among its policies without looking at what it is judged by."""
    return [2 * index + 1 for index in range(VALIDATION, VALIDATION + count)]

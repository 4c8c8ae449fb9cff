"""The interface of every simulator: `VectorSim` in front, `Backend` behind it in each worker process.

Legend: B environments, A actions of a chunk, D action size, P proprioception size, H x W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.types import EpisodeSpec, Observation, Turn


class SimError(RuntimeError):
    """A simulator cannot do what was asked; the message says what, where and how to mend it."""


class VectorSim(Protocol):
    """B environments that advance together, a chunk at a time."""

    num_envs: int
    action_dim: int
    proprio_dim: int
    cameras: tuple[str, ...]
    image_size: int | tuple[int, int]
    """Side of square frames, or height and width, px."""
    frames_rendered: int
    """Camera frames rendered so far, over all environments and cameras."""
    timings: Mapping[str, float]
    """So far, over all workers: seconds of `simulation` and `rendering`, counts of `env_steps` (control steps), `turns`
    (chunks of one environment) and `frames`."""

    def reset(self, specs: Sequence[EpisodeSpec], env_ids: Sequence[int] | None = None) -> Observation:
        """Start the episodes `specs` in rows `env_ids` (default: the first rows); other rows are left as they are.

        Returns the observation of all B rows. Raises `SimError` for a suite, task or initial state that does not exist.
        """
        ...

    def step_chunk(self, actions: Float32[np.ndarray, "B A D"]) -> Turn:
        """Run a chunk in every unfinished row; rows of finished or unstarted environments are ignored.

        Raises `SimError` when an action of an unfinished row is not finite; then no row has moved.
        """
        ...

    def save_state(self, env_id: int) -> bytes:
        """The whole state of one environment, episode counters included."""
        ...

    def load_state(self, env_id: int, state: bytes) -> Observation:
        """Continue from a saved state in any row of any simulator with the same settings."""
        ...

    def branch(self, env_id: int, targets: Sequence[int]) -> Observation:
        """Have rows `targets` go on from the present state of row `env_id`, whatever they held; costs no simulation.

        Returns the observation of all B rows. Raises `SimError` where row `env_id` holds no episode.
        """
        ...

    def release(self, rows: Sequence[int]) -> None:
        """Give up the episodes in these rows, where there are any; nothing runs there until the next reset.

        Raises `SimError` for a row that does not exist.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class StepResult:
    """The outcome of one control step of one environment."""

    reward: float
    success: bool
    terminated: bool


class Backend(Protocol):
    """The environments of one worker process; a row is called a slot here.

    Rows move between workers, so each has a slot for every row of the simulator, few of them in use: an empty slot must
    cost next to nothing. The worker owns the chunk loop, time limits, shared memory and heartbeats; the backend owns the
    physics. Constructed as `Backend(num_slots=..., cameras=..., image_size=..., **options)` with options from `make_sim`.
    """

    action_dim: int
    proprio_dim: int

    def reset(self, slot: int, spec: EpisodeSpec) -> None:
        """Write the initial state of `spec` and run the settling steps."""
        ...

    def max_steps(self, slot: int) -> int:
        """Control steps until the episode in this slot is truncated."""
        ...

    def step(self, slot: int, action: Float32[np.ndarray, "D"]) -> StepResult: ...

    # A backend whose chunk is more than its actions one by one also has
    #     step_chunk(slot, actions: Float32[np.ndarray, "A D"]) -> Iterable[StepResult]
    # with the outcomes of the actions that ran; the worker then calls that instead. One whose `load_state` runs the episode
    # again has `loads_by_replay = True`; then rows change their worker at a reset alone.

    def proprio(self, slot: int) -> Float32[np.ndarray, "P"]: ...

    def instruction(self, slot: int) -> str: ...

    def render(self, slot: int, camera: str, out: UInt8[np.ndarray, "H W 3"]) -> None: ...

    def save_state(self, slot: int) -> bytes: ...

    def load_state(self, slot: int, state: bytes) -> None: ...

    def vacate(self, slot: int) -> None:
        """Forget the slot's episode, if there is one; the row has moved to another worker."""
        ...

    def close(self) -> None: ...

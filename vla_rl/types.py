"""The records that every part of the stack shares: numpy only, so that simulators and robots need no torch.

Legend: B environments, T turns, A actions of a chunk, D action size, L = A*D action tokens, P proprioception size,
N prompt tokens, H x W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8


@dataclass(frozen=True, order=True)
class EpisodeSpec:
    """Everything that makes an episode reproducible.

    Example: `EpisodeSpec("libero_object", 0, init_state_id=3)` is the fourth initial state that ships with the task;
    with `init_state_id=None`, object placements and robot joint noise are drawn from `seed`.
    """

    suite: str
    task_id: int
    init_state_id: int | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> EpisodeSpec:
        return EpisodeSpec(**record)

    def __str__(self) -> str:
        state = f"seed {self.seed}" if self.init_state_id is None else f"initial state {self.init_state_id}"
        return f"{self.suite} task {self.task_id}, {state}"


@dataclass(frozen=True)
class Observation:
    """What a policy sees of B environments at the start of a turn."""

    images: Mapping[str, UInt8[np.ndarray, "B H W 3"]]
    """Frames by camera name, oriented as the simulator's own camera path gives them."""
    proprio: Float32[np.ndarray, "B P"]
    """LIBERO: end-effector position (3, m), orientation as axis-angle (3, rad), gripper finger positions (2, m)."""
    instruction: list[str]

    def __len__(self) -> int:
        return len(self.proprio)

    def select(self, rows: Sequence[int] | np.ndarray) -> Observation:
        """The observation of some environments, copied."""
        index = np.asarray(rows, dtype=np.int64)
        return Observation(
            images={name: frames[index] for name, frames in self.images.items()},
            proprio=self.proprio[index],
            instruction=[self.instruction[i] for i in index],
        )


@dataclass(frozen=True)
class ActionChunk:
    """What a policy answers for B observations."""

    actions: Float32[np.ndarray, "B A D"]
    """In [-1, 1], as the simulator takes them."""
    tokens: Int64[np.ndarray, "B L"]
    log_probs: Float32[np.ndarray, "B L"]
    """Of each token under the distribution that it was drawn from (temperature included, action tokens only)."""
    values: Float32[np.ndarray, "B"]
    prompt_tokens: list[Int64[np.ndarray, "N"]]
    policy_version: int


@dataclass(frozen=True)
class Turn:
    """What one chunk did in B environments.

    Rows that were already finished before the chunk report `executed` False, reward 0 and keep their flags and final
    observation, until they are reset.
    """

    observation: Observation
    """At the end of the chunk; for a finished episode this is its final observation (nothing resets by itself)."""
    rewards: Float32[np.ndarray, "B A"]
    success: Bool[np.ndarray, "B"]
    terminated: Bool[np.ndarray, "B"]
    """The task ended; a success terminates."""
    truncated: Bool[np.ndarray, "B"]
    """The time ran out without an end of the task."""
    executed: Bool[np.ndarray, "B A"]
    """Which actions really ran: a success or the time limit ends a chunk early."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """Environment row -> traceback. Such a row lost its episode and waits for a reset; the other rows are unharmed."""

    @property
    def finished(self) -> Bool[np.ndarray, "B"]:
        return self.terminated | self.truncated


@dataclass(frozen=True)
class Trajectory:
    """One episode, from its initial state to its end: the record that rollouts, rewards and objectives share.

    Example: with chunks of A = 8, a success at the 19th action gives T = 3 turns, `executed.sum() == 19`,
    `executed[2] == [1, 1, 1, 0, 0, 0, 0, 0]` and `rewards[2, 2] == 1`.
    """

    spec: EpisodeSpec
    instruction: str
    images: Mapping[str, UInt8[np.ndarray, "T H W 3"]]
    proprio: Float32[np.ndarray, "T P"]
    prompt_tokens: Int64[np.ndarray, "N"]
    action_tokens: Int64[np.ndarray, "T L"]
    log_probs: Float32[np.ndarray, "T L"]
    values: Float32[np.ndarray, "T"]
    policy_version: Int32[np.ndarray, "T"]
    actions: Float32[np.ndarray, "T A D"]
    rewards: Float32[np.ndarray, "T A"]
    executed: Bool[np.ndarray, "T A"]
    success: bool
    terminated: bool
    truncated: bool
    final_images: Mapping[str, UInt8[np.ndarray, "H W 3"]]
    final_proprio: Float32[np.ndarray, "P"]

    @property
    def num_turns(self) -> int:
        return len(self.values)

    @property
    def num_actions(self) -> int:
        """Actions that really ran."""
        return int(self.executed.sum())

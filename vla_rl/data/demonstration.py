"""One demonstration, as every reader yields it and every writer takes it.

Legend: T control steps, F frames (F = T unless frames were thinned out), H x W image size, P = 8 proprioception size,
S size of a flat MuJoCo state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from vla_rl.types import EpisodeSpec

PROPRIO_DIMS_OF = {7: (8,), 14: (14, 41)}
"""Size of an action -> sizes that the proprioception beside it can have: LIBERO's one arm, RoboTwin's two without and with
the poses of objects."""


class DatasetError(RuntimeError):
    """A dataset cannot be read or written; the message says what, where and how to mend it."""


@dataclass(frozen=True)
class Demonstration:
    """One episode. Row t holds what was seen before action t.

    Example: 120 steps with frames every 4 steps have `images["agentview"]` of shape [30, 128, 128, 3] and
    `frame_index == [0, 4, ..., 116]`.
    """

    instruction: str
    images: Mapping[str, UInt8[np.ndarray, "F H W 3"]]
    """Frames by camera name, as the simulator renders them (upside down in LIBERO)."""
    frame_index: Int64[np.ndarray, "F"]
    """The step of each frame; increasing."""
    proprio: Float32[np.ndarray, "T P"]
    """LIBERO (8): end-effector position (3, m), orientation as axis-angle (3, rad), gripper finger positions (2, m).
    RoboTwin (14): what the drives aim at; joint angles (6, rad) and gripper (0 closed, 1 open), left arm before right. For
    privileged policies (41) the poses of three objects follow: position (3, m) and two axes (6) each."""
    actions: Float32[np.ndarray, "T D"]
    """As executed, noise included. LIBERO (7): in [-1, 1]; gripper -1 opens, +1 closes. RoboTwin (14): as in `proprio`."""
    rewards: Float32[np.ndarray, "T"]
    success: bool
    expert_actions: Float32[np.ndarray, "T D"] | None = None
    """What the expert would have done in each state, without noise; None for data that does not tell."""
    spec: EpisodeSpec | None = None
    """How the episode began; None for data from elsewhere."""
    skills: tuple[str, ...] | None = None
    """The expert's skill at each step."""
    joint_states: Float64[np.ndarray, "T 7"] | None = None
    """Arm joint angles, rad."""
    fps: float = 20.0
    """Control steps a second, Hz; LIBERO runs at 20."""
    states: Float64[np.ndarray, "T S"] | None = None
    """Flat MuJoCo states: time (s), qpos, qvel."""
    model_xml: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the data comes from: JSON values such as noise settings."""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def is_bimanual(self) -> bool:
        """Whether it is one of RoboTwin's two arms."""
        return self.actions.ndim == 2 and self.actions.shape[1] == 14

    @property
    def labels(self) -> Float32[np.ndarray, "T D"]:
        """What to clone: the expert's clean actions where known (DART, arXiv:1703.09327), else the executed ones."""
        return self.actions if self.expert_actions is None else self.expert_actions

    def validate(self) -> None:
        """Raise `DatasetError` unless all arrays agree in length, shape and range."""
        steps = len(self.actions)
        if steps == 0:
            raise DatasetError("the episode has no steps")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise DatasetError(f"the episode runs at {self.fps} control steps a second")
        size = 14 if self.is_bimanual else 7
        shapes: dict[str, tuple[np.ndarray | None, list[tuple[int, ...]]]] = {
            "actions": (self.actions, [(steps, size)]),
            "proprioception": (self.proprio, [(steps, dim) for dim in PROPRIO_DIMS_OF[size]]),
            "rewards": (self.rewards, [(steps,)]),
            "expert_actions": (self.expert_actions, [(steps, size)]),
            "joint_states": (self.joint_states, [(steps, 7)]),
        }
        for name, (array, wanted) in shapes.items():
            if array is not None and array.shape not in wanted:
                raise DatasetError(f"{name} have shape {array.shape}, expected {' or '.join(map(str, wanted))}")
            if array is not None and not np.isfinite(array).all():
                raise DatasetError(f"{name} hold values that are not finite")
        for name, count in (("states", self.states), ("skills", self.skills)):
            if count is not None and len(count) != steps:
                raise DatasetError(f"{name} have {len(count)} rows, expected {steps}")
        index = self.frame_index
        if index.ndim != 1 or len(index) == 0 or index[0] != 0 or index[-1] >= steps or (np.diff(index) <= 0).any():
            raise DatasetError(f"frame_index must start at 0 and increase below {steps}")
        for camera, frames in self.images.items():
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != len(index):
                raise DatasetError(
                    f"frames of {camera} are {frames.dtype} of shape {frames.shape}, expected uint8 ({len(index)}, H, W, 3)"
                )

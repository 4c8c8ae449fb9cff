"""The words and records that the expert's parts share.

Legend: actions [7] = translation (3, 1 is 0.05 m a step), rotation (3, axis-angle, 1 is 0.5 rad), gripper (-1 open, +1 close).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64

from vla_rl.sim.libero.expert.scene_view import SceneView

OPEN, CLOSE = -1.0, 1.0


class Skill(StrEnum):
    REACH = "reach"
    GRASP = "grasp"
    LIFT = "lift"
    CARRY = "carry"
    PLACE = "place"
    RELEASE = "release"
    RETREAT = "retreat"
    PULL = "pull"
    PUSH = "push"
    TURN = "turn"
    HOLD = "hold"


@dataclass(frozen=True)
class Command:
    """What one control step asks of the arm, in action units."""

    translation: Float64[np.ndarray, "3"]
    rotation: Float64[np.ndarray, "3"]
    gripper: float

    @property
    def action(self) -> Float32[np.ndarray, "7"]:
        return np.array([*self.translation, *self.rotation, self.gripper], dtype=np.float32)


@dataclass(frozen=True)
class ExpertStep:
    """What the expert would do now."""

    action: Float32[np.ndarray, "7"]
    skill: Skill
    subgoal: str = ""
    """The predicate that it works on: "in bowl_1 cabinet_1_top_region"; empty once all hold."""


class Maneuver(Protocol):
    """Works on one subgoal; closed-loop at every control step."""

    @property
    def skill(self) -> Skill: ...

    @property
    def done(self) -> bool:
        """Whether it has come to an end, the hand included; whether the subgoal then holds is another question."""

    def act(self, scene: SceneView) -> Command: ...

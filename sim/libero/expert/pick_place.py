"""A scripted expert for pick-and-place goals, closed-loop at every control step.

It reads poses from the simulator, so that it recovers from pushes, slips and drops; every step carries the name of the
skill that produced it. Commands are exactly 0 where nothing is needed: a rotation command that is merely small would
re-anchor the orientation goal of robosuite's controller, and action tokens have an exact bin for 0.

Legend: actions [7] = translation (3, 1 is 0.05 m a step), rotation (3, axis-angle, 1 is 0.5 rad), gripper (-1 open, +1 close).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float32

from vla_rl.sim.libero.expert.grasps import FINGER, OPENING, PALM, TIP, Grasp, plan_grasp
from vla_rl.sim.libero.expert.motion import funnel, orientation_command
from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView

OPEN, CLOSE = -1.0, 1.0
PICK_PLACE_PREDICATES = ("in", "on")


class Skill(StrEnum):
    REACH = "reach"
    GRASP = "grasp"
    LIFT = "lift"
    CARRY = "carry"
    PLACE = "place"
    RELEASE = "release"
    RETREAT = "retreat"
    HOLD = "hold"


@dataclass(frozen=True)
class ExpertStep:
    """What the expert would do now."""

    action: Float32[np.ndarray, "7"]
    skill: Skill


@dataclass(frozen=True)
class PlaceGoal:
    """Put `object` into or onto `target` (an object or a region)."""

    object: str
    target: str
    inside: bool


def parse_goals(goal_state: Sequence[Sequence[str]]) -> list[PlaceGoal]:
    """The BDDL goal as pick-and-place steps; raises `ExpertError` for any other predicate."""
    goals = []
    for predicate in goal_state:
        if len(predicate) != 3 or predicate[0].lower() not in PICK_PLACE_PREDICATES:
            known = ", ".join(PICK_PLACE_PREDICATES)
            raise ExpertError(f"the expert knows pick-and-place goals ({known}), not {list(predicate)}")
        goals.append(PlaceGoal(predicate[1], predicate[2], predicate[0].lower() == "in"))
    return goals


class PickPlaceExpert:
    """Solves the goals one after the other; make a new one for every episode."""

    def __init__(self, goal_state: Sequence[Sequence[str]]) -> None:
        self._goals = parse_goals(goal_state)
        self._next = 0
        self._skill = Skill.REACH
        self._grasp: Grasp | None = None
        self._hover = 0.0
        self._release = 0.0
        self._in_hand = np.zeros(3)
        self._since = 0
        self._opening = 1.0

    @property
    def done(self) -> bool:
        """Everything is placed and the hand has withdrawn."""
        return self._skill is Skill.HOLD

    def act(self, scene: SceneView) -> ExpertStep:
        """The action for the present state; call it once a control step. Raises `ExpertError` when no grasp is free."""
        if self._skill in (Skill.LIFT, Skill.CARRY, Skill.PLACE) and self._lost(scene):
            self._enter(Skill.REACH)
        step = {
            Skill.REACH: self._reach,
            Skill.GRASP: self._close,
            Skill.LIFT: self._transport,
            Skill.CARRY: self._transport,
            Skill.PLACE: self._transport,
            Skill.RELEASE: self._open,
            Skill.RETREAT: self._retreat,
            Skill.HOLD: self._hold,
        }[self._skill]
        self._since += 1
        skill = self._skill
        translation, gripper = step(scene)
        self._opening = scene.gripper_opening
        yaw = self._grasp.yaw if self._grasp else 0.0
        rotation = np.zeros(3) if skill is Skill.GRASP else orientation_command(scene.grip_rotation, yaw)
        return ExpertStep(np.array([*translation, *rotation, gripper], dtype=np.float32), skill)

    # -- skills: each returns a translation command and a gripper command, and may move on to the next skill ----------
    def _reach(self, scene: SceneView) -> tuple[np.ndarray, float]:
        name = self._goals[self._next].object
        if self._grasp is None or np.abs(scene.rotation(name) - self._grasp.object_rotation).max() > 0.1:
            self._plan(scene, name)
        assert self._grasp is not None
        target = self._grasp.position(scene, name)
        command, arrived = funnel(scene.grip_position, target, self._hover)
        if scene.gripper_opening < OPENING and scene.grip_position[2] < target[2] + 0.03 and self._since < 15:
            return np.array([0.0, 0.0, 0.4]), OPEN
        if arrived and scene.gripper_opening > 1.6 * OPENING:
            self._enter(Skill.GRASP)
            return np.zeros(3), CLOSE
        return command, OPEN

    def _close(self, scene: SceneView) -> tuple[np.ndarray, float]:
        name = self._goals[self._next].object
        assert self._grasp is not None
        if np.linalg.norm(self._grasp.position(scene, name) - scene.grip_position) > 0.03:
            self._enter(Skill.REACH)
            return np.zeros(3), OPEN
        stopped = self._since > 4 and abs(self._opening - scene.gripper_opening) < 5e-4
        if scene.pads_touch(name).all() and stopped:
            self._in_hand = self._object_in_hand(scene)
            self._plan_transport(scene)
            self._enter(Skill.LIFT)
        elif stopped and self._since > 15:
            self._enter(Skill.REACH)
        return np.zeros(3), CLOSE

    def _transport(self, scene: SceneView) -> tuple[np.ndarray, float]:
        goal = self._goals[self._next]
        grip, held = scene.grip_position, scene.position(goal.object)
        spot = self._spot(scene, goal)
        target = np.array([*(grip[:2] + spot[:2] - held[:2]), self._release + grip[2] - held[2]])
        height = self._hover + grip[2] - held[2]
        command, arrived = funnel(grip, target, height, radius=0.025)
        distance = np.linalg.norm(spot[:2] - held[:2])
        if arrived:
            self._enter(Skill.RELEASE)
            return np.zeros(3), OPEN
        if distance < 0.02:
            self._skill = Skill.PLACE
        else:
            self._skill = Skill.LIFT if grip[2] < height - 0.03 else Skill.CARRY
        return command, CLOSE

    def _open(self, scene: SceneView) -> tuple[np.ndarray, float]:
        name = self._goals[self._next].object
        free = scene.gripper_opening > self._grip_width + 0.01 and not scene.pads_touch(name).any()
        if (free and self._since > 3) or self._since > 25:
            self._enter(Skill.RETREAT)
        return np.zeros(3), OPEN

    def _retreat(self, scene: SceneView) -> tuple[np.ndarray, float]:
        if self._since * 0.01 > 0.12:
            placed = self._placed(scene, self._goals[self._next])
            self._next += int(placed)
            self._enter(Skill.HOLD if self._next == len(self._goals) else Skill.REACH)
        return np.array([0.0, 0.0, 0.5]), OPEN

    def _hold(self, scene: SceneView) -> tuple[np.ndarray, float]:
        return np.zeros(3), OPEN

    # -- plans -------------------------------------------------------------------------------------------------------
    def _enter(self, skill: Skill) -> None:
        self._skill = skill
        self._since = 0
        if skill is Skill.REACH:
            self._grasp = None

    def _plan(self, scene: SceneView, name: str) -> None:
        self._grasp = plan_grasp(scene, name)
        target = self._grasp.position(scene, name)
        ahead = _corridor(scene, scene.grip_position, target, half_width=OPENING + FINGER)
        self._hover = max(target[2] + self._grasp.depth, ahead) + TIP + 0.02

    def _plan_transport(self, scene: SceneView) -> None:
        """Heights of the object's origin on the way and at the release."""
        goal = self._goals[self._next]
        self._grip_width = scene.gripper_opening
        box, origin = scene.bounds(goal.object), scene.position(goal.object)
        below, grip = origin[2] - box.low[2], scene.grip_position
        spot = self._spot(scene, goal)
        half = float((box.high - box.low)[:2].max() / 2)
        ahead = _corridor(scene, origin, spot, half_width=half, without=goal.object)
        self._hover = ahead + below + 0.02
        floor = float(scene.heights(_disc(spot[:2], 0.6 * half), without=goal.object).max())
        rim = float(scene.heights(_disc(grip[:2] - origin[:2] + spot[:2], 0.11), without=goal.object).max())
        clearance = rim + 0.01 - PALM - (grip[2] - origin[2])
        self._release = min(max(floor + below + 0.006, clearance), self._hover)

    def _spot(self, scene: SceneView, goal: PlaceGoal) -> np.ndarray:
        if scene.has_body(goal.target):
            return scene.bounds(goal.target).centre
        return scene.region(goal.target).centre

    def _object_in_hand(self, scene: SceneView) -> np.ndarray:
        return scene.grip_rotation.T @ (scene.position(self._goals[self._next].object) - scene.grip_position)

    def _lost(self, scene: SceneView) -> bool:
        return bool(np.linalg.norm(self._object_in_hand(scene) - self._in_hand) > 0.03)

    def _placed(self, scene: SceneView, goal: PlaceGoal) -> bool:
        spot, at = self._spot(scene, goal), scene.position(goal.object)
        return bool(np.linalg.norm(spot[:2] - at[:2]) < 0.06)


def _disc(centre: np.ndarray, radius: float) -> np.ndarray:
    ticks = np.linspace(-radius, radius, 9)
    offsets = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return centre + offsets[np.linalg.norm(offsets, axis=1) <= radius + 1e-9]


def _corridor(scene: SceneView, start: np.ndarray, end: np.ndarray, half_width: float, without: str | None = None) -> float:
    """The highest shape under a straight way of the given half width."""
    steps = max(2, int(np.linalg.norm(end[:2] - start[:2]) / 0.02))
    line = start[:2] + np.linspace(0, 1, steps)[:, None] * (end[:2] - start[:2])
    points = (line[:, None] + _disc(np.zeros(2), half_width)).reshape(-1, 2)
    return float(scene.heights(points, without=without).max())

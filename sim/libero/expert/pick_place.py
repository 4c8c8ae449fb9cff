"""Pick an object up and put it on or into something, closed-loop at every control step.

It reads poses from the simulator, so that it recovers from pushes, slips and drops.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.expert.grasps import CLEARANCE, FINGER, OPENING, PALM, PALM_HALF, TIP, Grasp, plan_grasp
from vla_rl.sim.libero.expert.motion import SPEED, funnel, orientation_command
from vla_rl.sim.libero.expert.scene_view import STRETCHED, SceneView, disc, highest_on_the_way
from vla_rl.sim.libero.expert.skills import CLOSE, OPEN, Command, Skill
from vla_rl.sim.libero.expert.style import PLAIN, Style

MARGIN = 0.02
"""Room that is kept above obstacles, m."""
AT_REST = 0.05
"""Speed of an object, m/s, below which a grasp is planned."""
REACHING_STEPS = 100
"""Control steps after which a grasp that was not reached counts as failed."""
OPENING_STEPS, CLOSING_STEPS, RETREAT_STEPS = 15, 15, 12
"""Control steps that opening, closing and withdrawing may take."""
OVER, STALLED_STEPS = 0.02, 12
"""What stops its descent so near the spot, m, for so many control steps is let go there."""


class PlaceManeuver:
    """Puts one object into or onto a target (an object or a region)."""

    def __init__(self, name: str, target: str, failed: list[Grasp], style: Style = PLAIN) -> None:
        """`failed` are grasps of the object that failed before; those that fail now are added."""
        self._object, self._target, self._failed, self._style = name, target, failed, style
        self._skill = Skill.REACH
        self._grasp: Grasp | None = None
        self._release = self._below = self._half_width = self._grip_width = 0.0
        self._lean = np.zeros(3)
        self._since = 0
        self._opening = 1.0
        self._stalled, self._height = 0, 0.0
        self.done = False

    @property
    def skill(self) -> Skill:
        return self._skill

    def act(self, scene: SceneView) -> Command:
        """Raises `ExpertError` when no grasp is free."""
        if self._skill in (Skill.LIFT, Skill.CARRY, Skill.PLACE) and self._slipped(scene):
            self._enter(Skill.REACH)
        step = {
            Skill.REACH: self._reach,
            Skill.GRASP: self._close,
            Skill.LIFT: self._transport,
            Skill.CARRY: self._transport,
            Skill.PLACE: self._transport,
            Skill.RELEASE: self._open,
            Skill.RETREAT: self._retreat,
        }[self._skill]
        self._since += 1
        translation, gripper = step(scene)
        rotation = np.zeros(3)
        self._opening = scene.gripper_opening
        distance, inwards = scene.stretch
        if self._skill is not Skill.GRASP:
            translation = SPEED * inwards if distance > STRETCHED else translation
            rotation = orientation_command(scene.grip_rotation, self._grasp.yaw if self._grasp else 0.0, self._lean)
        return Command(translation, rotation, gripper)

    # -- skills: each returns a translation command and a gripper command, and may move on to the next skill ----------
    def _reach(self, scene: SceneView) -> tuple[np.ndarray, float]:
        name, grip = self._object, scene.grip_position
        grasp = self._grasp
        if grasp is None or grasp.is_stale(scene, name) or self._since > REACHING_STEPS:
            if scene.speed(name) > AT_REST:
                return np.zeros(3), OPEN
            if grasp is not None and self._since > REACHING_STEPS:
                self._failed.append(grasp)
                self._enter(Skill.REACH)
            grasp = self._grasp = plan_grasp(scene, name, self._spot(scene), self._failed)
            self._lean = scene.lean(grasp.position(scene, name))
        target = grasp.position(scene, name)
        if scene.gripper_opening < OPENING and self._since < OPENING_STEPS:
            return np.zeros(3), OPEN
        top = max(target[2] + grasp.depth, self._highest(scene, grip, target, OPENING + FINGER))
        free = target[2] + grasp.depth + TIP + CLEARANCE
        command, arrived = funnel(
            grip, target, self._within_reach(scene, top + TIP + MARGIN + self._style.height, free), style=self._style
        )
        if arrived and scene.gripper_opening > 1.6 * OPENING:
            self._enter(Skill.GRASP)
            return np.zeros(3), CLOSE
        return command, OPEN

    def _close(self, scene: SceneView) -> tuple[np.ndarray, float]:
        name = self._object
        assert self._grasp is not None
        if self._slipped(scene):
            self._enter(Skill.REACH)
            return np.zeros(3), OPEN
        stopped = self._since > 4 and abs(self._opening - scene.gripper_opening) < 5e-4
        if scene.fingers_touch(name).all() and stopped:
            self._plan_release(scene)
            self._enter(Skill.LIFT)
        elif stopped and self._since > CLOSING_STEPS:
            self._failed.append(self._grasp)
            self._enter(Skill.REACH)
            return np.zeros(3), OPEN
        return np.zeros(3), CLOSE

    def _transport(self, scene: SceneView) -> tuple[np.ndarray, float]:
        grip, held, spot = scene.grip_position, scene.position(self._object), self._spot(scene)
        target = np.array([*(grip[:2] + spot[:2] - held[:2]), self._release + grip[2] - held[2]])
        top = self._highest(scene, held, spot, self._half_width, without=self._object)
        height = self._within_reach(scene, top + self._below + MARGIN + self._style.height + grip[2] - held[2], target[2])
        command, arrived = funnel(grip, target, height, radius=0.025, style=self._style)
        over = float(np.linalg.norm(grip[:2] - target[:2])) < OVER
        self._stalled = self._stalled + 1 if over and abs(grip[2] - self._height) < 5e-4 else 0
        self._height = grip[2]
        if arrived or self._stalled > STALLED_STEPS:
            self._enter(Skill.RELEASE)
            return np.zeros(3), OPEN
        if np.linalg.norm(spot[:2] - held[:2]) < 0.02:
            self._skill = Skill.PLACE
        else:
            self._skill = Skill.LIFT if grip[2] < height - 0.03 else Skill.CARRY
        return command, CLOSE

    def _open(self, scene: SceneView) -> tuple[np.ndarray, float]:
        name = self._object
        free = scene.gripper_opening > self._grip_width + 0.01 and not scene.fingers_touch(name).any()
        if (free and self._since > 3) or self._since > 25:
            self._enter(Skill.RETREAT)
        return np.zeros(3), OPEN

    def _retreat(self, scene: SceneView) -> tuple[np.ndarray, float]:
        if self._since > RETREAT_STEPS:
            self.done = True
        return np.array([0.0, 0.0, 0.5]), OPEN

    # -- plans -------------------------------------------------------------------------------------------------------
    def _enter(self, skill: Skill) -> None:
        self._skill = skill
        self._since = 0
        if skill is Skill.REACH:
            self._grasp = None

    def _plan_release(self, scene: SceneView) -> None:
        """The height of the object's origin at the release: on what lies below, with the hand above its rim."""
        grip, origin = scene.grip_position, scene.position(self._object)
        box = scene.bounds(self._object)
        self._grip_width = scene.gripper_opening
        self._below = origin[2] - box.low[2]
        self._half_width = float((box.high - box.low)[:2].max() / 2)
        spot = self._spot(scene)
        floor = float(scene.heights(disc(spot[:2], 0.6 * self._half_width, ticks=9), without=self._object).max())
        palm = palm_print(scene.grip_rotation) + grip[:2] - origin[:2] + spot[:2]
        rim = float(scene.heights(palm, without=self._object).max())
        self._release = max(floor + self._below + 0.006, rim + 0.01 - PALM - (grip[2] - origin[2]))
        if not self._lean.any():
            self._lean = scene.lean(np.array([*(spot + grip - origin)[:2], self._release + grip[2] - origin[2]]))

    def _spot(self, scene: SceneView) -> np.ndarray:
        if scene.has_body(self._target):
            return scene.bounds(self._target).centre
        return scene.region(self._target).centre

    def _highest(
        self, scene: SceneView, start: np.ndarray, end: np.ndarray, half_width: float, without: str | None = None
    ) -> float:
        """The highest shape on the way that the style takes."""
        aside = self._style.aside(float(np.linalg.norm(end[:2] - start[:2])))
        return highest_on_the_way(scene, start, end, half_width + aside, without=without)

    def _within_reach(self, scene: SceneView, height: float, lowest: float) -> float:
        return min(height, max(scene.ceiling(scene.grip_position[:2]), lowest))

    def _slipped(self, scene: SceneView) -> bool:
        """The place that was gripped is no longer between the fingers; the object may well have turned there."""
        assert self._grasp is not None
        gripped = self._grasp.position(scene, self._object)
        return bool(np.linalg.norm(gripped - scene.grip_position) > 0.03)


def palm_print(rotation: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "M 2"]:
    """Points under the whole palm, dense enough for the thin walls of baskets, from the grip centre."""
    along, across = rotation[:2, 0], rotation[:2, 1]
    u, v = np.linspace(-PALM_HALF[0], PALM_HALF[0], 53), np.linspace(-PALM_HALF[1], PALM_HALF[1], 17)
    return (u[:, None, None] * along + v[:, None] * across).reshape(-1, 2)

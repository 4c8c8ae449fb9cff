"""Moving parts of furniture: drawers (slides), doors and knobs (hinges), and where a point of one goes as it moves.

Every such joint of LIBERO is closed, or off, at the end of its range that is nearer to 0. Lengths in m, angles in rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView

KNOB_RADIUS = 0.08
"""A hinge whose part reaches no further from its axis is a knob, otherwise a door."""


@dataclass(frozen=True)
class MovingPart:
    """A body on one slide or hinge."""

    joint: int
    body: int
    geoms: np.ndarray
    """Its collision geoms."""
    is_slide: bool
    closed: float
    opened: float

    @property
    def shut(self) -> float:
        """The value that a push must reach: LIBERO's drawers count as closed from 0 on, and can be pushed in further."""
        return 0.4 * self.closed

    def value(self, scene: SceneView) -> float:
        return float(scene.data.qpos[scene.model.jnt_qposadr[self.joint]])

    def openness(self, scene: SceneView) -> float:
        """0 closed, 1 as far open as it goes."""
        return (self.value(scene) - self.closed) / (self.opened - self.closed)

    def axis(self, scene: SceneView) -> Float64[np.ndarray, "3"]:
        return scene.data.xaxis[self.joint].copy()

    def moved(
        self, scene: SceneView, point: Float64[np.ndarray, "3"], change: float
    ) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3 3"]]:
        """Where a point of the part will be, and how the part will have turned, when the joint has changed by so much."""
        axis = self.axis(scene)
        if self.is_slide:
            return point + change * axis, np.eye(3)
        quaternion, turn = np.empty(4), np.empty(9)
        mujoco.mju_axisAngle2Quat(quaternion, axis, change)
        mujoco.mju_quat2Mat(turn, quaternion)
        anchor = scene.data.xanchor[self.joint]
        rotation = turn.reshape(3, 3)
        return anchor + rotation @ (point - anchor), rotation

    def opening_direction(self, scene: SceneView, point: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
        """Unit vector in which a point of the part moves as it opens; of any point on the axis, 0."""
        step = self.moved(scene, point, 1e-4 * np.sign(self.opened - self.closed))[0] - point
        size = float(np.linalg.norm(step))
        return step / size if size > 1e-7 else np.zeros(3)

    def radius(self, scene: SceneView) -> float:
        """How far a hinged part reaches from its axis."""
        centre, _, half = scene.oriented_boxes(self.geoms)
        offset = centre - scene.data.xanchor[self.joint]
        offset = offset - np.outer(offset @ self.axis(scene), self.axis(scene))
        return float((np.linalg.norm(offset, axis=1) + half.max(1)).max())

    def is_knob(self, scene: SceneView) -> bool:
        return not self.is_slide and self.radius(scene) < KNOB_RADIUS


def moving_part(scene: SceneView, name: str) -> MovingPart:
    """The part that a BDDL name means: the drawer of a region, the door or knob of a fixture. Raises `ExpertError`."""
    model = scene.model
    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, name)
    bodies = scene.ancestors(int(model.site_bodyid[site])) if site >= 0 else scene.family(name)
    slides, hinges = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)
    for body in bodies:
        for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]):
            if int(model.jnt_type[joint]) in (slides, hinges):
                low, high = (float(end) for end in model.jnt_range[joint])
                closed, opened = (low, high) if abs(low) < abs(high) else (high, low)
                slide = int(model.jnt_type[joint]) == slides
                return MovingPart(joint, body, scene.geoms_below(body), slide, closed, opened)
    raise ExpertError(f"{name!r} has no drawer, door or knob")


def drawer_of(scene: SceneView, region: str) -> MovingPart | None:
    """The drawer that carries a region, if one does."""
    try:
        part = moving_part(scene, region)
    except ExpertError:
        return None
    return part if part.is_slide else None

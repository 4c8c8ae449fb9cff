"""What the expert reads of a LIBERO scene: poses, collision shapes, contacts and goal regions of the compiled model.

Legend: G collision geoms, M query points, N bodies. Lengths in m, world frame, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Bool, Float64

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.compiled import compiled

GRIP_SITE = "gripper0_grip_site"
FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
FINGER_BODIES = ("gripper0_leftfinger", "gripper0_rightfinger")
SHOULDER, WRIST = "robot0_link2", "robot0_link6"
ARM_REACH = 0.675
"""From shoulder to wrist with the elbow still bent; stretched out (0.705) the arm is singular and stays stuck."""
STRETCHED = 0.698
LEAN, LEAN_BEYOND = 0.3, 0.69
"""The hand's tilt, rad, towards places that a vertical hand reaches only with the wrist further out than this, m."""
WRIST_BEHIND, WRIST_ABOVE = 0.07, 0.21
"""Where the wrist of a vertical hand is, from the grip centre."""
ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")


class ExpertError(SimError):
    """The expert has no plan for this task; the message says which goal and why."""


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in the world frame."""

    low: Float64[np.ndarray, "3"]
    high: Float64[np.ndarray, "3"]

    @property
    def centre(self) -> Float64[np.ndarray, "3"]:
        return (self.low + self.high) / 2


class SceneView:
    """A read-only view of one environment's model and data; `data` may change under it from step to step."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.model = model
        self.data = data
        self._inside: dict[int, np.ndarray] = {}
        self._grip = model.site(GRIP_SITE).id
        self._fingers = [model.joint(name).qposadr[0] for name in FINGER_JOINTS]
        self._finger_geoms = [np.flatnonzero(self._descendants(model.body(name).id)[model.geom_bodyid]) for name in FINGER_BODIES]
        names = [model.body(model.geom_bodyid[geom]).name for geom in range(model.ngeom)]
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        robot = np.array([name.startswith(ROBOT_PREFIXES) for name in names])
        self._obstacles = np.flatnonzero(solid & ~robot & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE))
        planes = np.flatnonzero(solid & ~robot & (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE))
        self._planes = [geom for geom in planes if abs(model.geom_quat[geom][0]) > 0.999]

    # -- the robot ---------------------------------------------------------------------------------------------------
    @property
    def grip_position(self) -> Float64[np.ndarray, "3"]:
        """Midpoint between the finger pads."""
        return self.data.site_xpos[self._grip].copy()

    @property
    def grip_rotation(self) -> Float64[np.ndarray, "3 3"]:
        """Columns: the finger axis, the axis along the pads, the approach direction."""
        return self.data.site_xmat[self._grip].reshape(3, 3).copy()

    @property
    def gripper_opening(self) -> float:
        """Distance between the pads: 0 closed, about 0.08 open."""
        return float(abs(self.data.qpos[self._fingers[0]]) + abs(self.data.qpos[self._fingers[1]]))

    @property
    def base(self) -> Float64[np.ndarray, "3"]:
        """The arm's shoulder, above its base."""
        return self.data.xpos[self.model.body(SHOULDER).id].copy()

    @property
    def stretch(self) -> tuple[float, Float64[np.ndarray, "3"]]:
        """Distance from shoulder to wrist, and the direction in which it shrinks."""
        way = self.base - self.data.xpos[self.model.body(WRIST).id]
        distance = float(np.linalg.norm(way))
        return distance, way / distance

    def ceiling(self, point: Float64[np.ndarray, "2"]) -> float:
        """How high the grip can be at a place without stretching the arm, at the hand's present orientation."""
        offset = self.data.xpos[self.model.body(WRIST).id] - self.grip_position
        across = float(np.linalg.norm(point + offset[:2] - self.base[:2]))
        return float(self.base[2] - offset[2]) + max(ARM_REACH**2 - across**2, 0.0) ** 0.5

    def stretch_at(self, points: Float64[np.ndarray, "*M 3"]) -> Float64[np.ndarray, "*M"]:
        """Distance from shoulder to wrist with a vertical hand whose grip centre is at a place."""
        way = points - self.base
        return np.hypot(np.linalg.norm(way[..., :2], axis=-1) - WRIST_BEHIND, way[..., 2] + WRIST_ABOVE)

    def lean(self, point: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
        """Tilt (axis-angle, rad) that points the hand outwards where a place is too far for a vertical hand, else 0."""
        if self.stretch_at(point) < LEAN_BEYOND:
            return np.zeros(3)
        way = point - self.base
        return LEAN / float(np.linalg.norm(way[:2])) * np.array([way[1], -way[0], 0.0])

    def palm_slope(self, point: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "2"]:
        """Rise of the palm in x and y, m per m, with the hand's lean at a place: it is lower on the robot's side."""
        tilt = self.lean(point)
        size = float(np.linalg.norm(tilt))
        return np.array([-tilt[1], tilt[0]]) / size * np.tan(size) if size else np.zeros(2)

    def fingers_touch(self, name: str) -> Bool[np.ndarray, "2"]:
        """Which of the two fingers touches the object."""
        pairs = self.data.contact.geom
        mine = np.isin(pairs, self.geoms_of(name))[:, ::-1]
        return np.array([bool((mine & np.isin(pairs, finger)).any()) for finger in self._finger_geoms])

    # -- objects and regions -----------------------------------------------------------------------------------------
    def body_id(self, name: str) -> int:
        for candidate in (f"{name}_main", name):
            body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, candidate)
            if body >= 0:
                return body
        raise ExpertError(f"the scene has no object {name!r}")

    def has_body(self, name: str) -> bool:
        return any(mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, n) >= 0 for n in (f"{name}_main", name))

    def position(self, name: str) -> Float64[np.ndarray, "3"]:
        return self.data.xpos[self.body_id(name)].copy()

    def rotation(self, name: str) -> Float64[np.ndarray, "3 3"]:
        return self.data.xmat[self.body_id(name)].reshape(3, 3).copy()

    def speed(self, name: str) -> float:
        """Of an object that moves freely, m/s, turning included at a lever of 5 cm; 0 for a fixture."""
        joint = self.model.body_jntadr[self.body_id(name)]
        if joint < 0 or self.model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE:
            return 0.0
        dof = self.model.jnt_dofadr[joint]
        velocity = self.data.qvel[dof : dof + 6]
        return float(np.linalg.norm(velocity[:3]) + 0.05 * np.linalg.norm(velocity[3:]))

    def geoms_of(self, name: str) -> np.ndarray:
        """Collision geoms of an object, its movable parts included."""
        return self.geoms_below(self.body_id(name))

    def geoms_below(self, body: int) -> np.ndarray:
        """Collision geoms of a body and all that hangs on it."""
        inside = self._descendants(body)
        return self._obstacles[inside[self.model.geom_bodyid[self._obstacles]]]

    def ancestors(self, body: int) -> list[int]:
        """A body and those that it hangs on, up to the world, which is left out."""
        chain = []
        while body > 0:
            chain.append(body)
            body = int(self.model.body_parentid[body])
        return chain

    def family(self, name: str) -> list[int]:
        """An object's root body and all that hangs on it."""
        return [int(body) for body in np.flatnonzero(self._descendants(self.body_id(name)))]

    def _descendants(self, root: int) -> Bool[np.ndarray, "N"]:
        """Marks a body and all that hangs on it."""
        if root not in self._inside:
            inside = np.zeros(self.model.nbody, dtype=bool)
            for body in range(self.model.nbody):
                inside[body] = body == root or (body > 0 and inside[self.model.body_parentid[body]])
            self._inside[root] = inside
        return self._inside[root]

    def region(self, site: str) -> Box:
        """The box of a goal region, as LIBERO's `in` predicate sees it (|R size| around the site)."""
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, site)
        if index < 0:
            raise ExpertError(f"the scene has no region {site!r}")
        half = np.abs(self.data.site_xmat[index].reshape(3, 3) @ self.model.site_size[index])
        centre = self.data.site_xpos[index]
        return Box(centre - half, centre + half)

    def region_owner(self, site: str) -> int:
        """Root body of the object or fixture that carries a region; 0 for a region of the workspace."""
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, site)
        return int(self.model.body_rootid[self.model.site_bodyid[index]]) if index >= 0 else 0

    def bounds(self, name: str) -> Box:
        """World box around an object's collision geoms."""
        geoms = self.geoms_of(name)
        if geoms.size == 0:
            raise ExpertError(f"object {name!r} has no collision shape to grasp")
        centre, axes, half = self.oriented_boxes(geoms)
        reach = np.einsum("gij,gj->gi", np.abs(axes), half)
        return Box((centre - reach).min(0), (centre + reach).max(0))

    # -- heights -----------------------------------------------------------------------------------------------------
    def heights(
        self, points: Float64[np.ndarray, "M 2"], only: str | None = None, without: str | None = None
    ) -> Float64[np.ndarray, "M"]:
        """Height of the highest collision shape above each point, -inf where there is none.

        `only` restricts the scene to one object, `without` leaves one out; the robot never counts. Shapes other than
        boxes count as their local bounding box.
        """
        geoms = self.geoms_of(only) if only else self._obstacles
        if without:
            geoms = np.setdiff1d(geoms, self.geoms_of(without))
        top = np.full(len(points), -np.inf)
        if only is None and self._planes:
            top[:] = max(self.data.geom_xpos[geom][2] for geom in self._planes)
        if geoms.size == 0:
            return top
        centre, axes, half = self.oriented_boxes(geoms)
        reach = np.einsum("gij,gj->gi", np.abs(axes), half)
        low, high = points.min(0), points.max(0)
        near = ((centre - reach)[:, :2] <= high).all(1) & ((centre + reach)[:, :2] >= low).all(1)
        centre, axes, half = centre[near], axes[near], half[near]
        if len(centre) == 0:
            return top
        _raise_to_boxes(points, centre, axes, half, top)
        return top

    @property
    def floor(self) -> float:
        """Height of the highest horizontal plane, -inf without one."""
        return max((float(self.data.geom_xpos[geom][2]) for geom in self._planes), default=-np.inf)

    def all_but_rest_of(self, body: int) -> np.ndarray:
        """Every collision geom except those of the furniture that a moving part belongs to; the part itself is included."""
        root = self.model.body_rootid
        rest = (root[self.model.geom_bodyid] == root[body]) & ~self._descendants(body)[self.model.geom_bodyid]
        return np.flatnonzero(~rest)

    def boxes(self, without: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres [G, 3], axes [G, 3, 3] and half sizes [G, 3] of everything but the robot and the geoms of `without`."""
        return self.oriented_boxes(self._obstacles if without is None else np.setdiff1d(self._obstacles, without))

    def oriented_boxes(self, geoms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Local bounding boxes of collision geoms: centres [G, 3], axes [G, 3, 3] (columns), half sizes [G, 3]."""
        axes = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        aabb = self.model.geom_aabb[geoms]
        return self.data.geom_xpos[geoms] + np.einsum("gij,gj->gi", axes, aabb[:, :3]), axes, aabb[:, 3:]


@compiled
def _raise_to_boxes(points, centre, axes, half, top):  # type: ignore[no-untyped-def]
    """Raise each point's `top` [M] to where a vertical line through it leaves the boxes that it meets.

    The line p + z e_z in box coordinates is R^T (p - c) + z R^T e_z: intersect it with the box's three slabs.
    """
    for g in range(len(centre)):
        for m in range(len(points)):
            x, y = points[m, 0] - centre[g, 0], points[m, 1] - centre[g, 1]
            enter, leave = -np.inf, np.inf
            for j in range(3):
                start = axes[g, 0, j] * x + axes[g, 1, j] * y - axes[g, 2, j] * centre[g, 2]
                slope = axes[g, 2, j]
                if abs(slope) < 1e-9:
                    slope = 1e-9
                a, b = (-half[g, j] - start) / slope, (half[g, j] - start) / slope
                enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
            if enter <= leave and leave > top[m]:
                top[m] = leave


def disc(centre: np.ndarray, radius: float, ticks: int = 5) -> np.ndarray:
    line = np.linspace(-radius, radius, ticks)
    offsets = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    return centre + offsets[np.linalg.norm(offsets, axis=1) <= radius + 1e-9]


def highest_on_the_way(
    scene: SceneView, start: np.ndarray, end: np.ndarray, half_width: float, without: str | None = None
) -> float:
    """The highest shape under a straight way of the given half width."""
    steps = max(2, int(np.linalg.norm(end[:2] - start[:2]) / 0.02))
    line = start[:2] + np.linspace(0, 1, steps)[:, None] * (end[:2] - start[:2])
    points = (line[:, None] + disc(np.zeros(2), half_width, ticks=9)).reshape(-1, 2)
    return float(scene.heights(points, without=without).max())

"""Top-down grasps for a parallel gripper, planned on height maps of the collision shapes.

Legend: P candidate positions, S samples along the finger axis, W samples across it. Lengths in m, angles in rad.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView

OPENING = 0.04
"""Pad distance from the grip centre when open."""
FINGER = 0.03
"""Thickness of a finger outwards from its pad."""
FINGER_HALF_WIDTH = 0.011
TIP = 0.007
"""The fingertips reach this far below the grip centre."""
PALM = 0.034
"""The hand begins this far above the grip centre."""
PALM_HALF = (0.105, 0.034)
"""Half size of the hand along and across the finger axis."""
CLEARANCE = 0.004
DEPTHS = (0.03, 0.022, 0.018, 0.014)
"""How far below its top an object may be gripped: deep for stability, shallow where a wall slopes or the hand has no room."""
SHALLOWEST = 0.004
COMFORTABLE_STRETCH = 0.66
"""Distance from shoulder to wrist, m, beyond which the arm stiffens."""
SPACING = 0.004
MAP_SPACING = 0.002
RETRY_RADIUS, RETRY_DEPTH = 0.015, 0.01
"""A grasp so near a failed one, and so nearly as deep, counts as the same."""
YAWS = (0.0, np.pi / 4, -np.pi / 4, np.pi / 2)
MORE_YAWS = tuple(step * np.pi / 12 for step in (1, -1, 2, -2, 4, -4, 5, -5))
"""Tried where none of the first fits, beside walls and other objects."""


@dataclass(frozen=True)
class Grasp:
    """Where the grip centre must be to close on an object, in the object's frame."""

    offset: Float64[np.ndarray, "3"]
    yaw: float
    """Of the finger axis from the world's y axis, about z; in (-pi/2, pi/2]."""
    depth: float
    """How far the object reaches above the grip centre."""
    object_position: Float64[np.ndarray, "3"]
    object_rotation: Float64[np.ndarray, "3 3"]
    """Where the object lay when the grasp was planned: elsewhere it may not be free."""

    def position(self, scene: SceneView, name: str) -> Float64[np.ndarray, "3"]:
        return scene.position(name) + scene.rotation(name) @ self.offset

    def is_stale(self, scene: SceneView, name: str) -> bool:
        """Whether the object has moved or turned since."""
        moved = np.linalg.norm(scene.position(name) - self.object_position)
        turned = np.abs(scene.rotation(name) - self.object_rotation).max()
        return bool(moved > 0.01 or turned > 0.1)


class HeightMap:
    """Heights on a regular grid, looked up at the nearest node."""

    def __init__(
        self, scene: SceneView, low: np.ndarray, high: np.ndarray, only: str | None = None, without: str | None = None
    ) -> None:
        axes = [np.arange(low[i], high[i] + MAP_SPACING, MAP_SPACING) for i in range(2)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        self._low = low[:2]
        self._top = scene.heights(grid.reshape(-1, 2), only, without).reshape(grid.shape[:2])

    def at(self, points: Float64[np.ndarray, "*M 2"]) -> Float64[np.ndarray, "*M"]:
        nodes = np.rint((points - self._low) / MAP_SPACING).astype(int)
        nodes = np.clip(nodes, 0, np.array(self._top.shape) - 1)
        return self._top[nodes[..., 0], nodes[..., 1]]


def plan_grasp(scene: SceneView, name: str, destination: Float64[np.ndarray, "3"], failed: Sequence[Grasp] = ()) -> Grasp:
    """The best grasp of an object where it now lies.

    A candidate is a position on a grid over the object, a yaw and a depth; it is feasible where both fingers fit beside
    the material and the hand above it, and scores by its depth, by how squarely and evenly the fingers close, and by how
    near it is to the object's centre, to yaw 0 (turning the wrist costs time and precision), and to the robot, here and
    with the object at its `destination` (a stretched arm is stiff). Candidates like `failed` ones come last. Raises
    `ExpertError` when nothing is feasible.
    """
    box = scene.bounds(name)
    steps = [np.arange(-half, half + SPACING, SPACING) for half in (box.high - box.low)[:2] / 2]
    centres = box.centre[:2] + np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 2)
    centres = np.concatenate([box.centre[None, :2], centres])
    margin = np.linalg.norm(PALM_HALF)
    own = HeightMap(scene, box.low[:2] - margin, box.high[:2] + margin, only=name)
    others = HeightMap(scene, box.low[:2] - margin, box.high[:2] + margin, without=name)
    preference = 0.25 * np.linalg.norm(centres - box.centre[:2], axis=1)
    for shift in (np.zeros(3), destination - box.centre):
        stretch = scene.stretch_at(np.concatenate([centres, np.full((len(centres), 1), box.high[2])], axis=1) + shift)
        preference += 0.05 * stretch + 0.5 * np.maximum(stretch - COMFORTABLE_STRETCH, 0.0)
    slopes = np.array([scene.palm_slope(np.array([*centre, box.high[2]])) for centre in centres])
    best: tuple[float, np.ndarray, float, float] | None = None
    for filled, yaws in itertools.product((True, False), (YAWS, MORE_YAWS)):
        if best is not None:
            break
        best = _best_of(scene, name, own, others, centres, preference, failed, yaws, filled, slopes)
    if best is None:
        raise ExpertError(f"no top-down grasp of {name!r} is free: it is too wide for the gripper or walled in")
    position, rotation = scene.position(name), scene.rotation(name)
    return Grasp(rotation.T @ (best[1] - position), best[2], best[3], position, rotation)


def _best_of(
    scene: SceneView,
    name: str,
    own: HeightMap,
    others: HeightMap,
    centres: np.ndarray,
    preference: np.ndarray,
    failed: Sequence[Grasp],
    yaws: Sequence[float],
    filled: bool,
    slopes: np.ndarray,
) -> tuple[float, np.ndarray, float, float] | None:
    """Score, position, yaw and depth of the best candidate, or None; `filled` as in `_rate`."""
    best: tuple[float, np.ndarray, float, float] | None = None
    for yaw, deepest in itertools.product(yaws, DEPTHS):
        score, height, depth = _rate(own, others, centres, yaw, deepest, filled, slopes)
        score = score - 0.05 * abs(yaw) - preference
        for grasp in failed:
            tried = scene.position(name) + scene.rotation(name) @ grasp.offset
            near = np.linalg.norm(centres - tried[:2], axis=1) < RETRY_RADIUS
            score = score - 0.1 * (near & (grasp.yaw == yaw) & (abs(grasp.depth - depth) < RETRY_DEPTH))
        winner = int(score.argmax())
        if np.isfinite(score[winner]) and (best is None or score[winner] > best[0]):
            best = float(score[winner]), np.array([*centres[winner], height[winner]]), yaw, float(depth[winner])
    return best


def _rate(
    own: HeightMap,
    others: HeightMap,
    centres: np.ndarray,
    yaw: float,
    deepest: float,
    filled: bool = True,
    slopes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, grip height and depth of P candidates at one yaw; the score is -inf where the grasp does not fit.

    `filled` asks for material along the whole width of the pads; without it the pads' middle suffices (a bottle's neck).
    `slopes` [P, 2] says how the palm rises in x and y where the hand leans; level without it.
    """
    along = np.array([-np.sin(yaw), np.cos(yaw)])
    across = np.array([np.cos(yaw), np.sin(yaw)])
    s = np.arange(-OPENING - FINGER, OPENING + FINGER + 1e-9, MAP_SPACING)
    w = np.linspace(-FINGER_HALF_WIDTH, FINGER_HALF_WIDTH, 3)
    strip = centres[:, None, None] + s[:, None, None] * along + w[:, None] * across
    object_top, other_top = own.at(strip), others.at(strip)

    fingers = np.abs(s) >= OPENING - CLEARANCE
    inner, between = s[~fingers], object_top[:, ~fingers]
    blocked = np.maximum(object_top, other_top)[:, fingers].max((1, 2))
    lowest = np.maximum(blocked, other_top[:, ~fingers].max((1, 2))) + TIP + CLEARANCE / 2
    top = between.max((1, 2))
    top = np.where(np.isfinite(top), top, -1e3)  # no material between the fingers
    depth = np.minimum(top - lowest, deepest)
    height = top - depth

    # What the pads close on must lie evenly around the centre, or it is pushed aside, and square to the finger axis
    # both across the pads and up the wall, or it slips out.
    first, last = _faces(between, inner, height)
    if not filled:
        first, last = np.where(first < last, (first, last), (first[:, 1:2], last[:, 1:2]))
    middle = (first + last) / 2
    eccentricity = np.abs(middle).max(1)
    upper_first, upper_last = _faces(between, inner, np.maximum(height, top - CLEARANCE))
    skew = np.maximum(np.ptp(first, axis=1), np.ptp(last, axis=1))
    slope = np.abs(upper_first + upper_last)[:, 1] / 2

    u = np.linspace(-PALM_HALF[0], PALM_HALF[0], 13)
    v = np.linspace(-PALM_HALF[1], PALM_HALF[1], 5)
    palm = u[:, None, None] * along + v[:, None] * across
    rise = 0.0 if slopes is None else np.einsum("uvi,pi->puv", palm, slopes)
    palm = centres[:, None, None] + palm
    hand_floor = (np.maximum(own.at(palm), others.at(palm)) - rise).max((1, 2))
    grips = (depth > SHALLOWEST) & (first < last).all(1) & (np.maximum(eccentricity, skew) < 2 * CLEARANCE)
    fits = grips & (hand_floor < height + PALM)
    return np.where(fits, np.minimum(depth, 0.02) - 0.5 * eccentricity - skew - slope, -np.inf), height, depth


def _faces(top: np.ndarray, s: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last coordinate along the finger axis that the object fills at a height: [P, S, W] -> [P, W], [P, W]."""
    solid = top > height[:, None, None]
    return np.where(solid, s[:, None], OPENING).min(1), np.where(solid, s[:, None], -OPENING).max(1)

"""Where a hand can take hold of, or push, the moving part of a piece of furniture: planned on its collision shapes.

Legend: P candidates, G geoms. Lengths in m, angles in rad, world frame. A hand's rotation has as columns the finger axis, the
axis along the pads, and the approach direction.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.expert.hand import CLOSED_HALF, FINGER_HALF, FINGER_REACH, OPEN_HALF, is_free
from vla_rl.sim.libero.expert.joints import MovingPart
from vla_rl.sim.libero.expert.motion import DOWN
from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView

STANDOFFS = (0.09, 0.06, 0.04)
"""From where the hand approaches a handle in a straight line."""
BACKED_OFF = (0.0, 0.004, 0.008)
"""How far from a bar's centre the grip centre may stay; the fingertips reach 9 mm beyond it."""
WIDEST = 0.06
"""A handle may be so thick between the pads."""
TOP_DEPTHS = (0.03, 0.02, 0.012)
"""How far a handle may be gripped below its end."""
LEANS = (0.0, 0.3, -0.3, 0.6, -0.6)
ANGLES = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
PUSH_TILTS = (0.0, 0.2, 0.4, 0.6, 0.8)
PUSH_GAPS = (0.03, 0.015)
"""Between finger and part before a push."""
WRIST_BEYOND = 0.21
"""From the grip centre back to the wrist."""
COMFORTABLE = (0.4, 0.68)
"""Distances from shoulder to wrist, m, between which the arm is neither folded up nor stretched out."""
STEEPEST = 1.75
"""Largest angle between the hand and its nominal, downward pose; 90 degrees and a little."""


@dataclass(frozen=True)
class Hold:
    """A hand pose at a moving part, in the world, while the part's joint has the value `at`."""

    position: Float64[np.ndarray, "3"]
    rotation: Float64[np.ndarray, "3 3"]
    start: Float64[np.ndarray, "3"]
    """Where the straight approach begins."""
    at: float
    pushes: bool
    """With closed fingers, from outside."""

    def now(self, scene: SceneView, part: MovingPart, lead: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The pose that keeps its place on the part when the joint moves on by `lead` from where it is."""
        position, turn = part.moved(scene, self.position, part.value(scene) + lead - self.at)
        return position, turn @ self.rotation


def angle_between(first: Float64[np.ndarray, "*P 3 3"], second: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "*P"]:
    trace = np.einsum("...ij,ij->...", first, second)
    return np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0))


def plan_pull(scene: SceneView, part: MovingPart, failed: Sequence[Hold] = ()) -> Hold:
    """The grasp of a handle or knob that turns the hand least; raises `ExpertError` where none is free."""
    poses = [pose for geom in part.geoms for pose in _grasps_of(scene, int(geom))]
    if not poses:
        raise ExpertError("a moving part has nothing that fits between the fingers")
    positions, rotations = np.array([pose[0] for pose in poses]), np.array([pose[1] for pose in poses])
    turned = angle_between(rotations, DOWN)
    # Far from a hinge the lever is longest; a knob is best held at its middle.
    lever = _levers(scene, part, positions)
    cost = turned + (2.0 * lever if part.is_knob(scene) else -2.0 * lever) + 20.0 * np.array([pose[2] for pose in poses])
    near, far = COMFORTABLE
    stretch = np.linalg.norm(positions - WRIST_BEYOND * rotations[:, :, 2] - scene.base, axis=1)
    cost = cost + 8.0 * (np.maximum(near - stretch, 0.0) + np.maximum(stretch - far, 0.0))
    for hold in failed:
        same = (np.linalg.norm(positions - hold.position, axis=1) < 0.015) & (angle_between(rotations, hold.rotation) < 0.2)
        cost = cost + 1.0 * same
    order = np.argsort(cost)
    order = order[turned[order] < STEEPEST]
    for chunk in np.array_split(order, max(1, len(order) // 64)):
        for best in chunk[is_free(scene, positions[chunk], rotations[chunk])]:
            starts = positions[best] - np.outer(STANDOFFS, rotations[best][:, 2])
            free = is_free(scene, starts, np.repeat(rotations[best][None], len(starts), axis=0))
            if free.any():
                return Hold(positions[best], rotations[best], starts[free.argmax()], part.value(scene), pushes=False)
    raise ExpertError("no handle can be reached by an open hand")


def _levers(scene: SceneView, part: MovingPart, points: Float64[np.ndarray, "P 3"]) -> Float64[np.ndarray, "P"]:
    """Distances from a hinge's axis; 0 for a slide."""
    if part.is_slide:
        return np.zeros(len(points))
    offset = points - scene.data.xanchor[part.joint]
    axis = part.axis(scene)
    return np.linalg.norm(offset - np.outer(offset @ axis, axis), axis=1)


def _grasps_of(scene: SceneView, geom: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Hand poses around a bar (across its long axis), or on its end (along it), and how far they back off."""
    (centre,), (axes,), (half,) = scene.oriented_boxes(np.array([geom]))
    order = np.argsort(half)
    thin, middle, long = (axes[:, index] for index in order)
    poses: list[tuple[np.ndarray, np.ndarray, float]] = []
    if 2 * half[order[1]] < WIDEST:
        for angle in ANGLES:
            approach = np.cos(angle) * thin + np.sin(angle) * middle
            hands = _both(_cross(long, approach), approach)
            for shift, back in itertools.product((0.0, -0.5, 0.5), BACKED_OFF):
                position = centre + shift * half[order[2]] * long - back * approach
                poses += [(position, rotation, back) for rotation in hands]
    # From above, with the fingers across a thin horizontal side, upright or leaning within the plane of the pads.
    up = int(np.abs(axes[2]).argmax())
    if abs(axes[2, up]) > 0.97:
        top = centre[2] + half[up]
        for side in (index for index in range(3) if index != up and 2 * half[index] < WIDEST):
            along = _cross(axes[:, side], np.array([0.0, 0.0, 1.0]))
            for lean in LEANS:
                approach = np.sin(lean) * along - np.cos(lean) * np.array([0.0, 0.0, 1.0])
                hands = _both(axes[:, side], approach)
                for depth in TOP_DEPTHS:
                    position = np.array([centre[0], centre[1], top - min(depth, 2 * half[up] - 0.002)])
                    poses += [(position, rotation, 0.0) for rotation in hands]
    return poses


def _both(finger: np.ndarray, approach: np.ndarray) -> list[np.ndarray]:
    """The two hand rotations with these axes; they differ in which finger is which."""
    finger = finger - (finger @ approach) * approach
    finger /= np.linalg.norm(finger)
    pads = _cross(approach, finger)
    return [np.array([sign * finger, sign * pads, approach]).T for sign in (1.0, -1.0)]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """NumPy's takes fifty times as long for two single vectors."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def plan_push(scene: SceneView, part: MovingPart, failed: Sequence[Hold] = ()) -> Hold:
    """Where closed fingers push a part shut: at its outermost shape, with the hand as upright as the fixture allows."""
    centre, axes, half = scene.oriented_boxes(part.geoms)
    direction = np.array([part.opening_direction(scene, c) for c in centre])
    extent = np.einsum("gij,gi,gj->g", np.abs(axes), np.abs(direction), half)
    lever = _levers(scene, part, centre)
    # What stands out furthest is met first; on a door, the longer the lever, the better.
    rank = np.argsort(-(np.einsum("gi,gi->g", centre, direction) + extent if part.is_slide else lever + extent))
    options: list[tuple[float, Hold]] = []
    for place, geom in enumerate(rank[:6]):
        outward = direction[geom]
        for tilt in PUSH_TILTS:
            approach = -np.cos(tilt) * np.array([0.0, 0.0, 1.0]) - np.sin(tilt) * outward
            for rotation in _both(_cross(outward, approach), approach):
                for shift, side, gap in itertools.product((0.0, 0.5, -0.5), (0.0, 0.7, -0.7), PUSH_GAPS):
                    across = _cross(outward, np.array([0.0, 0.0, 1.0]))
                    tall, wide = (float(np.abs(axes[geom].T @ way) @ half[geom]) for way in (np.array([0.0, 0.0, 1.0]), across))
                    contact = centre[geom] + extent[geom] * outward + side * wide * across
                    position = contact + (FINGER_HALF + 0.001) * outward + np.array([0.0, 0.0, shift * tall])
                    hold = Hold(position, rotation, position + gap * outward, part.value(scene), pushes=True)
                    cost = float(angle_between(rotation, DOWN)) + 0.3 * place + 0.2 * (abs(shift) + abs(side)) - 3 * gap
                    options.append((cost + _repeats(hold, failed), hold))
    for _, hold in sorted(options, key=lambda option: option[0]):
        if _can_push(scene, part, hold):
            return hold
    raise ExpertError("closed fingers find no place to push")


def _repeats(hold: Hold, failed: Sequence[Hold]) -> float:
    return float(sum(np.linalg.norm(hold.position - other.position) < 0.01 for other in failed))


def _can_push(scene: SceneView, part: MovingPart, hold: Hold) -> bool:
    """Whether the hand is free before the push, and at its end.

    What counts at the end is the rest of the furniture: objects may ride on the part.
    """
    end, turn = part.moved(scene, hold.position, part.shut - hold.at)
    last = turn @ hold.rotation
    free = is_free(scene, hold.start[None], hold.rotation[None], CLOSED_HALF)
    return bool(free[0] and is_free(scene, end[None], last[None], CLOSED_HALF, without=scene.all_but_rest_of(part.body))[0])


__all__ = ["FINGER_REACH", "OPEN_HALF", "Hold", "angle_between", "plan_pull", "plan_push"]

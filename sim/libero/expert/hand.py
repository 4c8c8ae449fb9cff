"""The gripper's shape, and whether it is free of everything else at a pose.

Legend: P poses, K boxes of the hand, G collision geoms. Lengths in m, world frame unless said otherwise. A hand pose is the
grip centre and a rotation whose columns are the finger axis, the axis along the pads, and the approach direction.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from vla_rl.sim.libero.expert.scene_view import SceneView

PALM_LOW, PALM_HIGH = np.array([-0.104, -0.032, -0.123]), np.array([0.104, 0.032, -0.031])
"""The hand without its fingers, in its own frame."""
FINGER_THICKNESS = 0.018
"""From the pad's face outwards, near the fingertip."""
FINGER_HALF = 0.0105
FINGER_REACH = (-0.045, 0.0092)
"""Along the approach direction: from the hand to the fingertip."""
OPEN_HALF = 0.0385
"""Distance of an open finger's pad from the grip centre."""
CLOSED_HALF = 0.001


def hand_boxes(half_opening: float) -> tuple[Float64[np.ndarray, "K 3"], Float64[np.ndarray, "K 3"]]:
    """Lowest and highest corners of palm and fingers in the hand's frame."""
    inner, outer = half_opening, half_opening + FINGER_THICKNESS
    near, far = FINGER_REACH
    low = [PALM_LOW, np.array([-outer, -FINGER_HALF, near]), np.array([inner, -FINGER_HALF, near])]
    high = [PALM_HIGH, np.array([-inner, FINGER_HALF, far]), np.array([outer, FINGER_HALF, far])]
    return np.array(low), np.array(high)


def is_free(
    scene: SceneView,
    positions: Float64[np.ndarray, "P 3"],
    rotations: Float64[np.ndarray, "P 3 3"],
    half_opening: float = OPEN_HALF,
    without: np.ndarray | None = None,
    margin: float = 0.001,
) -> Bool[np.ndarray, "P"]:
    """Whether the hand touches nothing at each pose; geoms of `without` do not count, the floor does."""
    low, high = hand_boxes(half_opening)
    free = np.ones(len(positions), dtype=bool)
    centre, axes, half = scene.boxes(without)
    for box in range(len(low)):
        middle = positions + rotations @ ((low[box] + high[box]) / 2)
        size = (high[box] - low[box]) / 2
        free &= middle[:, 2] - np.abs(rotations[:, 2]) @ size > scene.floor
        free &= ~boxes_overlap(middle, rotations, size, centre, axes, half + margin).any(1)
    return free


def boxes_overlap(
    centre: Float64[np.ndarray, "P 3"],
    axes: Float64[np.ndarray, "P 3 3"],
    half: Float64[np.ndarray, "3"],
    others: Float64[np.ndarray, "G 3"],
    other_axes: Float64[np.ndarray, "G 3 3"],
    other_half: Float64[np.ndarray, "G 3"],
) -> Bool[np.ndarray, "P G"]:
    """Which oriented boxes overlap, by the fifteen separating axes (Gottschalk, Lin, Manocha 1996, "OBBTree")."""
    turn = np.einsum("pki,gkj->pgij", axes, other_axes)
    size = np.abs(turn) + 1e-9
    shift = np.einsum("pki,pgk->pgi", axes, others[None] - centre[:, None])
    apart = (np.abs(shift) > half + np.einsum("pgij,gj->pgi", size, other_half)).any(-1)
    across = np.abs(np.einsum("pgi,pgij->pgj", shift, turn))
    apart |= (across > np.einsum("i,pgij->pgj", half, size) + other_half).any(-1)
    for i in range(3):
        i1, i2 = (i + 1) % 3, (i + 2) % 3
        for j in range(3):
            j1, j2 = (j + 1) % 3, (j + 2) % 3
            distance = np.abs(shift[..., i2] * turn[..., i1, j] - shift[..., i1] * turn[..., i2, j])
            mine = half[i1] * size[..., i2, j] + half[i2] * size[..., i1, j]
            apart |= distance > mine + other_half[:, j1] * size[..., i, j2] + other_half[:, j2] * size[..., i, j1]
    return ~apart


def lowest_point(rotation: Float64[np.ndarray, "3 3"], half_opening: float) -> float:
    """How far the hand reaches below its grip centre."""
    low, high = hand_boxes(half_opening)
    return float(-(((low + high) / 2 @ rotation.T)[:, 2] - (high - low) / 2 @ np.abs(rotation[2])).min())

"""Motion laws of the expert: memoryless functions of the present pose, in the units of LIBERO's actions."""

from __future__ import annotations

import mujoco
import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.expert.style import PLAIN, Style

GAIN = 12.0
"""Action per metre of error: 1 is reached at 8 cm."""
SPEED = 0.7
"""Largest translation command (norm); 1 moves the arm at about 0.3 m/s."""
DEAD_BAND = 0.02
BEND_ENDS = 0.06
"""A bent way becomes straight between twice this distance and this distance from its end, m."""
ARRIVED = (0.007, 0.006)
"""Horizontal and vertical tolerance of an arrival, m."""
ROTATION_UNIT = 0.5
"""rad of an orientation command of 1."""
ROTATION_TOLERANCE = 0.2
ROTATION_SPEED = 0.4
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The hand's nominal orientation: fingers along world y, pointing down (columns: hand axes)."""


def _quiet(command: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    return np.where(np.abs(command) < DEAD_BAND, 0.0, command)


def funnel(
    position: Float64[np.ndarray, "3"],
    target: Float64[np.ndarray, "3"],
    hover: float,
    radius: float = 0.02,
    style: Style = PLAIN,
) -> tuple[Float64[np.ndarray, "3"], bool]:
    """Approach a target from above: over it at height `hover`, then down a funnel of the given radius, m.

    The height to keep grows with the horizontal distance, and horizontal motion waits until it is reached, so that
    the same law lifts, travels, lowers, and climbs out again after a push. Returns the command and whether it arrived.
    """
    error = target - position
    distance = float(np.linalg.norm(error[:2]))
    share = np.clip((distance - ARRIVED[0]) / radius, 0.0, 1.0)
    required = target[2] + share * max(hover - target[2], 0.0)
    error[2] = required - position[2]
    error[:2] *= np.clip(1.0 - (error[2] - 0.01) / 0.03, 0.0, 1.0)
    if style.bend:
        turn = style.bend * float(np.clip((distance - BEND_ENDS) / BEND_ENDS, 0.0, 1.0))
        error[:2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ error[:2]
    command = GAIN * error
    command *= min(1.0, style.speed * SPEED / max(float(np.linalg.norm(command)), 1e-9))
    arrived = distance < ARRIVED[0] and abs(target[2] - position[2]) < ARRIVED[1]
    return _quiet(command), arrived


def straight(
    position: Float64[np.ndarray, "3"],
    start: Float64[np.ndarray, "3"],
    target: Float64[np.ndarray, "3"],
    style: Style = PLAIN,
) -> tuple[Float64[np.ndarray, "3"], bool]:
    """Along the line from `start` to `target`, back onto it first where the hand is beside it; and whether it arrived."""
    error = target - position
    way = target - start
    length = float(np.linalg.norm(way))
    if length > 1e-6:
        along = way / length
        aside = error - (error @ along) * along
        off = float(np.linalg.norm(aside))
        error = aside + (error @ along) * along * float(np.clip(1.0 - (off - 0.004) / 0.01, 0.0, 1.0))
    command = GAIN * error
    command *= min(1.0, style.speed * SPEED / max(float(np.linalg.norm(command)), 1e-9))
    return _quiet(command), bool(np.linalg.norm(target - position) < ARRIVED[0])


def turn_to(
    rotation: Float64[np.ndarray, "3 3"], wanted: Float64[np.ndarray, "3 3"], tolerance: float
) -> tuple[Float64[np.ndarray, "3"], float]:
    """The command that turns the hand to an orientation, exactly 0 within the tolerance, and the angle that is missing, rad.

    The controller turns by the commanded axis-angle from where the hand is, and keeps that goal while commands are 0:
    commanding the whole error therefore sets the absolute goal, which the zeros that follow hold.
    """
    quaternion, error = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, (wanted @ rotation.T).reshape(9))
    mujoco.mju_quat2Vel(error, quaternion, 1.0)
    size = float(np.linalg.norm(error))
    if size < tolerance:
        return np.zeros(3), size
    return error / size * min(size / ROTATION_UNIT, ROTATION_SPEED), size


def orientation_command(
    rotation: Float64[np.ndarray, "3 3"], yaw: float, lean: Float64[np.ndarray, "3"]
) -> Float64[np.ndarray, "3"]:
    """Turn the hand to point down with a yaw and a lean (axis-angle); exactly 0 within the tolerance."""
    turn, tilt, wanted, quaternion = np.empty(4), np.empty(4), np.empty(9), np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), yaw)
    mujoco.mju_axisAngle2Quat(tilt, np.divide(lean, max(float(np.linalg.norm(lean)), 1e-9)), float(np.linalg.norm(lean)))
    mujoco.mju_mulQuat(quaternion, tilt, turn)
    mujoco.mju_quat2Mat(wanted, quaternion)
    return turn_to(rotation, wanted.reshape(3, 3) @ DOWN, ROTATION_TOLERANCE)[0]

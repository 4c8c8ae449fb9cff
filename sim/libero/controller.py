"""Operational-space control of the Panda as robosuite 1.4 configures it for LIBERO (OSC_POSE), and its gripper.

Formulas: Khatib 1987, "A unified approach for motion and force control of robot manipulators: the operational space
formulation", with position and orientation decoupled and a nullspace task, as in robosuite's `controllers/osc.py`.

Legend: n = 7 arm joints; q (rad), qd (rad/s), positions (m), rotations as 3x3 matrices, torques (N m).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from jaxtyping import Float64

ACTION_DIM = 7
NUM_JOINTS = 7
STIFFNESS = 150.0
DAMPING = 2.0 * np.sqrt(STIFFNESS)
NULLSPACE_STIFFNESS = 10.0
NULLSPACE_DAMPING = 2.0 * np.sqrt(NULLSPACE_STIFFNESS)
GRIPPER_SPEED = 0.01
"""Change of the normalised finger command per substep."""
ACTION_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
"""What an action of 1 asks for in one control step: m, m, m, rad, rad, rad."""


@dataclass
class ControllerState:
    """What the controller remembers between control steps; no shipped initial state holds it."""

    goal_position: Float64[np.ndarray, "3"]
    goal_rotation: Float64[np.ndarray, "3 3"]
    rest_joints: Float64[np.ndarray, "7"]
    """Target of the nullspace task: robosuite's `initial_joint`."""
    fingers: Float64[np.ndarray, "2"]
    """Integrated gripper command in [-1, 1]: robosuite's `current_action`."""

    def copy(self) -> ControllerState:
        return ControllerState(self.goal_position.copy(), self.goal_rotation.copy(), self.rest_joints.copy(), self.fingers.copy())


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, and kept on disk where there is a folder to write to."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:
        return numba.njit(function)


@_jit
def _cholesky(matrix, factor):
    """Lower factor of a symmetric matrix; False where it is not safely positive definite."""
    size = matrix.shape[0]
    largest = 0.0
    for i in range(size):
        largest = max(largest, matrix[i, i])
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                if not total > 1e-12 * largest:
                    return False
                factor[i, i] = np.sqrt(total)
            else:
                factor[i, j] = total / factor[j, j]
    return True


@_jit
def _solve_spd(matrix, right):
    """matrix^+ @ right for a symmetric positive semi-definite matrix: Cholesky, or the pseudo-inverse where it is singular."""
    size = matrix.shape[0]
    factor = np.zeros((size, size))
    if not _cholesky(matrix, factor):
        return np.linalg.pinv(matrix) @ right
    solution = right.copy()
    for i in range(size):
        for k in range(i):
            solution[i] -= factor[i, k] * solution[k]
        solution[i] /= factor[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            solution[i] -= factor[k, i] * solution[k]
        solution[i] /= factor[i, i]
    return solution


@_jit
def arm_torques(
    inertia, jacobian_position, jacobian_rotation, qpos, qvel, bias, qpos_ids, dof_ids, position, rotation,
    goal_position, goal_rotation, rest_joints, low, high, torques,
):  # fmt: skip
    """Write the n joint torques that pull the hand to its goal, clipped to [low, high], into `torques`.

    tau = J^T [L_p F; L_r T] + bias + N^T M (kp (q0 - q) - kd qd), with L_p = (J_p M^-1 J_p^T)^-1, L_r likewise,
    F = kp e_p - kd v, T = kp e_r - kd w, and N^T = 1 - J^T L J M^-1.

    inertia [nv, nv], jacobians [3, nv], qpos [nq], qvel [nv] and bias [nv] are of the whole model; qpos_ids and dof_ids
    [n] select the arm. rotation and goal_rotation are [3, 3].
    """
    n = dof_ids.shape[0]
    mass = np.empty((n, n))
    jacobian = np.empty((6, n))
    velocity = np.zeros(6)
    rest_acceleration = np.empty(n)
    for i in range(n):
        dof = dof_ids[i]
        for j in range(n):
            mass[i, j] = inertia[dof, dof_ids[j]]
        for row in range(3):
            jacobian[row, i] = jacobian_position[row, dof]
            jacobian[3 + row, i] = jacobian_rotation[row, dof]
        for row in range(6):
            velocity[row] += jacobian[row, i] * qvel[dof]
        rest_acceleration[i] = NULLSPACE_STIFFNESS * (rest_joints[i] - qpos[qpos_ids[i]]) - NULLSPACE_DAMPING * qvel[dof]

    wrench = np.zeros(6)
    for column in range(3):
        current, desired = rotation[:, column], goal_rotation[:, column]
        wrench[3] += 0.5 * (current[1] * desired[2] - current[2] * desired[1])
        wrench[4] += 0.5 * (current[2] * desired[0] - current[0] * desired[2])
        wrench[5] += 0.5 * (current[0] * desired[1] - current[1] * desired[0])
    wrench[:3] = goal_position - position
    wrench = STIFFNESS * wrench - DAMPING * velocity

    inverse_mass_jacobian = np.empty((n, 6))
    for row in range(6):
        inverse_mass_jacobian[:, row] = _solve_spd(mass, jacobian[row])
    mobility = jacobian @ inverse_mass_jacobian
    wrench[:3] = _solve_spd(np.ascontiguousarray(mobility[:3, :3]), wrench[:3])
    wrench[3:] = _solve_spd(np.ascontiguousarray(mobility[3:, 3:]), wrench[3:])
    wrench -= _solve_spd(mobility, jacobian @ rest_acceleration)
    total = jacobian.T @ wrench + mass @ rest_acceleration
    for i in range(n):
        torques[i] = min(max(total[i] + bias[dof_ids[i]], low[i]), high[i])


def set_goal(
    state: ControllerState,
    action: Float64[np.ndarray, "6"],
    position: Float64[np.ndarray, "3"],
    rotation: Float64[np.ndarray, "3 3"],
) -> None:
    """Move the goal by an action (clipped to [-1, 1]) from the hand's present pose.

    The goal orientation stays where it was while the three rotation commands are exactly zero.
    """
    from robosuite.utils.transform_utils import axisangle2quat, quat2mat

    delta = np.clip(action, -1.0, 1.0) * ACTION_SCALE
    state.goal_position = position + delta[:3]
    if delta[3:].any():
        # robosuite's own functions, because its quat2mat rounds to single precision on the way
        state.goal_rotation = np.ascontiguousarray(quat2mat(axisangle2quat(delta[3:])) @ rotation)


def move_fingers(state: ControllerState, command: float) -> Float64[np.ndarray, "2"]:
    """One substep of the integrating gripper: command > 0 closes, < 0 opens, 0 holds. Returns the commands in [-1, 1]."""
    step = GRIPPER_SPEED * np.sign(command)
    state.fingers = np.clip(state.fingers + np.array([-step, step]), -1.0, 1.0)
    return state.fingers

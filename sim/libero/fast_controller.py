"""The arm's torques by Cholesky factors: the same mathematics as robosuite's pseudo-inverses at a tenth of the time.

The matrices to invert are symmetric and, away from singular poses of the arm, positive definite; there the two ways agree
to rounding. Contacts amplify the last bit, so that an episode is another one after some tens of control steps.

Legend: n = 7 arm joints; m, rad, s, N m.
"""

from __future__ import annotations

import numpy as np

from vla_rl.sim.libero.compiled import compiled

MIN_PIVOT = 1e-9
"""Smallest squared pivot over the matrix's largest diagonal entry; below, the arm counts as singular."""
NULLSPACE_STIFFNESS = 10.0


@compiled
def _factor(matrix, size):  # type: ignore[no-untyped-def]
    """Cholesky's factor in the lower triangle, in place; whether the matrix is positive definite, and clearly so."""
    largest = 0.0
    for i in range(size):
        largest = max(largest, matrix[i, i])
    for column in range(size):
        pivot = matrix[column, column]
        for k in range(column):
            pivot -= matrix[column, k] * matrix[column, k]
        if not pivot > MIN_PIVOT * largest:
            return False
        root = np.sqrt(pivot)
        matrix[column, column] = root
        for row in range(column + 1, size):
            entry = matrix[row, column]
            for k in range(column):
                entry -= matrix[row, k] * matrix[column, k]
            matrix[row, column] = entry / root
    return True


@compiled
def _solve(factor, size, vector):  # type: ignore[no-untyped-def]
    """Replace a vector by the solution of (factor factor^T) x = vector."""
    for row in range(size):
        entry = vector[row]
        for k in range(row):
            entry -= factor[row, k] * vector[k]
        vector[row] = entry / factor[row, row]
    for row in range(size - 1, -1, -1):
        entry = vector[row]
        for k in range(row + 1, size):
            entry -= factor[k, row] * vector[k]
        vector[row] = entry / factor[row, row]


@compiled
def _wrench(position, rotation, velocity, goal_position, goal_rotation, stiffness, damping):  # type: ignore[no-untyped-def]
    """Force and torque [6] that the errors of position and orientation ask for."""
    wanted = np.zeros(6)
    for c in range(3):
        wanted[c] = (goal_position[c] - position[c]) * stiffness
        wanted[3] += rotation[1, c] * goal_rotation[2, c] - rotation[2, c] * goal_rotation[1, c]
        wanted[4] += rotation[2, c] * goal_rotation[0, c] - rotation[0, c] * goal_rotation[2, c]
        wanted[5] += rotation[0, c] * goal_rotation[1, c] - rotation[1, c] * goal_rotation[0, c]
    wanted[3:] *= 0.5 * stiffness
    return wanted - damping * velocity


@compiled
def write_torques(  # type: ignore[no-untyped-def]
    mass, jacobian, qpos, qvel, position, rotation, velocity, goal_position, goal_rotation, rest_joints,
    stiffness, damping, bias, low, high, command,
):  # fmt: skip
    """Write the clipped torques into `command`; False, with nothing written, where the arm is (nearly) singular.

    With X = M^-1 J^T and L^-1 = J X: tau = J^T [L_p F; L_r T] + p - J^T L X^T p + bias, p = M (10 (q0 - q) - 2 sqrt(10) qd).
    """
    n = len(command)
    factor, spread, inverse = mass.copy(), jacobian.copy(), np.empty((6, 6))
    if not _factor(factor, n):
        return False
    for row in range(6):
        _solve(factor, n, spread[row])
    for row in range(6):
        for column in range(6):
            entry = 0.0
            for k in range(n):
                entry += jacobian[row, k] * spread[column, k]
            inverse[row, column] = entry
    linear, angular = inverse[:3, :3].copy(), inverse[3:, 3:].copy()
    if not (_factor(linear, 3) and _factor(angular, 3) and _factor(inverse, 6)):
        return False
    wrench = _wrench(position, rotation, velocity, goal_position, goal_rotation, stiffness, damping)
    _solve(linear, 3, wrench[:3])
    _solve(angular, 3, wrench[3:])
    pull = NULLSPACE_STIFFNESS * (rest_joints - qpos) - 2 * np.sqrt(NULLSPACE_STIFFNESS) * qvel
    rest, seen = np.zeros(n), np.zeros(6)
    for i in range(n):
        for k in range(n):
            rest[i] += mass[i, k] * pull[k]
    for row in range(6):
        for k in range(n):
            seen[row] += spread[row, k] * rest[k]
    _solve(inverse, 6, seen)
    for i in range(n):
        torque = bias[i] + rest[i]
        for row in range(6):
            torque += jacobian[row, i] * (wrench[row] - seen[row])
        command[i] = min(max(torque, low[i]), high[i])
    return True

"""Motions of the lite arms on a CPU, in place of cuRobo: straight lines of the gripper, followed by damped least squares.

It knows the arm and nothing of the scene: a path may collide, which shows in what the physics makes of it.

Legend: N time steps of 1/250 s, K points of a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation, Slerp

from vla_rl.sim.robotwin.arms import HOME, JOINTS, base_of

TIME_STEP = 1 / 250
_MAX_VELOCITY, _MAX_ACCELERATION = 1.0, 1.5
"""rad/s and rad/s^2 of every joint; `qpos` chunks are executed with at most 1 of each."""
_DAMPING = 0.02
_POSITION_TOLERANCE, _ANGLE_TOLERANCE = 5e-4, 5e-3
_MAX_ITERATIONS = 60
_LOWER = np.array([joint.lower for joint in JOINTS])
_UPPER = np.array([joint.upper for joint in JOINTS])
_SEEDS = (HOME, (0.0, 0.9, 0.3, 0.0, 0.4, 0.0), (0.0, 0.6, 0.9, 0.0, -0.4, 0.0), (0.0, 0.2, 1.2, 0.0, 0.2, 0.0))
_GRIPPER_STEPS = 200


class Reach:
    """Kinematics of one arm: a pose is (position in m, rotation) in the world."""

    def __init__(self, arm: str, base: tuple[Float64[np.ndarray, "3"], Rotation]) -> None:
        self._position, self._rotation = base
        self._offsets = [base_of(arm), *(np.array(joint.offset) for joint in JOINTS[1:])]

    def forward(self, q: Float64[np.ndarray, "6"]) -> tuple[Float64[np.ndarray, "3"], Rotation, Float64[np.ndarray, "6 6"]]:
        """Pose of the last link, and its Jacobian (velocity, then angular velocity)."""
        position, rotation = self._position, self._rotation.as_matrix()
        origins, axes = [], []
        for joint, offset, angle in zip(JOINTS, self._offsets, q, strict=True):
            position = position + rotation @ offset
            axis = np.array(joint.axis)
            origins.append(position)
            axes.append(rotation @ axis)
            rotation = rotation @ _turn(axis, angle)
        axes_, arms = np.array(axes), position - np.array(origins)
        jacobian = np.vstack([np.cross(axes_, arms).T, axes_.T])
        return position, Rotation.from_matrix(rotation), jacobian

    def solve(
        self, position: Float64[np.ndarray, "3"], rotation: Rotation, seed: Float64[np.ndarray, "6"]
    ) -> Float64[np.ndarray, "6"] | None:
        """Joint angles near `seed` that reach a pose, by damped least squares; None where it does not converge."""
        q = seed.copy()
        for _ in range(_MAX_ITERATIONS):
            here, turned, jacobian = self.forward(q)
            error = np.concatenate([position - here, (rotation * turned.inv()).as_rotvec()])
            if np.linalg.norm(error[:3]) < _POSITION_TOLERANCE and np.linalg.norm(error[3:]) < _ANGLE_TOLERANCE:
                return q
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6), error)
            q = np.clip(q + np.clip(step, -0.3, 0.3), _LOWER, _UPPER)
        return None


def _turn(axis: Float64[np.ndarray, "3"], angle: float) -> Float64[np.ndarray, "3 3"]:
    """Rotation by `angle` about a coordinate axis."""
    i = int(np.argmax(axis))
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = np.cos(angle)
    matrix[j, k], matrix[k, j] = -np.sin(angle), np.sin(angle)
    return matrix


class LitePlanner:
    """The part of RoboTwin's planner interface that its tasks call."""

    def __init__(self, arm: str, base_pose: Any, all_joints: Sequence[str], joints: Sequence[str]) -> None:
        self._reach = Reach(arm, _pose(base_pose))
        self._columns = [list(all_joints).index(name) for name in joints]

    def plan_path(self, qpos: Any, target: Any, constraint_pose: Any = None, arms_tag: Any = None) -> dict[str, Any]:
        """From the joints `qpos` to the pose `target` of the last link: `status`, `position` and `velocity` [N, 6]."""
        start = np.asarray(qpos, float)[self._columns]
        path = self._straight(start, *_pose(target))
        if path is None:
            goal = self._find(*_pose(target), start)
            path = None if goal is None else np.linspace(start, goal, 8)
        return {"status": "Fail"} if path is None else _timed(path)

    def plan_batch(self, qpos: Any, targets: Sequence[Any], constraint_pose: Any = None, arms_tag: Any = None) -> dict[str, Any]:
        """Whether each pose can be reached. RoboTwin rotates a grasp about its contact, by angles that are all 0 here."""
        start = np.asarray(qpos, float)[self._columns]
        found: dict[bytes, Float64[np.ndarray, "6"] | None] = {}
        goals = []
        for target in targets:
            position, rotation = _pose(target)
            key = np.concatenate([position, rotation.as_quat()]).round(6).tobytes()
            if key not in found:
                found[key] = self._find(position, rotation, start)
            goals.append(found[key])
        return {
            "status": np.array(["Failure" if goal is None else "Success" for goal in goals], object),
            "position": [np.zeros((0, 6)) if goal is None else np.stack([start, goal]) for goal in goals],
        }

    def plan_grippers(self, now_val: float, target_val: float) -> dict[str, Any]:
        """A gripper's opening over time, from 0 (closed) to 1."""
        values = np.linspace(now_val, target_val, _GRIPPER_STEPS)
        return {"num_step": _GRIPPER_STEPS, "per_step": (target_val - now_val) / _GRIPPER_STEPS, "result": values}

    def _find(self, position: Any, rotation: Rotation, start: Float64[np.ndarray, "6"]) -> Float64[np.ndarray, "6"] | None:
        for seed in (start, *(np.array(seed) for seed in _SEEDS)):
            if (goal := self._reach.solve(position, rotation, seed)) is not None:
                return goal
        return None

    def _straight(self, start: Float64[np.ndarray, "6"], position: Any, rotation: Rotation) -> Float64[np.ndarray, "K 6"] | None:
        """Follow the straight line; None where it leads out of reach or through a singular pose."""
        begin, turned, _ = self._reach.forward(start)
        way, angle = np.linalg.norm(position - begin), (rotation * turned.inv()).magnitude()
        shares = np.linspace(0, 1, 2 + int(max(way / 0.03, angle / 0.15)))
        rotations = Slerp([0, 1], Rotation.concatenate([turned, rotation]))(shares)
        path = [start]
        for share, wanted in zip(shares[1:], rotations[1:], strict=True):
            q = self._reach.solve(begin + share * (position - begin), wanted, path[-1])
            if q is None or np.abs(q - path[-1]).max() > 0.6:
                return None
            path.append(q)
        return np.array(path)


def _timed(path: Float64[np.ndarray, "K 6"]) -> dict[str, Any]:
    """The fastest motion along a path within the limits."""
    if np.abs(path - path[0]).max() < 1e-4:
        return {"status": "Success", "position": path[-1:], "velocity": np.zeros((1, 6))}
    import toppra  # in RoboTwin's interpreter alone

    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1) + 1e-6)])
    spline = toppra.SplineInterpolator(lengths / lengths[-1], path)
    limits = [
        toppra.constraint.JointVelocityConstraint(np.tile([-_MAX_VELOCITY, _MAX_VELOCITY], (6, 1))),
        toppra.constraint.JointAccelerationConstraint(np.tile([-_MAX_ACCELERATION, _MAX_ACCELERATION], (6, 1))),
    ]
    motion = toppra.algorithm.TOPPRA(limits, spline, parametrizer="ParametrizeConstAccel").compute_trajectory()
    if motion is None:
        return {"status": "Fail"}
    times = np.linspace(0, motion.duration, max(2, int(motion.duration / TIME_STEP)))
    return {"status": "Success", "position": motion(times), "velocity": motion(times, 1)}


def _pose(pose: Any) -> tuple[Float64[np.ndarray, "3"], Rotation]:
    w, x, y, z = np.asarray(pose.q, float)
    return np.asarray(pose.p, float), Rotation.from_quat([x, y, z, w])

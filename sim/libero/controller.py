"""Operational-space control of the Panda as robosuite 1.4 configures it for LIBERO (OSC_POSE), and its gripper.

Torques come out bit for bit as robosuite's, because contacts blow up any difference: within 60 random actions 1e-17 grows
to 1e-9. So its compiled functions are used where it uses them, and NumPy's products, in the same memory order, where
it uses those (rounding depends on both); what is saved is its two extra passes of dynamics and the search by name.

Formulas: Khatib 1987, "A unified approach for motion and force control of robot manipulators: the operational space
formulation", with position and orientation decoupled and a nullspace task, as in robosuite's `controllers/osc.py`.

Legend: n = 7 arm joints, nv degrees of freedom of the model; m, rad, s, N m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.compiled import compiled
from vla_rl.sim.libero.engine import control_utils, mujoco, transform_utils
from vla_rl.sim.libero.fast_controller import write_torques

ACTION_DIM = 7
STIFFNESS = 150.0
DAMPING = 2.0 * np.sqrt(STIFFNESS)
FINGER_STEP = 0.01
"""Change of the normalised finger commands per substep."""
ACTION_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
"""What an action of 1 asks for in one control step: m, m, m, rad, rad, rad."""
_DATA_FIRST = tuple(int(part) for part in mujoco.__version__.split(".")[:2]) >= (3, 4)


@dataclass
class ControllerState:
    """What the controller remembers between control steps; no shipped initial state holds it."""

    goal_position: Float64[np.ndarray, "3"]
    goal_rotation: Float64[np.ndarray, "3 3"]
    rest_joints: Float64[np.ndarray, "n"]
    """Target of the nullspace task: robosuite's `initial_joint`."""
    fingers: Float64[np.ndarray, "2"]
    """Integrated gripper command in [-1, 1]: robosuite's `current_action`."""

    def copy(self) -> ControllerState:
        return ControllerState(self.goal_position.copy(), self.goal_rotation.copy(), self.rest_joints.copy(), self.fingers.copy())

    def set_goal(self, action: Float64[np.ndarray, "6"], arm: ArmReading) -> None:
        """Move the goal by an action, clipped to [-1, 1], from the hand's pose.

        The goal orientation stays where it was while the three rotation commands are exactly zero.
        """
        delta = np.clip(action, -1.0, 1.0) * ACTION_SCALE
        self.goal_position = arm.position + delta[:3]
        if delta[3:].any():
            turn = transform_utils.quat2mat(transform_utils.axisangle2quat(delta[3:]))
            self.goal_rotation = np.ascontiguousarray(np.dot(turn, arm.rotation))


@dataclass(frozen=True)
class RobotIndices:
    """Where the arm and the gripper are in the model's arrays."""

    qpos: slice
    dof: slice
    actuators: slice
    finger_qpos: slice
    finger_actuators: slice
    grip_site: int
    hand_body: int


@dataclass(frozen=True)
class ArmReading:
    """What the controller knows of the arm at one instant; position, rotation and velocity are those of the grip site.

    Matrices are column-major, as robosuite's indexing leaves them.
    """

    mass: Float64[np.ndarray, "n n"]
    jacobian: Float64[np.ndarray, "6 n"]
    qpos: Float64[np.ndarray, "n"]
    qvel: Float64[np.ndarray, "n"]
    position: Float64[np.ndarray, "3"]
    rotation: Float64[np.ndarray, "3 3"]
    velocity: Float64[np.ndarray, "6"]


class ArmController:
    """Reads the arm from a model's data and writes the actuators' commands there.

    "exact" computes them as robosuite does, bit for bit; "fast" equally up to rounding (`fast_controller`).
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: RobotIndices, kind: str = "exact") -> None:
        self._model, self._data, self._robot, self._is_fast = model, data, robot, kind == "fast"
        low, high = model.actuator_ctrlrange.T.copy()
        self._low, self._high = low[robot.actuators], high[robot.actuators]
        self._finger_centre = 0.5 * (high + low)[robot.finger_actuators]
        self._finger_reach = 0.5 * (high - low)[robot.finger_actuators]
        self._bias = data.qfrc_bias[robot.dof]
        self._arm_command, self._finger_command = data.ctrl[robot.actuators], data.ctrl[robot.finger_actuators]
        self._inertia = np.zeros((model.nv, model.nv))
        self._jacobians = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._qvel = data.qvel
        self._wrench = np.zeros(6)
        n = len(self._low)
        self.live = ArmReading(
            mass=np.zeros((n, n), order="F"),
            jacobian=np.zeros((6, n), order="F"),
            qpos=data.qpos[robot.qpos],
            qvel=data.qvel[robot.dof],
            position=data.site_xpos[robot.grip_site],
            rotation=data.site_xmat[robot.grip_site].reshape(3, 3),
            velocity=np.zeros(6),
        )
        """The present reading, after `look`."""

    def look(self) -> None:
        """Bring `live` up to date with the data, whose positions and velocities have been computed (`mj_step1`)."""
        arm, dof, (linear, angular) = self.live, self._robot.dof, self._jacobians
        mujoco.mj_jacSite(self._model, self._data, linear, angular, self._robot.grip_site)
        if _DATA_FIRST:
            mujoco.mj_fullM(self._model, self._data, self._inertia)
        else:
            mujoco.mj_fullM(self._model, self._inertia, self._data.qM)
        _gather(self._inertia, linear, angular, dof.start, arm.mass, arm.jacobian)
        arm.velocity[:3], arm.velocity[3:] = np.dot(linear, self._qvel), np.dot(angular, self._qvel)

    def command(self, state: ControllerState, gripper: float, arm: ArmReading) -> None:
        """One substep: torques that pull the hand to its goal, and fingers that close (gripper > 0), open (< 0) or hold.

        tau = J^T [L_p F; L_r T] + bias + N^T M (10 (q0 - q) - 2 sqrt(10) qd), clipped to the motors' limits, with
        L_p = (J_p M^-1 J_p^T)^-1, L_r likewise, F = kp e_p - kd v, T = kp e_r - kd w and N = 1 - M^-1 J^T L J.
        """
        step = FINGER_STEP * np.sign(gripper)
        _write_fingers(state.fingers, step, self._finger_centre, self._finger_reach, self._finger_command)
        if self._is_fast and write_torques(
            arm.mass, arm.jacobian, arm.qpos, arm.qvel, arm.position, arm.rotation, arm.velocity,
            state.goal_position, state.goal_rotation, state.rest_joints,
            STIFFNESS, DAMPING, self._bias, self._low, self._high, self._arm_command,
        ):  # fmt: skip
            return
        force, torque, force_map, torque_map, rest_torques = _task_space(
            arm.mass, arm.jacobian, arm.qpos, arm.qvel, arm.position, arm.rotation, arm.velocity,
            state.goal_position, state.goal_rotation, state.rest_joints,
        )  # fmt: skip
        self._wrench[:3], self._wrench[3:] = np.dot(force_map, force), np.dot(torque_map, torque)
        torques = np.dot(arm.jacobian.T, self._wrench)
        _write_arm(torques, self._bias, rest_torques, self._low, self._high, self._arm_command)


@compiled
def _gather(inertia, linear, angular, start, mass, jacobian):  # type: ignore[no-untyped-def]
    """The arm's part of the model's inertia [nv, nv] and of the Jacobians [3, nv]."""
    for i in range(len(mass)):
        for j in range(len(mass)):
            mass[i, j] = inertia[start + i, start + j]
        for row in range(3):
            jacobian[row, i], jacobian[3 + row, i] = linear[row, start + i], angular[row, start + i]


@compiled
def _task_space(mass, jacobian, qpos, qvel, position, rotation, velocity, goal_position, goal_rotation, rest_joints):  # type: ignore[no-untyped-def]
    """Force [3] and torque [3] that the errors ask for, the maps [3, 3] that make a wrench of them, nullspace torques [n]."""
    force = (goal_position - position) * STIFFNESS + (-velocity[:3]) * DAMPING
    torque = control_utils.orientation_error(goal_rotation, rotation) * STIFFNESS + (-velocity[3:]) * DAMPING
    rows = np.ascontiguousarray(jacobian)
    _, force_map, torque_map, nullspace = control_utils.opspace_matrices(mass, rows, rows[:3].copy(), rows[3:].copy())
    rest_torques = control_utils.nullspace_torques(mass, nullspace, rest_joints, qpos, qvel)
    return force, torque, force_map, torque_map, rest_torques


@compiled
def _write_arm(torques, bias, rest_torques, low, high, command):  # type: ignore[no-untyped-def]
    for i in range(len(torques)):
        command[i] = min(max(torques[i] + bias[i] + rest_torques[i], low[i]), high[i])


@compiled
def _write_fingers(fingers, step, centre, reach, command):  # type: ignore[no-untyped-def]
    fingers[0] = min(max(fingers[0] - step, -1.0), 1.0)
    fingers[1] = min(max(fingers[1] + step, -1.0), 1.0)
    for i in range(2):
        command[i] = centre[i] + reach[i] * fingers[i]

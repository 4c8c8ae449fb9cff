"""The controller's goals and its gripper, with numbers worked out by hand."""

import numpy as np
import pytest

from vla_rl.sim.libero.controller import DAMPING, STIFFNESS, ArmReading, ControllerState, _task_space, _write_arm, _write_fingers
from vla_rl.sim.libero.fast_controller import write_torques


def make_state() -> ControllerState:
    return ControllerState(np.zeros(3), np.eye(3), np.zeros(7), np.zeros(2))


def make_arm(position: list[float], rotation: np.ndarray) -> ArmReading:
    return ArmReading(
        np.eye(7, order="F"), np.zeros((6, 7), order="F"), np.zeros(7), np.zeros(7), np.array(position), rotation, np.zeros(6)
    )


def test_an_action_moves_the_goal_from_where_the_hand_is() -> None:
    """1 is 5 cm, and 3 is clipped to 1: (0.1, 0.2, 0.3) + (0.05, -0.025, 0.05)."""
    state = make_state()
    state.set_goal(np.array([1.0, -0.5, 3.0, 0.0, 0.0, 0.0]), make_arm([0.1, 0.2, 0.3], np.eye(3)))
    assert state.goal_position == pytest.approx([0.15, 0.175, 0.35], abs=1e-15)


def test_goal_orientation_stays_while_the_rotation_command_is_exactly_zero() -> None:
    turned = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    state = make_state()
    state.set_goal(np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]), make_arm([0.0, 0.0, 0.0], turned))
    assert np.array_equal(state.goal_rotation, np.eye(3))
    state.set_goal(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1e-9]), make_arm([0.0, 0.0, 0.0], turned))
    assert state.goal_rotation == pytest.approx(turned, abs=1e-8)


def test_a_full_rotation_command_is_half_a_radian_about_a_world_axis() -> None:
    """Rz(0.5) = [[cos .5, -sin .5], [sin .5, cos .5]] = [[.877583, -.479426], [.479426, .877583]]."""
    state = make_state()
    state.set_goal(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), make_arm([0.0, 0.0, 0.0], np.eye(3)))
    assert state.goal_rotation[:2, :2] == pytest.approx(np.array([[0.877583, -0.479426], [0.479426, 0.877583]]), abs=1e-6)


def test_task_space_of_an_arm_with_unit_mass() -> None:
    """Jacobian (1_6 | 0), mass 1: both maps are the identity, and only joint 7 is left to the nullspace.

    F = 150 * 0.01 - 24.4949 * 0.2 = -3.398980 along x. Turned by the angle a about z, the orientation error is
    0.5 * sum of cross products = sin a about z, here for a = 0.1: T = 150 * 0.0998334 = 14.975013.
    Nullspace: 10 * (0.3 - 0) - 2 sqrt(10) * 0.1 = 2.367544 at joint 7, nothing elsewhere.
    """
    jacobian = np.asfortranarray(np.hstack([np.eye(6), np.zeros((6, 1))]))
    cos, sin = np.cos(0.1), np.sin(0.1)
    goal = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    velocity = np.array([0.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    qvel = np.append(velocity, 0.1)
    force, torque, force_map, torque_map, rest = _task_space(
        np.eye(7, order="F"), jacobian, np.zeros(7), qvel, np.zeros(3), np.eye(3), velocity,
        np.array([0.01, 0.0, 0.0]), goal, np.full(7, 0.3),
    )  # fmt: skip
    assert force == pytest.approx([-3.398980, 0.0, 0.0], abs=1e-6)
    assert torque == pytest.approx([0.0, 0.0, 14.975013], abs=1e-6)
    assert force_map == pytest.approx(np.eye(3)) and torque_map == pytest.approx(np.eye(3))
    assert rest == pytest.approx([0.0] * 6 + [2.367544], abs=1e-6)


def test_torques_are_clipped_after_the_bias() -> None:
    """70 + 20 - 5 = 85 > 80; -70 - 20 + 5 = -85 < -80; 1 + 2 + 3 = 6."""
    command = np.zeros(3)
    low, high = np.full(3, -80.0), np.full(3, 80.0)
    _write_arm(np.array([70.0, -70.0, 1.0]), np.array([20.0, -20.0, 2.0]), np.array([-5.0, 5.0, 3.0]), low, high, command)
    assert command.tolist() == [80.0, -80.0, 6.0]


def test_the_gripper_integrates_and_saturates() -> None:
    """Opening moves the fingers' commands by (-(-0.01), -0.01) a substep; the motors' ranges are [0, 0.04] and [-0.04, 0]."""
    fingers, command = np.zeros(2), np.zeros(2)
    centre, reach = np.array([0.02, -0.02]), np.array([0.02, 0.02])
    for _ in range(30):
        _write_fingers(fingers, -0.01, centre, reach, command)
    assert fingers == pytest.approx([0.3, -0.3])
    assert command == pytest.approx([0.026, -0.026])
    for _ in range(200):
        _write_fingers(fingers, 0.01, centre, reach, command)
    assert fingers.tolist() == [-1.0, 1.0] and command == pytest.approx([0.0, 0.0])


def test_the_fast_controller_computes_the_same_torques() -> None:
    """Random arms, against robosuite's pseudo-inverses; where an arm is singular it leaves the work to them."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        half, jacobian = rng.normal(size=(7, 7)), np.asfortranarray(rng.normal(size=(6, 7)))
        mass = np.asfortranarray(half @ half.T + np.eye(7))
        qpos, qvel, rest, bias = rng.normal(size=(4, 7))
        position, goal_position = rng.normal(size=(2, 3))
        rotation, goal_rotation = (np.linalg.qr(rng.normal(size=(3, 3)))[0].copy() for _ in range(2))
        velocity, low, high, found = rng.normal(size=6), np.full(7, -1e4), np.full(7, 1e4), np.zeros(7)
        reading = (mass, jacobian, qpos, qvel, position, rotation, velocity, goal_position, goal_rotation, rest)
        force, torque, force_map, torque_map, pull = _task_space(*reading)
        expected = jacobian.T @ np.concatenate([force_map @ force, torque_map @ torque]) + bias + pull
        assert write_torques(*reading, STIFFNESS, DAMPING, bias, low, high, found)
        assert found == pytest.approx(np.clip(expected, low, high), rel=1e-8, abs=1e-8)
        jacobian[5] = jacobian[4]
        found[:] = 7.0
        assert not write_torques(*reading, STIFFNESS, DAMPING, bias, low, high, found)
        assert (found == 7.0).all()

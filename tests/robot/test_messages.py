"""What is taken from messages, and what is wrong with some."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from recorded_bag import messages, rosbags_kinds
from recorder import record

from vla_rl.driving.settings import DriveLimits, RobotSettings
from vla_rl.robot.messages import (
    read_goal_message,
    read_joy_message,
    read_odometry_message,
    read_path_message,
    read_scan_message,
    read_twist_message,
    yaw_of,
)  # fmt: skip

ROBOT = RobotSettings()


@pytest.fixture
def sent() -> dict[str, object]:
    """One message of each topic."""
    return {topic: message for _, topic, message in messages(record("tracking_slow", 2, 1), ROBOT, rosbags_kinds())}


def test_yaw() -> None:
    # A turn by 2.5 rad about z; and one by 0.3 rad after a roll of 0.2 rad, q = q_z(0.3) q_x(0.2), whose yaw is still 0.3.
    assert yaw_of(SimpleNamespace(x=0, y=0, z=math.sin(1.25), w=math.cos(1.25))) == pytest.approx(2.5)
    a, b, c, d = math.cos(0.15), math.sin(0.15), math.cos(0.1), math.sin(0.1)
    assert yaw_of(SimpleNamespace(w=a * c, x=a * d, y=b * d, z=b * c)) == pytest.approx(0.3)


def test_good_messages(sent: dict) -> None:
    ranges, problem = read_scan_message(sent["/scan"], ROBOT, "laser")
    assert problem is None and ranges.shape == (60,)
    assert read_odometry_message(sent["/odom"], "map", "base_link")[2] is None
    assert read_path_message(sent["/path"], "map").shape[1] == 2
    assert read_twist_message(sent["/cmd_vel"]) == read_twist_message(sent["/cmd_vel"].twist)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda scan: setattr(scan, "angle_min", 0.0), "the scan's angle_min is 0.0000, not -3.1416"),
        (lambda scan: setattr(scan, "angle_increment", -0.1047), "the scan's angle_increment is -0.1047, not 0.1047"),
        (lambda scan: setattr(scan, "range_max", math.nan), "the scan's range_max is nan, not 6.0000"),
        (lambda scan: setattr(scan, "ranges", scan.ranges[:50]), "the scan has 50 beams, not 60"),
        (lambda scan: setattr(scan.header, "frame_id", "camera"), "the scan is in the frame 'camera', not 'laser'"),
    ],
)
def test_wrong_scans(sent: dict, change: object, problem: str) -> None:
    change(sent["/scan"])  # type: ignore[operator]
    assert read_scan_message(sent["/scan"], ROBOT, "laser")[1] == problem


def test_wrong_odometry_and_paths(sent: dict) -> None:
    odometry = sent["/odom"]
    assert read_odometry_message(odometry, "odom")[2] == "the odometry is in the frame 'map', not 'odom'"
    assert read_odometry_message(odometry, "map", "base")[2] == "the odometry is of 'base_link', not 'base'"
    orientation = odometry.pose.pose.orientation
    orientation.w = orientation.z = 0.0  # a message that nobody filled in
    assert read_odometry_message(odometry)[2] == "the odometry's orientation is no unit quaternion (its length is 0.000)"
    with pytest.raises(ValueError, match="the path is in the frame 'map', not 'odom'"):
        read_path_message(sent["/path"], "odom")
    sent["/path"].poses = []
    assert read_path_message(sent["/path"]).shape == (0, 2)


def test_a_goal_is_a_straight_path(sent: dict) -> None:
    goal = sent["/path"].poses[-1]
    points = read_goal_message(goal, (1.0, 2.0, 0.5), "map")
    assert np.array_equal(points, [(1, 2), (goal.pose.position.x, goal.pose.position.y)])
    with pytest.raises(ValueError, match="the goal is in the frame 'map', not 'odom'"):
        read_goal_message(goal, (0.0, 0.0, 0.0), "odom")


def test_a_joystick() -> None:
    limits = DriveLimits(speed=0.4, reverse=0.1, turn=1.0)
    joy = SimpleNamespace(buttons=[0, 0, 0, 0, 1], axes=[0.5, 1.0])
    assert read_joy_message(joy, limits, 4, 1, 0) == (True, (0.4, 0.5))
    joy.axes, joy.buttons[4] = [-1.0, -0.5], 0
    assert read_joy_message(joy, limits, 4, 1, 0) == (False, (-0.05, -1.0))
    joy.buttons = [1]
    holds, command = read_joy_message(joy, limits, 4, 1, 0)
    assert not holds and all(math.isnan(value) for value in command), "another joystick: a lost operator"

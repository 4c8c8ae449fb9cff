"""What ROS messages say to the core. No ROS: messages are taken as they come from rclpy or from a bag, by their attributes.

Legend: K beams, M points of a path.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from vla_rl.driving.settings import DriveLimits, RobotSettings

ANGLE_TOLERANCE, RANGE_TOLERANCE = 2e-3, 1e-2
"""Within which a scanner's own description agrees with the layout, rad and m; drivers round."""

Pose = tuple[float, float, float]
Velocity = tuple[float, float]


def stamp_of(message: Any) -> float:
    """When the content of a message was true, s on the sender's clock."""
    return float(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)


def frame_problem(message: Any, frame: str, what: str) -> str | None:
    """Why the frame of a message is wrong, or None; any frame will do where `frame` is empty."""
    found = message.header.frame_id
    return None if frame in ("", found) else f"the {what} is in the frame {found!r}, not {frame!r}"


def read_scan_message(message: Any, settings: RobotSettings, frame: str = "") -> tuple[Float32[np.ndarray, "K"], str | None]:
    """Ranges (m) of a LaserScan, and what is wrong with its frame or its layout."""
    ranges = np.asarray(message.ranges, np.float32)
    if problem := frame_problem(message, frame, "scan"):
        return ranges, problem
    layout = settings.scanner
    if len(ranges) != layout.beams:
        return ranges, f"the scan has {len(ranges)} beams, not {layout.beams}"
    for name, tolerance in {
        "angle_min": ANGLE_TOLERANCE, "angle_increment": ANGLE_TOLERANCE / layout.beams,
        "range_min": RANGE_TOLERANCE, "range_max": RANGE_TOLERANCE,
    }.items():  # fmt: skip
        found, wanted = float(getattr(message, name)), getattr(layout, name)
        if not abs(found - wanted) <= tolerance:
            return ranges, f"the scan's {name} is {found:.4f}, not {wanted:.4f}"
    return ranges, None


def read_odometry_message(message: Any, frame: str = "", base_frame: str = "") -> tuple[Pose, Velocity, str | None]:
    """(x, y, yaw), (forward, turn) of an Odometry, and what is wrong with its frames or its orientation."""
    position, q, twist = message.pose.pose.position, message.pose.pose.orientation, message.twist.twist
    problem = frame_problem(message, frame, "odometry")
    if problem is None and base_frame not in ("", message.child_frame_id):
        problem = f"the odometry is of {message.child_frame_id!r}, not {base_frame!r}"
    length = math.sqrt(q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w)
    if problem is None and not abs(length - 1) < 1e-2:
        problem = f"the odometry's orientation is no unit quaternion (its length is {length:.3f})"
    return (position.x, position.y, yaw_of(q)), (twist.linear.x, twist.angular.z), problem


def yaw_of(q: Any) -> float:
    """Of a unit quaternion, rad."""
    return math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z))


def read_path_message(message: Any, frame: str = "") -> Float64[np.ndarray, "M 2"]:
    """Points (m) of a Path. Raises `ValueError` for one in another frame."""
    if problem := frame_problem(message, frame, "path"):
        raise ValueError(problem)
    return np.array([(place.pose.position.x, place.pose.position.y) for place in message.poses], np.float64).reshape(-1, 2)


def read_goal_message(message: Any, pose: Pose, frame: str = "") -> Float64[np.ndarray, "2 2"]:
    """The straight path (m) from `pose` to the goal of a PoseStamped. Raises `ValueError` for one in another frame."""
    if problem := frame_problem(message, frame, "goal"):
        raise ValueError(problem)
    return np.array([pose[:2], (message.pose.position.x, message.pose.position.y)])


def read_twist_message(message: Any) -> Velocity:
    """(forward m/s, left turn rad/s) of a Twist or TwistStamped."""
    twist = message.twist if hasattr(message, "twist") else message
    return twist.linear.x, twist.angular.z


def read_joy_message(message: Any, limits: DriveLimits, switch: int, forward_axis: int, turn_axis: int) -> tuple[bool, Velocity]:
    """Whether the dead-man switch is held, and (forward m/s, left turn rad/s): a stick at its end is the largest speed.

    A joystick without that button or those axes says nothing finite, which counts as a lost operator.
    """
    if max(switch, 0) >= len(message.buttons) or max(forward_axis, turn_axis) >= len(message.axes):
        return False, (math.nan, math.nan)
    forward, turn = message.axes[forward_axis], message.axes[turn_axis]
    return bool(message.buttons[switch]), (forward * (limits.speed if forward > 0 else limits.reverse), turn * limits.turn)

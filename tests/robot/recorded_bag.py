"""A recording of one simulated robot (tests/sim/wheeled/recorder.py) as ROS messages in their order, and as a bag."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from recorder import Recording
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vla_rl.driving.settings import RobotSettings

BEGIN = 1_700_000_000
"""Time of the first message, s."""
TYPES = {
    "/path": "nav_msgs/msg/Path", "/odom": "nav_msgs/msg/Odometry", "/scan": "sensor_msgs/msg/LaserScan",
    "/cmd_vel": "geometry_msgs/msg/TwistStamped",
}  # fmt: skip
STORE = get_typestore(Stores.ROS2_KILTED)
Kinds = Any
"""Something with the message classes by their bare names; those of rosbags and of rclpy take the same keywords."""


def rosbags_kinds() -> Kinds:
    return SimpleNamespace(**{name.split("/")[-1]: kind for name, kind in STORE.types.items()})


def messages(tape: Recording, robot: RobotSettings, kinds: Kinds) -> Iterator[tuple[int, str, Any]]:
    """(time in ns, topic, message): path, scan and odometry, then at each tick a command and the odometry that follows it."""
    period = round(1e9 * robot.control_period)
    poses = [kinds.PoseStamped(header=_header(kinds, 0, "map"), pose=_pose(kinds, x, y, 0.0)) for x, y in tape.path]
    yield _time(0), "/path", kinds.Path(header=_header(kinds, 0, "map"), poses=poses)
    yield _time(0), "/odom", _odometry(kinds, 0, tape.first[0], np.zeros(2))
    yield _time(0), "/scan", _scan(kinds, 0, tape.first[1], robot)
    for tick, (command, (pose, velocity)) in enumerate(zip(tape.commands, tape.odometry, strict=True)):
        at = tick * period + period // 2
        twist = _twist(kinds, command)
        yield _time(at), "/cmd_vel", kinds.TwistStamped(header=_header(kinds, at, "base_link"), twist=twist)
        at = (tick + 1) * period
        yield _time(at), "/odom", _odometry(kinds, at, pose, velocity)
        if (tick + 1) % robot.decision_ticks == 0:
            yield _time(at), "/scan", _scan(kinds, at, tape.scans[tick // robot.decision_ticks], robot)


def write_bag(folder: Path, tape: Recording, robot: RobotSettings, storage: StoragePlugin = StoragePlugin.SQLITE3) -> Path:
    with Writer(folder, version=9, storage_plugin=storage) as writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in TYPES.items()}
        for at, topic, message in messages(tape, robot, rosbags_kinds()):
            writer.write(connections[topic], at, STORE.serialize_cdr(message, TYPES[topic]))
    return folder


def _time(at: int) -> int:
    return BEGIN * 10**9 + at


def _header(kinds: Kinds, at: int, frame: str) -> Any:
    return kinds.Header(stamp=kinds.Time(sec=BEGIN + at // 10**9, nanosec=at % 10**9), frame_id=frame)


def _pose(kinds: Kinds, x: float, y: float, yaw: float) -> Any:
    orientation = kinds.Quaternion(x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2))
    return kinds.Pose(position=kinds.Point(x=float(x), y=float(y), z=0.0), orientation=orientation)


def _twist(kinds: Kinds, command: np.ndarray) -> Any:
    linear, angular = kinds.Vector3(x=float(command[0]), y=0.0, z=0.0), kinds.Vector3(x=0.0, y=0.0, z=float(command[1]))
    return kinds.Twist(linear=linear, angular=angular)


def _odometry(kinds: Kinds, at: int, pose: np.ndarray, velocity: np.ndarray) -> Any:
    nothing = np.zeros(36)
    return kinds.Odometry(
        header=_header(kinds, at, "map"), child_frame_id="base_link",
        pose=kinds.PoseWithCovariance(pose=_pose(kinds, *pose), covariance=nothing),
        twist=kinds.TwistWithCovariance(twist=_twist(kinds, velocity), covariance=nothing),
    )  # fmt: skip


def _scan(kinds: Kinds, at: int, ranges: np.ndarray, robot: RobotSettings) -> Any:
    layout = robot.scanner
    return kinds.LaserScan(
        header=_header(kinds, at, "laser"), angle_min=layout.angle_min,
        angle_max=layout.angle_min + layout.angle_increment * (layout.beams - 1), angle_increment=layout.angle_increment,
        time_increment=0.0, scan_time=0.1, range_min=layout.range_min, range_max=layout.range_max,
        ranges=np.asarray(ranges, np.float32), intensities=np.zeros(0, np.float32),
    )  # fmt: skip

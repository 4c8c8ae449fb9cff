"""The wheeled simulator behind the topics of a robot: base, odometry, scanner and the path of an episode.

In: cmd_vel (TwistStamped, Twist). Out: scan (LaserScan), odom (Odometry), path (Path, latched). The service ~/restart (Trigger)
puts the robot back to its start and sends the path again. Like any real base it brakes by itself when commands stop coming. The
parameters under "fault" in `FAKE_BASE` may be set while it runs, to see what a policy's node does about them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import LaserScan
from std_srvs.srv import Trigger

from vla_rl.config import ConfigError
from vla_rl.driving.manifest import ExportError, read_manifest
from vla_rl.driving.path import Paths
from vla_rl.robot.loop import ControlLoop
from vla_rl.robot.messages import read_twist_message
from vla_rl.robot.nodes.parameters import FAKE_BASE
from vla_rl.robot.nodes.process_node import LATCHED, RELIABLE, declare, open_log, run_process, schedule_realtime
from vla_rl.sim.base import SimError
from vla_rl.sim.wheeled.plant import Plants
from vla_rl.sim.wheeled.scenario import draw
from vla_rl.sim.wheeled.settings import WheeledSettings, task_settings

_ROW = np.zeros(1, np.int64)
FAULTS = ("mute_scan", "mute_odometry", "blind_scan", "beams", "stamp_offset", "delay")


def _settings(values: dict[str, Any]) -> WheeledSettings:
    """Of the task that the parameters name. Raises `SimError`, `ConfigError` or `ExportError` in one line where there is none."""
    if values["export"]:
        sim = read_manifest(Path(values["export"])).training["sim"]
        return task_settings(sim["id"], sim["options"])
    try:
        options = yaml.safe_load(values["options"])
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise ConfigError(f"options of fake_base is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict):
        raise ConfigError(f'options of fake_base is {options!r}; write sections such as {{"scene": {{"moving": [0, 0]}}}}')
    return task_settings(values["task"], options)


class FakeBaseNode(Node):
    def __init__(self) -> None:
        super().__init__("fake_base")
        self.values = declare(self, FAKE_BASE)
        self.finished = self.failed = False
        self._log = open_log(self, self.values["log"])
        if self.values["realtime"]:
            schedule_realtime(self)
        self.settings = _settings(self.values)
        robot = self.settings.robot
        self.scenario = draw(self.settings, self.values["seed"])
        self._plants = Plants(self.settings, 1)
        self._truth = Paths(1, robot.view.path_spacing, robot.view.path_points)
        self._lock = threading.Lock()
        self._ticks = 0
        self._under_way: deque[tuple[float, Callable[[], None]]] = deque()
        self._restart()
        kind = TwistStamped if self.values["stamped_cmd_vel"] else Twist
        self._scans = self.create_publisher(LaserScan, "scan", RELIABLE)
        self._odometry = self.create_publisher(Odometry, "odom", RELIABLE)
        self._paths = self.create_publisher(PathMessage, "path", LATCHED)
        self.create_subscription(kind, "cmd_vel", self._on_command, RELIABLE)
        self.create_service(Trigger, "~/restart", self._on_restart)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._paths.publish(self._path_message())
        self.loop = ControlLoop(robot.control_period, self._tick)
        self.thread = threading.Thread(target=self.loop.run, name="plant")
        self.thread.start()

    def _restart(self) -> None:
        self._plants.begin(0, self.scenario)
        self._truth.set(0, self.scenario.path)
        self._command, self._heard, self._timed_out = np.zeros((1, 2)), -math.inf, True

    def _on_restart(self, request: Trigger.Request, made: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._restart()
            self._log.write({"event": "restart", "time": time.monotonic()})
        self._paths.publish(self._path_message())
        made.success = True
        return made

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name not in FAULTS:
                return SetParametersResult(successful=False, reason=f"{parameter.name} cannot change while the base runs")
        with self._lock:
            for parameter in parameters:
                self.values[parameter.name] = parameter.value
                record = {"event": "fault", "time": time.monotonic(), "name": parameter.name, "value": parameter.value}
                self._log.write(record)
        return SetParametersResult(successful=True)

    def _on_command(self, message: Any) -> None:
        command = np.array(read_twist_message(message))
        with self._lock:
            self._heard = time.monotonic()
            self._command[0] = command if np.isfinite(command).all() else 0.0

    def _tick(self) -> bool:
        with self._lock:
            now = time.monotonic()
            age = now - self._heard
            if age > self.values["command_timeout"]:
                if not self._timed_out:
                    self._log.write({"event": "command timeout", "time": now, "age": age})
                    self.get_logger().error(f"no command for {age:.2f} s: braking")
                self._command[:] = 0
            self._timed_out = age > self.values["command_timeout"]
            self._plants.advance(self._command, _ROW)
            self._truth.locate(self._plants.poses, _ROW)
            self._send(self._odometry, self._odometry_message(), self.values["mute_odometry"])
            if self._ticks % self.settings.robot.decision_ticks == 0:
                self._plants.sweep(_ROW)
                self._send(self._scans, self._scan_message(), self.values["mute_scan"])
            self._record(now, age)
            self._ticks += 1
            while self._under_way and self._under_way[0][0] <= now:
                self._under_way.popleft()[1]()
        return True

    def _send(self, publisher: Any, message: Any, mute: bool) -> None:
        if not mute:
            self._under_way.append((time.monotonic() + self.values["delay"], lambda: publisher.publish(message)))

    def _record(self, now: float, age: float) -> None:
        plants = self._plants
        record = {
            "tick": self._ticks, "time": now, "pose": plants.poses[0], "velocity": plants.velocities[0],
            "command": self._command[0], "command_age": age, "cross_track": self._truth.errors[0, 1],
            "remaining": self._truth.errors[0, 3],
            "clearance": plants.clearances[0],
        }  # fmt: skip
        self._log.write(record)

    # Messages.

    def _stamp(self) -> Any:
        now = self.get_clock().now().nanoseconds + round(1e9 * self.values["stamp_offset"])
        return Time(nanoseconds=now).to_msg()

    def _odometry_message(self) -> Odometry:
        x, y, yaw = self._plants.estimates[0].tolist()
        message = Odometry(child_frame_id=self.values["base_frame"])
        message.header.stamp, message.header.frame_id = self._stamp(), self.values["frame"]
        message.pose.pose.position.x, message.pose.pose.position.y = x, y
        message.pose.pose.orientation.z, message.pose.pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
        message.twist.twist.linear.x, message.twist.twist.angular.z = self._plants.velocities[0].tolist()
        return message

    def _scan_message(self) -> LaserScan:
        layout = self.settings.robot.scanner
        ranges = self._plants.ranges[0].copy()
        if self.values["blind_scan"]:
            ranges[:] = np.nan
        ranges = ranges[: self.values["beams"] or len(ranges)]
        message = LaserScan(
            angle_min=layout.angle_min, angle_max=layout.angle_min + layout.angle_increment * (layout.beams - 1),
            angle_increment=layout.angle_increment, range_min=layout.range_min, range_max=layout.range_max,
            scan_time=self.settings.robot.decision_period, ranges=ranges,
        )  # fmt: skip
        message.header.stamp, message.header.frame_id = self._stamp(), self.values["scan_frame"]
        return message

    def _path_message(self) -> PathMessage:
        message = PathMessage()
        message.header.stamp, message.header.frame_id = self._stamp(), self.values["frame"]
        for x, y in self.scenario.path:
            place = PoseStamped(header=message.header)
            place.pose.position.x, place.pose.position.y = float(x), float(y)
            message.poses.append(place)
        return message

    def end(self) -> int:
        self.loop.stop()
        self.thread.join()
        self._log.close()
        return 0


def main() -> None:
    try:
        run_process(FakeBaseNode, FakeBaseNode.end)
    except (SimError, ConfigError, ExportError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

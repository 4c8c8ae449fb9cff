"""Drives a wheeled robot with an exported policy, safely: a lifecycle node around `WheeledCore`.

In, relative names: scan (LaserScan), odom (Odometry), path (Path), goal_pose (PoseStamped), estop (Bool), and joy (Joy) or
teleop_cmd_vel (Twist, TwistStamped). Out: cmd_vel (TwistStamped, Twist), ~/control_source (String), /diagnostics. Services
(Trigger): ~/start ~/stop ~/estop ~/clear_estop ~/resume. Configured, it listens; active, it publishes at every control period,
zeros included; deactivated, it brakes to zero first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Joy, LaserScan
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from vla_rl.config import ConfigError
from vla_rl.driving.manifest import ExportError
from vla_rl.driving.robots import robot_settings
from vla_rl.driving.safety import stopping_time
from vla_rl.robot.arbiter import Source
from vla_rl.robot.exported import ExportedPolicy
from vla_rl.robot.loop import ControlLoop
from vla_rl.robot.messages import (
    read_goal_message,
    read_joy_message,
    read_odometry_message,
    read_path_message,
    read_scan_message,
    read_twist_message,
    stamp_of,
)  # fmt: skip
from vla_rl.robot.nodes.parameters import WHEELED_POLICY
from vla_rl.robot.nodes.process_node import (
    LATCHED,
    NEWEST,
    RELIABLE,
    UNWARNED,
    command_qos,
    declare,
    open_log,
    run_process,
    schedule_realtime,
    steady_time,
)  # fmt: skip
from vla_rl.robot.record import RobotLog
from vla_rl.robot.supervision import SupervisionSettings
from vla_rl.robot.wheeled import Tick, WheeledCore, warm_up

DIAGNOSTICS_PERIOD = 0.5
"""s."""
_LEVELS = {Source.ESTOP: DiagnosticStatus.ERROR, Source.FAULT: DiagnosticStatus.ERROR}


class WheeledPolicyNode(LifecycleNode):
    def __init__(self) -> None:
        super().__init__("wheeled_policy")
        self.values = declare(self, WHEELED_POLICY)
        self.finished = False
        self.failed = False
        self.core: WheeledCore | None = None
        self._log: RobotLog | None = None
        self._loop: ControlLoop | None = None
        self._thread: threading.Thread | None = None
        self._braking_until: float | None = None
        self._last: Tick | None = None
        self._latencies: deque[float] = deque(maxlen=1_000)
        self._inputs: list[Any] = []
        if self.values["autostart"]:
            self._autostart()

    def _autostart(self) -> None:
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                self.finished = self.failed = True
                return

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        values = self.values = {name: self.get_parameter(name).value for name in WHEELED_POLICY}
        try:
            own = robot_settings(values["robot"]) if values["robot"] else None
            policy = ExportedPolicy(Path(values["export"]), own) if values["export"] else None
            if (settings := policy.settings if policy else own) is None:
                raise ConfigError("there is neither a policy nor a robot: set export, or robot to slow, fast or a file")
            if values["teleop"] not in ("joy", "twist", "none"):
                raise ConfigError(f"there is no teleop {values['teleop']!r}; choose joy, twist or none")
            supervision = {name: values[name] for name in SupervisionSettings.model_fields}
            supervision["estop_timeout"] = supervision["estop_timeout"] or None
            self._log = open_log(self, values["log"])
            act, version = (policy.act, policy.version) if policy else (None, "")
            warm_up(settings, act)
            self.core = WheeledCore(settings, act, SupervisionSettings(**supervision), self._log, version)
        except (ExportError, ConfigError, ValueError, OSError) as error:
            self.get_logger().error(f"cannot be configured: {error}")
            return TransitionCallbackReturn.FAILURE
        if values["realtime"]:
            schedule_realtime(self)
        self._listen(values)
        self._offer(settings.control_period)
        return TransitionCallbackReturn.SUCCESS

    def _listen(self, values: dict[str, Any]) -> None:
        self._inputs = [
            self.create_subscription(LaserScan, "scan", self._on_scan, NEWEST),
            self.create_subscription(Odometry, "odom", self._on_odometry, NEWEST),
            self.create_subscription(PathMessage, "path", self._on_path, LATCHED if values["latched_path"] else RELIABLE),
            self.create_subscription(PoseStamped, "goal_pose", self._on_goal, RELIABLE),
        ]
        # A subscription hears only publishers that offer what it asks for, and an e-stop must be heard whatever they offer.
        for qos in (LATCHED, RELIABLE, NEWEST):
            heard = self.create_subscription(Bool, "estop", self._on_estop, qos, event_callbacks=UNWARNED)
            self._inputs.append(heard)
        if values["teleop"] == "joy":
            self._inputs.append(self.create_subscription(Joy, "joy", self._on_joy, NEWEST))
        elif values["teleop"] == "twist":
            kind = TwistStamped if values["stamped_cmd_vel"] else Twist
            self._inputs.append(self.create_subscription(kind, "teleop_cmd_vel", self._on_twist, NEWEST))

    def _offer(self, period: float) -> None:
        kind = TwistStamped if self.values["stamped_cmd_vel"] else Twist
        self._commands = self.create_lifecycle_publisher(kind, "cmd_vel", command_qos(period))
        self._source = self.create_lifecycle_publisher(String, "~/control_source", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        self._timer = self.create_timer(DIAGNOSTICS_PERIOD, self._diagnose)
        assert self.core is not None
        for name in ("start", "stop", "estop", "clear_estop", "resume"):
            serve = partial(self._serve, getattr(self.core, name))
            self._inputs.append(self.create_service(Trigger, f"~/{name}", serve))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self.core is not None
        result = super().on_activate(state)
        self._braking_until = None
        self._loop = ControlLoop(self.core.settings.control_period, self._tick)
        self._thread = threading.Thread(target=self._drive, args=(self._loop,), name="control")
        self._thread.start()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.brake()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.brake()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def brake(self) -> None:
        """Stop the robot, and then the control loop."""
        if self.core is None or self._thread is None:
            return
        self.core.stop()
        self.core.on_outside("node", "the node is deactivated")
        self._braking_until = time.monotonic() + 2 * stopping_time(self.core.settings) + 0.1
        self._thread.join()
        self._thread = None
        self.core.on_outside("node", None)

    def _release(self) -> None:
        for thing in self._inputs:
            (self.destroy_service if hasattr(thing, "srv_name") else self.destroy_subscription)(thing)
        self._inputs = []
        if self.core is not None:
            self.destroy_timer(self._timer)
            for publisher in (self._commands, self._source, self._diagnostics):
                self.destroy_publisher(publisher)
        if self._log is not None:
            try:
                self._log.close()
            except OSError as error:
                self.get_logger().error(f"the log {self._log.path} is incomplete: {error.strerror}")
        self.core = self._log = None

    # The control loop, in a thread of its own.

    def _drive(self, loop: ControlLoop) -> None:
        try:
            loop.run()
        except Exception as error:
            # Nothing drives on after a mistake in here: the node's end, a last zero, and the base's own time-out behind it come
            # before all that could fail, too.
            self.finished = self.failed = True
            self._commands.publish(self._command(np.zeros(2)))
            self.get_logger().fatal(f"the control loop failed: {type(error).__name__}: {error}")
            with contextlib.suppress(Exception):
                if self.core is not None:
                    self.core.estop(f"the control loop failed: {error}")

    def _tick(self) -> bool:
        assert self.core is not None
        publishers = self.count_publishers(self._commands.topic_name)
        several = f"{publishers} publishers on {self._commands.topic_name}; only this node may command the base"
        self.core.on_outside("command topic", several if publishers > 1 else None)
        made = self.core.tick()
        self._commands.publish(self._command(made.command))
        if self._last is None or self._last.decision.source != made.decision.source:
            self._tell(made)
        self._last = made
        if made.latency is not None:
            self._latencies.append(made.latency)
        braking, still = self._braking_until is not None, not made.command.any()
        return not braking or not (still or time.monotonic() > (self._braking_until or 0.0))

    def _command(self, command: np.ndarray) -> Twist | TwistStamped:
        twist = Twist()
        twist.linear.x, twist.angular.z = float(command[0]), float(command[1])
        if not self.values["stamped_cmd_vel"]:
            return twist
        stamped = TwistStamped(twist=twist)
        stamped.header.stamp, stamped.header.frame_id = self.get_clock().now().to_msg(), self.values["base_frame"]
        return stamped

    def _tell(self, made: Tick) -> None:
        source, reason = made.decision.source, made.decision.reason
        self._source.publish(String(data=str(source)))
        # rclpy wants one severity for each line of code.
        if source in _LEVELS:
            self.get_logger().error(f"{source}: {reason}")
        else:
            self.get_logger().info(f"{source}: {reason}")

    # Inputs.

    def _on_scan(self, message: LaserScan) -> None:
        if self.core is not None:
            ranges, problem = read_scan_message(message, self.core.settings, self.values["scan_frame"])
            self.core.on_scan(ranges, steady_time(self, stamp_of(message)), problem)

    def _on_odometry(self, message: Odometry) -> None:
        if self.core is not None:
            pose, velocity, problem = read_odometry_message(message, self.values["frame"], self.values["base_frame"])
            self.core.on_odometry(pose, velocity, steady_time(self, stamp_of(message)), problem)

    def _on_path(self, message: PathMessage) -> None:
        if self.core is not None:
            self._follow(lambda core: core.on_path(read_path_message(message, self.values["frame"])))

    def _on_goal(self, message: PoseStamped) -> None:
        self._follow(lambda core: core.on_goal(read_goal_message(message, core.pose, self.values["frame"])))

    def _follow(self, take: Callable[[WheeledCore], None]) -> None:
        try:
            if self.core is not None:
                take(self.core)
        except ValueError as error:
            self.get_logger().error(f"{error}; the robot keeps the path that it has")

    def _on_estop(self, message: Bool) -> None:
        if self.core is not None:
            self.core.on_estop(message.data)

    def _on_joy(self, message: Joy) -> None:
        if self.core is not None:
            names = ("joy_switch", "joy_forward_axis", "joy_turn_axis")
            holds, command = read_joy_message(message, self.core.settings.limits, *(self.values[name] for name in names))
            self.core.on_human(holds, command)

    def _on_twist(self, message: Twist | TwistStamped) -> None:
        if self.core is not None:
            self.core.on_human(True, read_twist_message(message))

    def _serve(self, action: Callable[[], None], request: Trigger.Request, made: Trigger.Response) -> Trigger.Response:
        try:
            action()
            made.success = True
        except RuntimeError as error:
            made.success, made.message = False, str(error)
        return made

    # Outputs beside the commands.

    def _diagnose(self) -> None:
        made, loop, core = self._last, self._loop, self.core
        if made is None or loop is None or core is None:
            return
        late = loop.times.quantile(0.99)
        latency = float(np.quantile(self._latencies, 0.99)) if self._latencies else 0.0
        values = {
            "source": made.decision.source, "ending": made.ending or "", "clips": ", ".join(made.clips),
            "command": f"{made.command[0]:.3f} m/s, {made.command[1]:.3f} rad/s", "policy": core.version,
            "ticks": loop.times.ticks, "skipped ticks": loop.times.skipped, "p99 lateness, ms": f"{1e3 * late:.2f}",
            "p99 observation to command, ms": f"{1e3 * latency:.1f}",
        }  # fmt: skip
        status = DiagnosticStatus(
            level=_LEVELS.get(made.decision.source, DiagnosticStatus.OK), name=f"{self.get_fully_qualified_name()}: control",
            message=made.decision.reason, hardware_id="", values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
        )  # fmt: skip
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _end(node: WheeledPolicyNode) -> int:
    if node.core is not None:
        node.trigger_shutdown()
    return 1 if node.failed else 0


def main() -> None:
    run_process(WheeledPolicyNode, _end)


if __name__ == "__main__":
    main()

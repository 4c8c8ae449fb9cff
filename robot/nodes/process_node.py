"""What the processes of all nodes have in common: parameters, log file, QoS, scheduling, signals, a clean end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The wheels hold one middleware, and their default is another. Read when rclpy is imported.
os.environ.setdefault("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")

import rclpy
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from vla_rl.robot.nodes.parameters import PARENT, Parameters
from vla_rl.robot.record import RobotLog
from vla_rl.robot.supervision import stop_signals

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Sensors: the newest message, or none."""
RELIABLE = QoSProfile(depth=1)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Modes, e-stop: whoever comes later gets the last one, too."""
UNWARNED = SubscriptionEventCallbacks(use_default_callbacks=False)
"""Of one of several subscriptions to a topic: that another one hears a publisher in its place is no news."""
COMMAND_LIFESPAN = 0.2
"""s; an older command is not delivered any more."""


def command_qos(period: float) -> QoSProfile:
    """Of a publisher that sends a command every `period` s."""
    lifespan, deadline = Duration(seconds=COMMAND_LIFESPAN), Duration(seconds=5 * period)
    return QoSProfile(depth=1, lifespan=lifespan, deadline=deadline)


def declare(node: Node, parameters: Parameters) -> dict[str, Any]:
    """Declare the parameters; returns their values."""
    return {name: node.declare_parameter(name, default).value for name, (default, _) in parameters.items()}


def open_log(node: Node, path: str) -> RobotLog:
    """The node's log, by default robot_logs/NODE_TIME.jsonl. Raises `OSError`."""
    name = node.get_fully_qualified_name().strip("/").replace("/", "_")
    log = RobotLog(Path(path) if path else Path("robot_logs") / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}.jsonl")
    node.get_logger().info(f"log: {log.path}")
    return log


def steady_time(node: Node, stamp: float) -> float:
    """Steady time (s) of a message's stamp: as long ago as it is on the node's clock."""
    return time.monotonic() - (1e-9 * node.get_clock().now().nanoseconds - stamp)


def schedule_realtime(node: Node) -> None:
    """Let all threads, also those of the middleware, run before everything that is not real-time; says so where that is not
    allowed."""
    try:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(10))
    except OSError as error:
        node.get_logger().warning(f"no real-time scheduling ({error}); give the process CAP_SYS_NICE, or set realtime:=false")


_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Have the kernel send a SIGINT when the process that `PARENT` names, if any, ends in whatever way."""
    if PARENT in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != int(os.environ[PARENT]):
            sys.exit("error: the process that started this node has ended")


def run_process(make: Callable[[], Node], end: Callable[[Any], int]) -> None:
    """Spin a node until a signal comes, it asks for the end (`finished`) or a callback raises; `end` then ends it and returns the
    exit code."""
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    # A waiting thread gets the interpreter after so long: the control loop must not wait for callbacks.
    sys.setswitchinterval(5e-4)
    asked: list[int] = []
    for number in stop_signals():
        signal.signal(number, lambda received, frame: asked.append(received))
    _end_with_parent()
    node: Any = make()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not asked and not node.finished:
            executor.spin_once(timeout_sec=0.1)
    finally:
        code = end(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(code)

"""A real ROS 2 graph for tests: the policy's node and the fake base as processes, and an operator in the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vla_rl.robot.graph import node_command
from vla_rl.robot.supervision import SupervisionSettings

PATIENCE = 60.0
"""s; only what never comes takes so long, and the start of a node on a machine that does much else."""
DOMAIN = str(1 + os.getpid() % 200)
"""Every test process has a ROS domain of its own."""
os.environ |= {"ROS_DOMAIN_ID": DOMAIN, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_LOG_DIR": "/tmp"}


def wait_for(what: Callable[[], Any], why: str) -> Any:
    """The first true answer. Fails with `why` where none comes."""
    until = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert time.monotonic() < until, why
        time.sleep(0.01)
    return answer


class Operator:
    """Calls services, sets parameters and publishes, with rclpy."""

    def __init__(self) -> None:
        from vla_rl.robot.nodes.process_node import LATCHED, NEWEST, RELIABLE, rclpy  # isort: skip  (sets the middleware)
        from geometry_msgs.msg import TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter_client import AsyncParameterClient
        from rclpy.signals import SignalHandlerOptions
        from std_msgs.msg import Bool

        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C is pytest's
        self._rclpy, self._kind, self._bool, self._reliable, self._newest = rclpy, TwistStamped, Bool, RELIABLE, NEWEST
        self.node = rclpy.create_node("test_operator")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()
        self._clients: dict[str, Any] = {}
        self._base = AsyncParameterClient(self.node, "fake_base")
        self._estop = self.node.create_publisher(Bool, "estop", LATCHED)

    def call(self, name: str) -> tuple[bool, str]:
        from std_srvs.srv import Trigger

        if name not in self._clients:
            self._clients[name] = self.node.create_client(Trigger, name)
        assert self._clients[name].wait_for_service(timeout_sec=PATIENCE), f"there is no service {name}"
        answer = self._clients[name].call_async(Trigger.Request())
        made = wait_for(lambda: answer.done() and answer.result(), f"{name} does not answer")
        return made.success, made.message

    def set_base(self, name: str, value: Any) -> None:
        from rclpy.parameter import Parameter

        assert self._base.wait_for_services(PATIENCE), "the base has no parameter services"
        answer = self._base.set_parameters([Parameter(name, value=value)])
        made = wait_for(lambda: answer.done() and answer.result(), "the base does not answer")
        assert made.results[0].successful, made.results[0].reason

    def press_estop(self, pressed: bool) -> None:
        self._estop.publish(self._bool(data=pressed))

    @contextlib.contextmanager
    def repeating(self, topic: str, message: Any, latched: bool = False) -> Iterator[None]:
        """Sends a message at 50 Hz, and then falls silent."""
        publisher = self._estop if latched else self.node.create_publisher(type(message), topic, self._newest)
        gone = threading.Event()

        def send() -> None:
            while not gone.wait(0.02):
                publisher.publish(message)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            yield
        finally:
            gone.set()
            sending.join()

    def joystick(self, axes: list[float]) -> contextlib.AbstractContextManager[None]:
        """Somebody holds the dead-man switch, and then the joystick disconnects."""
        from sensor_msgs.msg import Joy

        return self.repeating("joy", Joy(axes=axes, buttons=[0, 0, 0, 0, 1]))

    def change_state(self, node: str, transition: int) -> bool:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        client = self.node.create_client(ChangeState, f"{node}/change_state")
        assert client.wait_for_service(timeout_sec=PATIENCE), f"{node} has no life cycle"
        answer = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        return bool(wait_for(lambda: answer.done() and answer.result(), f"{node} does not answer").success)

    @contextlib.contextmanager
    def second_publisher(self) -> Iterator[None]:
        publisher = self.node.create_publisher(self._kind, "cmd_vel", self._reliable)
        try:
            yield
        finally:
            self.node.destroy_publisher(publisher)

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self._rclpy.try_shutdown()


def skip_where_busy() -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        pytest.skip(f"needs real-time scheduling (CAP_SYS_NICE) or an idle machine; the load is {load:.1f} on {cores} cores")


def require_real_time() -> None:
    """`Program.require_time`, before there is a program."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        skip_where_busy()
    else:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Program:
    """A node in a process of its own, its log and what it said."""

    def __init__(self, node: str, folder: Path, **parameters: Any) -> None:
        self.log, self.output = folder / f"{node}.jsonl", folder / f"{node}.txt"
        command = node_command(node, {"log": str(self.log), "realtime": True} | parameters)
        with self.output.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

        self._records: list[dict[str, Any]] = []
        self._read = 0

    def records(self) -> list[dict[str, Any]]:
        """All so far; only what is new is read."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._read)
                lines, whole, _ = file.read().rpartition(b"\n")
            self._read += len(lines + whole)
            self._records += [json.loads(line) for line in lines.splitlines()]
        return self._records

    def newest(self) -> dict[str, Any]:
        """Of the ticks; empty before the first."""
        ticks = [record for record in self.records()[-20:] if "tick" in record]
        return ticks[-1] if ticks else {}

    def require_time(self) -> None:
        """Skip the test where neither the kernel nor the load of the machine lets a process be punctual."""
        wait_for(self.newest, f"{self.log.stem} does not run")
        if "no real-time scheduling" in self.output.read_text():
            skip_where_busy()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(PATIENCE)
            self.process.kill()
        return self.process.wait()


class Graph:
    def __init__(self, folder: Path, export: Path, options: dict[str, Any], seed: int) -> None:
        self.base = Program("fake_base", folder, options=json.dumps(options), seed=seed)
        self.policy = Program("wheeled_policy", folder, export=str(export), autostart=True, latched_path=True)
        self.operator = Operator()

    def call(self, name: str) -> tuple[bool, str]:
        return self.operator.call(f"wheeled_policy/{name}")

    def drive(self, speed: float | None = None) -> float:
        """From the start of the path, until the command is `speed` (m/s); returns when the policy was started, steady s."""
        self.operator.call("fake_base/restart")
        began = time.monotonic()
        settled = SupervisionSettings().recovery

        def ready() -> bool:
            newest = self.policy.newest()
            return newest.get("reason") == "not started" and newest["time"] > began + settled

        wait_for(ready, "the node does not come to rest")
        started = time.monotonic()
        assert self.call("start") == (True, "")
        if speed is not None:
            wait_for(lambda: self.policy.newest()["command"][0] >= speed, "the policy does not drive")
        return started

    def injected(self, name: str) -> float:
        """When the base began with a fault, steady s."""
        return float([r for r in self.base.records() if r.get("event") == "fault" and r["name"] == name][-1]["time"])

    def close(self) -> tuple[int, int]:
        codes = self.policy.stop(), self.base.stop()
        self.operator.close()
        return codes

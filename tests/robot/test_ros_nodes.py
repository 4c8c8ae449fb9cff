"""How a node's process ends when something goes wrong in it or around it, and what its node listens to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ros_graph import Program, wait_for

pytestmark = pytest.mark.ros

NODE = """
import sys
from pathlib import Path
from vla_rl.robot.nodes.process_node import run_process
from rclpy.node import Node

class Plain(Node):
    finished = False

    def __init__(self):
        super().__init__("plain")
        self.create_timer(0.01, lambda: Path(sys.argv[1], "runs").touch() if len(sys.argv) > 1 else 1 / 0)

def end(node):
    Path(sys.argv[1], "ended").touch() if len(sys.argv) > 1 else print("ended")
    return 0

run_process(Plain, end)
"""
UP = """
import sys
from pathlib import Path
from vla_rl.robot.graph import Process, run_graph

sys.exit(run_graph([Process("plain", (sys.executable, "-c", *sys.argv[1:]), Path(sys.argv[2], "said.txt"))], print))
"""


def test_a_callback_that_raises_ends_the_process_in_order() -> None:
    ended = subprocess.run([sys.executable, "-c", NODE], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stdout == "ended\n" and "ZeroDivisionError" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_nodes_end_with_the_terminal_and_with_whoever_started_them(number: signal.Signals, tmp_path: Path) -> None:
    up = subprocess.Popen([sys.executable, "-c", UP, NODE, str(tmp_path)], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for((tmp_path / "runs").exists, "the node does not run")
        up.send_signal(number)
        wait_for((tmp_path / "ended").exists, "the node lives on")
        assert up.wait(20) == (0 if number == signal.SIGHUP else -number)
    finally:
        up.kill()


def test_a_control_loop_that_fails_sends_a_last_zero_whatever_else_fails() -> None:
    from vla_rl.robot.nodes.wheeled_policy_node import WheeledPolicyNode

    sent: list[Any] = []

    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    node: Any = SimpleNamespace(
        finished=False, failed=False, core=SimpleNamespace(estop=fail), get_logger=MagicMock(),
        _commands=SimpleNamespace(publish=sent.append), _command=lambda command: command.tolist(),
    )  # fmt: skip
    WheeledPolicyNode._drive(node, SimpleNamespace(run=fail))  # type: ignore[arg-type]
    assert sent == [[0.0, 0.0]] and node.finished and node.failed


def test_a_full_disk_is_a_fault_that_the_node_outlives(tmp_path: Path) -> None:
    policy = Program("wheeled_policy", tmp_path, robot="slow", teleop="none", autostart=True, log="/dev/full")
    wait_for(lambda: "fault: no odometry has come" in policy.output.read_text(), "the node does not run")
    time.sleep(0.5)
    assert policy.stop() == 0
    # Its loop went on until the end: a loop that fails says so. The device cannot be synchronised either.
    assert "failed" not in policy.output.read_text() and "the log /dev/full is incomplete" in policy.output.read_text()


def test_the_estop_is_heard_whatever_its_publisher_offers() -> None:
    from vla_rl.robot.nodes.wheeled_policy_node import WheeledPolicyNode  # isort: skip  (sets the middleware)
    from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible

    node = MagicMock()
    WheeledPolicyNode._listen(node, {"latched_path": False, "teleop": "none"})
    asked = [call.args[3] for call in node.create_subscription.call_args_list if call.args[1] == "estop"]
    for durability in (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL):
        for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT):
            offered = QoSProfile(depth=1, durability=durability, reliability=reliability)
            assert any(qos_check_compatible(offered, one)[0] != QoSCompatibility.ERROR for one in asked), offered
    assert any(one.durability == DurabilityPolicy.TRANSIENT_LOCAL for one in asked), "a late node hears the last press"


def test_an_operator_s_device_that_there_is_not_is_refused(tmp_path: Path) -> None:
    policy = Program("wheeled_policy", tmp_path, robot="slow", teleop="joystick", autostart=True)
    assert policy.process.wait(60) == 1
    assert "cannot be configured: there is no teleop 'joystick'; choose joy, twist or none" in policy.output.read_text()


@pytest.mark.parametrize(
    ("options", "message"), [("[", "options of fake_base is not valid YAML"), ("3", "options of fake_base is 3; write sections")]
)
def test_options_of_the_base_that_cannot_be_read_are_refused(options: str, message: str) -> None:
    from vla_rl.config import ConfigError
    from vla_rl.robot.nodes.fake_base_node import _settings

    with pytest.raises(ConfigError, match=message):
        _settings({"export": "", "task": "tracking_slow", "options": options})


def test_the_base_is_what_an_export_was_trained_on(export: Path) -> None:
    from vla_rl.robot.nodes.fake_base_node import _settings

    assert _settings({"export": str(export), "task": "tracking_fast", "options": "{}"}).scene.moving == (0, 0)

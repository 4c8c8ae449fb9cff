"""Asks a node for one of its Trigger services, where there is no `ros2 service call`: python -m ... start."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vla_rl.robot.nodes.process_node import rclpy  # isort: skip  (sets the middleware)
from rclpy.node import Node
from std_srvs.srv import Trigger

SERVICES = ("start", "stop", "estop", "clear_estop", "resume")


def call(node: Node, name: str, timeout: float) -> tuple[bool, str]:
    """Whether the service did it, and what it said; waits `timeout` s for the node to be found, and as long for its answer."""
    client: Any = node.create_client(Trigger, name)
    if not client.wait_for_service(timeout_sec=timeout):
        return False, f"there is no service {name}; is the node running, with this ROS_DOMAIN_ID?"
    answer = client.call_async(Trigger.Request())
    rclpy.spin_until_future_complete(node, answer, timeout_sec=timeout)
    made = answer.result()
    return (False, f"{name} did not answer within {timeout} s") if made is None else (made.success, made.message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("--node", default="wheeled_policy")
    parser.add_argument("--timeout", type=float, default=5.0, help="s")
    asked = parser.parse_args()
    rclpy.init()
    done, text = call(Node("operator"), f"{asked.node}/{asked.service}", asked.timeout)
    rclpy.shutdown()
    print(text or asked.service, file=sys.stdout if done else sys.stderr)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()

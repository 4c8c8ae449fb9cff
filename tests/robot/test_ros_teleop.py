"""Teleoperation over a real ROS 2 graph, without a policy: life cycle, unstamped commands, diagnostics, e-stop's heartbeat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hand_made import OPEN_FIELD
from ros_graph import Operator, Program, wait_for

pytestmark = [pytest.mark.ros, pytest.mark.slow]


class Rig:
    def __init__(self, folder: Path) -> None:
        self.base = Program("fake_base", folder, stamped_cmd_vel=False, options=json.dumps(OPEN_FIELD))
        self.policy = Program("wheeled_policy", folder, robot="slow", teleop="twist", stamped_cmd_vel=False, estop_timeout=0.15)
        self.operator = Operator()

    def ticks(self) -> list[dict[str, Any]]:
        """Since the node was last configured."""
        ticks = [record for record in self.policy.records() if "tick" in record]
        return ticks[max((i for i, record in enumerate(ticks) if record["tick"] == 1), default=0) :]

    def close(self) -> None:
        assert [program.stop() for program in (self.policy, self.base)] == [0, 0]
        self.operator.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("teleop"))
    try:
        made.base.require_time()
        yield made
    finally:
        made.close()


def test_an_operator_drives_within_the_life_cycle(rig: Rig) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import Twist
    from lifecycle_msgs.msg import Transition
    from std_msgs.msg import Bool

    operator, policy = rig.operator, rig.policy
    told: list[Any] = []
    operator.node.create_subscription(DiagnosticArray, "/diagnostics", told.append, 1)
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_CONFIGURE)
    assert rig.ticks() == [], "configured, it commands nothing"
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_ACTIVATE)
    assert operator.call("wheeled_policy/start") == (False, "there is no policy here; only an operator drives")
    faster = Twist()
    faster.linear.x, faster.angular.z = 5.0, 0.2
    with operator.repeating("teleop_cmd_vel", faster):
        with operator.repeating("estop", Bool(data=False), latched=True):
            wait_for(lambda: operator.call("wheeled_policy/clear_estop")[0], "no heartbeat had come, so the e-stop was latched")
            # The limit is 0.4 m/s, whatever an operator asks for.
            wait_for(lambda: rig.base.newest()["command"] == pytest.approx([0.4, 0.2]), "the operator cannot drive")
            assert policy.newest()["clips"] == ["speed"] and policy.newest()["source"] == "human"
            wait_for(lambda: told and told[-1].status[0].message == "the operator drives", "there are no diagnostics")
        wait_for(lambda: policy.newest()["source"] == "e-stop", "the heartbeat is not missed")
        driven = [tick for tick in rig.ticks() if tick["source"] == "human"]
        stopped = next(tick for tick in rig.ticks() if tick["tick"] == driven[-1]["tick"] + 1)
        assert stopped["ages"]["e-stop heartbeat"] <= 0.2 and "e-stop heartbeat is 0.1" in stopped["reason"]
    values = {pair.key: pair.value for pair in told[-1].status[0].values}
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_DEACTIVATE)
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_CLEANUP)
    assert int(values["ticks"]) > 10 and float(values["p99 lateness, ms"]) < 20


def test_deactivated_while_driving_it_brakes_first(rig: Rig) -> None:
    from geometry_msgs.msg import Twist
    from lifecycle_msgs.msg import Transition
    from std_msgs.msg import Bool

    operator, policy = rig.operator, rig.policy
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_CONFIGURE)
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_ACTIVATE)
    forward = Twist()
    forward.linear.x = 0.3
    with operator.repeating("teleop_cmd_vel", forward), operator.repeating("estop", Bool(data=False), latched=True):
        wait_for(lambda: operator.call("wheeled_policy/clear_estop")[0], "the e-stop cannot be cleared")
        wait_for(lambda: policy.newest()["command"][0] == pytest.approx(0.3), "the operator cannot drive")
        assert operator.change_state("wheeled_policy", Transition.TRANSITION_DEACTIVATE)
        last = policy.newest()
    # 0.3 m/s at 2.5 m/s^2 and 50 Hz: 0.05 m/s a tick, six ticks to zero. Nobody listens to the scanner meanwhile.
    braking = [tick["command"][0] for tick in rig.ticks() if "the node is deactivated" in tick["reason"]]
    assert braking[:6] == pytest.approx([0.25, 0.2, 0.15, 0.1, 0.05, 0.0], abs=1e-9) and last["command"] == [0, 0]
    assert operator.change_state("wheeled_policy", Transition.TRANSITION_ACTIVATE), "it can be activated again"

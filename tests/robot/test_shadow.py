"""The same recorded stream through the simulator, the node's core and a bag; and a policy that rides along on the bag."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hand_made import OPEN_FIELD
from recorded_bag import BEGIN, Kinds, messages, rosbags_kinds, write_bag
from recorder import Recording, record
from rosbags.rosbag2 import StoragePlugin
from typer.testing import CliRunner

from vla_rl.cli import app
from vla_rl.config import ConfigError
from vla_rl.driving.manifest import ExportError
from vla_rl.driving.safety import action_of
from vla_rl.driving.settings import RobotSettings
from vla_rl.robot.messages import read_odometry_message, read_path_message, read_scan_message, stamp_of
from vla_rl.robot.shadow import (
    TOPICS,
    Shadow,
    ShadowDecision,
    ShadowReport,
    feed_bag,
    longest_difference,
    replay_bag,
    topic_names,
)  # fmt: skip
from vla_rl.robot.wheeled import WheeledCore

ROBOT = RobotSettings()
DECISIONS = 40


@pytest.fixture(scope="module")
def tape() -> Recording:
    return record("tracking_slow", 6, DECISIONS)


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_a_bag_gives_the_observations_of_the_simulator(tape: Recording, tmp_path: Path, storage: StoragePlugin) -> None:
    shadow = Shadow(ROBOT, lambda observation: np.zeros((1, 2), np.float32))
    feed_bag(write_bag(tmp_path / "bag", tape, ROBOT, storage), TOPICS, shadow, pytest.fail)
    # The last decision of the recording would need a message after it.
    assert len(shadow.observations) == DECISIONS
    assert np.abs(np.array(shadow.observations) - np.concatenate(tape.observations)).max() < 1e-6


def ros_kinds() -> Kinds:
    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import (
        Point,
        Pose,
        PoseStamped,
        PoseWithCovariance,
        Quaternion,
        Twist,
        TwistStamped,
        TwistWithCovariance,
        Vector3,
    )  # fmt: skip
    from nav_msgs.msg import Odometry
    from nav_msgs.msg import Path as PathMessage
    from sensor_msgs.msg import LaserScan
    from std_msgs.msg import Header

    kinds = (Time, Point, Pose, PoseStamped, PoseWithCovariance, Quaternion, Twist, TwistStamped, TwistWithCovariance, Vector3)
    return SimpleNamespace(**{kind.__name__: kind for kind in (*kinds, Odometry, LaserScan, Header)}, Path=PathMessage)


@pytest.mark.parametrize("kinds", [rosbags_kinds, pytest.param(ros_kinds, marks=pytest.mark.ros)])
def test_the_core_gets_the_observations_of_the_simulator(tape: Recording, kinds: object) -> None:
    """The messages as the node reads them. The policy repeats the recorded actions, so the core's own safety layer must also
    make the recorded commands of them: its ticks lie between decision and odometry, as the simulator's do."""
    now, seen, actions = [0.0], list[np.ndarray](), iter(tape.actions)

    def act(observation: np.ndarray) -> np.ndarray:
        seen.append(observation[0].copy())
        return next(actions)

    core, commands = WheeledCore(ROBOT, act, clock=lambda: now[0]), []
    for at, topic, message in messages(tape, ROBOT, kinds()):  # type: ignore[operator]
        now[0] = 1e-9 * at - BEGIN
        if topic == "/path":
            core.on_path(read_path_message(message, "map"))
        elif topic == "/odom":
            pose, velocity, problem = read_odometry_message(message, "map", "base_link")
            core.on_odometry(pose, velocity, stamp_of(message) - BEGIN, problem)
        elif topic == "/scan":
            ranges, problem = read_scan_message(message, ROBOT, "laser")
            core.on_scan(ranges, stamp_of(message) - BEGIN, problem)
        else:
            if not core.arbiter.running:
                core.start()
                now[0] += 1e-6  # what the policy saw must be newer than the start
                core.on_odometry(tuple(tape.first[0]), (0.0, 0.0))
                core.on_scan(tape.first[1])
            made = core.tick()
            assert made.decision.reason == "the policy drives"
            commands.append(made.command)
    assert len(seen) == DECISIONS
    assert np.abs(np.array(seen) - np.concatenate(tape.observations)).max() < 1e-6
    assert np.abs(np.array(commands) - np.array(tape.commands)).max() < 1e-9


def test_a_policy_agrees_with_itself(tape: Recording, tmp_path: Path) -> None:
    """Whoever drove is asked again: only obstacles that came nearer within a decision make a difference."""
    actions = iter(tape.actions)
    shadow = Shadow(ROBOT, lambda observation: next(actions))
    feed_bag(write_bag(tmp_path / "bag", tape, ROBOT), TOPICS, shadow, pytest.fail)
    gaps = np.abs([np.subtract(decision.shadow, decision.driven) for decision in shadow.decisions])
    assert len(gaps) == DECISIONS and np.median(gaps) < 1e-9
    assert sum(decision.differs for decision in shadow.decisions) <= 2


def test_the_command_tells_where_another_policy_differs(tape: Recording, export: Path, tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", tape, RobotSettings())
    out = tmp_path / "shadow.json"
    result = CliRunner().invoke(app, ["robot", "shadow", str(export), str(bag), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "differ from the driven command" in result.output and "longest stretch" in result.output
    record = json.loads(out.read_text())
    assert record["summary"]["decisions"] == DECISIONS == len(record["decisions"])
    # The recorded driver acts at random; the policy keeps to its path.
    assert record["summary"]["differ"] > DECISIONS / 4
    assert record["summary"]["differ"] == sum(row["differs"] for row in record["decisions"])


def test_a_gap_in_the_scans_is_where_the_node_would_have_stopped(tape: Recording) -> None:
    shadow = Shadow(ROBOT, lambda observation: action_of(ROBOT, np.array([[0.4, 0.0]])))
    for at, topic, message in messages(tape, ROBOT, rosbags_kinds()):
        now = 1e-9 * at
        if topic == "/path":
            shadow.on_path(read_path_message(message), now)
        elif topic == "/odom":
            shadow.on_odometry(*read_odometry_message(message)[:2], stamp_of(message), now, None)
        elif topic == "/scan" and not 0.95 < now - BEGIN < 1.95:
            shadow.on_scan(read_scan_message(message, ROBOT)[0], stamp_of(message), now, None)
        elif topic == "/cmd_vel":
            shadow.on_command((0.4, 0.0), now)
    # Scans of 1.0 to 1.9 s are missing; at 1.0 s the one before is 0.1 s old, at 1.1 s it is 0.2 s old, too old.
    stopped = [decision for decision in shadow.decisions if decision.problem is not None]
    assert [decision.time for decision in stopped] == pytest.approx(np.arange(1.1, 1.95, 0.1))
    assert stopped[0].problem == "the last scan is 0.20 s old"
    assert all(decision.shadow[0] < 0.4 and decision.differs for decision in stopped)


def test_odometry_that_is_not_finite_stops_the_robot_here_too(tape: Recording) -> None:
    shadow = Shadow(ROBOT, lambda observation: np.zeros((1, 2), np.float32))
    shadow.on_path(tape.path, 0.0)
    for tick in range(11):  # decisions at 0, 0.1 ... 0.9 s, of which those at 0.4 to 0.7 s find a NaN
        pose = (math.nan if 4 <= tick < 8 else 0.0, 0.0, 0.0)
        shadow.on_odometry(pose, (0.0, 0.0), 0.1 * tick, 0.1 * tick, None)
        shadow.on_scan(tape.first[1], 0.1 * tick, 0.1 * tick, None)
    shadow.finish()
    report = ShadowReport("export", "bag", shadow.decisions)
    assert [decision.problem is not None for decision in shadow.decisions] == [4 <= tick < 8 for tick in range(10)]
    assert shadow.decisions[4].problem == "the odometry is not finite"
    assert report.summary()["would have stopped"] == 4 and math.isfinite(report.summary()["speed difference"]["mean"])


def test_the_longest_stretch() -> None:
    def decision(time: float, speed: float) -> ShadowDecision:
        return ShadowDecision(time, (0.0, 0.0, 0.0), (speed, 0.0), (0.2, 0.0), None)

    # Differences above 0.05 m/s at 0.1 s, and from 0.3 s until the decision at 0.5 s, which agrees.
    rows = [decision(0.1 * k, speed) for k, speed in enumerate([0.2, 0.3, 0.24, 0.0, 0.1, 0.16])]
    assert longest_difference(rows) == pytest.approx((0.3, 0.5))
    assert longest_difference(rows[:1]) == (0, 0)


def test_what_is_no_bag_or_lacks_topics_is_refused(tape: Recording, export: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read .*nothing as a rosbag2 folder"):
        replay_bag(export, tmp_path / "nothing", TOPICS)
    bag = write_bag(tmp_path / "bag", tape, ROBOT)
    with pytest.raises(ExportError, match=r"has no /front/scan, but /cmd_vel, /odom, /path, /scan; name its topics with --topic"):
        replay_bag(export, bag, topic_names(["scan=/front/scan"]))
    with pytest.raises(ConfigError, match="cannot read --topic 'lidar=/scan'; write INPUT=TOPIC"):
        topic_names(["lidar=/scan"])
    with pytest.raises(ExportError, match=r"/odom in .* is nav_msgs/msg/Odometry, but scan must be sensor_msgs/msg/LaserScan;"):
        replay_bag(export, bag, topic_names(["scan=/odom", "odom=/scan"]))


def test_open_field_is_only_about_the_scene() -> None:
    assert set(OPEN_FIELD) == {"scene"}, "or the recorded robot and that of the export differ"

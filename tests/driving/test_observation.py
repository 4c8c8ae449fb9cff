"""What a policy sees: worked out by hand, and the same bits on the robot as in the simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from recorder import record

from vla_rl.driving.observation import ObservationBuilder, observation_fields, observation_size
from vla_rl.driving.settings import DriveLimits, RobotSettings, SafetySettings, ScannerLayout, ViewSettings
from vla_rl.robot.arbiter import Source
from vla_rl.robot.wheeled import WheeledCore
from vla_rl.sim.wheeled.settings import TASKS, task_settings

ROW = np.zeros(1, np.int64)
VIEW = ViewSettings(
    sectors=2, view_range=2.0, scan_lag=1, preview=(0.5, 1.0), error_scale=0.5, distance_scale=2.0, path_spacing=0.1
)
ROBOT = RobotSettings(
    limits=DriveLimits(speed=0.5, reverse=0.1, turn=2.0),
    scanner=ScannerLayout(beams=4, angle_min=-math.pi, angle_increment=math.pi / 2, range_max=5.0),
    view=VIEW,
)


def test_a_path_observation_worked_out_by_hand() -> None:
    builder = ObservationBuilder(ROBOT, 1)
    builder.start(0, np.array([(0.0, 0.0), (4.0, 0.0)]))
    # 1 m along, 0.25 m to the right, looking along the path.
    builder.poses[0] = (1.0, -0.25, 0.0)
    builder.velocities[0] = (0.25, -1.0)
    builder.commands[0] = (0.5, 1.0)
    builder.scan(np.array([[0.5, 3.0, math.inf, 1.5]], np.float32), ROW)
    out = np.zeros((1, builder.size), np.float32)
    builder.observe(ROW, out)
    # Sectors 0.5 and 1.5 of 2 m: closeness 0.75 and 0.25, and at the first decision the same for the older scan.
    expected = [0.75, 0.25, 0.75, 0.25, 0.5, -0.5, 1.0, 0.5]
    # Error -0.25 / 0.5; sine and cosine of 0; points 0.5 and 1 m ahead, 0.25 m to the left, over 1 m; 3 m remain: 1.
    expected += [-0.5, 0.0, 1.0, 0.5, 0.25, 1.0, 0.25, 1.0]
    assert out[0] == pytest.approx(expected)
    # The next decision sees a free scan, with the first one as the older.
    builder.scan(np.full((1, 4), np.inf, np.float32), ROW)
    builder.observe(ROW, out)
    assert out[0, :4] == pytest.approx([0, 0, 0.75, 0.25])


def test_a_goal_observation_worked_out_by_hand() -> None:
    robot = ROBOT.model_copy(update={"view": VIEW.model_copy(update={"reference": "goal", "sectors": 0})})
    builder = ObservationBuilder(robot, 1)
    builder.start(0, np.array([(0.0, 0.0), (3.0, 4.0)]))
    builder.poses[0] = (3.0, 2.0, math.pi)
    out = np.zeros((1, builder.size), np.float32)
    builder.observe(ROW, out)
    # The goal is 2 m away along y; looking along -x it lies to the right: bearing -90 degrees. 1 - exp(-2 / 2).
    assert out[0] == pytest.approx([0, 0, 0, 0, 1 - math.exp(-1), -1, 0], abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_fields_name_every_number(task: str) -> None:
    settings = task_settings(task).robot
    fields = observation_fields(settings)
    assert sum(field.size for field in fields) == observation_size(settings) == ObservationBuilder(settings, 2).size
    assert all(field.unit and field.frame and field.scale for field in fields)


@pytest.mark.parametrize("task", ["tracking_slow", "goal_fast"])
def test_the_robot_sees_and_commands_what_the_simulator_did(task: str) -> None:
    """A recorded stream of scans and odometry through the robot's core gives the simulator's observations and commands, bit for
    bit, the drop-outs of the scanner included."""
    options = {"plant": {"scan_dropout": (0.03, 0.03)}, "robot": {"safety": {"invalid_share": 1.0, "invalid_gap": 7.0}}}
    tape = record(task, 6, 30, **options)
    settings = task_settings(task, options).robot
    now, seen = 10.0, list[np.ndarray]()

    def act(observation: np.ndarray) -> np.ndarray:
        seen.append(observation.copy())
        return tape.actions[len(seen) - 1]

    core = WheeledCore(settings, act, clock=lambda: now)
    core.on_path(tape.path)
    for _ in range(2):  # the first inputs come twice: what the policy drives by must be newer than the start
        core.on_odometry(tuple(tape.first[0]), (0.0, 0.0))
        core.on_scan(tape.first[1])
        if not core.arbiter.running:
            core.start()
            now += settings.control_period
    assert any(np.isnan(scan).any() for scan in tape.scans) and any((scan == 0).any() for scan in tape.scans)
    for number, ((pose, velocity), command) in enumerate(zip(tape.odometry, tape.commands, strict=True)):
        made = core.tick()
        assert made.decision.source == Source.POLICY, made.decision.reason
        assert made.command.tobytes() == command.tobytes(), f"tick {number}"
        now += settings.control_period
        core.on_odometry(tuple(pose), tuple(velocity))
        if (number + 1) % settings.decision_ticks == 0:
            core.on_scan(tape.scans[number // settings.decision_ticks])
    assert len(seen) == len(tape.observations)
    for mine, theirs in zip(seen, tape.observations, strict=True):
        assert mine.tobytes() == theirs.tobytes()


def test_safety_settings_are_part_of_the_robot() -> None:
    assert RobotSettings(view=ViewSettings(sectors=0)).scans, "the safety layer needs the scanner, too"
    assert not RobotSettings(view=ViewSettings(sectors=0), safety=SafetySettings(time_to_collision=0)).scans

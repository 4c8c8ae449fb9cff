"""The core under faults, with a clock that the tests turn, and over a whole episode with the simulator's plant as its base."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.driving.safety import stopping_time
from vla_rl.driving.settings import RobotSettings
from vla_rl.robot.arbiter import Source
from vla_rl.robot.endings import Ending
from vla_rl.robot.record import RobotLog, read_log
from vla_rl.robot.supervision import SupervisionSettings
from vla_rl.robot.wheeled import Tick, WheeledCore
from vla_rl.sim.wheeled.baseline import PursuitBaseline
from vla_rl.sim.wheeled.plant import Plants
from vla_rl.sim.wheeled.scenario import draw
from vla_rl.sim.wheeled.settings import task_settings

ROBOT = RobotSettings()
PERIOD = ROBOT.control_period
FREE = np.full(ROBOT.scanner.beams, np.inf, np.float32)
PATH = np.array([(0.0, 0.0), (5.0, 0.0)])


class Rig:
    """A core whose inputs come with every tick unless one of them is held back."""

    def __init__(self, log: RobotLog | None = None, **supervision: float) -> None:
        self.now = 50.0
        self.action = np.array([[1.0, 0.0]], np.float32)
        self.core = WheeledCore(
            ROBOT, lambda observation: self.action, SupervisionSettings(**supervision), log, "v1", lambda: self.now
        )
        self.scan: np.ndarray | None = FREE
        self.odometry: tuple[float, float, float] | None = (0.0, 0.0, 0.0)
        self.human: tuple[bool, tuple[float, float]] | None = None
        self.measured_ago = 0.0
        self.core.on_path(PATH)

    def tick(self, count: int = 1) -> Tick:
        for _ in range(count):
            self.now += PERIOD
            if self.scan is not None:
                self.core.on_scan(self.scan, self.now - self.measured_ago)
            if self.odometry is not None:
                self.core.on_odometry(self.odometry, (0.0, 0.0), self.now - self.measured_ago)
            if self.human is not None:
                self.core.on_human(*self.human)
            made = self.core.tick()
            assert np.isfinite(made.command).all()
        return made

    def drive(self) -> Rig:
        self.tick()
        self.core.start()
        assert self.tick(20).decision.source == Source.POLICY
        assert self.core.builder.commands[0, 0] == pytest.approx(ROBOT.limits.speed)
        return self


@pytest.fixture
def rig() -> Rig:
    return Rig().drive()


def test_nothing_moves_before_the_start() -> None:
    rig = Rig()
    assert rig.tick(50).command.tolist() == [0, 0]


def test_a_start_needs_a_path_and_good_inputs() -> None:
    bare = WheeledCore(ROBOT, lambda observation: np.zeros((1, 2)), clock=lambda: 1.0)
    with pytest.raises(RuntimeError, match="there is no path or goal; send one first"):
        bare.start()
    bare.on_path(PATH)
    with pytest.raises(RuntimeError, match="cannot start: no odometry has come; no scan has come"):
        bare.start()


FAULTS: dict[str, Callable[[Rig], None]] = {
    "scan stops": lambda rig: setattr(rig, "scan", None),
    "odometry stops": lambda rig: setattr(rig, "odometry", None),
    "blind scan": lambda rig: setattr(rig, "scan", np.full_like(FREE, math.nan)),
    "scan of another scanner": lambda rig: setattr(rig, "scan", FREE[:40]),
    "NaN in the odometry": lambda rig: setattr(rig, "odometry", (math.nan, 0.0, 0.0)),
    "messages 0.25 s late": lambda rig: setattr(rig, "measured_ago", 0.25),
    "the sensors' clock jumps ahead": lambda rig: setattr(rig, "measured_ago", -3600.0),
    "the sensors' clock jumps back": lambda rig: setattr(rig, "measured_ago", 3600.0),
    "the policy answers NaN": lambda rig: setattr(rig, "action", np.full((1, 2), math.nan, np.float32)),
    "the e-stop is pressed": lambda rig: rig.core.on_estop(True),
    "the e-stop is asked for": lambda rig: rig.core.estop(),
    "the operator stops the episode": lambda rig: rig.core.stop(),
}


SILENT = {"scan stops", "odometry stops", "messages 0.25 s late", "the sensors' clock jumps back"}
"""Faults that only the age of an input shows."""


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_brakes_the_robot_in_time(rig: Rig, name: str) -> None:
    """Braking begins within the time-out of an input, or within a decision where the fault shows at once, plus a tick."""
    FAULTS[name](rig)
    began, full = rig.now, rig.core.builder.commands[0, 0]
    while (made := rig.tick()).command[0] == full:
        pass
    bound = ROBOT.safety.input_timeout if name in SILENT else ROBOT.decision_period
    assert rig.now - began <= bound + PERIOD + 1e-9
    assert made.decision.source in (Source.FAULT, Source.ESTOP, Source.HOLD) and made.decision.reason
    assert made.decision.wanted is None
    rig.tick(math.ceil(stopping_time(ROBOT) / PERIOD))
    assert all(rig.tick().command.tolist() == [0, 0] for _ in range(100))


def test_short_faults_pass_and_long_ones_end_the_episode(rig: Rig) -> None:
    rig.scan = None
    rig.tick(40)
    rig.scan = FREE
    assert rig.tick(5).decision.reason == "recovering from a fault"
    assert rig.tick(40).decision.source == Source.POLICY
    rig.scan = None
    assert rig.tick(300).ending == Ending.COMMUNICATION_LOSS
    rig.scan = FREE
    assert rig.tick(100).decision.reason == "not started"


def test_an_operator_takes_over_without_a_jump_and_hands_over(rig: Rig) -> None:
    rig.human = (True, (0.1, 0.5))
    previous = rig.core.builder.commands[0].copy()
    for _ in range(30):
        made = rig.tick()
        assert made.decision.source == Source.HUMAN
        assert abs(made.command[0] - previous[0]) <= ROBOT.limits.braking * PERIOD + 1e-9
        assert abs(made.command[1] - previous[1]) <= ROBOT.limits.turn_acceleration * PERIOD + 1e-9
        previous = made.command
    assert made.command == pytest.approx([0.1, 0.5])
    rig.human = (False, (0.0, 0.0))
    assert rig.tick().decision.source == Source.HOLD
    assert rig.tick(ROBOT.decision_ticks + 1).decision.source == Source.POLICY


def test_a_lost_operator_stops_the_robot_until_resume(rig: Rig) -> None:
    rig.human = (True, (0.3, 0.0))
    rig.tick(10)
    rig.human = None
    assert rig.tick(60).command.tolist() == [0, 0]
    assert rig.tick(500).decision.source == Source.HOLD
    rig.core.resume()
    assert rig.tick(ROBOT.decision_ticks + 1).decision.source == Source.POLICY


def test_an_operator_cannot_drive_into_an_obstacle_either(rig: Rig) -> None:
    near = FREE.copy()
    near[30] = 0.21  # beam 30 looks forward; the disc's rim is at 0.17 m, its margin at 0.22 m
    rig.scan = near
    rig.human = (True, (0.4, 0.0))
    made = rig.tick(20)
    assert made.decision.source == Source.HUMAN and made.command[0] == 0 and "collision" in made.clips


def test_the_estop_heartbeat() -> None:
    rig = Rig(estop_timeout=0.09)
    rig.core.on_estop(False)
    rig.tick()
    rig.core.start()
    made = rig.tick(6)
    assert made.decision.source == Source.ESTOP and made.decision.reason == "the last e-stop heartbeat is 0.10 s old"
    assert made.ending == Ending.ESTOP
    with pytest.raises(RuntimeError, match="cannot be cleared: the last e-stop heartbeat is"):
        rig.core.clear_estop()
    rig.core.on_estop(False)
    rig.core.clear_estop()
    assert rig.core.tick().decision.reason == "not started"


def test_a_press_of_the_estop_shorter_than_a_tick_is_latched(rig: Rig) -> None:
    rig.core.on_estop(True)
    rig.core.on_estop(False)
    made = rig.tick()
    assert made.decision.source == Source.ESTOP and made.ending == Ending.ESTOP
    assert rig.tick(100).decision.reason == "the e-stop is pressed"
    rig.core.clear_estop()
    assert rig.tick().decision.reason == "not started"


@pytest.mark.parametrize("measured", [(0.405, 0.1), (0.4, 1.1), (-0.12, 0.0)])
def test_a_start_while_moving_begins_at_the_measured_motion(rig: Rig, measured: tuple[float, float]) -> None:
    """Noise takes the measurement over a limit (0.4 m/s forward, 0.1 m/s backward, pi / 3 rad/s): it counts as the limit."""
    rig.core.on_odometry((0.0, 0.0, 0.0), measured, rig.now)
    rig.core.start()
    assert rig.core.builder.commands[0] == pytest.approx(np.clip(measured, [-0.1, -math.pi / 3], [0.4, math.pi / 3]))


def test_a_scan_is_placed_where_the_robot_was_when_it_was_measured() -> None:
    """Forward at 1 m/s and 50 Hz: the scan of 0.14 s ago belongs 0.14 m behind the newest pose, and -0.14 rad beside it."""
    rig = Rig()
    for tick in range(20):
        rig.now += PERIOD
        rig.core.on_odometry((0.02 * tick, 0.0, 0.02 * tick), (0.4, 0.0), rig.now)
    rig.core.on_scan(FREE, rig.now - 0.14)
    assert rig.core.builder.scan_poses[0] == pytest.approx([0.38 - 0.14, 0.0, 0.38 - 0.14])
    rig.core.on_scan(FREE, rig.now)
    assert rig.core.builder.scan_poses[0] == pytest.approx([0.38, 0.0, 0.38])


class Disk(RobotLog):
    full = False

    def write(self, record: Mapping[str, Any], durable: bool = False) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(record, durable)


def test_a_log_that_cannot_be_written_is_a_fault_and_no_end(tmp_path: Path) -> None:
    with Disk(tmp_path / "robot.jsonl") as log:
        rig = Rig(log).drive()
        log.full = True
        # 0.4 m/s at 2.5 m/s^2 and 50 Hz, 0.05 m/s a tick: the tick that meets the full disk, then eight to zero.
        assert [round(float(rig.tick().command[0]), 9) for _ in range(9)] == [0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.0]
        assert rig.tick().decision.reason == "the log cannot be written: No space left on device"
        rig.core.stop()
        with pytest.raises(RuntimeError, match="cannot start: the log cannot be written"):
            rig.core.start()
        rig.core.estop()
        log.full = False
        rig.core.clear_estop()
        assert rig.tick(30).decision.reason == "not started", "there is room again"


def test_the_time_limit() -> None:
    rig = Rig(time_limit=1.0).drive()
    assert rig.tick(60).ending == Ending.TIMEOUT


def test_a_new_path_while_driving_does_not_reset_the_command(rig: Rig) -> None:
    rig.core.on_path(np.array([(0.0, 0.0), (0.0, 5.0)]))
    assert rig.tick().command[0] == pytest.approx(ROBOT.limits.speed, abs=ROBOT.limits.braking * PERIOD)


def test_the_log_tells_who_drove_and_why(tmp_path: Path) -> None:
    path = tmp_path / "robot.jsonl"
    with RobotLog(path) as log:
        rig = Rig(log).drive()
        rig.core.on_estop(True)
        rig.tick(2)
    records = list(read_log(path))
    events = [record for record in records if "event" in record]
    assert [record["event"] for record in events] == ["start", "input", "end"] and events[2]["ending"] == "e-stop"
    assert events[1]["problem"] == "the e-stop is pressed"
    ticks = [record for record in records if "tick" in record]
    assert [record["tick"] for record in ticks] == list(range(1, len(ticks) + 1))
    assert ticks[-1]["source"] == "e-stop" and ticks[-1]["reason"] == "the e-stop is pressed" and ticks[-1]["wanted"] is None
    driven = next(record for record in ticks if record["source"] == "policy")
    assert driven["wanted"] == [0.4, 0.0] and driven["clips"] == ["acceleration"] and driven["policy_version"] == "v1"
    assert driven["ages"]["scan"] == pytest.approx(0, abs=1e-6) and driven["ages"]["operator's message"] is None


def test_a_whole_episode_on_the_simulated_base() -> None:
    """Scans at 10 Hz and odometry at 50 Hz, as the fake base sends them; the baseline is the policy."""
    settings = task_settings("tracking_slow", {"scene": {"moving": (0, 0), "standing": (0, 1)}})
    scenario = draw(settings, 4)
    plants, now = Plants(settings, 1), 0.0
    plants.begin(0, scenario)
    row = np.zeros(1, np.int64)
    driver: list[PursuitBaseline] = []
    core = WheeledCore(settings.robot, lambda observation: driver[0].act(observation), clock=lambda: now)
    driver.append(PursuitBaseline(core.builder, settings.target_speed))
    core.on_path(scenario.path)
    for tick in range(int(settings.time_limit / PERIOD)):
        core.on_odometry(tuple(plants.estimates[0]), tuple(plants.velocities[0]))
        if tick % 5 == 0:
            plants.sweep(row)
            core.on_scan(plants.ranges[0])
        if tick == 0:
            core.start()
        made = core.tick()
        plants.advance(made.command[None], row)
        now += PERIOD
        if made.ending is not None:
            break
    assert core.ending == Ending.SUCCESS and plants.clearances[0] > 0
    assert np.hypot(*(scenario.path[-1] - plants.poses[0, :2])) < 2 * settings.tolerance

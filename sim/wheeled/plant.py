"""Robots, their sensors and their surroundings, without any task: what a fake base drives and what the simulator is made of.

Legend: N environments, R rows that are named, K beams, C obstacles, W walls, Q queued commands.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64, Int64

from vla_rl.sim.wheeled import physics
from vla_rl.sim.wheeled.scenario import Scenario
from vla_rl.sim.wheeled.settings import WheeledSettings


class Plants:
    """N robots, each in a world of its own."""

    def __init__(self, settings: WheeledSettings, rows: int) -> None:
        self._settings = settings
        robot, scene = settings.robot, settings.scene
        discs, segments = scene.standing[1] + scene.moving[1], 4 * max(scene.boxes[1], 1)
        self.poses = np.zeros((rows, 3))
        """True (x, y, yaw), m and rad."""
        self.estimates = np.zeros((rows, 3))
        """The same as odometry and map see it."""
        self.velocities = np.zeros((rows, 2))
        """Forward and turning speed as wheels and gyroscope measure them, m/s and rad/s."""
        self.ranges: Float32[np.ndarray, "N K"] = np.full((rows, robot.scanner.beams), np.inf, np.float32)
        """The newest scan as a driver sends it, m."""
        self.clearances = np.full(rows, np.inf)
        """Smallest distance between rim and obstacle since `forget_clearances`, m; at most 0: they touched."""
        self.body, self.plant = np.zeros(rows, physics.BODY), np.zeros(rows, physics.PLANT)
        self.obstacles, self.walls = np.zeros((rows, discs), physics.OBSTACLE), np.zeros((rows, segments, 4))
        self.obstacle_counts, self.wall_counts = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self._queue = np.zeros((rows, 1 + math.ceil(settings.plant.delay[1] / robot.control_period), 2))
        self._random = np.zeros(rows, np.uint64)
        angles = robot.scanner.angle_min + robot.scanner.angle_increment * np.arange(robot.scanner.beams)
        self._beams = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def begin(self, row: int, scenario: Scenario) -> None:
        """Put the robot of a row, at rest, at the start of a scenario."""
        discs, segments = len(scenario.obstacles), len(scenario.walls)
        self.poses[row] = self.estimates[row] = scenario.pose
        self.obstacles[row, :discs], self.obstacle_counts[row] = scenario.obstacles, discs
        self.walls[row, :segments], self.wall_counts[row] = scenario.walls, segments
        self.plant[row], self._random[row] = scenario.plant, scenario.random
        self.body[row] = np.zeros((), physics.BODY)
        self.velocities[row], self.clearances[row] = 0, np.inf

    def forget_clearances(self) -> None:
        self.clearances[self.clearances > 0] = np.inf

    def advance(self, commands: Float64[np.ndarray, "N 2"], rows: Int64[np.ndarray, "R"]) -> None:
        """One control period under (forward m/s, left turn rad/s); a robot that has touched something stays where it is."""
        robot = self._settings.robot
        physics.advance(
            robot.control_period, robot.radius, self._settings.scene.yield_distance, rows, commands, self._queue, self.plant,
            self.body, self.poses, self.estimates, self.velocities, self.obstacles, self.obstacle_counts, self.walls,
            self.wall_counts, self.clearances, self._random,
        )  # fmt: skip

    def scene(self, row: int) -> tuple[np.ndarray, Float64[np.ndarray, "W 4"]]:
        """Obstacles ([C] of `OBSTACLE`) and walls of a row as they are now."""
        return self.obstacles[row, : self.obstacle_counts[row]], self.walls[row, : self.wall_counts[row]]

    def sweep(self, rows: Int64[np.ndarray, "R"]) -> None:
        """Take new scans in the rows named."""
        layout = self._settings.robot.scanner
        physics.sweep(
            (layout.x, layout.y, layout.yaw), (layout.range_min, layout.range_max), self._beams, rows, self.plant, self.poses,
            self.obstacles, self.obstacle_counts, self.walls, self.wall_counts, self._random, self.ranges,
        )  # fmt: skip

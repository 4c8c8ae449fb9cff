"""The classical driver that a policy is compared with: pure pursuit, with a dynamic window around obstacles.

Pure pursuit (Coulter 1992) steers on the arc through a point ahead on the path. The dynamic window (Fox, Burgard, Thrun
1997) tries the commands that are within reach of the present one, drops those that would hit what the scan shows before
they could stop, and takes the one with the least cost.

Legend: N environments, K beams, H instants of a prediction, V forward speeds, U turning speeds.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64

from vla_rl.config import Positive, Rate, Section
from vla_rl.driving.compiled import compiled
from vla_rl.driving.observation import ObservationBuilder
from vla_rl.driving.safety import action_of
from vla_rl.driving.settings import NotNegative

CLOSER = 0.01
"""m, of what already is within the margin."""
WINDOW = 3
"""The dynamic window holds what the robot can reach within so many decisions."""


class BaselineSettings(Section):
    """Tuned by hand on training seeds."""

    horizon: Rate = 2.4
    """Length of a prediction, s."""
    instants: Positive = 12
    """Of a prediction."""
    hold: Rate = 0.8
    """A prediction holds the command for so long, and then goes straight on at the target speed, s."""
    lookahead: Rate = 1.4
    """To pure pursuit's point, in seconds at the target speed."""
    speeds: Positive = 7
    """Forward speeds that are tried."""
    turns: Positive = 15
    """Turning speeds that are tried with each."""
    margin: NotNegative = 0.03
    """Between rim and obstacle that a prediction must keep beyond the safety layer's own margin, m."""
    comfort: Rate = 0.15
    """Clearances above this cost nothing, m."""
    obstacle_cost: NotNegative = 1.0
    """Of a prediction that touches an obstacle; 1 is what standing still costs."""
    path_cost: NotNegative = 0.5
    """Of a mean distance from the path as long as the way that the robot makes within the horizon."""
    pursuit_cost: NotNegative = 0.1
    """Of turning as far from pure pursuit as the robot can."""


class PursuitBaseline:
    """Drives the rows of a builder, from the same scans, poses and paths as a policy."""

    def __init__(self, builder: ObservationBuilder, target_speed: float, settings: BaselineSettings | None = None) -> None:
        """`target_speed` in m/s."""
        self.builder, self.target_speed = builder, target_speed
        self.settings = settings or BaselineSettings()
        count = self.settings.instants
        self._times = self.settings.horizon * np.arange(1, count + 1) / count
        rows = len(builder.poses)
        self._reference = np.zeros((rows, count + 2, 2))
        """Path points from here to the horizon, then the one that pure pursuit aims at."""
        self._commands = np.zeros((rows, 2))
        self._rows = np.arange(rows)

    def act(self, observation: Float32[np.ndarray, "N O"]) -> Float32[np.ndarray, "N 2"]:
        """Actions for what the builder holds; the observation itself is not needed."""
        builder, chosen = self.builder, self.settings
        robot = builder.settings
        reach = np.concatenate([[0.0], self._times, [chosen.lookahead]]) * self.target_speed
        if robot.view.reference == "goal":
            self._towards_goal(reach)
        else:
            builder.paths.ahead(builder.poses, reach, self._rows, self._reference)
        limits = robot.limits
        period = WINDOW * robot.decision_period
        window = (
            limits.speed, limits.reverse, limits.turn, limits.acceleration * period, limits.turn_acceleration * period,
            limits.braking * period, limits.turn_braking * period, limits.braking,
        )  # fmt: skip
        keep = robot.radius + robot.safety.margin + chosen.margin
        prices = (chosen.obstacle_cost, chosen.pursuit_cost, chosen.path_cost)
        costs = (keep, chosen.comfort, *prices, self.target_speed, chosen.hold)
        _choose(
            window, costs, chosen.speeds, chosen.turns, self._times, self._reference, builder.commands, builder.scans.points,
            self._commands,
        )  # fmt: skip
        return action_of(robot, self._commands)

    def _towards_goal(self, reach: Float64[np.ndarray, "H"]) -> None:
        """The reference is the straight line to the goal, and the goal itself beyond."""
        paths, poses = self.builder.paths, self.builder.poses
        away = paths.points[self._rows, paths.counts - 1] - poses[:, :2]
        distance = np.maximum(np.hypot(away[:, 0], away[:, 1]), 1e-9)
        bearing = np.arctan2(away[:, 1], away[:, 0]) - poses[:, 2]
        along = np.minimum(reach[None], distance[:, None])
        self._reference[..., 0] = along * np.cos(bearing)[:, None]
        self._reference[..., 1] = along * np.sin(bearing)[:, None]


@compiled
def _pursuit(reference, speed, turn):  # type: ignore[no-untyped-def]
    """Turning speed of the arc from here, along x, through a point: curvature 2 y / distance^2."""
    x, y = reference[0], reference[1]
    squared = x * x + y * y
    if squared < 1e-6:
        return 0.0
    if x < 0.0:
        return math.copysign(turn, y)
    return min(max(2.0 * y / squared * speed, -turn), turn)


@compiled
def _cost(v, w, times, reference, points, near, bounds, costs, braking):  # type: ignore[no-untyped-def]
    """Progress that is missing, distance from the reference and a price for clearance; inf where the command hits
    something before it can stop."""
    _, comfort, obstacle_cost, _, path_cost, target, hold = costs
    way = target * times[-1]
    aside, clearance, progress = 0.0, np.inf, 0.0
    stop = abs(v) / braking + times[0]
    count = len(times)
    for k in range(count):
        held = min(times[k], hold)
        angle = w * held
        if abs(angle) < 1e-6:
            x, y = v * held, 0.5 * v * held * angle
        else:
            x, y = v / w * math.sin(angle), v / w * (1.0 - math.cos(angle))
        x += target * (times[k] - held) * math.cos(angle)
        y += target * (times[k] - held) * math.sin(angle)
        nearest, reached = np.inf, 0
        for j in range(count + 1):
            away = (reference[j, 0] - x) ** 2 + (reference[j, 1] - y) ** 2
            if away < nearest:
                nearest, reached = away, j
        aside += math.sqrt(nearest)
        progress += reached
        for n in range(len(near)):
            away = math.hypot(points[near[n], 0] - x, points[near[n], 1] - y) - bounds[n]
            if away < 0.0 and times[k] <= stop:
                return np.inf
            clearance = min(clearance, away)
    narrow = min(max(1.0 - clearance / comfort, 0.0), 2.0)
    return 1.0 - progress / (0.5 * count * (count + 1)) + path_cost * aside / count / way + obstacle_cost * narrow


@compiled
def _choose(window, costs, speeds, turns, times, references, commands, points, out):  # type: ignore[no-untyped-def]
    speed, reverse, turn, faster, turn_faster, slower, turn_slower, braking = window
    target = costs[5]
    near, bounds = np.empty(points.shape[1], np.int64), np.empty(points.shape[1])
    for row in range(len(commands)):
        count = 0
        sight = costs[0] + costs[1] + max(speed, target) * times[-1]
        for i in range(points.shape[1]):
            distance = math.hypot(points[row, i, 0], points[row, i, 1])
            if distance < sight:
                # Of what is too near already, only coming nearer counts: a way out must remain.
                near[count], bounds[count] = i, min(costs[0], distance - CLOSER)
                count += 1
        v0, w0 = commands[row, 0], commands[row, 1]
        low_v, high_v = max(v0 - (slower if v0 > 0 else faster), -reverse), min(v0 + faster, min(speed, 1.1 * target))
        low_w, high_w = max(w0 - turn_slower, -turn), min(w0 + turn_slower, turn)
        pursued = _pursuit(references[row, -1], target, turn)
        best, best_v, best_w = np.inf, 0.0, 0.0  # a stop, where nothing is safe
        for a in range(speeds):
            v = low_v + (high_v - low_v) * a / max(speeds - 1, 1)
            for b in range(turns + 1):
                w = low_w + (high_w - low_w) * b / max(turns - 1, 1) if b < turns else min(max(pursued, low_w), high_w)
                cost = _cost(v, w, times, references[row], points[row], near[:count], bounds[:count], costs, braking)
                cost += costs[3] * abs(w - pursued) / turn
                if cost < best:
                    best, best_v, best_w = cost, v, w
        out[row, 0], out[row, 1] = best_v, best_w

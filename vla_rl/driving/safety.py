"""The deterministic layer between what is wanted and what the motors get, the same in training as on the robot.

Legend: B rows, R rows that are named, K beams. Commands are (forward m/s, left turn rad/s) of base_link.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64, Int64

from vla_rl.driving.compiled import compiled
from vla_rl.driving.settings import RobotSettings

SPEED, ACCELERATION, COLLISION = 1, 2, 4
"""Bits of a clip mask: which limit changed a command."""
SAMPLES = 12
"""Instants at which contact is looked for, evenly spread over the time to collision."""


def command_of(
    settings: RobotSettings, actions: Float32[np.ndarray, "B 2"], out: Float64[np.ndarray, "B 2"] | None = None
) -> Float64[np.ndarray, "B 2"]:
    """The command that an action in [-1, 1]^2 wants; action 0 is standing still, also where forward and backward differ."""
    limits = settings.limits
    wanted = np.empty(actions.shape) if out is None else out
    bounded = np.clip(actions.astype(np.float64), -1.0, 1.0)
    wanted[:, 0] = np.where(bounded[:, 0] > 0, bounded[:, 0] * limits.speed, bounded[:, 0] * limits.reverse)
    wanted[:, 1] = bounded[:, 1] * limits.turn
    return wanted


def action_of(settings: RobotSettings, commands: Float64[np.ndarray, "B 2"]) -> Float32[np.ndarray, "B 2"]:
    """The action that wants a command: the inverse of `command_of`, within [-1, 1]."""
    limits = settings.limits
    forward = commands[:, 0] / np.where(commands[:, 0] > 0, limits.speed, max(limits.reverse, 1e-9))
    return np.clip(np.stack([forward, commands[:, 1] / limits.turn], axis=1), -1.0, 1.0).astype(np.float32)


class SafetyLayer:
    """Speed and acceleration limits, and a limit on speed towards whatever the newest scan shows."""

    def __init__(self, settings: RobotSettings, rows: int) -> None:
        limits, safety = settings.limits, settings.safety
        self._limits = (
            limits.speed, limits.reverse, limits.turn, limits.acceleration, limits.turn_acceleration, limits.braking,
            limits.turn_braking, settings.control_period,
        )  # fmt: skip
        self._guard = (safety.time_to_collision, settings.radius, settings.radius + safety.margin, safety.creep)
        self.clips = np.zeros(rows, np.uint8)
        """Which limits the last call of `limit` met, as a mask of SPEED, ACCELERATION, COLLISION."""

    def limit(
        self,
        wanted: Float64[np.ndarray, "B 2"],
        commands: Float64[np.ndarray, "B 2"],
        points: Float64[np.ndarray, "B K 2"],
        scan_poses: Float64[np.ndarray, "B 3"],
        poses: Float64[np.ndarray, "B 3"],
        rows: Int64[np.ndarray, "R"],
    ) -> None:
        """Change `commands`, the last ones, into the next ones of the rows named; one control period lies between them.

        `points` are returns in base_link as it stood at `scan_poses`, m, NaN where there is none.
        """
        _limit(self._limits, self._guard, wanted, commands, points, scan_poses, poses, rows, self.clips)

    def stop(self, commands: Float64[np.ndarray, "B 2"], rows: Int64[np.ndarray, "R"]) -> None:
        """Change `commands` into the next ones of a stop: towards zero with full braking."""
        _stop(self._limits, commands, rows)


def stopping_time(settings: RobotSettings) -> float:
    """Of the longest stop, from full speed and full turn, s."""
    limits = settings.limits
    return max(limits.speed / limits.braking, limits.reverse / limits.braking, limits.turn / limits.turn_braking)


@compiled
def _towards(now, wanted, faster, slower):  # type: ignore[no-untyped-def]
    """The next value on the way from `now` to `wanted`: at most `faster` away from zero, at most `slower` towards it."""
    if now * wanted < 0.0:
        wanted = 0.0
    if abs(wanted) > abs(now):
        return now + min(max(wanted - now, -faster), faster)
    return now + min(max(wanted - now, -slower), slower)


@compiled
def _stop(limits, commands, rows):  # type: ignore[no-untyped-def]
    braking, turn_braking, period = limits[5], limits[6], limits[7]
    for row in rows:
        commands[row, 0] = _towards(commands[row, 0], 0.0, 0.0, braking * period)
        commands[row, 1] = _towards(commands[row, 1], 0.0, 0.0, turn_braking * period)


@compiled
def _contact(speed, turn, horizon, radius, reach, points, x, y, yaw):  # type: ignore[no-untyped-def]
    """Seconds until a disc of radius `reach` that starts at (x, y, yaw) and keeps its speeds touches a point; inf: not within
    `horizon`. Of a point that the disc covers already, half the distance to the robot's rim may still be used up, so that
    driving past is possible; what touches the rim must not be approached at all."""
    earliest = SAMPLES + 1
    forward_x, forward_y = math.cos(yaw), math.sin(yaw)
    centre = np.empty((SAMPLES, 2))
    for k in range(SAMPLES):
        time = horizon * (k + 1) / SAMPLES
        angle = turn * time
        if abs(angle) < 1e-6:
            ahead, left = speed * time, 0.5 * speed * time * angle
        else:
            ahead, left = speed / turn * math.sin(angle), speed / turn * (1.0 - math.cos(angle))
        centre[k, 0] = x + forward_x * ahead - forward_y * left
        centre[k, 1] = y + forward_y * ahead + forward_x * left
    farthest = reach + abs(speed) * horizon
    for i in range(points.shape[0]):
        dx, dy = points[i, 0] - x, points[i, 1] - y
        start = dx * dx + dy * dy
        if not start <= farthest * farthest:
            continue
        bound = min(reach, 0.5 * (math.sqrt(start) + radius))
        if start < radius * radius:
            if (forward_x * dx + forward_y * dy) * speed > 0.0:
                return 0.0
            continue
        for k in range(min(earliest - 1, SAMPLES)):
            away = (points[i, 0] - centre[k, 0]) ** 2 + (points[i, 1] - centre[k, 1]) ** 2
            if away < bound * bound:
                earliest = k + 1
                break
    # The last sampled instant without contact: the truth lies within one sample after it.
    return np.inf if earliest > SAMPLES else horizon * (earliest - 1) / SAMPLES


@compiled
def _limit(limits, guard, wanted, commands, points, scan_poses, poses, rows, clips):  # type: ignore[no-untyped-def]
    speed, reverse, turn, acceleration, turn_acceleration, braking, turn_braking, period = limits
    horizon, radius, reach, creep = guard
    for row in rows:
        clip = 0
        v = min(max(wanted[row, 0], -reverse), speed)
        w = min(max(wanted[row, 1], -turn), turn)
        if v != wanted[row, 0] or w != wanted[row, 1]:
            clip |= SPEED
        if horizon > 0.0 and v != 0.0:
            dx, dy = poses[row, 0] - scan_poses[row, 0], poses[row, 1] - scan_poses[row, 1]
            cosine, sine = math.cos(scan_poses[row, 2]), math.sin(scan_poses[row, 2])
            x, y, yaw = cosine * dx + sine * dy, cosine * dy - sine * dx, poses[row, 2] - scan_poses[row, 2]
            time = _contact(v, w, horizon, radius, reach, points[row], x, y, yaw)
            if time < horizon:
                # At speed v * time / horizon the same contact is `horizon` away.
                share = time / horizon
                if abs(v) * share < creep:
                    v = 0.0
                else:
                    v, w = v * share, w * share
                clip |= COLLISION
        # A stop for an obstacle brakes fully; the rest keeps to what wheels and load bear.
        next_v = _towards(commands[row, 0], v, acceleration * period, braking * period)
        next_w = _towards(commands[row, 1], w, turn_acceleration * period, turn_braking * period)
        if next_v != v or next_w != w:
            clip |= ACCELERATION
        commands[row, 0], commands[row, 1] = next_v, next_w
        clips[row] = clip

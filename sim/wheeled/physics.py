"""Motion, collisions, odometry and scanner of B robots, compiled; docs/wheeled.md has the equations.

Every row has a random stream of its own, so that what it does depends neither on the other rows nor on their number.

Legend: B rows, R rows that are named, C obstacles, W walls, Q queued commands, K beams.
"""

from __future__ import annotations

import math

import numpy as np

from vla_rl.driving.compiled import compiled

PLANT = np.dtype([(name, np.float64) for name in (
    "track", "left_error", "right_error", "track_error", "lag", "wheel_acceleration", "slip", "slip_variation", "skid",
    "encoder_noise", "gyro_noise", "gyro_bias", "fix_noise", "scan_noise", "scan_noise_relative", "scan_dropout",
)] + [("delay", np.int64), ("fix_period", np.int64)])  # fmt: skip
"""Parameters of a row; `delay` and `fix_period` in ticks (0: no fixes), the others as `PlantSettings` has them."""
BODY = np.dtype([(name, np.float64) for name in (
    "left", "right", "slip_left", "slip_right", "forward", "turning",
)] + [("tick", np.int64)])  # fmt: skip
"""State of a row beside its pose: rim speeds (m/s), slip around the mean, true speeds (m/s, rad/s), ticks since the start."""
OBSTACLE = np.dtype([(name, np.float64) for name in (
    "x", "y", "radius", "from_x", "from_y", "direction_x", "direction_y", "length", "along", "speed",
)])  # fmt: skip
"""A disc at (x, y). One that moves is `along` its way, which begins at (from_x, from_y) and is `length` long, with `speed`
(negative: on the way back); m, m/s."""
SLIP_TIME = 0.5
"""Time constant of the changes of slip, s."""


@compiled
def _uniform(random, row):  # type: ignore[no-untyped-def]
    """In [0, 1), by splitmix64 (Steele et al. 2014)."""
    random[row] += np.uint64(0x9E3779B97F4A7C15)
    z = random[row]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 1.1102230246251565e-16


@compiled
def _normal(random, row):  # type: ignore[no-untyped-def]
    """By Box and Muller."""
    radius = math.sqrt(-2.0 * math.log(1.0 - _uniform(random, row)))
    return radius * math.cos(2.0 * math.pi * _uniform(random, row))


@compiled
def _drive(period, plant, body, poses, row, forward, turn, random):  # type: ignore[no-untyped-def]
    """Wheels, slip and pose of one row under a command that has reached the motors."""
    p, b = plant[row], body[row]
    half = 0.5 * turn * p.track
    most = p.wheel_acceleration * period
    b.left += min(max((forward - half - b.left) * period / p.lag, -most), most)
    b.right += min(max((forward + half - b.right) * period / p.lag, -most), most)
    kick = p.slip_variation * math.sqrt(2.0 * period / SLIP_TIME)
    b.slip_left += -b.slip_left * period / SLIP_TIME + kick * _normal(random, row)
    b.slip_right += -b.slip_right * period / SLIP_TIME + kick * _normal(random, row)
    left = b.left * (1.0 + p.left_error) * (1.0 - min(max(p.slip + b.slip_left, 0.0), 0.9))
    right = b.right * (1.0 + p.right_error) * (1.0 - min(max(p.slip + b.slip_right, 0.0), 0.9))
    b.forward = 0.5 * (left + right)
    b.turning = (right - left) / (p.track * (1.0 + p.track_error))
    sideways = -p.skid * b.forward * b.turning
    middle = poses[row, 2] + 0.5 * b.turning * period
    poses[row, 0] += (b.forward * math.cos(middle) - sideways * math.sin(middle)) * period
    poses[row, 1] += (b.forward * math.sin(middle) + sideways * math.cos(middle)) * period
    poses[row, 2] += b.turning * period


@compiled
def _estimate(period, plant, body, poses, estimates, measured, row, random):  # type: ignore[no-untyped-def]
    """Odometry of one row: wheel encoders along, a gyroscope around, and now and then a fix by a map."""
    p, b = plant[row], body[row]
    measured[row, 0] = 0.5 * (b.left + b.right) * (1.0 + p.encoder_noise * _normal(random, row))
    measured[row, 1] = b.turning + p.gyro_bias + p.gyro_noise * _normal(random, row)
    middle = estimates[row, 2] + 0.5 * measured[row, 1] * period
    estimates[row, 0] += measured[row, 0] * math.cos(middle) * period
    estimates[row, 1] += measured[row, 0] * math.sin(middle) * period
    estimates[row, 2] += measured[row, 1] * period
    if p.fix_period > 0 and b.tick % p.fix_period == 0:
        estimates[row, 0] = poses[row, 0] + p.fix_noise * _normal(random, row)
        estimates[row, 1] = poses[row, 1] + p.fix_noise * _normal(random, row)
        estimates[row, 2] = poses[row, 2] + 0.5 * p.fix_noise * _normal(random, row)


@compiled
def _walk(period, obstacles, count, row, x, y, reach, yield_distance):  # type: ignore[no-untyped-def]
    """Move the obstacles of one row, each to and fro on its way; reach: the robot's radius."""
    for i in range(count):
        o = obstacles[row, i]
        if o.speed == 0.0:
            continue
        sign = 1.0 if o.speed > 0.0 else -1.0
        dx, dy = x - o.x, y - o.y
        ahead = (dx * o.direction_x + dy * o.direction_y) * sign > 0.0
        if ahead and math.hypot(dx, dy) < reach + o.radius + yield_distance:
            continue
        o.along += o.speed * period
        if o.along >= o.length or o.along <= 0.0:
            o.along = min(max(o.along, 0.0), o.length)
            o.speed = -o.speed
        o.x = o.from_x + o.along * o.direction_x
        o.y = o.from_y + o.along * o.direction_y


@compiled
def _clearance(obstacles, count, walls, wall_count, row, x, y):  # type: ignore[no-untyped-def]
    """Distance from a point to the nearest obstacle or wall, m."""
    nearest = np.inf
    for i in range(count):
        o = obstacles[row, i]
        nearest = min(nearest, math.hypot(o.x - x, o.y - y) - o.radius)
    for i in range(wall_count):
        ax, ay, bx, by = walls[row, i, 0], walls[row, i, 1], walls[row, i, 2], walls[row, i, 3]
        dx, dy = bx - ax, by - ay
        along = min(max(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0.0), 1.0)
        nearest = min(nearest, math.hypot(ax + along * dx - x, ay + along * dy - y))
    return nearest


@compiled
def advance(  # type: ignore[no-untyped-def]
    period, radius, yield_distance, rows, commands, queue, plant, body, poses, estimates, measured, obstacles, counts, walls,
    wall_counts, clearances, random,
):  # fmt: skip
    """One control period of the rows named. `clearances` keeps the smallest distance between rim and obstacle, m; a row that
    has touched something no longer moves."""
    for row in rows:
        if clearances[row] <= 0.0:
            continue
        tick, length = body[row].tick, queue.shape[1]
        queue[row, tick % length] = commands[row]
        due = tick - plant[row].delay
        forward = queue[row, due % length, 0] if due >= 0 else 0.0
        turn = queue[row, due % length, 1] if due >= 0 else 0.0
        _drive(period, plant, body, poses, row, forward, turn, random)
        body[row].tick += 1
        _estimate(period, plant, body, poses, estimates, measured, row, random)
        _walk(period, obstacles, counts[row], row, poses[row, 0], poses[row, 1], radius, yield_distance)
        free = _clearance(obstacles, counts[row], walls, wall_counts[row], row, poses[row, 0], poses[row, 1]) - radius
        clearances[row] = min(clearances[row], free)


@compiled
def _ray(obstacles, count, walls, wall_count, row, x, y, dx, dy):  # type: ignore[no-untyped-def]
    """Distance from (x, y) along the unit vector (dx, dy) to the first surface, m; inf where there is none."""
    nearest = np.inf
    for i in range(count):
        o = obstacles[row, i]
        rx, ry = o.x - x, o.y - y
        along = rx * dx + ry * dy
        beside = rx * dy - ry * dx
        inside = o.radius * o.radius - beside * beside
        if inside >= 0.0 and along > 0.0:
            nearest = min(nearest, max(along - math.sqrt(inside), 0.0))
    for i in range(wall_count):
        ax, ay = walls[row, i, 0] - x, walls[row, i, 1] - y
        ex, ey = walls[row, i, 2] - walls[row, i, 0], walls[row, i, 3] - walls[row, i, 1]
        across = dx * ey - dy * ex
        if across != 0.0:
            share = (ax * dy - ay * dx) / across
            along = (ax * ey - ay * ex) / across
            if 0.0 <= share <= 1.0 and along >= 0.0:
                nearest = min(nearest, along)
    return nearest


@compiled
def sweep(  # type: ignore[no-untyped-def]
    mount, limits, beams, rows, plant, poses, obstacles, counts, walls, wall_counts, random, ranges
):
    """Scan the rows named into `ranges` [B, K], m, with noise, dropout and infinities as a driver sends them.

    `mount` is (x, y, yaw) of the scanner on the robot; `limits` (range_min, range_max); `beams` [K, 2] the directions in
    the scanner's frame.
    """
    for row in rows:
        p = plant[row]
        cosine, sine = math.cos(poses[row, 2]), math.sin(poses[row, 2])
        x = poses[row, 0] + cosine * mount[0] - sine * mount[1]
        y = poses[row, 1] + sine * mount[0] + cosine * mount[1]
        cosine, sine = math.cos(poses[row, 2] + mount[2]), math.sin(poses[row, 2] + mount[2])
        for k in range(ranges.shape[1]):
            if p.scan_dropout > 0.0 and _uniform(random, row) < p.scan_dropout:
                kind = _uniform(random, row)
                ranges[row, k] = np.nan if kind < 1 / 3 else 0.0 if kind < 2 / 3 else np.inf
                continue
            dx, dy = cosine * beams[k, 0] - sine * beams[k, 1], sine * beams[k, 0] + cosine * beams[k, 1]
            true = _ray(obstacles, counts[row], walls, wall_counts[row], row, x, y, dx, dy)
            if true < np.inf:
                true += (p.scan_noise + p.scan_noise_relative * true) * _normal(random, row)
            ranges[row, k] = np.inf if true > limits[1] else -np.inf if true < limits[0] else true

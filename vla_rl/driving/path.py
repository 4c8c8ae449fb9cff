"""Where a robot is along a path: arc length, cross-track and heading error, points ahead.

Legend: B rows, M points of a path, P previewed points. Poses are (x, y, yaw) in the frame of the path, m and rad.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64

from vla_rl.driving.compiled import compiled

BACK, AHEAD = 0.5, 1.5
"""How far before and after the last nearest point the next one is looked for, m: a path may cross itself."""


class Paths:
    """One path a row, resampled to equal spacing, and the progress along each."""

    def __init__(self, rows: int, spacing: float, capacity: int) -> None:
        """`spacing` in m, about that of the points; `capacity` in points."""
        self.spacing = spacing
        self.spacings = np.full(rows, spacing)
        """Exactly that of each path, m."""
        self.points = np.zeros((rows, capacity, 2))
        self.counts = np.zeros(rows, np.int64)
        """Points of each path; 0: there is none."""
        self.errors = np.zeros((rows, 4))
        """Arc length (m), cross-track error (m, positive to the left of the path), heading error (rad, in [-pi, pi)), and
        arc length that remains (m), since the last `locate`."""
        self._nearest = np.zeros(rows, np.int64)

    def set(self, row: int, points: Float64[np.ndarray, "M 2"]) -> None:
        """Follow another path from its beginning. Raises `ValueError` for what is no path, or too long a one."""
        sampled, length = resample(points, self.spacing, self.points.shape[1])
        self.points[row, : len(sampled)] = sampled
        self.spacings[row] = length / (len(sampled) - 1)
        self.counts[row] = len(sampled)
        self._nearest[row] = 0

    def locate(self, poses: Float64[np.ndarray, "B 3"], rows: Int64[np.ndarray, "R"]) -> None:
        """Update progress and errors of the rows named, each of which must have a path."""
        _locate(self.points, self.counts, self.spacings, poses, rows, self._nearest, self.errors)

    def ahead(
        self,
        poses: Float64[np.ndarray, "B 3"],
        distances: Float64[np.ndarray, "P"],
        rows: Int64[np.ndarray, "R"],
        out: Float64[np.ndarray, "B P 2"],
    ) -> None:
        """Write the points so far (m) ahead of the nearest one in the robot's frame, m; the end, where the path ends."""
        _ahead(self.points, self.counts, self.spacings, self.errors, poses, distances, rows, out)


def resample(points: Float64[np.ndarray, "M 2"], spacing: float, capacity: int) -> tuple[Float64[np.ndarray, "m 2"], float]:
    """Points at equal arc lengths, about `spacing` m apart, along a polyline from its first point to its last; their length, m.

    Raises `ValueError` unless there are two or more finite points with some way between them, for which `capacity` points are
    enough.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(f"a path needs two or more finite points (x, y), not an array of shape {list(points.shape)}")
    with np.errstate(over="ignore"):
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    length = float(arc[-1])
    if length < spacing:
        raise ValueError(f"the path is {length:.3f} m long; the shortest that can be followed has {spacing} m")
    if length / spacing >= capacity - 0.5:
        raise ValueError(f"the path is {length:.0f} m long; at most {capacity * spacing:.0f} m can be followed")
    gaps = round(length / spacing)
    stations = np.linspace(0.0, length, gaps + 1)
    sampled = np.stack([np.interp(stations, arc, points[:, axis]) for axis in range(2)], axis=1)
    # Where a path turns back on itself, a point can be the one before it again: between them there is no direction.
    sampled = sampled[np.append(True, np.hypot(*np.diff(sampled, axis=0).T) > 1e-6 * spacing)]
    if len(sampled) < 2:
        raise ValueError(f"the path is {length:.3f} m long and ends where it begins; that is too short to be followed")
    return sampled, length * ((len(sampled) - 1) / gaps)


@compiled
def _locate(points, counts, spacings, poses, rows, nearest, errors):  # type: ignore[no-untyped-def]
    for row in rows:
        spacing = spacings[row]
        back, ahead = int(round(BACK / spacing)), int(round(AHEAD / spacing))
        x, y, yaw = poses[row, 0], poses[row, 1], poses[row, 2]
        last = counts[row] - 1
        best, best_distance = 0, np.inf
        for i in range(max(nearest[row] - back, 0), min(nearest[row] + ahead, last) + 1):
            distance = (points[row, i, 0] - x) ** 2 + (points[row, i, 1] - y) ** 2
            if distance < best_distance:
                best, best_distance = i, distance
        nearest[row] = best
        # The nearest point of the two segments that meet there, on the infinite line at either end of the path.
        arc, error, direction, smallest = 0.0, 0.0, 0.0, np.inf
        for i in range(max(best - 1, 0), min(best, last - 1) + 1):
            dx, dy = points[row, i + 1, 0] - points[row, i, 0], points[row, i + 1, 1] - points[row, i, 1]
            length = math.sqrt(dx * dx + dy * dy)
            dx, dy = dx / length, dy / length
            rx, ry = x - points[row, i, 0], y - points[row, i, 1]
            along = dx * rx + dy * ry
            if i > 0:
                along = max(along, 0.0)
            if i < last - 1:
                along = min(along, length)
            away = math.hypot(rx - along * dx, ry - along * dy)
            if away < smallest:
                smallest = away
                arc, direction = i * spacing + along, math.atan2(dy, dx)
                error = math.copysign(away, dx * ry - dy * rx)
        errors[row, 0] = arc
        errors[row, 1] = error
        errors[row, 2] = (yaw - direction + math.pi) % (2 * math.pi) - math.pi
        errors[row, 3] = last * spacing - arc


@compiled
def _ahead(points, counts, spacings, errors, poses, distances, rows, out):  # type: ignore[no-untyped-def]
    for row in rows:
        cosine, sine = math.cos(poses[row, 2]), math.sin(poses[row, 2])
        last = counts[row] - 1
        for k in range(len(distances)):
            place = min(max((errors[row, 0] + distances[k]) / spacings[row], 0.0), float(last))
            i = min(int(place), last - 1)
            share = place - i
            x = points[row, i, 0] + share * (points[row, i + 1, 0] - points[row, i, 0]) - poses[row, 0]
            y = points[row, i, 1] + share * (points[row, i + 1, 1] - points[row, i, 1]) - poses[row, 1]
            out[row, k, 0] = cosine * x + sine * y
            out[row, k, 1] = cosine * y - sine * x

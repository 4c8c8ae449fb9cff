"""The one builder of observations: the simulator, the robot's node and the replay of a recording all call it.

Legend: B rows, R rows that are named, K beams, S sectors, P previewed points, O observation size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from vla_rl.driving.compiled import compiled
from vla_rl.driving.path import Paths
from vla_rl.driving.scan import Scan, empty_scan, read_scan
from vla_rl.driving.settings import RobotSettings

TRACKED = 3
"""Numbers of a goal (distance, sine, cosine) and of the errors beside a path."""


@dataclass(frozen=True)
class Field:
    """Some neighbouring numbers of an observation."""

    name: str
    size: int
    unit: str
    """Of the quantity before it was scaled."""
    frame: str
    scale: str
    """From the quantity to the number that the policy sees."""


def observation_fields(settings: RobotSettings) -> tuple[Field, ...]:
    """What an observation holds, in order."""
    view, limits = settings.view, settings.limits
    fields = []
    if view.sectors:
        closeness = f"1 - min(r, {view.view_range}) / {view.view_range}"
        layout = f"scanner, {view.sectors} sectors counter-clockwise from {settings.scanner.angle_min:.4f} rad"
        fields.append(Field("scan", view.sectors, "m", layout, closeness))
        fields.append(Field(f"scan {view.scan_lag} decisions ago", view.sectors, "m", layout, closeness))
    fields.append(Field("velocity", 2, "m/s, rad/s", "base_link: forward, left turn", f"/ {limits.speed}, / {limits.turn:.4f}"))
    fields.append(
        Field("last command", 2, "m/s, rad/s", "base_link: forward, left turn", f"/ {limits.speed}, / {limits.turn:.4f}")
    )
    if view.reference == "goal":
        shown = f"1 - exp(-d / {view.distance_scale}); sin, cos of the bearing"
        fields.append(Field("goal", TRACKED, "m, rad", "base_link", shown))
    else:
        errors = f"e / {view.error_scale} in [-2, 2]; sin, cos of the heading error"
        fields.append(Field("path error", TRACKED, "m, rad", "path: left positive", errors))
        ahead = ", ".join(str(distance) for distance in view.preview)
        fields.append(Field("path ahead", 2 * len(view.preview), "m", f"base_link: (x, y) at {ahead}", f"/ {max(view.preview)}"))
        fields.append(Field("remaining", 1, "m", "along the path", f"min(s, {view.distance_scale}) / {view.distance_scale}"))
    return tuple(fields)


def observation_size(settings: RobotSettings) -> int:
    return sum(field.size for field in observation_fields(settings))


class ObservationBuilder:
    """Keeps, for B rows, the newest of each input, and makes observations of them.

    The owner of a row calls `start` with a path in the frame of the poses, then before each decision `scan` (where there is
    a newer one), sets `poses`, `velocities` and `commands`, and calls `observe`. A goal is the last point of a path.
    """

    def __init__(self, settings: RobotSettings, rows: int) -> None:
        view = settings.view
        self.settings = settings
        self.size = observation_size(settings)
        self.paths = Paths(rows, view.path_spacing, view.path_points)
        self.poses = np.zeros((rows, 3))
        """Estimated (x, y, yaw) in the frame of the path, m and rad."""
        self.velocities = np.zeros((rows, 2))
        """Measured forward and turning speed of base_link, m/s and rad/s."""
        self.commands = np.zeros((rows, 2))
        """The last command that the motors got, m/s and rad/s."""
        self.scans: Scan = empty_scan(settings, rows)
        self.scan_poses = np.zeros((rows, 3))
        """Estimated pose when the scan was taken."""
        self._history = np.zeros((rows, view.scan_lag + 1, view.sectors))
        """Closeness of the sectors at the last decisions, in a ring."""
        self._decisions = np.zeros(rows, np.int64)
        self._preview = np.zeros((rows, len(view.preview), 2))
        self._distances = np.array(view.preview)

    def start(self, row: int, path: Float64[np.ndarray, "M 2"]) -> None:
        """Forget the row's past and follow `path`. Raises `ValueError` for what is no path."""
        self.paths.set(row, path)
        self._decisions[row] = 0
        self.commands[row] = 0

    def scan(self, ranges: Float32[np.ndarray, "B K"], rows: Int64[np.ndarray, "R"]) -> None:
        """Take new scans in, which were taken at the present `poses`. Raises `ValueError` for another number of beams."""
        read_scan(self.settings.scanner, ranges, rows, self.scans)
        self.scan_poses[rows] = self.poses[rows]

    def observe(self, rows: Int64[np.ndarray, "R"], out: Float32[np.ndarray, "B O"]) -> None:
        """Write the observations of the rows named; each call counts as a decision."""
        view, limits = self.settings.view, self.settings.limits
        self.paths.locate(self.poses, rows)
        self.paths.ahead(self.poses, self._distances, rows, self._preview)
        scales = (view.view_range, limits.speed, limits.turn, view.error_scale, view.distance_scale, max(view.preview))
        _compose(
            scales, view.reference == "goal", rows, self.scans.sectors, self._history, self._decisions, self.velocities,
            self.commands, self.poses, self.paths.points, self.paths.counts, self.paths.errors, self._preview, out,
        )  # fmt: skip


@compiled
def _compose(  # type: ignore[no-untyped-def]
    scales, to_goal, rows, sectors, history, decisions, velocities, commands, poses, points, counts, errors, ahead, out
):
    view_range, speed, turn, error_scale, distance_scale, preview_scale = scales
    ring, size = history.shape[1], history.shape[2]
    for row in rows:
        now = decisions[row] % ring
        for sector in range(size):
            closeness = 1.0 - min(sectors[row, sector], view_range) / view_range
            if decisions[row] == 0:
                history[row, :, sector] = closeness
            history[row, now, sector] = closeness
            out[row, sector] = closeness
            out[row, size + sector] = history[row, (now + 1) % ring, sector]
        decisions[row] += 1
        at = 2 * size
        out[row, at] = velocities[row, 0] / speed
        out[row, at + 1] = velocities[row, 1] / turn
        out[row, at + 2] = commands[row, 0] / speed
        out[row, at + 3] = commands[row, 1] / turn
        at += 4
        if to_goal:
            end = counts[row] - 1
            x, y = points[row, end, 0] - poses[row, 0], points[row, end, 1] - poses[row, 1]
            bearing = math.atan2(y, x) - poses[row, 2]
            out[row, at] = 1.0 - math.exp(-math.hypot(x, y) / distance_scale)
            out[row, at + 1], out[row, at + 2] = math.sin(bearing), math.cos(bearing)
            continue
        out[row, at] = min(max(errors[row, 1] / error_scale, -2.0), 2.0)
        out[row, at + 1], out[row, at + 2] = math.sin(errors[row, 2]), math.cos(errors[row, 2])
        at += 3
        for k in range(ahead.shape[1]):
            out[row, at] = ahead[row, k, 0] / preview_scale
            out[row, at + 1] = ahead[row, k, 1] / preview_scale
            at += 2
        out[row, at] = min(errors[row, 3], distance_scale) / distance_scale

"""Where the robot was a moment ago: a scan belongs where it was measured, not where the robot is when it arrives."""

from __future__ import annotations

import math

Pose = tuple[float, float, float]


class PoseHistory:
    """Stamped poses (x, y, yaw), m and rad."""

    def __init__(self, kept: float) -> None:
        """`kept` in s: poses that are further from the newest one's stamp are forgotten, also after a clock has jumped."""
        self._kept = kept
        self._poses: list[tuple[float, Pose]] = [(-math.inf, (0.0, 0.0, 0.0))]

    def add(self, measured: float, pose: Pose) -> None:
        """`measured` in s."""
        recent = [one for one in self._poses if abs(measured - one[0]) <= self._kept]
        self._poses = [(measured, pose), *recent]

    def at(self, measured: float) -> Pose:
        """The pose whose stamp is nearest to `measured`, s; the origin before the first."""
        return min(self._poses, key=lambda one: abs(measured - one[0]))[1]

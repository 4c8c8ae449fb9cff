"""The scene from above, for videos.

Legend: N environments, O observation size, D action size, H x W image size, T frames or points of a trail, K beams,
M points of a path, W walls.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from vla_rl.driving.settings import RobotSettings

BACKGROUND, PATH, TRAIL, WALL, STANDING, MOVING, ROBOT, BEAM = (
    (250, 250, 248), (150, 180, 220), (30, 90, 200), (90, 90, 90), (120, 120, 120), (217, 119, 6), (22, 130, 90), (235, 200, 200),
)  # fmt: skip
MARGIN = 0.8
"""Around path and robot, m."""


class TopView:
    """Draws one episode; x points right and y up."""

    def __init__(self, path: Float64[np.ndarray, "M 2"], robot: RobotSettings, size: int = 480) -> None:
        """The picture shows the whole path and is `size` pixels square."""
        low, high = path.min(axis=0), path.max(axis=0)
        self._scale = size / (float((high - low).max()) + 2 * (MARGIN + robot.radius))
        self._centre = 0.5 * (low + high)
        self._path, self._robot, self._size = path, robot, size
        self._trail: list[np.ndarray] = []

    def draw(
        self,
        pose: Float64[np.ndarray, "3"],
        obstacles: np.ndarray,
        walls: Float64[np.ndarray, "W 4"],
        points: Float64[np.ndarray, "K 2"] | None = None,
    ) -> UInt8[np.ndarray, "H W 3"]:
        """A frame; the trail grows with every call. `obstacles`: [C] of `OBSTACLE`; `points`: returns in base_link, m."""
        picture = np.full((self._size, self._size, 3), BACKGROUND, np.uint8)
        self._trail.append(pose[:2].copy())
        here = self._pixels(pose[None, :2])[0]
        if points is not None:
            cosine, sine = np.cos(pose[2]), np.sin(pose[2])
            seen = points[np.isfinite(points[:, 0])] @ np.array([[cosine, sine], [-sine, cosine]]) + pose[:2]
            for end in self._pixels(seen):
                cv2.line(picture, here, end, BEAM, 1, cv2.LINE_AA)
        for wall in walls:
            a, b = self._pixels(wall.reshape(2, 2))
            cv2.line(picture, a, b, WALL, 2, cv2.LINE_AA)
        self._line(picture, self._path, PATH, 2)
        self._line(picture, np.array(self._trail), TRAIL, 2)
        for obstacle in obstacles:
            centre = self._pixels(np.array([[obstacle["x"], obstacle["y"]]]))[0]
            colour = MOVING if obstacle["speed"] else STANDING
            cv2.circle(picture, centre, max(round(obstacle["radius"] * self._scale), 1), colour, -1, cv2.LINE_AA)
        cv2.circle(picture, here, round(self._robot.radius * self._scale), ROBOT, -1, cv2.LINE_AA)
        nose = pose[None, :2] + self._robot.radius * np.array([[np.cos(pose[2]), np.sin(pose[2])]])
        cv2.line(picture, here, self._pixels(nose)[0], BACKGROUND, 2, cv2.LINE_AA)
        return picture

    def _line(self, picture: np.ndarray, points: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
        cv2.polylines(picture, [np.array(self._pixels(points), np.int32)], False, colour, width, cv2.LINE_AA)

    def _pixels(self, points: Float64[np.ndarray, "T 2"]) -> list[tuple[int, int]]:
        moved = (points - self._centre) * self._scale * np.array([1, -1]) + self._size / 2
        return [(round(float(x)), round(float(y))) for x, y in moved]

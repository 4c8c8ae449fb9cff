"""How an episode is driven: variation of speed and route, so that demonstrations do not all follow one path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPEEDS = (0.8, 1.2)
HEIGHTS = (0.0, 0.05)
BEND_STD, BEND_MOST = 0.2, 0.4


@dataclass(frozen=True)
class Style:
    """One way of driving; the default is the plain one."""

    speed: float = 1.0
    """Factor on the largest translation command."""
    height: float = 0.0
    """Extra height above obstacles on the way, m."""
    bend: float = 0.0
    """Angle between the straight way and the way that is taken far from its end, rad, about the vertical."""

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Speed uniform in 0.8 to 1.2, height uniform in 0 to 5 cm, bend normal with 0.2 rad, at most 0.4 either way."""
        return Style(
            speed=float(rng.uniform(*SPEEDS)),
            height=float(rng.uniform(*HEIGHTS)),
            bend=float(np.clip(rng.normal(0.0, BEND_STD), -BEND_MOST, BEND_MOST)),
        )

    def aside(self, distance: float) -> float:
        """How far a way of this length leads beside the straight line, m."""
        return 0.4 * abs(self.bend) * distance


PLAIN = Style()

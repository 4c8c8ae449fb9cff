"""Actions that probe a simulator.

Legend: D action size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32


def random_actions(seed: int, count: int) -> Float32[np.ndarray, "count D"]:
    """Actions beyond the limits, too; every third one with the rotation commands exactly zero, which has a rule of its own."""
    actions = np.random.default_rng(seed).uniform(-1.2, 1.2, (count, 7)).astype(np.float32)
    actions[::3, 3:6] = 0
    return actions

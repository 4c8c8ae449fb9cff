"""What several test files of the LIBERO backend share: one backend, so that each scene is compiled once per process."""

from functools import cache

import numpy as np

from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.types import EpisodeSpec

OBJECT = EpisodeSpec("libero_object", 0, init_state_id=5)
DRAWER = EpisodeSpec("libero_spatial", 4, init_state_id=9)
STOVE = EpisodeSpec("libero_10", 8, init_state_id=0)
CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZE = 64


@cache
def shared_backend() -> LiberoBackend:
    return LiberoBackend(num_slots=3, cameras=CAMERAS, image_size=SIZE)


def random_actions(seed: int, count: int) -> np.ndarray:
    """Actions beyond the limits, too; every third one with the rotation commands exactly zero, which has a rule of its own."""
    actions = np.random.default_rng(seed).uniform(-1.2, 1.2, (count, 7)).astype(np.float32)
    actions[::3, 3:6] = 0
    return actions


def frame(backend: LiberoBackend, slot: int, camera: str = "agentview") -> np.ndarray:
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    backend.render(slot, camera, out)
    return out

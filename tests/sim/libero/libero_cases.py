"""What several test files of the LIBERO backend share: one backend, so that each scene is compiled once per process."""

from functools import cache

import numpy as np

from vla_rl.bench.actions import random_actions
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.types import EpisodeSpec

__all__ = ["CAMERAS", "DRAWER", "OBJECT", "SIZE", "STOVE", "frame", "random_actions", "shared_backend"]

OBJECT = EpisodeSpec("libero_object", 0, init_state_id=5)
DRAWER = EpisodeSpec("libero_spatial", 4, init_state_id=9)
STOVE = EpisodeSpec("libero_10", 8, init_state_id=0)
CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZE = 64


@cache
def shared_backend() -> LiberoBackend:
    return LiberoBackend(num_slots=3, cameras=CAMERAS, image_size=SIZE)


def frame(backend: LiberoBackend, slot: int, camera: str = "agentview") -> np.ndarray:
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    backend.render(slot, camera, out)
    return out

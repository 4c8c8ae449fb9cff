"""Several simulators as one, here two of pendulums."""

from contextlib import closing

import numpy as np
import pytest

from vla_rl.sim import SimError
from vla_rl.sim.mixed import MixedSim
from vla_rl.sim.pool import SimPool
from vla_rl.types import EpisodeSpec


def test_an_action_that_one_part_refuses_moves_no_part() -> None:
    def pool() -> SimPool:
        return SimPool("pendulum_backend:PendulumBackend", num_envs=2, num_workers=1, cameras=(), image_size=16)

    with closing(MixedSim({"first": pool(), "second": pool()}, lambda suite: suite.split()[0])) as sim:
        sim.reset([EpisodeSpec("first one", 8), EpisodeSpec("second one", 8)])
        before = [sim.save_state(row) for row in range(2)]
        actions = np.zeros((2, 3, 1), np.float32)
        actions[1, 2, 0] = np.nan
        with pytest.raises(SimError, match="environment 1: action 2 of the chunk is nan.*no row has moved"):
            sim.step_chunk(actions)
        assert [sim.save_state(row) for row in range(2)] == before
        assert sim.step_chunk(np.zeros((2, 3, 1), np.float32)).executed.all()

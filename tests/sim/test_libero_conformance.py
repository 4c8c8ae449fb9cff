"""LIBERO passes the suite that ships with the interface: initial states from the benchmark and sampled ones, two tasks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from vla_rl.sim import EpisodeSpec, Turn, VectorSim, make_sim
from vla_rl.sim.conformance import CHECKS, Case, check_shapes_and_frames
from vla_rl.sim.pool import SimPool

pytestmark = pytest.mark.slow

SPECS = [
    EpisodeSpec("libero_object", 0, init_state_id=0),
    EpisodeSpec("libero_spatial", 3, init_state_id=None, seed=11),
    EpisodeSpec("libero_object", 0, init_state_id=7),
]


def make_with(*cameras: str) -> Callable[[int, int], VectorSim]:
    def make(num_envs: int, num_workers: int) -> VectorSim:
        return make_sim("libero", num_envs=num_envs, num_workers=num_workers, cameras=cameras, image_size=64)

    return make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_libero_conforms(check: Callable[[Case], None]) -> None:
    """280 control steps are LIBERO-Object's time limit; random actions do not solve a task."""
    make = make_with("agentview", "robot0_eye_in_hand") if check is check_shapes_and_frames else make_with("agentview")
    check(Case(make, SPECS, ending_spec=SPECS[0], max_steps=280, impossible_spec=EpisodeSpec("libero_object", 10)))


def test_a_killed_worker_costs_no_libero_episode() -> None:
    """Killed between two chunks: the rows go on in a new process, bit for bit."""
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 5, 7)).astype(np.float32)
    sim = make_with("agentview")(2, 1)
    assert isinstance(sim, SimPool)

    def play(killed_before: int | None) -> list[Turn]:
        sim.reset([SPECS[0], SPECS[2]])
        turns = []
        for i, chunk in enumerate(actions):
            if i == killed_before:
                for pid in filter(None, sim.worker_pids):
                    os.kill(pid, signal.SIGKILL)
            turns.append(sim.step_chunk(chunk))
        return turns

    with sim:
        expected, pids = play(None), sim.worker_pids
        found = play(1)
        assert sim.worker_pids != pids
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.observation.proprio, other.observation.proprio)
        np.testing.assert_array_equal(one.observation.images["agentview"], other.observation.images["agentview"])
        assert one.executed.all() and not one.errors

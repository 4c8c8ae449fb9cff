"""The soak, on the pendulum: it finds nothing where nothing is wrong, and what is wrong where something is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_rl.bench import soak
from vla_rl.sim import EpisodeSpec
from vla_rl.sim.pool import SimPool
from vla_rl.types import Turn

SPECS = [EpisodeSpec("pendulum", 500, None, seed) for seed in range(6)]


class Pool(SimPool):
    def __init__(self) -> None:
        super().__init__("pendulum_backend:PendulumBackend", num_envs=4, num_workers=2, cameras=("front",), image_size=16)


class Forgetful(Pool):
    """After the first chunks, every tenth one is a little off."""

    count = 0

    def step_chunk(self, actions: np.ndarray) -> Turn:
        turn = super().step_chunk(actions)
        self.count += 1
        off = np.float32(1e-6 * (self.count > 20 and self.count % 10 == 0))
        return replace(turn, observation=replace(turn.observation, proprio=turn.observation.proprio + off))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.syspath_prepend(str(request.path.parents[1] / "sim"))


def case_of(pool: type[Pool], kill_every: float) -> soak.Soak:
    return soak.Soak(pool, SPECS, chunks=3, chunk_length=4, seconds=4.0, kill_every=kill_every)


def test_killed_workers_cost_nothing() -> None:
    outcome = soak.soak(case_of(Pool, 0.7))
    assert outcome.kills >= 2 and outcome.episodes >= 12
    assert (outcome.lost, outcome.changed, outcome.uneven, outcome.left) == (0, 0, 0, [])
    counted = soak.targets(outcome)[:4]
    assert all(target.met for target in counted)


def test_a_change_is_found() -> None:
    outcome = soak.soak(case_of(Forgetful, 60.0))
    assert outcome.changed > 0 and outcome.lost == 0
    assert [target.verdict for target in soak.targets(outcome)][2] == "NOT MET"
    assert soak.tables(outcome)[0].title.startswith("soak of")


def test_growth_by_hand() -> None:
    """Second third 100, 102, 104 (median 102), last third 151, 153, 155: growth 1.5; the warm-up does not count."""
    outcome = soak.Outcome(memory=[1, 50, 90, 100, 104, 102, 151, 155, 153], left=["process 7"])
    assert outcome.growth == 1.5
    assert [target.met for target in soak.targets(outcome)] == [True, True, True, False, False]

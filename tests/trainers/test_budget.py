"""A run stops at the end of the round in which its budget is spent, and does not go on when it is called again."""

from contextlib import closing
from pathlib import Path

import pytest
from pendulum_run import SETTINGS, TIME_LIMITS, pendulum_policy

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.config import load_config
from vla_rl.metrics import read_metrics
from vla_rl.run import Run
from vla_rl.sim.pool import SimPool
from vla_rl.trainers.rl import train_rl


# 6 episodes a round: 13 are passed in the third. No round takes less than a nanosecond.
@pytest.mark.parametrize(("budget", "rounds"), [("run.max_episodes=13", 3), ("run.max_minutes=1e-11", 1)])
def test_a_budget_ends_a_run_at_a_rounds_end(tmp_path: Path, budget: str, rounds: int) -> None:
    every = "rl.checkpoint_every=5"  # the last round is saved all the same
    config = load_config(None, [*SETTINGS, f"run.root={tmp_path}", "run.name=a", budget, every])
    sim = SimPool("pendulum_backend:PendulumBackend", num_envs=4, num_workers=1, cameras=("front",), image_size=16, options={})
    with closing(sim):
        for _ in range(2):
            with Run(config) as run:
                assert train_rl(run, sim, pendulum_policy(), TIME_LIMITS) == rounds
                assert len(read_metrics(run.directory)) == rounds
                checkpoint = latest_checkpoint(run.checkpoints("rl"))
                assert checkpoint is not None and checkpoint.name == f"step_{rounds:06d}"
        with Run(
            config.model_copy(update={"run": config.run.model_copy(update={"max_episodes": 19, "max_minutes": None})})
        ) as run:
            assert train_rl(run, sim, pendulum_policy(), TIME_LIMITS) == 4

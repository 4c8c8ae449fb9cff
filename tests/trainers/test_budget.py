"""A run stops at the end of the round in which its budget is spent, and does not go on when it is called again."""

from contextlib import closing
from pathlib import Path

import pytest
from pendulum_run import pendulum_sim, train

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.metrics import read_metrics


# 6 episodes a round: 13 are passed in the third. No round takes less than a nanosecond.
@pytest.mark.parametrize(("budget", "rounds"), [("run.max_episodes=13", 3), ("run.max_minutes=1e-11", 1)])
def test_a_budget_ends_a_run_at_a_rounds_end(tmp_path: Path, budget: str, rounds: int) -> None:
    every = "rl.checkpoint_every=5"  # the last round is saved all the same
    with closing(pendulum_sim()) as sim:
        for _ in range(2):
            assert train(sim, str(tmp_path), "a", budget, every) == rounds
            assert len(read_metrics(tmp_path / "a")) == rounds
            checkpoint = latest_checkpoint(tmp_path / "a" / "checkpoints" / "rl")
            assert checkpoint is not None and checkpoint.name == f"step_{rounds:06d}"
        assert train(sim, str(tmp_path), "a", "run.max_episodes=19") == 4

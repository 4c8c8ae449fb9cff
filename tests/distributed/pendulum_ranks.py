"""Runs of the trainer on several ranks, one after the other: `python pendulum_ranks.py ROOT`."""

import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

from pendulum_run import SETTINGS, TIME_LIMITS, pendulum_demonstrations, pendulum_policy, pendulum_sim

from vla_rl.config_files import load_config
from vla_rl.distributed.ranks import Ranks, open_ranks
from vla_rl.run import Run, set_threads
from vla_rl.sim.pool import SimPool
from vla_rl.trainers.rl import train_rl

SHARDED = ("policy.sharded=true", "policy.gradient_checkpointing=true", "rl.warmup_iterations=1", "curriculum.name=dump")
REFERENCE = ("objective.name=grpo", "objective.regularisers={reference: 0.01}", "rl.group_size=3")


def run(ranks: Ranks, sim: SimPool, root: str, name: str, *overrides: str) -> None:
    config = load_config(None, [*SETTINGS, f"run.root={root}", f"run.name={name}", *overrides])
    set_threads(1)
    with ranks.leader_first(lambda: Run(config, ranks)) as opened:
        train_rl(opened, sim, pendulum_policy(), TIME_LIMITS, pendulum_demonstrations)


def main(root: str) -> None:
    with open_ranks() as ranks, closing(pendulum_sim()) as sim:
        run(ranks, sim, root, "whole", *SHARDED, "rl.iterations=3")
        run(ranks, sim, root, "halves", *SHARDED, "rl.iterations=2")
        run(ranks, sim, root, "halves", *SHARDED, "rl.iterations=3")
        run(ranks, sim, root, "reference", *SHARDED, *REFERENCE, "rl.iterations=1")
        run(ranks, sim, root, "lora", "policy.lora_rank=4", "rl.iterations=2", "rl.warmup_iterations=1")


if __name__ == "__main__":
    main(sys.argv[1])

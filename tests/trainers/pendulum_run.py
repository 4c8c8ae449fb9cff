"""A small real PPO run, started as a process so that tests can kill it: `python pendulum_run.py ROOT NAME [KEY=VALUE ...]`."""

import sys
from contextlib import closing
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("policies", "sim")]

# ruff: noqa: E402
from small_policy import small_policy

from vla_rl.config import load_config
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.run import Run, set_threads
from vla_rl.sim.pool import SimPool
from vla_rl.trainers.rl import train_rl

TIME_LIMITS = (12, 20)
SETTINGS = [
    "task.suite=pendulum",
    "task.shipped_states=0",
    "sim.cameras=[front]",
    "sim.image_size=16",
    "sim.num_envs=4",
    "policy.chunk_length=4",
    "rl.iterations=8",
    "rl.episodes_per_iteration=6",
    "rl.minibatch_turns=8",
    "rl.microbatch_turns=8",
    "rl.warmup_iterations=2",
    "rl.learning_rate=1e-3",
    "evaluation.every=0",
    "run.threads=1",
]


def pendulum_policy() -> OpenVLAPolicy:
    return small_policy(chunk_length=4, action_dim=1, proprio_dim=2, instructions=("swing up within 20 steps",))


def main(root: str, name: str, *overrides: str) -> None:
    config = load_config(None, [*SETTINGS, f"run.root={root}", f"run.name={name}", *overrides])
    set_threads(config.run.threads)
    sim = SimPool("pendulum_backend:PendulumBackend", num_envs=4, num_workers=1, cameras=("front",), image_size=16, options={})
    with Run(config) as run, closing(sim):
        train_rl(run, sim, pendulum_policy(), TIME_LIMITS)


if __name__ == "__main__":
    main(*sys.argv[1:])

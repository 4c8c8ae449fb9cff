"""A small real run of reinforcement learning, for tests that call it, or start it as a process so that they can kill it:
`python pendulum_run.py ROOT NAME [KEY=VALUE ...]`."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("policies", "sim")]

# ruff: noqa: E402
import numpy as np
from small_policy import small_policy

from vla_rl.config_files import load_config
from vla_rl.data.chunks import ChunkDataset
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


def pendulum_demonstrations() -> ChunkDataset:
    """Twelve frames of somebody who pushes to the right."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return ChunkDataset(
        images={"front": frames},
        proprio=np.zeros((12, 2), np.float32),
        instruction=["swing up within 20 steps"] * 12,
        actions=np.full((12, 1), 0.8, np.float32),
        start=np.arange(12),
        end=np.full(12, 12),
        chunk_length=4,
    )


def pendulum_sim() -> SimPool:
    return SimPool("pendulum_backend:PendulumBackend", num_envs=4, num_workers=1, cameras=("front",), image_size=16, options={})


def train(sim: SimPool, root: str, name: str, *overrides: str, limits: Sequence[int] = TIME_LIMITS) -> int:
    """Train in the run directory ROOT/NAME; returns the number of rounds."""
    config = load_config(None, [*SETTINGS, f"run.root={root}", f"run.name={name}", *overrides])
    set_threads(config.run.threads)
    with Run(config) as run:
        return train_rl(run, sim, pendulum_policy(), limits, pendulum_demonstrations)


def main(root: str, name: str, *overrides: str) -> None:
    with closing(pendulum_sim()) as sim:
        train(sim, root, name, *overrides)


if __name__ == "__main__":
    main(*sys.argv[1:])

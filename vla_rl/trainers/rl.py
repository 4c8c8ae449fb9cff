"""The PPO loop: rollouts, advantages, updates, evaluations, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from vla_rl.algorithms.ppo import PpoLearner
from vla_rl.checkpoint import latest_checkpoint, load_checkpoint
from vla_rl.curriculum import training_specs
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.progress import Progress
from vla_rl.rollout.batch import final_values, make_batch
from vla_rl.rollout.collector import collect
from vla_rl.run import Run, load_weights
from vla_rl.sim.base import VectorSim
from vla_rl.trainers.evaluation import evaluate_when_due
from vla_rl.trainers.statistics import RoundClock, rollout_statistics


def train_rl(run: Run, sim: VectorSim, policy: OpenVLAPolicy, task_ids: Sequence[int]) -> None:
    """Improve `policy` in place for `ppo.iterations` rounds, continuing from the run's last checkpoint if there is one.

    Every round draws its episodes, its exploration and its mini-batches from (run.seed, iteration) alone, so a resumed run
    repeats an uninterrupted one bit for bit on CPU.
    """
    config, task = run.config.rl, run.config.task
    learner = PpoLearner(policy, config)
    state: dict[str, Any] = {"iteration": 0, "episodes": 0, "warm": config.warmup_iterations == 0}
    checkpoint = latest_checkpoint(run.checkpoints("rl"))
    if checkpoint is not None:
        restore = partial(load_weights, policy)
        state = load_checkpoint(checkpoint, policy_load=restore, optimizers=learner.optimizers, verify=False)
    run.metrics.truncate_after(state["iteration"], "rl")
    with Progress("PPO", total=config.iterations, done=state["iteration"]) as progress:
        while state["iteration"] < config.iterations:
            evaluate_when_due(run, sim, policy, task_ids, state["iteration"])
            clock = RoundClock(sim)
            rng = np.random.default_rng([run.config.run.seed, state["iteration"]])
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            specs = training_specs(task.suite, task_ids, config.episodes_per_iteration, task.shipped_states, rng)
            trajectories = collect(sim, policy, specs, config.temperature, generator, clock.stopwatch, progress.episode)
            with clock.stopwatch.part("learning"):
                batch = make_batch(trajectories, final_values(policy, trajectories), config.gamma, config.lam)
                stats = learner.update(batch, rng, train_policy=state["warm"])
            state["iteration"] += 1
            state["episodes"] += len(trajectories)
            state["warm"] |= state["iteration"] >= config.warmup_iterations
            state["warm"] |= stats["value/explained_variance"] >= config.warmup_explained_variance
            stats |= rollout_statistics(trajectories) | clock.statistics() | {"rollout/total_episodes": state["episodes"]}
            run.metrics.log(state["iteration"], stats, phase="rl")
            if state["iteration"] % config.checkpoint_every == 0 or state["iteration"] == config.iterations:
                run.save("rl", state["iteration"], policy, learner.optimizers, state)
            critic = f"explained variance {stats['value/explained_variance']:.2f}"
            progress.advance(f"success {stats['rollout/success']:.0%}, {critic}")

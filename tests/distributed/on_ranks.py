"""One update of every kind, on one process or, started as a script by `torchrun`'s environment, on several:
`python on_ranks.py FOLDER` writes what each case gave."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("algorithms", "policies")]

# ruff: noqa: E402
import numpy as np
import torch
from bandit import Demonstrations, LinearPolicy, play
from small_policy import small_policy

from vla_rl.algorithms.composition import OBJECTIVES, compose
from vla_rl.algorithms.learner import RlLearner
from vla_rl.algorithms.turn_batch import Episodes, Round, TurnBatch
from vla_rl.config import ObjectiveConfig, RlConfig
from vla_rl.distributed.ranks import Ranks, open_ranks
from vla_rl.distributed.sharding import gathered, shard
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.tensor_tree import save_tree
from vla_rl.types import Observation

Case = dict[str, Any]
TURNS = 13
"""Odd: one rank's share is filled up with padding."""
CONFIG = RlConfig(
    group_size=4,
    minibatch_turns=7,
    microbatch_turns=3,
    epochs=2,
    temperature=1.3,
    learning_rate=1e-3,
    learning_rate_warmup=0,
    value_learning_rate=1e-3,
    max_grad_norm=0.05,
)
"""Two mini-batches twice, clipped gradients, several micro-batches a rank."""
EVERYTHING = ObjectiveConfig(
    name="grpo", regularisers={"reference": 0.5, "low_probability": 1.0, "entropy": 0.1}, token_weights={"confident_errors": 1.0}
)


def real_round(policy: OpenVLAPolicy) -> Round:
    """Thirteen turns in five trajectories that `policy` acted in, one group, with made-up rewards."""
    rng = np.random.default_rng(0)
    observation = Observation(
        images={"front": rng.integers(0, 256, (TURNS, 16, 16, 3), dtype=np.uint8)},
        proprio=rng.normal(size=(TURNS, 3)).astype(np.float32),
        instruction=["go"] * TURNS,
    )
    chunk = policy.act(observation, CONFIG.temperature, torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 4])
    lengths = torch.bincount(owner)
    mask = torch.arange(4)[None] < lengths[:, None]
    executed = torch.ones(TURNS, 2, dtype=torch.bool)
    executed[::3, 1] = False
    success = torch.tensor([True, False, True, False, False])
    values = torch.zeros(5, 4)
    values[mask] = torch.from_numpy(chunk.values)
    groups = torch.zeros(5, dtype=torch.long)
    rewards = torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32))
    turns = TurnBatch(
        observation=observation,
        tokens=chunk.tokens,
        log_probs=torch.from_numpy(chunk.log_probs),
        values=torch.from_numpy(chunk.values),
        version=torch.zeros(TURNS, dtype=torch.long),
        trajectory=owner,
        group=groups[owner],
        success=success[owner],
        executed=executed,
    )
    return Round(turns, Episodes(rewards, values, mask, torch.ones(5, dtype=torch.bool), success, torch.zeros(5), groups))


def update(learner: RlLearner, round_: Round) -> Case:
    """Statistics of an update, and gradients and weights after it, whole."""
    stats = learner.update(learner.prepare(round_), np.random.default_rng(1))
    gradients = [p.grad for group in learner.optimizers["policy"].param_groups for p in group["params"]]
    return {
        "stats": stats,
        "gradients": [gathered(torch.zeros(0) if gradient is None else gradient) for gradient in gradients],
        "weights": gathered(dict(learner.policy.state_dict())),
    }


def learn(ranks: Ranks, objective: ObjectiveConfig, sharded: bool = False, lora: bool = False) -> Case:
    """Of a real policy. Without an objective's critic the value head has no gradient."""
    policy = small_policy()
    round_ = real_round(policy)
    if lora:
        policy.adapt(4, 4, seed=0)
    policy.recompute_activations()
    learner = RlLearner(policy, CONFIG, compose(objective), ranks=ranks, shard=shard if sharded else None)
    return update(learner, round_) | {"plain": dict(policy.weights())}


def learn_linear(ranks: Ranks, name: str) -> Case:
    """Of the linear policy, by any objective. Whole rounds, as a mini-batch moves only the contexts that it holds."""
    config = CONFIG.model_copy(update={"minibatch_turns": 1000})
    policy = LinearPolicy(0, scale=1.0)
    round_ = play(policy, groups=3, size=4, seed=0, temperature=CONFIG.temperature)
    return update(RlLearner(policy, config, compose(ObjectiveConfig(name=name)), Demonstrations(), ranks), round_)


def warm_up(ranks: Ranks, sharded: bool) -> Case:
    """Of the value head alone."""
    policy = small_policy(value_gradient=False)
    round_ = real_round(policy)
    learner = RlLearner(policy, CONFIG, compose(ObjectiveConfig()), ranks=ranks, shard=shard if sharded else None)
    stats = learner.update(learner.prepare(round_), np.random.default_rng(1), train_policy=False)
    return {"stats": stats, "weights": gathered(dict(policy.state_dict()))}


def cases(ranks: Ranks) -> dict[str, Case]:
    several = ranks.size > 1
    found = {
        "ppo, sharded": learn(ranks, ObjectiveConfig(), sharded=several),
        "ppo, replicas": learn(ranks, ObjectiveConfig()),
        "ppo, LoRA": learn(ranks, ObjectiveConfig(), lora=True),
        "everything, sharded": learn(ranks, EVERYTHING, sharded=several),
        "warm-up, sharded": warm_up(ranks, several),
    }
    return found | {f"linear {name}": learn_linear(ranks, name) for name in OBJECTIVES}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    with open_ranks() as ranks:
        found = cases(ranks)
        save_tree(Path(folder), f"rank_{ranks.rank}", found)


if __name__ == "__main__":
    main(sys.argv[1])

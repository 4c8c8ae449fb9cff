"""Trajectories -> the turns of one policy update.

Legend: B trajectories, T turns (padded to the longest), N = all turns of all trajectories, A actions of a chunk,
L = A*D action tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_rl.algorithms.advantages import gae
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.policies.base import Policy
from vla_rl.types import Observation, Trajectory

VALUE_BATCH = 64
"""Final observations valued at a time."""


def pad_turns(
    trajectories: Sequence[Trajectory],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B"]]:
    """Rewards of each turn (summed over its executed actions), values, mask of real turns, terminated."""
    length = max(t.num_turns for t in trajectories)
    rewards = torch.zeros(len(trajectories), length)
    values = torch.zeros(len(trajectories), length)
    mask = torch.zeros(len(trajectories), length, dtype=torch.bool)
    for i, trajectory in enumerate(trajectories):
        turns = trajectory.num_turns
        rewards[i, :turns] = torch.from_numpy((trajectory.rewards * trajectory.executed).sum(axis=1))
        values[i, :turns] = torch.from_numpy(trajectory.values)
        mask[i, :turns] = True
    return rewards, values, mask, torch.tensor([t.terminated for t in trajectories])


def final_values(policy: Policy, trajectories: Sequence[Trajectory]) -> Float[Tensor, "B"]:
    """The value of each truncated trajectory's final observation; 0 where the task ended, as nothing follows there."""
    values = torch.zeros(len(trajectories))
    truncated = [i for i, t in enumerate(trajectories) if not t.terminated]
    for start in range(0, len(truncated), VALUE_BATCH):
        rows = truncated[start : start + VALUE_BATCH]
        chosen = [trajectories[i] for i in rows]
        observation = Observation(
            images={name: np.stack([t.final_images[name] for t in chosen]) for name in chosen[0].final_images},
            proprio=np.stack([t.final_proprio for t in chosen]),
            instruction=[t.instruction for t in chosen],
        )
        with torch.no_grad():
            values[rows] = policy.value(observation).float().cpu()
    return values


def make_batch(trajectories: Sequence[Trajectory], last_values: Float[Tensor, "B"], gamma: float, lam: float) -> TurnBatch:
    """Advantages and returns by GAE over turns, then all turns in one row after another."""
    rewards, values, mask, terminated = pad_turns(trajectories)
    advantages, returns = gae(rewards, values, mask, terminated, last_values, gamma, lam)
    return TurnBatch(
        observation=Observation(
            images={name: np.concatenate([t.images[name] for t in trajectories]) for name in trajectories[0].images},
            proprio=np.concatenate([t.proprio for t in trajectories]),
            instruction=[t.instruction for t in trajectories for _ in range(t.num_turns)],
        ),
        tokens=np.concatenate([t.action_tokens for t in trajectories]),
        log_probs=torch.from_numpy(np.concatenate([t.log_probs for t in trajectories])),
        values=values[mask],
        advantages=advantages[mask],
        returns=returns[mask],
        executed=torch.from_numpy(np.concatenate([t.executed for t in trajectories])),
    )

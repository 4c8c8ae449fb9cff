"""Groups of trajectories -> what one policy update learns from.

Legend: B trajectories, T turns (padded to the longest), N = all turns of all trajectories, A actions of a chunk,
L = A*D action tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_rl.algorithms.turn_batch import Episodes, Round, TurnBatch
from vla_rl.policies.base import Policy
from vla_rl.rollout.groups import Group
from vla_rl.types import Observation, Trajectory

VALUE_BATCH = 64
"""Final observations valued at a time."""


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


def pad_turns(trajectories: Sequence[Trajectory]) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rewards of each turn (summed over its executed actions), values, mask of real turns."""
    length = max(t.num_turns for t in trajectories)
    rewards = torch.zeros(len(trajectories), length)
    values = torch.zeros(len(trajectories), length)
    mask = torch.zeros(len(trajectories), length, dtype=torch.bool)
    for i, trajectory in enumerate(trajectories):
        turns = trajectory.num_turns
        rewards[i, :turns] = torch.from_numpy((trajectory.rewards * trajectory.executed).sum(axis=1))
        values[i, :turns] = torch.from_numpy(trajectory.values)
        mask[i, :turns] = True
    return rewards, values, mask


def make_round(groups: Sequence[Group], last_values: Float[Tensor, "B"] | None = None) -> Round:
    """All turns of all trajectories, one after another, and the same episode by episode.

    `last_values` are those of the final observations (`final_values`), where a critic is asked.
    """
    trajectories = [trajectory for group in groups for trajectory in group]
    rewards, values, mask = pad_turns(trajectories)
    group_ids = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    success = torch.tensor([t.success for t in trajectories])
    owner = torch.arange(len(trajectories))[:, None].expand(mask.shape)[mask]
    episodes = Episodes(
        rewards=rewards,
        values=values,
        mask=mask,
        terminated=torch.tensor([t.terminated for t in trajectories]),
        success=success,
        final_values=torch.zeros(len(trajectories)) if last_values is None else last_values,
        groups=group_ids,
    )
    turns = TurnBatch(
        observation=Observation(
            images={name: np.concatenate([t.images[name] for t in trajectories]) for name in trajectories[0].images},
            proprio=np.concatenate([t.proprio for t in trajectories]),
            instruction=[t.instruction for t in trajectories for _ in range(t.num_turns)],
        ),
        tokens=np.concatenate([t.action_tokens for t in trajectories]),
        log_probs=torch.from_numpy(np.concatenate([t.log_probs for t in trajectories])),
        values=values[mask],
        version=torch.from_numpy(np.concatenate([t.policy_version for t in trajectories])).long(),
        trajectory=owner,
        group=group_ids[owner],
        success=success[owner],
        executed=torch.from_numpy(np.concatenate([t.executed for t in trajectories])),
    )
    return Round(turns, episodes)

"""How much better a turn or an episode was than expected.

Legend: B trajectories (or episodes), T turns.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SPREAD_TOLERANCE = 1e-6
"""Returns of a group that differ by less than this fraction of their magnitude differ by rounding only."""


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    terminated: Bool[Tensor, "B"],
    final_values: Float[Tensor, "B"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16): advantages and returns (advantage + value).

    `final_values` is the value of the observation AFTER the last turn. A truncated episode bootstraps from it, a
    terminated one from 0. Turns outside `mask` get 0 and influence nothing, whatever they hold.
    Raises `ValueError` when the shapes do not belong together.
    """
    if not (rewards.shape == values.shape == mask.shape and rewards.dim() == 2):
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} must all be [B, T]"
        )
    if terminated.shape != rewards.shape[:1] or final_values.shape != rewards.shape[:1]:
        raise ValueError(
            f"terminated {tuple(terminated.shape)} and final_values {tuple(final_values.shape)} must be [B] = [{len(rewards)}]"
        )
    mask = mask.bool()
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    next_value = torch.where(terminated.bool(), 0.0, final_values).to(values.dtype)
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        valid = mask[:, t]
        advantages[:, t] = torch.where(valid, advantage, 0.0)
        returns[:, t] = torch.where(valid, advantage + values[:, t], 0.0)
        next_value = torch.where(valid, values[:, t], next_value)
        next_advantage = torch.where(valid, advantage, next_advantage)
    return advantages, returns


@torch.no_grad()
def discounted_returns(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """G_t = r_t + gamma G_{t+1}, 0 after the last turn; 0 outside `mask`, whatever it holds."""
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(mask[:, t].bool(), rewards[:, t] + gamma * following, following)
        returns[:, t] = torch.where(mask[:, t].bool(), following, 0.0)
    return returns


@torch.no_grad()
def group_mean(values: Float[Tensor, "B"], group_ids: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The mean over the members of each one's group. Ids are arbitrary integers, in any order."""
    if not len(values):
        return values
    group = torch.unique(group_ids, return_inverse=True)[1]
    zeros = values.new_zeros(int(group.max()) + 1)
    return (zeros.scatter_add(0, group, values) / zeros.scatter_add(0, group, torch.ones_like(values)))[group]


@torch.no_grad()
def group_relative(returns: Float[Tensor, "B"], group_ids: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """GRPO's advantage: (return - mean) / unbiased standard deviation of the episodes that share a group id.

    0 where a group has no spread or a single member. Ids are arbitrary integers, in any order.
    Raises `ValueError` when the two do not have the same length.
    """
    if returns.shape != group_ids.shape or returns.dim() != 1:
        raise ValueError(f"returns {tuple(returns.shape)} and group_ids {tuple(group_ids.shape)} must both be [B]")
    if not len(returns):
        return torch.zeros_like(returns)
    exact = returns.double()
    group = torch.unique(group_ids, return_inverse=True)[1]
    zeros = exact.new_zeros(int(group.max()) + 1)
    size = zeros.scatter_add(0, group, torch.ones_like(exact))
    centred = exact - group_mean(exact, group)
    deviation = (zeros.scatter_add(0, group, centred.square()) / (size - 1).clamp(min=1)).sqrt()
    spread = zeros.scatter_reduce(0, group, exact, "amax", include_self=False) - zeros.scatter_reduce(
        0, group, exact, "amin", include_self=False
    )
    magnitude = zeros.scatter_reduce(0, group, exact.abs(), "amax", include_self=False)
    flat = (spread <= SPREAD_TOLERANCE * magnitude)[group]
    return torch.where(flat, 0.0, centred / deviation[group]).to(returns.dtype)


@torch.no_grad()
def leave_one_out(returns: Float[Tensor, "B"], group_ids: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """RLOO's advantage (arXiv 2402.14740): the return minus the mean return of the OTHER members of its group.

    0 for a single member, which has nobody to compare with.
    """
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    count = sizes[group].double()
    centred = returns.double() - group_mean(returns.double(), group_ids)
    return (centred * count / (count - 1).clamp(min=1)).to(returns.dtype)


@torch.no_grad()
def group_centred(returns: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], scale: bool = False) -> Float[Tensor, "B"]:
    """The return minus the mean of its group; with `scale` divided by the unbiased deviation of the WHOLE batch's returns
    (Lite PPO, arXiv 2508.08221). 0 where the batch has no spread."""
    exact = returns.double()
    centred = exact - group_mean(exact, group_ids)
    if scale:
        if _is_flat(exact):
            return torch.zeros_like(returns)
        centred = centred / exact.std()
    return centred.to(returns.dtype)


@torch.no_grad()
def normalise(advantages: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Advantages shifted and scaled to mean 0 and unbiased standard deviation 1 over `mask`; 0 outside of it.

    Without spread (or with fewer than two valid entries) the result is 0 everywhere.
    """
    mask = mask.bool()
    valid = advantages[mask].double()
    if _is_flat(valid):
        return torch.zeros_like(advantages)
    normalised = (advantages.double() - valid.mean()) / valid.std()
    return torch.where(mask, normalised, 0.0).to(advantages.dtype)


def _is_flat(values: Float[Tensor, "K"]) -> bool:
    """Whether values have no spread to scale by: fewer than two, or they differ by rounding only."""
    return len(values) < 2 or bool(values.max() - values.min() <= SPREAD_TOLERANCE * values.abs().max())

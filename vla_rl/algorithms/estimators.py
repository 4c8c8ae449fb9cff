"""The advantage estimators that a configuration can name: a round's episodes -> an advantage of every turn.

Each takes (episodes, gamma, lam) and returns advantages and, where a critic learns, returns; both [B, T], 0 outside the mask.
Estimators that compare whole episodes give all turns of an episode the same advantage, from its undiscounted return.

Legend: B trajectories, T turns.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.advantages import (
    discounted_returns,
    gae,
    group_centred,
    group_mean,
    group_relative,
    leave_one_out,
    normalise,
)
from vla_rl.algorithms.divergences import DERIVATIVES, MAX_EXPONENT
from vla_rl.algorithms.parts import Part
from vla_rl.algorithms.turn_batch import Episodes

Estimate = tuple[Tensor, Tensor | None]


def episode_returns(episodes: Episodes) -> Float[Tensor, "B"]:
    """The undiscounted sum of an episode's rewards."""
    return torch.where(episodes.mask, episodes.rewards, 0.0).sum(1)


def _every_turn(episodes: Episodes, advantages: Float[Tensor, "B"]) -> Estimate:
    return torch.where(episodes.mask, advantages[:, None], 0.0), None


def critic(episodes: Episodes, gamma: float, lam: float) -> Estimate:
    """GAE with the learned values, normalised over the round's turns (PPO; VLA-RL, arXiv 2505.18719)."""
    advantages, returns = gae(
        episodes.rewards, episodes.values, episodes.mask, episodes.terminated, episodes.final_values, gamma, lam
    )
    return normalise(advantages, episodes.mask), returns


def group(episodes: Episodes, gamma: float, lam: float, *, deviation: bool = True) -> Estimate:
    """(return - group mean) / unbiased group deviation (GRPO, arXiv 2402.03300; SimpleVLA-RL, arXiv 2509.09674).

    0 where a group has no spread. `deviation=False` leaves the division out (Dr. GRPO, arXiv 2503.20783; RL-PLUS).
    """
    compare = group_relative if deviation else group_centred
    return _every_turn(episodes, compare(episode_returns(episodes), episodes.groups))


def others(episodes: Episodes, gamma: float, lam: float) -> Estimate:
    """Return - mean return of the other members of the group (RLOO, arXiv 2402.14740)."""
    return _every_turn(episodes, leave_one_out(episode_returns(episodes), episodes.groups))


def batch(episodes: Episodes, gamma: float, lam: float) -> Estimate:
    """Discounted returns, normalised over all turns of the round (REINFORCE++, arXiv 2501.03262, without its KL reward)."""
    return normalise(discounted_returns(episodes.rewards, episodes.mask, gamma), episodes.mask), None


def group_and_batch(episodes: Episodes, gamma: float, lam: float) -> Estimate:
    """(return - group mean) / unbiased deviation of the whole round's returns (Lite PPO, arXiv 2508.08221)."""
    return _every_turn(episodes, group_centred(episode_returns(episodes), episodes.groups, scale=True))


def reinforcement(episodes: Episodes, gamma: float, lam: float, *, positive: float = 1.0, negative: float = 1.0) -> Estimate:
    """`positive` for a success and -`negative` for a failure, without a baseline (arXiv 2506.01347).

    (1, 0) is positive sample reinforcement, (0, 1) negative sample reinforcement, (.1, 1) the paper's W-REINFORCE.
    """
    signed = torch.where(episodes.success, float(positive), -float(negative))
    return _every_turn(episodes, signed.to(episodes.rewards.dtype))


def divergence(episodes: Episodes, gamma: float, lam: float, *, kind: str = "js", beta: float = 0.1) -> Estimate:
    """f-DPG (arXiv 2302.08215): -f'(pi(x) / p(x)), minus the mean of the group's other members.

    The target is p(x) = pi_reference(x) exp(R(x) / beta) / Z; Z of a group's initial state is the mean over the group of
    pi_reference / pi exp(R / beta), as its episodes were drawn from pi. `kind` is a divergence of `divergences.DERIVATIVES`.
    """
    assert episodes.log_ratio is not None
    score = episode_returns(episodes).double() / beta - episodes.log_ratio.double()
    largest = torch.empty_like(score)
    # Of each group apart, so that one with small scores is not rounded away beside another one.
    for identifier in episodes.groups.unique():
        largest[episodes.groups == identifier] = score[episodes.groups == identifier].max()
    log_z = largest + group_mean((score - largest).exp(), episodes.groups).log()
    pseudo_reward = -DERIVATIVES[kind]((log_z - score).clamp(-MAX_EXPONENT, MAX_EXPONENT))
    return _every_turn(episodes, leave_one_out(pseudo_reward, episodes.groups).to(episodes.rewards.dtype))


def none(episodes: Episodes, gamma: float, lam: float) -> Estimate:
    """0: the objective consists of its other terms (PACS)."""
    return torch.zeros_like(episodes.rewards), None


ESTIMATORS: dict[str, Part] = {
    "critic": Part(critic, frozenset({"critic"})),
    "group": Part(group, frozenset({"groups"})),
    "others": Part(others, frozenset({"groups"})),
    "batch": Part(batch),
    "group_and_batch": Part(group_and_batch, frozenset({"groups"})),
    "reinforcement": Part(reinforcement),
    "divergence": Part(divergence, frozenset({"groups", "reference"}), {"kind": DERIVATIVES}, {"beta": (1e-6, math.inf)}),
    "none": Part(none),
}

"""An objective's loss as pure functions of tensors: of rollouts' tokens, of demonstrations, of whole trajectories.

A mini-batch's loss is a sum of terms over one denominator each, which the caller counts over the WHOLE mini-batch. Then the
losses of its parts add up to its loss, however it is split, padded or ordered.

Two averagings: `all` counts every executed action (with its D tokens) the same; `trajectories` takes the mean within each
trajectory and then over trajectories, 1/G sum_i 1/|a_i| sum_t (SimpleVLA-RL). Both are sums over actions with a `share`, 1 or
1/|actions of the trajectory|, over the sum of all shares, the `size`.

Legend: N turns, M demonstrated turns, K trajectories, A actions of a chunk, D action size, L = A*D action tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vla_rl.algorithms.composition import Objective
from vla_rl.algorithms.objectives import MAX_LOG_RATIO, Statistics, clipped_surrogate, masked_mean
from vla_rl.algorithms.parts import Tokens, Trajectories


def action_shares(
    executed: Bool[Tensor, "N A"], trajectory: Int64[Tensor, "N"], average: str
) -> tuple[Float[Tensor, "N"], Float[Tensor, ""]]:
    """The share of an action of each turn, and the size: the sum of the shares of all executed actions."""
    actions = executed.sum(1).to(torch.float32)
    if average == "all":
        return torch.ones_like(actions), actions.sum()
    index = torch.unique(trajectory, return_inverse=True)[1]
    whole = torch.zeros_like(actions).scatter_add(0, index, actions)[index]
    share = 1 / whole.clamp(min=1)
    return share, (share * actions).sum()


def policy_loss(
    objective: Objective,
    tokens: Tokens,
    share: Float[Tensor, "N"],
    size: Float[Tensor, ""] | float,
    action_dim: int,
    slopes: Float[Tensor, "N"] | None = None,
) -> tuple[Float[Tensor, ""], Statistics]:
    """The loss of some turns of a mini-batch of the given size (see above), beside its auxiliary terms.

    `slopes` are the derivatives of the loss of whole trajectories (`trajectory_loss`) with respect to the log-prob of the
    trajectory of each turn: the term slope * log-prob has that loss's gradient, turn by turn.
    """
    shape = (-1, action_dim)
    new, old, mask = (x.unflatten(1, shape) for x in (tokens.log_probs, tokens.behaviour_log_probs, tokens.mask))
    weights, advantages = tokens.weights.unflatten(1, shape), tokens.advantages[:, None, None].expand(new.shape)
    token_share = share[:, None, None].expand(new.shape) / action_dim
    here = torch.where(mask, token_share, 0.0).sum().clamp(min=1e-12)
    loss, stats = torch.zeros((), device=new.device), Statistics()
    if objective.ratio == "token":
        loss, stats = _surrogate(objective, new, old, advantages, mask, token_share * weights, size)
    elif objective.ratio == "action":
        share_of_action = share[:, None] * weights.mean(2)
        loss, stats = _surrogate(objective, new.sum(2), old.sum(2), advantages[..., 0], mask[..., 0], share_of_action, size)
    if stats:
        stats["loss"] = loss.detach() * size / here
    stats |= _action_statistics(new, old, mask, tokens)
    for term in objective.regularisers:
        cost = torch.where(mask, term(tokens).unflatten(1, shape), 0.0) * token_share
        loss = loss + term.coefficient * cost.sum() / size
        stats[f"{term.name}_cost"] = cost.detach().sum() / here
    if slopes is not None:
        loss = loss + (slopes[:, None] * tokens.log_probs).sum()
    return loss, stats


def _surrogate(
    objective: Objective, new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None, size: Tensor | float
) -> tuple[Tensor, Statistics]:
    clips = (objective.clip_low, objective.clip_high)
    return clipped_surrogate(new, old, advantages, mask, *clips, size, dual_clip=objective.dual_clip, weights=weights)


@torch.no_grad()
def _action_statistics(new: Tensor, old: Tensor, mask: Tensor, tokens: Tokens) -> Statistics:
    """Divergence from the policy that acted and entropy, of actions whatever the ratio is taken of, so that runs compare."""
    executed = mask[..., 0]
    log_ratio = (new - old).sum(2).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    entropy = -(tokens.distribution.exp() * tokens.distribution).sum(-1).unflatten(1, new.shape[1:]).sum(2)
    return {
        "approx_kl": masked_mean(log_ratio.exp() - 1 - log_ratio, executed),
        "entropy": masked_mean(entropy, executed),
    }


def demonstration_loss(objective: Objective, tokens: Tokens, count: float) -> tuple[Float[Tensor, ""], Statistics]:
    """The auxiliary terms on demonstrations: the mean over the mini-batch's `count` demonstrated tokens of each one's cost."""
    loss, stats = torch.zeros((), device=tokens.log_probs.device), Statistics()
    for term in objective.auxiliaries_on("demonstrations"):
        cost = torch.where(tokens.mask, term(tokens), 0.0)
        loss = loss + term.coefficient * cost.sum() / count
        stats[f"{term.name}_cost"] = cost.detach().sum() / tokens.mask.sum().clamp(min=1)
    return loss, stats


def trajectory_loss(objective: Objective, whole: Trajectories) -> tuple[Float[Tensor, ""], Statistics]:
    """What the objective takes of whole trajectories, as means over the mini-batch's K trajectories.

    With the ratio level `trajectory` the clipped surrogate of s = (pi / pi_behaviour)^(1 / tokens), the geometric mean of the
    trajectory's token ratios (GSPO, arXiv 2507.18071, equation 7).
    """
    count = len(whole.log_ratio)
    loss, stats = torch.zeros((), device=whole.log_ratio.device), Statistics()
    if objective.ratio == "trajectory":
        mean = whole.log_ratio / whole.tokens.clamp(min=1)
        loss, stats = _surrogate(objective, mean, torch.zeros_like(mean), whole.advantages, whole.tokens > 0, None, count)
        stats = {name: value for name, value in stats.items() if name != "approx_kl"} | {"loss": loss.detach()}
    for term in objective.auxiliaries_on("trajectories"):
        cost = term(whole).mean()
        loss = loss + term.coefficient * cost
        stats[f"{term.name}_cost"] = cost.detach()
    return loss, stats

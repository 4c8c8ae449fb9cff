"""Terms of a loss beside the clipped policy loss and its regularisers, each times its coefficient.

They act on other things than the rollouts' tokens, which their needs tell: on values (critic), on demonstrated tokens
(demonstrations; they return a cost of every token), or on whole trajectories (trajectories; they return a cost of each one).

Legend: M demonstrated turns, K trajectories, L = A*D action tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.advantages import group_mean
from vla_rl.algorithms.objectives import clipped_value_loss
from vla_rl.algorithms.parts import Part, Tokens, Trajectories


def imitation(tokens: Tokens) -> Float[Tensor, "M L"]:
    """-log pi of the demonstrated tokens: the SFT regulariser of RPO (arXiv 2405.16436)."""
    return -tokens.log_probs


def hybrid(tokens: Tokens, *, power: float = 0.5) -> Float[Tensor, "M L"]:
    """RL-PLUS (arXiv 2508.00222) on demonstrated tokens: -r A (1 - pi)^power, with r a multiple importance sampling ratio.

    r = 2 pi / (pi_old + pi_demonstrator) and, as nobody knows it, pi_demonstrator = (pi_old + 1) / 2; the advantage A of a
    demonstration is 1 - the mean success of the round's episodes of its task. The factor (1 - pi)^power, constant in the
    gradient, turns attention to what the policy would hardly do itself. Constants of the authors' code; no clip.
    """
    old = tokens.behaviour_log_probs.exp()
    probability = tokens.log_probs.exp()
    ratio = 2 * probability / (old + 0.5 * (old + 1))
    return -ratio * tokens.advantages[:, None] * (1 - probability.detach()).clamp(min=0) ** power


def outcome(trajectories: Trajectories, *, beta: float = 1.0, balance: bool = True) -> Float[Tensor, "K"]:
    """PACS (arXiv 2509.02522): the policy predicts whether its own trajectory succeeded, by cross-entropy.

    The logit is RLOO's comparison of beta log pi / pi_old within the group. With `balance` the two outcomes of a group that
    has both weigh the same. Settings of the authors' script (beta 1; they also use 2).
    """
    score = beta * trajectories.log_ratio
    groups, success = trajectories.groups, trajectories.success
    # The differentiable twin of `advantages.leave_one_out`.
    same = (groups[:, None] == groups[None]).to(score.dtype)
    size = same.sum(1)
    logit = (score - same @ score / size) * size / (size - 1).clamp(min=1)
    share = torch.where(success > 0, group_mean(success, groups), 1 - group_mean(success, groups))
    weight = torch.where(balance & (share < 1), 0.5 / share.clamp(min=1e-6), 1.0)
    return weight * F.binary_cross_entropy_with_logits(logit, success, reduction="none")


AUXILIARIES: dict[str, Part] = {
    "value": Part(clipped_value_loss, frozenset({"critic"})),
    "imitation": Part(imitation, frozenset({"demonstrations"})),
    "hybrid": Part(hybrid, frozenset({"demonstrations"}), ranges={"power": (0.0, math.inf)}),
    "outcome": Part(outcome, frozenset({"groups", "trajectories"}), ranges={"beta": (0.0, math.inf)}),
}

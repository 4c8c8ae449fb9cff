"""Losses as pure functions of tensors.

Every loss is `sum over mask / denominator`. Pass the number of valid entries of the WHOLE batch (over micro-batches and
processes) as the denominator: then accumulating gradients, padding, reordering and sharding cannot change the gradient.
A batch without valid entries has the loss 0.
Entries outside the mask may hold anything, inf and NaN included. Statistics are means over the mask of this call,
detached, as 0-d tensors.

Legend: * any shape (turns, actions or tokens), A actions of a chunk, D action size, L = A*D action tokens, V classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Statistics = dict[str, Tensor]

MAX_LOG_RATIO = 20.0
"""Beyond e^20 a ratio says no more, but would overflow float32 further on."""


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean over `mask`; 0 where it is empty."""
    mask = mask.bool()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def _over(terms: Float[Tensor, "*shape"], denominator: float | Tensor) -> Float[Tensor, ""]:
    """The sum of the terms over the denominator; 0 where that is 0, as nothing is valid then."""
    if isinstance(denominator, Tensor):
        return terms.sum() / torch.where(denominator == 0, 1, denominator)
    return terms.sum() / (denominator or 1)


def action_log_probs(token_log_probs: Float[Tensor, "*batch L"], chunk_length: int, action_dim: int) -> Float[Tensor, "*batch A"]:
    """The log-prob of each action of a chunk: the sum over its D tokens (VLA-RL, arXiv 2505.18719, takes ratios of these).

    Raises `ValueError` when L is not `chunk_length * action_dim`.
    """
    if token_log_probs.shape[-1] != chunk_length * action_dim:
        raise ValueError(
            f"{token_log_probs.shape[-1]} token log-probs are not {chunk_length} actions of {action_dim} tokens each"
        )
    return token_log_probs.unflatten(-1, (chunk_length, action_dim)).sum(-1)


def clipped_surrogate(
    log_probs: Float[Tensor, "*shape"],
    behaviour_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    clip_low: float,
    clip_high: float,
    denominator: float | Tensor,
    *,
    dual_clip: float | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
) -> tuple[Float[Tensor, ""], Statistics]:
    """PPO's clipped objective, to be minimised: -sum w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) / denominator.

    The ratio r = exp(log_probs - behaviour_log_probs) may be of tokens, actions or whole trajectories. A `clip_high` above
    `clip_low` is DAPO's clip-higher (arXiv 2503.14476); infinite ones switch the clip off. `dual_clip` c > 1 bounds what a
    negative advantage can cost: max(min(...), c A) (Ye et al. 2020, arXiv 1912.09729). `weights` default to 1.
    `approx_kl` is the k3 estimator r - 1 - log r of KL(behaviour || policy); `clip_fraction` counts the entries whose gradient
    a clip removed.
    """
    mask = mask.bool()
    log_ratio = torch.where(mask, log_probs - behaviour_log_probs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    gain = torch.minimum(unclipped, clipped)
    removed = clipped < unclipped
    if dual_clip is not None:
        floor = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        removed = removed | (gain < floor)
        gain = torch.maximum(gain, floor)
    weighted = gain if weights is None else gain * torch.where(mask, weights, 0.0)
    loss = -_over(torch.where(mask, weighted, 0.0), denominator)
    with torch.no_grad():
        stats = {
            "ratio_mean": masked_mean(ratio, mask),
            "ratio_max": ratio.amax() if ratio.numel() else ratio.new_ones(()),
            "ratio_min": ratio.amin() if ratio.numel() else ratio.new_ones(()),
            "ratio_deviation": masked_mean((ratio - 1).abs(), mask),
            "approx_kl": masked_mean(ratio - 1 - log_ratio, mask),
            "clip_fraction": masked_mean(removed.to(ratio.dtype), mask),
        }
        # Masked ratios are 1: they must not hide that every valid one lies above or below it.
        if mask.any():
            stats["ratio_max"], stats["ratio_min"] = ratio[mask].amax(), ratio[mask].amin()
    return loss, {name: value.detach() for name, value in stats.items()}


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    behaviour_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    clip: float,
    denominator: float | Tensor,
) -> tuple[Float[Tensor, ""], Statistics]:
    """PPO's value loss: sum 0.5 max((v - R)^2, (clip(v, v_old - clip, v_old + clip) - R)^2) / denominator.

    `clip = inf` switches the clip off. `value_clip_fraction` counts the entries where the clipped term was the larger.
    """
    mask = mask.bool()
    values, behaviour_values, returns = (torch.where(mask, x, 0.0) for x in (values, behaviour_values, returns))
    near = behaviour_values + (values - behaviour_values).clamp(-clip, clip)
    plain, clipped = (values - returns).square(), (near - returns).square()
    loss = 0.5 * _over(torch.maximum(plain, clipped), denominator)
    with torch.no_grad():
        stats = {
            "value_clip_fraction": masked_mean((clipped > plain).to(values.dtype), mask),
            "value_mean": masked_mean(values, mask),
            "return_mean": masked_mean(returns, mask),
        }
    return loss, {name: value.detach() for name, value in stats.items()}


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """1 - Var(R - V) / Var(R) over `mask`: 1 is a perfect critic, 0 one no better than a constant.

    0 where the returns do not vary, because then there is nothing to explain.
    """
    mask = mask.bool()
    valid_returns, valid_values = returns[mask].double(), values[mask].double()
    if valid_returns.numel() < 2:
        return returns.new_zeros(())
    variance = valid_returns.var(correction=0)
    if variance <= 1e-12 * valid_returns.square().mean():
        return returns.new_zeros(())
    return (1 - (valid_returns - valid_values).var(correction=0) / variance).to(returns.dtype)


def token_cross_entropy(
    logits: Float[Tensor, "*shape V"],
    targets: Int[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    denominator: float | Tensor,
) -> tuple[Float[Tensor, ""], Statistics]:
    """The loss of supervised fine-tuning: sum of -log softmax(logits)[target] over `mask` / denominator, in float32.

    `targets` are class indices in [0, V); outside the mask they may be anything, as may the logits.
    """
    mask = mask.bool()
    logits = torch.where(mask.unsqueeze(-1), logits.float(), 0.0)
    targets = torch.where(mask, targets, 0).long()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
    loss = _over(torch.where(mask, losses, 0.0), denominator)
    with torch.no_grad():
        stats = {
            "token_loss": masked_mean(losses, mask),
            "token_accuracy": masked_mean((logits.argmax(-1) == targets).to(losses.dtype), mask),
        }
    return loss, {name: value.detach() for name, value in stats.items()}

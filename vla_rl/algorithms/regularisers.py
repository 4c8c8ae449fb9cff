"""Costs of single tokens that are added to the policy loss, each times its coefficient.

Each takes `Tokens` and returns a cost of every token, nat where not said otherwise; the caller takes the mean over the mask
with the objective's averaging. Costs depend on their own token alone, so splitting and padding cannot change them.

Legend: N turns, L = A*D action tokens, V action-token classes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.divergences import DIVERGENCES
from vla_rl.algorithms.parts import Part, Tokens

MAX_COST = 10.0
"""Bound of the sampled KL estimate, as in the code of Lp-Reg."""


def entropy(tokens: Tokens) -> Float[Tensor, "N L"]:
    """MINUS the entropy of each token's distribution: a positive coefficient is an entropy bonus."""
    return (tokens.distribution.exp() * tokens.distribution).sum(-1)


def reference(tokens: Tokens, *, kind: str = "reverse", success_temperature: float = 0.0) -> Float[Tensor, "N L"]:
    """The exact divergence from the policy to the frozen reference, of `divergences.DIVERGENCES`.

    `reverse` is the usual KL penalty (ProRL, arXiv 2505.24864), `forward` that of RAPO (arXiv 2510.03865), the others are
    f-divergences (arXiv 2302.08215). With `success_temperature` tau > 0 a failed trajectory's cost is multiplied by
    exp(-1 / tau): the reference reweighted by exp(success / tau), our reading of RAPO's "reweighted reference policy", of
    which the equation was not at hand.
    """
    assert tokens.reference is not None
    cost = DIVERGENCES[kind](tokens.distribution, tokens.reference)
    if success_temperature > 0:
        cost = cost * ((tokens.success.to(cost.dtype) - 1) / success_temperature).exp()[:, None]
    return cost


def low_probability(tokens: Tokens, *, kept: float = 0.02, share: float = 0.01) -> Float[Tensor, "N L"]:
    """Lp-Reg (arXiv 2510.03222): keeps penalised tokens alive that were improbable, but not noise.

    The proxy is the distribution before the update without the classes below `kept` times its largest probability,
    renormalised. Among tokens of negative advantage, the `share` that was least probable when drawn pays
    k3 = q / p - 1 - log(q / p) (q: proxy, p: policy) where p < q. Constants of the authors' code, as is the bound of 10.
    """
    assert tokens.before is not None and tokens.rank is not None
    threshold = tokens.before.amax(-1, keepdim=True) + (math.log(kept) if kept else -math.inf)
    proxy = torch.where(tokens.before >= threshold, tokens.before, -torch.inf).log_softmax(-1)
    log_ratio = proxy.gather(-1, tokens.classes[..., None]).squeeze(-1) - tokens.log_probs
    log_ratio = torch.where((tokens.rank < share) & (log_ratio > 0), log_ratio, 0.0)
    return (log_ratio.exp() - 1 - log_ratio).clamp(max=MAX_COST)


REGULARISERS: dict[str, Part] = {
    "entropy": Part(entropy),
    "reference": Part(reference, frozenset({"reference"}), {"kind": DIVERGENCES}, {"success_temperature": (0.0, math.inf)}),
    "low_probability": Part(low_probability, frozenset({"before", "rank"}), ranges={"kept": (0.0, 1.0), "share": (0.0, 1.0)}),
}

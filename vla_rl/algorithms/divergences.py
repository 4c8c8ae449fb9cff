"""How far two distributions over action tokens are from each other, exactly, as all V = 256 classes are known.

An f-divergence is D_f(p || q) = sum_v q_v f(p_v / q_v) with f convex and f(1) = 0. Where q is a target and p the policy,
f-DPG (Go et al. 2023, arXiv 2302.08215, theorem 1) climbs the pseudo-reward -f'(p / q). The names below are those of the
divergence FROM the policy p TO the reference q:

    name     f(t)                                    f'(t)               known as
    reverse  t log t                                 log t + 1           KL(p || q), seeks modes
    forward  -log t                                  -1 / t              KL(q || p), covers q
    js       t log(2t / (1+t)) + log(2 / (1+t))      log(2t / (1+t))     twice Jensen-Shannon, bounded by 2 log 2
    tv       |t - 1| / 2                             sign(t - 1) / 2     total variation, bounded by 1

Legend: * any shape, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MAX_EXPONENT = 20.0
"""Of a pseudo-reward that is an exponential: beyond e^20 it would be all that a batch holds."""


def reverse_kl(policy: Float[Tensor, "*shape V"], reference: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """KL(policy || reference) of log-probs, nat."""
    return (policy.exp() * (policy - reference)).sum(-1)


def forward_kl(policy: Float[Tensor, "*shape V"], reference: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """KL(reference || policy) of log-probs, nat."""
    return (reference.exp() * (reference - policy)).sum(-1)


def jensen_shannon(policy: Float[Tensor, "*shape V"], reference: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """KL(policy || m) + KL(reference || m) with m their mean, nat: twice the usual Jensen-Shannon divergence."""
    middle = torch.logaddexp(policy, reference) - math.log(2)
    return reverse_kl(policy, middle) + reverse_kl(reference, middle)


def total_variation(policy: Float[Tensor, "*shape V"], reference: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """Half the sum of |policy - reference|, in [0, 1]."""
    return 0.5 * (policy.exp() - reference.exp()).abs().sum(-1)


Divergence = Callable[[Tensor, Tensor], Tensor]
DIVERGENCES: dict[str, Divergence] = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "js": jensen_shannon,
    "tv": total_variation,
}
DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda log_t: log_t + 1,
    "forward": lambda log_t: -(-log_t).clamp(max=MAX_EXPONENT).exp(),
    "js": lambda log_t: math.log(2) - F.softplus(-log_t),
    "tv": lambda log_t: log_t.sign() / 2,
}
"""f'(t) as a function of log t."""

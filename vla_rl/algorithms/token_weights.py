"""Weights of single tokens in the policy loss, computed once a round and constant in the update.

Each takes the round's turns and its strength (the coefficient in a configuration) and returns [N, L]; several are multiplied.

Legend: N turns, L = A*D action tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.parts import Part
from vla_rl.algorithms.turn_batch import TurnBatch

MAX_SHIFT = 5.0
"""nat. A whole trajectory has a thousand tokens here: without a bound its penalty could outweigh a round."""


def confident_errors(turns: TurnBatch, strength: float, *, max_shift: float = MAX_SHIFT) -> Float[Tensor, "N L"]:
    """ACE (arXiv 2602.21420): 1 + strength * softplus(c) where the advantage is negative, else 1.

    c = log pi(trajectory) / pi_reference(trajectory): an error that training has made likelier than it was weighs more, one
    that the reference prefers weighs as before. Of the paper only the abstract and summaries were at hand: the bound
    `max_shift` on c is ours, and so is the strength of 1 in the composition `ace`.
    """
    assert turns.log_ratio is not None and turns.advantages is not None
    penalty = 1 + strength * F.softplus(turns.log_ratio.clamp(max=max_shift))
    weight = torch.where(turns.advantages < 0, penalty, 1.0).to(turns.log_probs.dtype)
    return weight[:, None].expand(turns.log_probs.shape)


TOKEN_WEIGHTS: dict[str, Part] = {
    "confident_errors": Part(confident_errors, frozenset({"reference"}), ranges={"max_shift": (0.0, 20.0)})
}

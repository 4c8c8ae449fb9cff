"""What one policy update learns from.

Legend: N turns, A actions of a chunk, L = A*D action tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vla_rl.types import Observation


@dataclass(frozen=True)
class TurnBatch:
    """N turns without padding: what one update learns from."""

    observation: Observation
    tokens: Int64[np.ndarray, "N L"]
    log_probs: Float[Tensor, "N L"]
    """Of each token under the policy that acted."""
    values: Float[Tensor, "N"]
    """At rollout."""
    advantages: Float[Tensor, "N"]
    returns: Float[Tensor, "N"]
    executed: Bool[Tensor, "N A"]

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: np.ndarray) -> TurnBatch:
        return TurnBatch(
            observation=self.observation.select(index),
            tokens=self.tokens[index],
            log_probs=self.log_probs[index],
            values=self.values[index],
            advantages=self.advantages[index],
            returns=self.returns[index],
            executed=self.executed[index],
        )

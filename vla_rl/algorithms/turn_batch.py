"""What one policy update learns from.

Legend: B trajectories, T turns (padded to the longest), N turns of all trajectories, A actions of a chunk,
L = A*D action tokens, V action-token classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vla_rl.types import Observation


@dataclass(frozen=True)
class TurnBatch:
    """N turns without padding. The fields after `executed` are filled in before an update (`RlLearner.prepare`)."""

    observation: Observation
    tokens: Int64[np.ndarray, "N L"]
    log_probs: Float[Tensor, "N L"]
    """Of each token under the policy that acted."""
    values: Float[Tensor, "N"]
    """At rollout."""
    version: Int64[Tensor, "N"]
    """Of the policy that acted."""
    trajectory: Int64[Tensor, "N"]
    """Which trajectory of the round a turn belongs to."""
    group: Int64[Tensor, "N"]
    """Which group its trajectory belongs to."""
    success: Bool[Tensor, "N"]
    """Whether its trajectory succeeded."""
    executed: Bool[Tensor, "N A"]
    """A turn without an executed action is padding: it is never learned from, whatever it holds."""
    advantages: Float[Tensor, "N"] | None = None
    returns: Float[Tensor, "N"] | None = None
    """Where a critic learns."""
    weights: Float[Tensor, "N L"] | None = None
    """Of each token in the policy loss; None: all 1."""
    log_ratio: Float[Tensor, "N"] | None = None
    """log pi(trajectory) / pi_reference(trajectory) of the turn's whole trajectory, nat."""
    reference: Float[Tensor, "N L V"] | None = None
    """Log-probs of all classes under the frozen reference policy."""
    before: Float[Tensor, "N L V"] | None = None
    """Log-probs of all classes under the policy as it was before the update."""
    rank: Float[Tensor, "N L"] | None = None
    """Share of the round's penalised tokens that were less probable than this one; 1 where the advantage is not negative."""

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: np.ndarray) -> TurnBatch:
        """Some of the turns, in the order of `index`."""
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                chosen[field.name] = value.select(index) if isinstance(value, Observation) else value[index]
        return TurnBatch(**chosen)


@dataclass(frozen=True)
class Episodes:
    """What an advantage estimator sees of a round: its B trajectories, padded to T turns."""

    rewards: Float[Tensor, "B T"]
    """Of each turn: the sum over its executed actions."""
    values: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    terminated: Bool[Tensor, "B"]
    success: Bool[Tensor, "B"]
    final_values: Float[Tensor, "B"]
    """Of the observation after the last turn; 0 where no critic is asked."""
    groups: Int64[Tensor, "B"]
    log_ratio: Float[Tensor, "B"] | None = None
    """log pi(trajectory) / pi_reference(trajectory), nat; None without a reference."""


@dataclass(frozen=True)
class Round:
    """All that an iteration's rollouts brought: the same trajectories turn by turn and episode by episode."""

    turns: TurnBatch
    episodes: Episodes

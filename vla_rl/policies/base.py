"""What a policy must offer to rollouts, learning and robots.

Legend: B observations (or turns), A actions of a chunk, D action size, L = A*D action tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vla_rl.types import ActionChunk, Observation


class PolicyError(RuntimeError):
    """A policy cannot do what was asked; the message says what, where and how to mend it."""


@dataclass(frozen=True)
class ActionEvaluation:
    """A policy's opinion of given action tokens."""

    log_probs: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B L"]
    values: Float[Tensor, "B"]


class Policy(Protocol):
    """A token policy with a value function.

    `act` and `evaluate_actions` run the same forward pass, so that log-probs of an unchanged policy agree.
    """

    chunk_length: int
    action_dim: int
    cameras: tuple[str, ...]
    version: int
    """Counts the updates; stamped on every chunk, so that a rollout with stale weights is seen."""

    def act(self, observation: Observation, temperature: float, generator: torch.Generator | None = None) -> ActionChunk:
        """Choose chunks; temperature 0 is greedy. Runs without gradient, in evaluation mode."""
        ...

    def evaluate_actions(
        self, observation: Observation, tokens: Int64[np.ndarray, "B L"] | Tensor, temperature: float
    ) -> ActionEvaluation:
        """Log-probs and entropy (nat) of tokens at a temperature > 0, and the value of the observations; with gradient."""
        ...

    def value(self, observation: Observation) -> Float[Tensor, "B"]: ...

    def save(self, path: Path) -> None: ...

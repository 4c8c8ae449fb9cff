"""What a policy must offer to rollouts, learning and robots.

Legend: B observations (or turns), A actions of a chunk, D action size, L = A*D action tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

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
    distribution: Float[Tensor, "B L V"]
    """Log-probs (nat) of all V classes of action tokens."""
    values: Float[Tensor, "B"]


Generators = torch.Generator | Sequence[torch.Generator] | None
"""What a policy draws from: one for a batch, or one for each observation, whose draw then does not depend on the others."""


class ActingPolicy(Protocol):
    """What chooses action chunks, here or behind a server."""

    chunk_length: int
    action_dim: int
    cameras: tuple[str, ...]
    version: int
    """Counts the updates; stamped on every chunk, so that a rollout with stale weights is seen."""

    def act(self, observation: Observation, temperature: float, generator: Generators = None) -> ActionChunk:
        """Choose chunks; temperature 0 is greedy. Runs without gradient, in evaluation mode."""
        ...


class Policy(ActingPolicy, Protocol):
    """A token policy with a value function.

    `act` and `evaluate_actions` run the same forward pass, so that log-probs of an unchanged policy agree.
    """

    def evaluate_actions(
        self, observation: Observation, tokens: Int64[np.ndarray, "B L"] | Tensor, temperature: float
    ) -> ActionEvaluation:
        """Log-probs (nat) of tokens and of all classes at a temperature > 0, and values of the observations; with gradient."""
        ...

    def value(self, observation: Observation) -> Float[Tensor, "B"]: ...

    def save(self, path: Path) -> None: ...


class TrainablePolicy(Policy, Protocol):
    """What reinforcement learning asks of a policy beside acting."""

    @property
    def device(self) -> torch.device: ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """All, those that do not train included."""
        ...

    def policy_parameters(self) -> Iterable[torch.nn.Parameter]:
        """All but the value head's."""
        ...

    def value_parameters(self) -> Iterable[torch.nn.Parameter]: ...

    def token_classes(self, tokens: Int64[np.ndarray, "*batch L"] | Tensor) -> Int64[Tensor, "*batch L"]:
        """Action tokens -> indices of classes in `ActionEvaluation.distribution`, on the policy's device."""
        ...

    def encode_actions(self, actions: Float[np.ndarray, "*batch A D"]) -> Int64[np.ndarray, "*batch L"]:
        """Action tokens of commands."""
        ...

    def frozen_copy(self) -> Self:
        """A policy with the same weights that shares none of them and takes no gradient."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

"""Two silent failures, noticed: rollouts that were not made by the learner's weights, and updates that do not reach them.

Legend: P probed turns, L action tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.mini_batch import TrainingError, micro_batches
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.config import RlConfig
from vla_rl.policies.base import TrainablePolicy

PROBE_TURNS = 32
ROUNDING = 1e-3
"""nat a token, on average, that acting and learning may differ by in float32: other batches, other kernels, a compiled one."""
COARSE_ROUNDING = 10.0
"""The same in units of the weights' precision, which is what counts in bfloat16: 0.08 nat."""
STILL = 1e-6
"""nat a token: less is no update."""


class Probe:
    """Some turns of a round, looked at before the first step of an update and after the last one."""

    def __init__(self, policy: TrainablePolicy, turns: TurnBatch, config: RlConfig) -> None:
        """Takes turns from all over the round, of those that this version of the policy acted in where there are any."""
        fresh = np.flatnonzero((turns.version == policy.version).numpy())
        rows = fresh if len(fresh) else np.arange(len(turns))
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), PROBE_TURNS)).round().astype(np.int64)]
        self._policy, self._config = policy, config
        self._turns = turns.select(chosen)
        self._is_fresh = len(fresh) > 0
        self._mask = self._turns.executed.repeat_interleave(policy.action_dim, dim=1)
        self._before = self._log_probs()

    def check_rollout(self) -> None:
        """Raise `TrainingError` where other weights acted. Turns of earlier versions, kept from another round, tell nothing."""
        distance = self._distance(self._turns.log_probs, self._before)
        if self._is_fresh and distance > _rounding(self._policy):
            raise TrainingError(
                f"before any update the policy's log-probs differ from the rollout's by {distance:.3g} nat a token: it was made "
                "by other weights, or at another temperature or with dropout; rollouts must use the learner's current weights"
            )

    def check_update(self) -> None:
        """Raise `TrainingError` where the steps since have left the policy as it was."""
        distance = self._distance(self._log_probs(), self._before)
        if distance < STILL:
            raise TrainingError(
                f"after an update the ratio is still 1 (log-probs moved by {distance:.3g} nat a token): the optimiser's steps do "
                "not reach the weights that evaluate_actions uses, or rl.learning_rate is too small for their precision"
            )

    @torch.no_grad()
    def _log_probs(self) -> Float[Tensor, "P L"]:
        turns, temperature = self._turns, self._config.temperature
        parts = [
            self._policy.evaluate_actions(turns.observation.select(rows), turns.tokens[rows], temperature).log_probs.float().cpu()
            for rows in micro_batches(turns, self._config.microbatch_turns)
        ]
        return torch.cat(parts)

    def _distance(self, one: Float[Tensor, "P L"], other: Float[Tensor, "P L"]) -> float:
        """Mean over the executed tokens; NaN, which is neither far nor near, where one is not finite: the loss reports that."""
        return float((one - other)[self._mask].abs().mean())


def _rounding(policy: TrainablePolicy) -> float:
    # Of all weights: float32 adapters do not make a bfloat16 policy exact.
    precisions = (torch.finfo(p.dtype).eps for p in policy.parameters() if p.is_floating_point())
    return max(ROUNDING, COARSE_ROUNDING * max(precisions, default=0.0))

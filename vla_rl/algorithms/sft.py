"""Supervised fine-tuning: cross-entropy of the demonstrated action tokens.

Legend: B samples, A actions of a chunk, D action size, L = A*D action tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float32

from vla_rl.algorithms.mini_batch import TrainingError
from vla_rl.algorithms.objectives import token_cross_entropy
from vla_rl.config import SftConfig
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.types import Observation


def learning_rate_at(step: int, config: SftConfig) -> float:
    """Linear warm-up to the peak in `warmup_steps`, then a cosine down to a tenth of it at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))


class SftLearner:
    """Fits a policy to demonstrated chunks."""

    def __init__(self, policy: OpenVLAPolicy, config: SftConfig) -> None:
        self.policy = policy
        self.config = config
        parameters = policy.policy_parameters()
        # Vectors (norms, biases, embeddings of slots) are not weights to shrink.
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers = {"policy": torch.optim.AdamW(groups, lr=config.learning_rate)}

    def update(
        self,
        step: int,
        observation: Observation,
        actions: Float32[np.ndarray, "B A D"],
        mask: Bool[np.ndarray, "B A"],
        generator: torch.Generator,
    ) -> dict[str, float]:
        """One optimiser step; `mask` leaves out actions after the end of a demonstration, `generator` draws augmentation."""
        optimizer = self.optimizers["policy"]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.config)
        policy = self.policy
        policy.train()
        chosen = policy.encode_actions(actions)
        logits = policy.action_logits(policy.prepare(observation), generator, chosen)
        targets = policy.token_classes(chosen)
        tokens = torch.from_numpy(mask).to(policy.device).repeat_interleave(policy.action_dim, dim=1)
        loss, stats = token_cross_entropy(logits, targets, tokens, tokens.sum().clamp(min=1))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of supervised step {step} is {loss.item()}; lower sft.learning_rate, or look at the demonstrations' "
                "actions; the last checkpoint is intact"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(policy.policy_parameters(), self.config.max_grad_norm)
        optimizer.step()
        policy.eval()
        return {name: float(value) for name, value in stats.items()} | {
            "loss": float(loss.detach()),
            "gradient_norm": float(norm),
            "learning_rate": optimizer.param_groups[0]["lr"],
        }

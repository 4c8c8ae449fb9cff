"""Trajectory-level PPO as VLA-RL defines it (arXiv 2505.18719): one turn of the conversation is one decision, the ratio and
its clip are per low-level action (the sum of the action's D token log-probs), the critic is warmed up alone.

Legend: N turns, A actions of a chunk, D action size, L = A*D action tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.algorithms.advantages import normalise
from vla_rl.algorithms.objectives import (
    action_log_probs,
    clipped_surrogate,
    clipped_value_loss,
    entropy_bonus,
    explained_variance,
)
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.config import RlConfig
from vla_rl.policies.openvla import OpenVLAPolicy

STALE_RATIO = 1e-2
"""Before the first update of a round an action's ratio may differ from 1 by rounding only; beyond this, other weights acted."""


class TrainingError(RuntimeError):
    """Training is broken in a way that more of it cannot mend; the message says what was seen and where to look."""


class _Means:
    """Averages of statistics over micro-batches, weighted by their entries; `_max` and `_min` keep extremes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, stats: dict[str, Any], weight: float) -> None:
        for name, value in stats.items():
            value = float(value)
            if name.endswith("_max"):
                self._sums[name] = max(self._sums.get(name, value), value)
                self._weights[name] = 1.0
            elif name.endswith("_min"):
                self._sums[name] = min(self._sums.get(name, value), value)
                self._weights[name] = 1.0
            else:
                self._sums[name] = self._sums.get(name, 0.0) + value * weight
                self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        return {name: total / max(self._weights[name], 1e-12) for name, total in self._sums.items()}


def ppo_loss(
    policy: OpenVLAPolicy, batch: TurnBatch, config: RlConfig, turns: int, actions: int, train_policy: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some turns of a mini-batch that holds `turns` turns and `actions` executed actions in all.

    The sum over the micro-batches of a mini-batch is the loss of the mini-batch. Without `train_policy` (critic warm-up)
    the value loss alone.
    """
    device = policy.device
    evaluation = policy.evaluate_actions(batch.observation, batch.tokens, config.temperature) if train_policy else None
    every_turn = torch.ones(len(batch), dtype=torch.bool, device=device)
    value_loss, value_stats = clipped_value_loss(
        policy.value(batch.observation) if evaluation is None else evaluation.values,
        batch.values.to(device),
        batch.returns.to(device),
        every_turn,
        config.value_clip,
        turns,
    )
    stats = {"value/loss": value_loss.detach() * turns / len(batch), "value/clip_fraction": value_stats["value_clip_fraction"]}
    if evaluation is None:
        return config.value_coefficient * value_loss, stats
    shape = (policy.chunk_length, policy.action_dim)
    mask = batch.executed.to(device)
    policy_loss, policy_stats = clipped_surrogate(
        action_log_probs(evaluation.log_probs, *shape),
        action_log_probs(batch.log_probs.to(device), *shape),
        batch.advantages.to(device)[:, None].expand(mask.shape),
        mask,
        config.clip_low,
        config.clip_high,
        actions,
    )
    entropy = entropy_bonus(evaluation.entropy.unflatten(1, shape).sum(2), mask, actions)
    here = mask.sum().clamp(min=1)
    stats |= {f"policy/{name}": value for name, value in policy_stats.items()}
    stats |= {"policy/loss": policy_loss.detach() * actions / here, "policy/entropy": entropy.detach() * actions / here}
    return policy_loss + config.value_coefficient * value_loss - config.entropy_coefficient * entropy, stats


class PpoLearner:
    """Updates a policy from batches of turns."""

    def __init__(self, policy: OpenVLAPolicy, config: RlConfig) -> None:
        self.policy = policy
        self.config = config
        self.optimizers = {
            "policy": torch.optim.AdamW(policy.policy_parameters(), lr=config.learning_rate, weight_decay=0.0),
            "value": torch.optim.AdamW(policy.value_parameters(), lr=config.value_learning_rate, weight_decay=0.0),
        }

    def update(self, batch: TurnBatch, rng: np.random.Generator, train_policy: bool = True) -> dict[str, float]:
        """Several epochs of mini-batches over `batch`; returns the averages of the round's statistics.

        Raises `TrainingError` when the rollout did not come from these weights, when updates do not reach the policy (the
        ratio stays 1), or when the loss is not finite.
        """
        config = self.config
        every_turn = torch.ones(len(batch), dtype=torch.bool)
        explained = explained_variance(batch.values, batch.returns, every_turn)
        advantages = normalise(batch.advantages, every_turn)
        batch = replace(batch, advantages=advantages)
        means = _Means()
        first_deviation: float | None = None
        updates, stopped = 0, False
        for index in self._minibatches(len(batch), rng, config.epochs if train_policy else config.warmup_epochs):
            stats = self._step(batch.select(index), train_policy)
            means.add(stats, len(index))
            if train_policy:
                deviation = max(abs(stats["policy/ratio_max"] - 1), abs(stats["policy/ratio_min"] - 1))
                self._check_ratio(deviation, first_deviation, stats["policy/gradient_norm"])
                first_deviation = deviation if first_deviation is None else first_deviation
            updates += 1
            if train_policy and config.target_kl is not None and stats["policy/approx_kl"] > config.target_kl:
                stopped = True
                break
        if train_policy:
            self.policy.version += 1
        result = means.result()
        result |= {"value/explained_variance": float(explained), "update/steps": updates, "update/stopped_by_kl": float(stopped)}
        return result

    def _minibatches(self, turns: int, rng: np.random.Generator, epochs: int) -> Iterator[np.ndarray]:
        count = max(1, round(turns / self.config.minibatch_turns))
        for _ in range(epochs):
            yield from np.array_split(rng.permutation(turns), count)

    def _step(self, batch: TurnBatch, train_policy: bool) -> dict[str, float]:
        actions = int(batch.executed.sum())
        means = _Means()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(batch), self.config.microbatch_turns):
            part = batch.select(np.arange(start, min(start + self.config.microbatch_turns, len(batch))))
            loss, stats = ppo_loss(self.policy, part, self.config, len(batch), max(actions, 1), train_policy)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} after {self.policy.version} updates; lower rl.learning_rate, "
                    "or look in metrics.jsonl for the first value that went wrong; the last checkpoint is intact"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            means.add({name: value for name, value in stats.items() if name.startswith("policy/")}, int(part.executed.sum()))
            means.add({name: value for name, value in stats.items() if name.startswith("value/")}, len(part))
        result = means.result()
        chosen = ("policy", "value") if train_policy else ("value",)
        if train_policy:
            self._warm_up_learning_rate()
        for name in chosen:
            parameters = [p for group in self.optimizers[name].param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
            result[f"{name}/gradient_norm"] = float(norm)
            self.optimizers[name].step()
        return result

    def _warm_up_learning_rate(self) -> None:
        optimizer = self.optimizers["policy"]
        done = max((int(state["step"]) for state in optimizer.state.values()), default=0)
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (done + 1) / max(1, self.config.learning_rate_warmup))

    def _check_ratio(self, deviation: float, first: float | None, gradient_norm: float) -> None:
        if first is None:
            if deviation > STALE_RATIO:
                raise TrainingError(
                    f"before any update the ratio differs from 1 by {deviation:.3g}: the rollout was made by other weights, or "
                    "at another temperature or with dropout; rollouts must use the learner's current weights"
                )
        elif deviation <= first and gradient_norm > 0:
            raise TrainingError(
                f"after an update the ratio is still 1 (largest deviation {deviation:.3g}): the optimiser's steps do not reach "
                "the weights that evaluate_actions uses, or rl.learning_rate is too small to matter"
            )

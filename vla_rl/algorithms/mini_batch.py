"""The gradient of one mini-batch, in micro-batches of any size and order, on any number of ranks.

Legend: N turns, R of them on one rank, M demonstrated turns, K trajectories, A actions of a chunk, L = A*D action tokens,
V action-token classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.averages import Averages
from vla_rl.algorithms.composition import Objective
from vla_rl.algorithms.losses import action_shares, demonstration_loss, policy_loss, trajectory_loss
from vla_rl.algorithms.objectives import Statistics, clipped_value_loss
from vla_rl.algorithms.parts import Tokens, Trajectories
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.config import RlConfig
from vla_rl.distributed.ranks import Ranks
from vla_rl.policies.base import ActionEvaluation, TrainablePolicy


class TrainingError(RuntimeError):
    """Training is broken in a way that more of it cannot mend; the message says what was seen and where to look."""


def micro_batches(turns: TurnBatch, size: int) -> Iterator[np.ndarray]:
    """Rows of at most `size` turns at a time."""
    for start in range(0, len(turns), size):
        yield np.arange(start, min(start + size, len(turns)))


def share_of(turns: TurnBatch, ranks: Ranks) -> tuple[TurnBatch, np.ndarray]:
    """The turns that this rank works on, and their rows [R]; what fills the share up is padding: nothing of it was executed."""
    if ranks.size == 1:
        return turns, np.arange(len(turns))
    rows, real = ranks.rows(len(turns))
    mine = turns.select(rows)
    return replace(mine, executed=mine.executed & torch.from_numpy(real)[:, None]), rows


def evaluate(policy: TrainablePolicy, turns: TurnBatch, temperature: float) -> tuple[Tokens, ActionEvaluation]:
    """The policy's opinion of some turns, cleaned of whatever lies outside their executed actions."""
    device = policy.device
    evaluation = policy.evaluate_actions(turns.observation, turns.tokens, temperature)
    mask = turns.executed.to(device).repeat_interleave(policy.action_dim, dim=1)
    assert turns.advantages is not None
    kept = {
        "behaviour_log_probs": turns.log_probs,
        "advantages": turns.advantages,
        "success": turns.success,
        "weights": torch.ones_like(turns.log_probs) if turns.weights is None else turns.weights,
        "reference": turns.reference,
        "before": turns.before,
        "rank": turns.rank,
    }
    tokens = Tokens.clean(
        mask,
        log_probs=evaluation.log_probs,
        distribution=evaluation.distribution,
        classes=policy.token_classes(turns.tokens),
        **{name: None if value is None else value.to(device) for name, value in kept.items()},
    )
    return tokens, evaluation


def accumulate_gradient(
    policy: TrainablePolicy,
    config: RlConfig,
    objective: Objective,
    turns: TurnBatch,
    demonstrations: TurnBatch | None,
    train_policy: bool,
    ranks: Ranks,
) -> dict[str, float]:
    """Add this rank's part of the gradient of a mini-batch's loss to the parameters; returns the averages of its statistics,
    over all ranks.

    `turns` is the whole mini-batch on every rank: its denominators count all of it. Without `train_policy` (critic warm-up)
    the gradient is that of the value loss alone. Raises `TrainingError` for a loss that is not finite.
    """
    means = Averages()
    if train_policy:
        share, size = action_shares(turns.executed, turns.trajectory, objective.average)
        slopes, stats = _trajectory_slopes(policy, config, objective, turns, ranks)
        means.add(stats, 1.0)
    valued = max(int(turns.executed.any(1).sum()), 1)
    mine, where = share_of(turns, ranks)
    for rows in micro_batches(mine, config.microbatch_turns):
        part = mine.select(rows)
        evaluation: ActionEvaluation | None = None
        losses = []
        if train_policy:
            tokens, evaluation = evaluate(policy, part, config.temperature)
            slope = None if slopes is None else slopes[where[rows]].to(policy.device)
            shares = share[where[rows]].to(policy.device)
            loss, stats = policy_loss(objective, tokens, shares, float(size) or 1.0, policy.action_dim, slope)
            _add_policy_statistics(
                means, stats, float((share[where[rows]] * part.executed.sum(1)).sum()), int(part.executed.sum())
            )
            losses.append(loss)
        for term in objective.auxiliaries_on("critic"):
            values = policy.value(part.observation) if evaluation is None else evaluation.values
            loss, stats = value_loss(values, part, config.value_clip, valued)
            means.add({f"value/{name}": value for name, value in stats.items()}, int(part.executed.any(1).sum()))
            losses.append(term.coefficient * loss)
        _backward(losses, policy)
    if train_policy and demonstrations is not None and len(demonstrations):
        _demonstrate(policy, config, objective, demonstrations, means, ranks)
    return _over_ranks(means, ranks)


def _add_policy_statistics(means: Averages, stats: Statistics, shares: float, actions: int) -> None:
    """Costs are means over the objective's shares, all others over actions."""
    for name, value in stats.items():
        means.add({f"policy/{name}": value}, shares if name == "loss" or name.endswith("_cost") else actions)


def _over_ranks(means: Averages, ranks: Ranks) -> dict[str, float]:
    total = Averages()
    for tree in ranks.gather(means.to_tree()):
        total.add_tree(tree)
    return total.result()


def value_loss(values: Float[Tensor, "N"], turns: TurnBatch, clip: float, count: int) -> tuple[Tensor, Statistics]:
    """The clipped value loss of some of a mini-batch's `count` turns."""
    assert turns.returns is not None
    device = values.device
    mask = turns.executed.any(1).to(device)
    loss, stats = clipped_value_loss(values, turns.values.to(device), turns.returns.to(device), mask, clip, count)
    here = mask.sum().clamp(min=1)
    return loss, {"loss": loss.detach() * count / here, "clip_fraction": stats["value_clip_fraction"]}


def _trajectory_slopes(
    policy: TrainablePolicy, config: RlConfig, objective: Objective, turns: TurnBatch, ranks: Ranks
) -> tuple[Float[Tensor, "N"] | None, dict[str, Tensor]]:
    """The derivative of the loss of whole trajectories with respect to the log-prob of each turn's trajectory.

    A first pass without gradient finds the trajectories' log-probs, so that the second one can go micro-batch by micro-batch.
    """
    if not objective.looks_at_trajectories:
        return None, {}
    first, index = map(torch.from_numpy, np.unique(turns.trajectory.numpy(), return_index=True, return_inverse=True)[1:])
    sums = {name: torch.zeros(len(first)) for name in ("log_ratio", "tokens", "advantages")}
    mine, where = share_of(turns, ranks)
    with torch.no_grad():
        for rows in micro_batches(mine, config.microbatch_turns):
            tokens, _ = evaluate(policy, mine.select(rows), config.temperature)
            weighted = tokens.advantages[:, None] * tokens.weights
            parts = (tokens.log_probs - tokens.behaviour_log_probs, tokens.mask.float(), torch.where(tokens.mask, weighted, 0.0))
            for name, part in zip(sums, parts, strict=True):
                sums[name].index_add_(0, index[where[rows]], part.sum(1).cpu())
    sums = {name: ranks.sum(part) for name, part in sums.items()}
    # A trajectory without an executed token is padding and must not count among its group.
    real = sums["tokens"] > 0
    log_ratio = sums["log_ratio"][real].requires_grad_()
    whole = Trajectories(
        log_ratio=log_ratio,
        tokens=sums["tokens"][real],
        advantages=sums["advantages"][real] / sums["tokens"][real],
        success=turns.success[first[real]].float(),
        groups=turns.group[first[real]],
    )
    loss, stats = trajectory_loss(objective, whole)
    slopes = torch.zeros(len(real))
    if loss.requires_grad:
        slopes[real] = torch.autograd.grad(loss, log_ratio)[0]
    return slopes[index], {f"policy/{name}": value for name, value in stats.items()}


def _demonstrate(
    policy: TrainablePolicy, config: RlConfig, objective: Objective, demonstrations: TurnBatch, means: Averages, ranks: Ranks
) -> None:
    """Add the gradient of the terms on demonstrations."""
    count = max(int(demonstrations.executed.sum()) * policy.action_dim, 1)
    mine, _ = share_of(demonstrations, ranks)
    for rows in micro_batches(mine, config.microbatch_turns):
        part = mine.select(rows)
        loss, stats = demonstration_loss(objective, evaluate(policy, part, config.temperature)[0], count)
        means.add({f"policy/{name}": value for name, value in stats.items()}, int(part.executed.sum()))
        _backward([loss], policy)


def _backward(losses: list[Tensor], policy: TrainablePolicy) -> None:
    loss = torch.stack(losses).sum()
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} after {policy.version} updates; lower rl.learning_rate, "
            "or look in metrics.jsonl for the first value that went wrong; the last checkpoint is intact"
        )
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]

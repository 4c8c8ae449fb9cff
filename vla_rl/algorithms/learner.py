"""Updates of a policy from rounds of rollouts, by any objective.

Legend: N turns, M demonstrated turns, B trajectories, A actions of a chunk, L = A*D action tokens, V action-token classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.advantages import group_mean
from vla_rl.algorithms.averages import Averages
from vla_rl.algorithms.composition import Objective
from vla_rl.algorithms.mini_batch import accumulate_gradient, micro_batches, share_of
from vla_rl.algorithms.objectives import explained_variance
from vla_rl.algorithms.probe import Probe
from vla_rl.algorithms.turn_batch import Round, TurnBatch
from vla_rl.config import RlConfig
from vla_rl.data.chunks import ChunkDataset
from vla_rl.distributed.ranks import Ranks
from vla_rl.distributed.sharding import clip_gradients
from vla_rl.policies.base import TrainablePolicy


class RlLearner:
    """Updates a policy: `prepare` gives a round's turns what the objective's parts need, `update` learns from them."""

    def __init__(
        self,
        policy: TrainablePolicy,
        config: RlConfig,
        objective: Objective,
        demonstrations: ChunkDataset | None = None,
        ranks: Ranks | None = None,
        shard: Callable[[Any], None] | None = None,
    ) -> None:
        """Only an objective with a critic trains the value head, and only one with a reference holds a copy of the policy.

        All `ranks` update together: each calls every method with the same arguments. `shard` cuts a policy into their shares
        (`vla_rl.distributed.sharding`); without it each rank has all of it.

        Raises `ValueError` where the objective learns from demonstrations and there are none.
        """
        if objective.needs("demonstrations") and not demonstrations:
            raise ValueError(f"objective {objective.name} learns from demonstrations, and there are none")
        self.policy = policy
        self.config = config
        self.objective = objective
        self.demonstrations = demonstrations
        self.ranks = ranks or Ranks()
        self.reference = policy.frozen_copy() if objective.needs("reference") else None
        for one in (policy, self.reference):
            if shard is not None and one is not None:
                shard(one)
        self.optimizers = {"policy": torch.optim.AdamW(policy.policy_parameters(), lr=config.learning_rate, weight_decay=0.0)}
        if objective.needs("critic"):
            self.optimizers["value"] = torch.optim.AdamW(
                policy.value_parameters(), lr=config.value_learning_rate, weight_decay=0.0
            )

    def reset_reference(self) -> None:
        """The reference becomes the present policy and the optimisers start anew (ProRL, arXiv 2505.24864)."""
        if self.reference is not None:
            self.reference.load_state_dict(self.policy.state_dict())
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    @torch.no_grad()
    def prepare(self, round_: Round) -> TurnBatch:
        """The round's turns with advantages, token weights and whatever else the objective's parts look at."""
        turns, episodes, objective = round_.turns, round_.episodes, self.objective
        if self.reference is not None:
            distribution = self._distributions(self.reference, turns)
            classes = self.policy.token_classes(turns.tokens).cpu()
            theirs = distribution.gather(-1, classes[..., None]).squeeze(-1)
            mask = turns.executed.repeat_interleave(self.policy.action_dim, dim=1)
            log_ratio = torch.zeros(len(episodes.groups)).index_add_(
                0, turns.trajectory, torch.where(mask, turns.log_probs - theirs, 0.0).sum(1)
            )
            episodes = replace(episodes, log_ratio=log_ratio)
            turns = replace(turns, reference=distribution, log_ratio=log_ratio[turns.trajectory])
        advantages, returns = objective.advantage(episodes, self.config.gamma, self.config.lam)
        turns = replace(
            turns,
            advantages=advantages[episodes.mask],
            returns=None if returns is None else returns[episodes.mask],
        )
        if objective.token_weights:
            weights = [term(turns, term.coefficient) for term in objective.token_weights]
            turns = replace(turns, weights=torch.stack(weights).prod(0))
        if objective.needs("before"):
            turns = replace(turns, before=self._distributions(self.policy, turns))
        return replace(turns, rank=penalised_rank(turns)) if objective.needs("rank") else turns

    def update(self, turns: TurnBatch, rng: np.random.Generator, train_policy: bool = True) -> dict[str, float]:
        """Several epochs of mini-batches over prepared turns; returns the averages of the statistics.

        Without `train_policy` the value head alone learns. Raises `TrainingError` when the rollout did not come from these
        weights, when updates do not reach the policy (the ratio stays 1), or when the loss is not finite.
        """
        config, means = self.config, Averages()
        result: dict[str, float] = {}
        if turns.returns is not None:
            result["value/explained_variance"] = float(explained_variance(turns.values, turns.returns, turns.executed.any(1)))
        demonstrations = self._demonstrated(turns, rng) if train_policy else None
        epochs = config.epochs if train_policy else config.warmup_epochs
        probe = Probe(self.policy, turns, config) if train_policy and len(turns) else None
        if probe:
            probe.check_rollout()
        moved, steps, stopped = False, 0, False
        for rows, shown in self._mini_batches(turns, demonstrations, rng, epochs):
            stats = self._step(turns.select(rows), None if demonstrations is None else demonstrations.select(shown), train_policy)
            means.add(stats, len(rows))
            moved |= stats.get("policy/gradient_norm", 0.0) > 0
            steps += 1
            if train_policy and config.target_kl is not None and stats["policy/approx_kl"] > config.target_kl:
                stopped = True
                break
        if probe and moved:
            probe.check_update()
        if train_policy:
            self.policy.version += 1
        return means.result() | result | {"update/steps": steps, "update/stopped_by_kl": float(stopped)}

    def _mini_batches(
        self, turns: TurnBatch, demonstrations: TurnBatch | None, rng: np.random.Generator, epochs: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of the turns and of the demonstrations of each mini-batch."""
        units = {"turn": np.arange(len(turns)), "trajectory": turns.trajectory.numpy(), "group": turns.group.numpy()}
        count = max(1, round(len(turns) / self.config.minibatch_turns))
        for _ in range(epochs):
            batches = split_units(units[self.objective.unit], count, rng)
            shown = rng.permutation(0 if demonstrations is None else len(demonstrations))
            yield from zip(batches, np.array_split(shown, len(batches)), strict=True)

    def _step(self, turns: TurnBatch, demonstrations: TurnBatch | None, train_policy: bool) -> dict[str, float]:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        stats = accumulate_gradient(self.policy, self.config, self.objective, turns, demonstrations, train_policy, self.ranks)
        if train_policy:
            self._warm_up_learning_rate()
        for name, optimizer in self.optimizers.items():
            if train_policy or name == "value":
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                self.ranks.add_gradients(parameters)
                stats[f"{name}/gradient_norm"] = clip_gradients(parameters, self.config.max_grad_norm)
                optimizer.step()
        return stats

    def _warm_up_learning_rate(self) -> None:
        optimizer = self.optimizers["policy"]
        done = max((int(state["step"]) for state in optimizer.state.values()), default=0)
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (done + 1) / max(1, self.config.learning_rate_warmup))

    @torch.no_grad()
    def _distributions(self, policy: TrainablePolicy, turns: TurnBatch) -> Float[Tensor, "N L V"]:
        """Log-probs of all classes under a policy, at the rollouts' temperature."""
        parts = []
        mine, _ = share_of(turns, self.ranks)
        for rows in micro_batches(mine, self.config.microbatch_turns):
            observation = mine.observation.select(rows)
            parts.append(policy.evaluate_actions(observation, mine.tokens[rows], self.config.temperature).distribution.cpu())
        return self.ranks.whole(torch.cat(parts), len(turns))

    @torch.no_grad()
    def _demonstrated(self, turns: TurnBatch, rng: np.random.Generator) -> TurnBatch | None:
        """Demonstrated turns for one update, where the objective learns from some.

        Their log-probs are those of the policy before the update; their advantage is 1 - the mean success of the round's
        episodes of the same task, or of all where the round has none of it.
        """
        if not self.objective.needs("demonstrations"):
            return None
        data, config = self.demonstrations, self.config
        assert data is not None
        rows = rng.integers(len(data), size=math.ceil(self.objective.demonstration_share * len(turns)))
        observation, actions, mask = data[rows]
        count = len(rows)
        shown = TurnBatch(
            observation=observation,
            tokens=self.policy.encode_actions(actions),
            log_probs=torch.zeros(count, turns.log_probs.shape[1]),
            values=torch.zeros(count),
            version=torch.full((count,), -1),
            trajectory=torch.arange(count),
            group=torch.arange(count),
            success=torch.ones(count, dtype=torch.bool),
            executed=torch.from_numpy(mask),
            advantages=1 - task_success(turns, observation.instruction),
        )
        mine, _ = share_of(shown, self.ranks)
        old = [
            self.policy.evaluate_actions(mine.observation.select(part), mine.tokens[part], config.temperature).log_probs.cpu()
            for part in micro_batches(mine, config.microbatch_turns)
        ]
        return replace(shown, log_probs=self.ranks.whole(torch.cat(old), count))


def split_units(units: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of about `count` mini-batches of nearly equal size, in random order, none of which cuts a unit in two."""
    names, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    before = np.cumsum(sizes[order]) - sizes[order]
    chosen = np.empty(len(names), dtype=np.int64)
    chosen[order] = before * count // max(len(units), 1)
    batches = [np.flatnonzero(chosen[unit] == batch) for batch in range(count)]
    return [rows for rows in batches if len(rows)]


@torch.no_grad()
def penalised_rank(turns: TurnBatch) -> Float[Tensor, "N L"]:
    """For each executed token of a turn of negative advantage the share of such tokens that were less probable when drawn; 1
    for all others."""
    assert turns.advantages is not None
    width = turns.log_probs.shape[1] // turns.executed.shape[1]
    penalised = turns.executed.repeat_interleave(width, dim=1) & (turns.advantages < 0)[:, None]
    drawn = turns.log_probs[penalised].contiguous()
    rank = torch.ones_like(turns.log_probs)
    rank[penalised] = torch.searchsorted(drawn.sort().values, drawn) / max(len(drawn), 1)
    return rank


@torch.no_grad()
def task_success(turns: TurnBatch, instructions: list[str]) -> Float[Tensor, "M"]:
    """For each instruction the mean success of the round's trajectories that followed it; of all where none did."""
    first = {int(trajectory): row for row, trajectory in reversed(list(enumerate(turns.trajectory)))}
    rows = list(first.values())
    names = {name: i for i, name in enumerate(dict.fromkeys(turns.observation.instruction))}
    success = turns.success[rows].float()
    task = torch.tensor([names[turns.observation.instruction[row]] for row in rows])
    means = group_mean(success, task)
    of_task = {int(k): float(mean) for k, mean in zip(task, means, strict=True)}
    return torch.tensor([of_task[names[i]] if i in names else float(success.mean()) for i in instructions])

"""A task of seconds for every objective: a linear token policy, episodes of one to three turns, and demonstrations.

The context is a one-hot proprioception of CONTEXTS entries. A turn is right where the first token of its first action is one of
the half of all classes that belongs to the context; an episode succeeds where all of its turns are right.

Legend: N turns, B episodes, A = 2 actions of D = 2 tokens, L = 4 tokens, V = 8 classes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_rl.algorithms.turn_batch import Episodes, Round, TurnBatch
from vla_rl.policies.base import ActionEvaluation
from vla_rl.types import ActionChunk, Observation

CONTEXTS, CLASSES = 4, 8


class LinearPolicy(nn.Module):
    """Logits of every token and a value, linear in the proprioception."""

    chunk_length, action_dim, cameras, version = 2, 2, (), 0

    def __init__(self, seed: int = 0, scale: float = 0.1) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        tokens = self.chunk_length * self.action_dim
        self.weight = nn.Parameter(scale * torch.randn(CONTEXTS, tokens * CLASSES, generator=draw))
        self.critic = nn.Parameter(torch.zeros(CONTEXTS))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def policy_parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def value_parameters(self) -> list[nn.Parameter]:
        return [self.critic]

    def distribution(self, observation: Observation, temperature: float) -> Tensor:
        logits = (torch.from_numpy(observation.proprio) @ self.weight).unflatten(1, (-1, CLASSES))
        return (logits / temperature).log_softmax(-1)

    def value(self, observation: Observation) -> Tensor:
        return torch.from_numpy(observation.proprio) @ self.critic

    @torch.no_grad()
    def act(self, observation: Observation, temperature: float, generator: torch.Generator | None = None) -> ActionChunk:
        log_p = self.distribution(observation, temperature)
        classes = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view(log_p.shape[:2])
        return ActionChunk(
            actions=(2 * classes.numpy() / (CLASSES - 1) - 1).astype(np.float32).reshape(-1, 2, 2),
            tokens=classes.numpy(),
            log_probs=log_p.gather(-1, classes[..., None]).squeeze(-1).numpy(),
            values=self.value(observation).numpy(),
            prompt_tokens=[np.zeros(1, np.int64)] * len(observation),
            policy_version=self.version,
        )

    def evaluate_actions(self, observation: Observation, tokens: Any, temperature: float) -> ActionEvaluation:
        log_p = self.distribution(observation, temperature)
        drawn = log_p.gather(-1, self.token_classes(tokens)[..., None]).squeeze(-1)
        return ActionEvaluation(drawn, log_p, self.value(observation))

    def token_classes(self, tokens: Any) -> Tensor:
        return torch.as_tensor(tokens, dtype=torch.long)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        return np.rint((actions.reshape(len(actions), -1) + 1) / 2 * (CLASSES - 1)).astype(np.int64)

    def frozen_copy(self) -> LinearPolicy:
        return copy.deepcopy(self).requires_grad_(False)


def observe(contexts: np.ndarray) -> Observation:
    return Observation({}, np.eye(CONTEXTS, dtype=np.float32)[contexts], [f"task {context}" for context in contexts])


def is_right(contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return (tokens[..., 0] + contexts) % CLASSES < CLASSES // 2


class Demonstrations:
    """Right first tokens, and whatever else there is to choose at random; every third chunk ends after its first action."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, rows: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray]:
        contexts = rows % CONTEXTS
        tokens = np.stack([(rows // CONTEXTS) * k % CLASSES for k in (1, 3, 5, 7)], axis=1)
        tokens[:, 0] = (rows // CONTEXTS % (CLASSES // 2) - contexts) % CLASSES
        mask = np.ones((len(rows), 2), bool)
        mask[rows % 3 == 0, 1] = False
        return observe(contexts), (2 * tokens / (CLASSES - 1) - 1).astype(np.float32).reshape(-1, 2, 2), mask


def play(
    policy: LinearPolicy, groups: int, size: int, seed: int, temperature: float = 1.0, turns: tuple[int, int] = (1, 3)
) -> Round:
    """A round of `groups` groups of `size` episodes, whose numbers of turns lie in `turns`; some chunks end early."""
    rng, draw = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    group_ids = np.repeat(np.arange(groups), size)
    contexts = rng.integers(CONTEXTS, size=groups)[group_ids]
    lengths = rng.integers(turns[0], turns[1] + 1, size=len(group_ids))
    owner = np.repeat(np.arange(len(group_ids)), lengths)
    observation = observe(contexts[owner])
    chunk = policy.act(observation, temperature, draw)
    right = is_right(contexts[owner], chunk.tokens)
    success = np.array([right[owner == i].all() for i in range(len(group_ids))])
    executed = np.ones((len(owner), 2), bool)
    executed[rng.random(len(owner)) < 0.3, 1] = False
    last = np.flatnonzero(np.diff(owner, append=-1))
    mask = torch.arange(int(lengths.max()))[None] < torch.from_numpy(lengths)[:, None]
    rewards, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
    flat = torch.zeros(len(owner))
    flat[last] = torch.from_numpy(success).float()
    rewards[mask], values[mask] = flat, torch.from_numpy(chunk.values)
    episodes = Episodes(
        rewards=rewards,
        values=values,
        mask=mask,
        terminated=torch.ones(len(group_ids), dtype=torch.bool),
        success=torch.from_numpy(success),
        final_values=torch.zeros(len(group_ids)),
        groups=torch.from_numpy(group_ids),
    )
    batch = TurnBatch(
        observation=observation,
        tokens=chunk.tokens,
        log_probs=torch.from_numpy(chunk.log_probs),
        values=torch.from_numpy(chunk.values),
        version=torch.full((len(owner),), policy.version),
        trajectory=torch.from_numpy(owner),
        group=torch.from_numpy(group_ids[owner]),
        success=torch.from_numpy(success[owner]),
        executed=torch.from_numpy(executed),
    )
    return Round(batch, episodes)

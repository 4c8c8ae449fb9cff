"""Checkpoints in bfloat16, as the released ones come, with the value head in float32: they act, and they learn.

Legend: N turns, L action tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vla_rl.algorithms.composition import compose
from vla_rl.algorithms.learner import RlLearner
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.config import ObjectiveConfig, RlConfig
from vla_rl.policies import load_policy
from vla_rl.policies.openvla import CheckpointOptions, OpenVLAPolicy
from vla_rl.types import Observation

TURNS = 6
KINDS = [
    ("openvla_fused", "autoregressive"),
    ("openvla_siglip", "autoregressive"),
    ("openvla_dinov2", "autoregressive"),
    ("oft_tokens_proprio", "autoregressive"),
    ("oft_tokens", "parallel"),
    ("oft_tokens_proprio", "parallel"),
    ("oft_tokens_siglip", "parallel"),
    ("oft_l1", "parallel"),
    ("oft_l1_one_image", "parallel"),
]
CONFIG = RlConfig(
    minibatch_turns=TURNS, microbatch_turns=TURNS, epochs=1, temperature=1.0, learning_rate=0.1, learning_rate_warmup=0
)


def observe(policy: OpenVLAPolicy) -> Observation:
    draw = np.random.default_rng(0)
    images = {name: draw.integers(0, 256, (TURNS, 40, 40, 3), dtype=np.uint8) for name in policy.cameras}
    return Observation(images, draw.uniform(-1, 1, (TURNS, 8)).astype(np.float32), ["Put the bowl on the plate"] * TURNS)


def turns(policy: OpenVLAPolicy, observation: Observation) -> TurnBatch:
    """Sampled turns, one a trajectory, with made-up advantages and returns."""
    chunk = policy.act(observation, CONFIG.temperature, torch.Generator().manual_seed(0))
    numbers, rng = torch.arange(TURNS), np.random.default_rng(1)
    return TurnBatch(
        observation=observation,
        tokens=chunk.tokens,
        log_probs=torch.from_numpy(chunk.log_probs),
        values=torch.from_numpy(chunk.values),
        version=torch.full((TURNS,), policy.version),
        trajectory=numbers,
        group=numbers,
        success=numbers > 2,
        executed=torch.ones(TURNS, policy.chunk_length, dtype=torch.bool),
        advantages=torch.from_numpy(rng.normal(size=TURNS).astype(np.float32)),
        returns=torch.from_numpy(rng.normal(size=TURNS).astype(np.float32)),
    )


@pytest.mark.parametrize(("name", "decoding"), KINDS)
def test_a_checkpoint_in_bfloat16_acts_and_learns(
    checkpoints: Callable[[str], Path], options: Callable[[str], CheckpointOptions], tiny: ModuleType, name: str, decoding: str
) -> None:
    policy = load_policy(checkpoints(name), options=replace(options(name), decoding=decoding), dtype=torch.bfloat16)
    assert policy.config.decoding == decoding and policy.model.language_model.lm_head.weight.dtype == torch.bfloat16
    observation = observe(policy)
    greedy = policy.act(observation, 0.0)
    assert np.isfinite(greedy.actions).all() and np.isfinite(greedy.values).all()
    if tiny.CASES[name].l1:
        return
    batch = turns(policy, observation)
    with torch.no_grad():
        found = policy.evaluate_actions(observation, batch.tokens, CONFIG.temperature)
    # 10 steps of 8 bits of mantissa, 10 / 128 = 0.08 nat a token, is what the learner takes for rounding.
    assert (found.log_probs - batch.log_probs).abs().mean() < 0.08
    torch.testing.assert_close(found.values, batch.values, rtol=0, atol=0.05)
    RlLearner(policy, CONFIG, compose(ObjectiveConfig())).update(batch, np.random.default_rng(0))
    assert policy.version == 1 and np.isfinite(policy.act(observation, 0.0).values).all()

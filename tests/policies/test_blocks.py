"""Recomputing activations changes memory, not gradients."""

from collections.abc import Callable

import pytest
import torch

from vla_rl.policies.openvla import OpenVLAPolicy, blocks
from vla_rl.policies.openvla.blocks import transformer_blocks
from vla_rl.policies.openvla.config import FeaturizerConfig
from vla_rl.types import Observation

ENCODERS = (
    FeaturizerConfig(kind="dinov2", patch_size=8, width=16, layers=2, heads=2, mlp_width=32, registers=1),
    FeaturizerConfig(kind="siglip", patch_size=8, width=16, layers=2, heads=2, mlp_width=32),
)


def gradient(policy: OpenVLAPolicy, observation: Observation) -> dict[str, torch.Tensor]:
    tokens = torch.full((len(observation), policy.config.num_tokens), policy.action_tokens.first_token)
    evaluation = policy.evaluate_actions(observation, tokens, 1.0)
    (evaluation.values.square().sum() - evaluation.log_probs.sum()).backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def test_recomputation_leaves_the_gradient(build: Callable[..., OpenVLAPolicy], observation: Observation) -> None:
    expected = gradient(build(featurizers=ENCODERS), observation)
    policy = build(featurizers=ENCODERS).recompute_activations()
    found = gradient(policy, observation)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def test_every_block_is_recomputed(
    build: Callable[..., OpenVLAPolicy], observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = blocks.checkpoint
    monkeypatch.setattr(blocks, "checkpoint", lambda *args, **kwargs: calls.append(1) or whole(*args, **kwargs))
    policy = build(featurizers=ENCODERS).recompute_activations()
    assert len(transformer_blocks(policy.model)) == 2 + 2 + 2  # decoder, DINOv2, SigLIP
    gradient(policy, observation)
    assert len(calls) == 6
    policy.act(observation, 0.0)
    assert len(calls) == 6, "without gradient there is nothing to save memory for"


def test_a_copy_runs_its_own_blocks(build: Callable[..., OpenVLAPolicy], observation: Observation) -> None:
    policy = build().recompute_activations()
    copy = policy.frozen_copy()
    before = policy.act(observation, 1.0, torch.Generator().manual_seed(0)).log_probs
    with torch.no_grad():
        for block in transformer_blocks(policy.model):
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert (copy.act(observation, 1.0, torch.Generator().manual_seed(0)).log_probs == before).all()
    assert abs(policy.act(observation, 1.0, torch.Generator().manual_seed(0)).log_probs - before).max() > 1e-3

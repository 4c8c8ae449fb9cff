"""Tokens one after the other: cache, padding, shared prefixes, and that sampling and training agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vla_rl.policies import PolicyError
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.types import Observation

Build = Callable[..., OpenVLAPolicy]
Observe = Callable[..., Observation]
ONE_BY_ONE: dict[str, Any] = {"decoding": "autoregressive", "attention": "causal", "read_before": True}


@pytest.fixture
def policy(build: Build) -> OpenVLAPolicy:
    return build(**ONE_BY_ONE)


def rows(observation: Observation, count: int) -> Observation:
    return observation.select([0] * count)


def test_the_cache_gives_what_whole_passes_give(policy: OpenVLAPolicy, observation: Observation) -> None:
    """Greedy tokens without a cache: after n tokens, the n-th logits of a pass over all slots decide."""
    chunk = policy.act(observation, 0.0)
    inputs = policy.prepare(observation)
    first = policy.action_tokens.first_token
    tokens = torch.full((len(observation), 6), first)
    with torch.no_grad():
        for n in range(6):
            tokens[:, n] = policy.model(inputs, tokens=tokens)[0][:, n].argmax(-1) + first
    assert np.array_equal(chunk.tokens, tokens.numpy())
    assert len(np.unique(chunk.tokens)) > 6


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_sampling_and_training_agree(policy: OpenVLAPolicy, observation: Observation, temperature: float) -> None:
    chunk = policy.act(observation, temperature, torch.Generator().manual_seed(0))
    evaluation = policy.evaluate_actions(observation, chunk.tokens, temperature)
    assert np.allclose(evaluation.log_probs.detach().numpy(), chunk.log_probs, atol=1e-5)
    assert np.allclose(evaluation.values.detach().numpy(), chunk.values, atol=1e-5)
    # Each token is conditioned on those before it, and on none behind it.
    changed = chunk.tokens.copy()
    changed[:, 3] = policy.action_tokens.first_token
    with torch.no_grad():
        other = policy.evaluate_actions(observation, changed, temperature).distribution - evaluation.distribution
    assert other[:, :4].abs().max() < 1e-5 < 1e-3 < other[:, 4:].abs().amax(dim=(1, 2)).min()


def test_padding_changes_nothing(policy: OpenVLAPolicy, observation: Observation) -> None:
    """Prompts of three lengths together and alone, sampled and evaluated."""
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    together = policy.act(observation, 1.0, generators)
    assert len({len(prompt) for prompt in together.prompt_tokens}) == 3
    for row in range(6):
        one = observation.select([row])
        alone = policy.act(one, 1.0, [torch.Generator().manual_seed(row)])
        assert np.array_equal(alone.tokens[0], together.tokens[row])
        assert np.allclose(alone.log_probs[0], together.log_probs[row], atol=1e-5)
        assert np.allclose(alone.values[0], together.values[row], atol=1e-5)


@pytest.mark.parametrize("settings", [ONE_BY_ONE, {}], ids=["autoregressive", "parallel"])
def test_siblings_share_one_encoding(build: Build, observation: Observation, settings: dict[str, Any]) -> None:
    policy = build(**settings)
    encoded = []
    policy.model.vision_backbone.register_forward_pre_hook(lambda module, arguments: encoded.append(len(arguments[0])))
    # Four siblings, another observation between them, and one that differs in the last pixel alone.
    batch = observation.select([0, 0, 1, 0, 0, 0])
    batch.images["wrist"][5, -1, -1, -1] ^= 255
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    chunk = policy.act(batch, 1.3, generators)
    assert encoded == [3 * 2]
    assert len({tuple(tokens) for tokens in chunk.tokens[[0, 1, 3, 4]]}) == 4
    for row in range(6):
        alone = policy.act(batch.select([row]), 1.3, [torch.Generator().manual_seed(row)])
        assert np.array_equal(alone.tokens[0], chunk.tokens[row])
        assert np.allclose(alone.log_probs[0], chunk.log_probs[row], atol=1e-5)


def test_log_probs_are_over_the_action_tokens_only(policy: OpenVLAPolicy, observation: Observation) -> None:
    before = policy.act(observation, 1.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        policy.model.language_model.lm_head.weight[: policy.action_tokens.first_token] += 50.0
    after = policy.act(observation, 1.0, torch.Generator().manual_seed(1))
    assert np.array_equal(before.tokens, after.tokens) and np.array_equal(before.log_probs, after.log_probs)


def test_half_precision_acts_and_agrees_with_itself(policy: OpenVLAPolicy, observation: Observation) -> None:
    exact = policy.act(observation, 0.0)
    policy.model.to(torch.bfloat16)
    chunk = policy.act(observation, 1.0, torch.Generator().manual_seed(0))
    evaluation = policy.evaluate_actions(observation, chunk.tokens, 1.0)
    # bf16 has 8 bits of mantissa: log-probs of about 5 nat agree to some hundredths.
    assert np.abs(evaluation.log_probs.detach().numpy() - chunk.log_probs).mean() < 0.05
    assert chunk.log_probs.dtype == np.float32 and np.abs(chunk.values - exact.values).max() < 0.1


def test_it_learns_from_demonstrated_tokens(policy: OpenVLAPolicy, observe: Observe) -> None:
    """Logits of tokens behind the demonstrated ones; without those there are none."""
    observation = observe(4)
    inputs = policy.prepare(observation)
    with pytest.raises(PolicyError, match="only behind given action tokens"):
        policy.action_logits(inputs)
    draw = np.random.default_rng(0)
    tokens = policy.encode_actions(draw.uniform(-1, 1, (4, 3, 2)))
    targets = policy.token_classes(tokens)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(policy.action_logits(inputs, tokens=tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert (policy.act(observation, 0.0).tokens == tokens).mean() > 0.8


def test_settings_that_contradict_each_other_are_refused(build: Build) -> None:
    for change in ({"attention": "full"}, {"read_before": False}, {"stop_slot": True}):
        with pytest.raises(PolicyError, match="autoregressive decoding needs attention=causal"):
            build(**{**ONE_BY_ONE, **change})


def test_without_proprioception_it_is_not_looked_at(build: Build, observation: Observation) -> None:
    policy = build(**ONE_BY_ONE, proprio_dim=0, proprio_centre=(), proprio_scale=())
    assert not any("proprio" in name for name in policy.state_dict())
    other = replace(observation, proprio=observation.proprio * np.float32("nan"))
    assert np.array_equal(policy.act(observation, 0.0).values, policy.act(other, 0.0).values)

"""What the probe takes for rounding, for a rollout of other weights, and for an update that does not reach the policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_policy import small_policy
from test_learner import CONFIG, INSTRUCTIONS, PPO, rollout

from vla_rl.algorithms.learner import RlLearner
from vla_rl.algorithms.mini_batch import TrainingError
from vla_rl.algorithms.probe import PROBE_TURNS, Probe
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.policies.openvla.config import LanguageConfig


def half_precision_policy() -> OpenVLAPolicy:
    """Autoregressive, so that acting reads a cache that learning does not have, and of a spread that makes rounding show."""
    language = LanguageConfig(width=64, layers=2, heads=2, mlp_width=64)
    one_by_one = {"decoding": "autoregressive", "attention": "causal", "read_before": True}
    policy = small_policy(action_dim=7, instructions=INSTRUCTIONS, language=language, **one_by_one)
    with torch.no_grad():
        policy.model.language_model.lm_head.weight *= 40
    policy.model.to(torch.bfloat16)
    return policy


@pytest.mark.parametrize("rank", [0, 2])
def test_half_precision_is_no_alarm(rank: int) -> None:
    """Nor is it under adapters, which are float32 themselves."""
    policy = half_precision_policy()
    if rank:
        policy.model.value_head.float()  # as a checkpoint has it
        policy.adapt(rank, alpha=rank, seed=0)
    batch = rollout(policy, 96)
    with torch.no_grad():
        learned = policy.evaluate_actions(batch.observation, batch.tokens, CONFIG.temperature).log_probs
    log_ratio = (learned.float() - batch.log_probs).unflatten(1, (-1, 7)).sum(2)
    assert (log_ratio.exp() - 1).abs().max() > 1e-2, "nothing to round here, so the test would show nothing"
    stats = RlLearner(policy, CONFIG, PPO).update(batch, np.random.default_rng(0))
    assert policy.version == 1 and stats["policy/ratio_deviation"] > 0


def test_half_precision_does_not_hide_another_temperature() -> None:
    policy = half_precision_policy()
    cold = CONFIG.model_copy(update={"temperature": 1.0})
    with pytest.raises(TrainingError, match="made by other weights, or at another temperature"):
        RlLearner(policy, cold, PPO).update(rollout(policy, 48), np.random.default_rng(0))


def test_any_order_of_fresh_and_kept_turns_is_no_alarm() -> None:
    """With dynamic sampling whole mini-batches may hold nothing but turns of the policy before."""
    for seed in range(8):
        policy = small_policy(instructions=INSTRUCTIONS)
        policy.version = 1
        fresh = rollout(policy, 48)
        version = torch.where(torch.arange(48) < 8, 1, 0)
        kept = fresh.log_probs + 0.1 * torch.randn(fresh.log_probs.shape, generator=torch.Generator().manual_seed(seed))
        batch = replace(fresh, version=version, log_probs=torch.where(version[:, None] == 1, fresh.log_probs, kept))
        config = CONFIG.model_copy(update={"minibatch_turns": 8, "epochs": 1})
        RlLearner(policy, config, PPO).update(batch, np.random.default_rng(seed))
        assert policy.version == 2


@pytest.mark.parametrize("wrong", [0, 20, 47])
def test_a_few_turns_of_other_weights_are_enough(wrong: int) -> None:
    """Those of one environment of six, say, wherever it stands in the round."""
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, 48)
    batch.log_probs[(torch.arange(48) - wrong).abs() < 8] -= 0.05
    with pytest.raises(TrainingError, match="nat a token"):
        Probe(policy, batch, CONFIG).check_rollout()


def test_padding_tells_nothing() -> None:
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, PROBE_TURNS)
    batch.log_probs[~batch.executed.repeat_interleave(2, dim=1)] = torch.nan
    Probe(policy, batch, CONFIG).check_rollout()


def test_steps_below_the_precision_of_the_weights_are_an_alarm() -> None:
    policy = half_precision_policy()
    config = CONFIG.model_copy(update={"learning_rate": 1e-30})
    with pytest.raises(TrainingError, match="too small for their precision"):
        RlLearner(policy, config, PPO).update(rollout(policy, 48), np.random.default_rng(0))

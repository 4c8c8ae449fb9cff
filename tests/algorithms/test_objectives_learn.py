"""Every objective of the dict learns a small task, and unlearns it when its sign is wrong."""

import numpy as np
import pytest
import torch
from bandit import Demonstrations, LinearPolicy, play

from vla_rl.algorithms.composition import OBJECTIVES, check_rounds, compose
from vla_rl.algorithms.learner import RlLearner
from vla_rl.config import ObjectiveConfig, RlConfig

CONFIG = RlConfig(
    group_size=8,
    episodes_per_iteration=64,
    temperature=1.0,
    learning_rate=0.1,
    learning_rate_warmup=0,
    value_learning_rate=0.1,
    minibatch_turns=64,
    microbatch_turns=200,
    epochs=2,
    gamma=1.0,
)


def success_by_round(name: str, rounds: int, maximise: bool) -> list[float]:
    policy = LinearPolicy()
    objective = compose(ObjectiveConfig(name=name))
    check_rounds(CONFIG, objective)
    learner = RlLearner(policy, CONFIG, objective, Demonstrations())
    learner.optimizers["policy"].param_groups[0]["maximize"] = maximise
    rng = np.random.default_rng(0)
    rates = []
    for seed in range(rounds):
        round_ = play(policy, groups=8, size=8, seed=seed, turns=(2, 2))
        rates.append(float(round_.episodes.success.float().mean()))
        if objective.reference_reset_every and seed % objective.reference_reset_every == 0:
            learner.reset_reference()
        learner.update(learner.prepare(round_), rng)
    return rates


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_learns_and_with_the_wrong_sign_it_does_not(name: str) -> None:
    """Chance is 25%: two turns, each with half of the tokens right."""
    right = success_by_round(name, 20, maximise=False)
    assert np.mean(right[:2]) < 0.45
    assert np.mean(right[-3:]) > 0.75, right
    wrong = success_by_round(name, 8, maximise=True)
    assert np.mean(wrong[-3:]) < np.mean(wrong[:2]), wrong


def test_a_value_free_objective_has_no_critic() -> None:
    for name in OBJECTIVES:
        objective = compose(ObjectiveConfig(name=name))
        policy = LinearPolicy()
        learner = RlLearner(policy, CONFIG, objective, Demonstrations())
        learner.update(learner.prepare(play(policy, 4, 8, 0)), np.random.default_rng(0))
        assert ("value" in learner.optimizers) == objective.needs("critic") == bool(policy.critic.abs().sum() > 0)


def test_the_reference_stays_until_it_is_reset() -> None:
    policy = LinearPolicy()
    learner = RlLearner(policy, CONFIG, compose(ObjectiveConfig(name="prorl")))
    start = policy.weight.detach().clone()
    learner.update(learner.prepare(play(policy, 4, 8, 0)), np.random.default_rng(0))
    assert learner.reference is not None and learner.optimizers["policy"].state
    assert torch.equal(learner.reference.weight, start) and not torch.equal(policy.weight, start)
    learner.reset_reference()
    assert torch.equal(learner.reference.weight, policy.weight) and not learner.optimizers["policy"].state
    turns = learner.prepare(play(policy, 4, 8, 1))
    assert turns.log_ratio is not None and turns.log_ratio.abs().max() < 1e-5


@pytest.mark.parametrize("term", ["imitation", "hybrid"])
def test_demonstrations_alone_teach_the_task(term: str) -> None:
    policy = LinearPolicy()
    objective = compose(ObjectiveConfig(name="grpo", advantage="none", auxiliaries={term: 1.0}, demonstration_share=0.5))
    learner = RlLearner(policy, CONFIG, objective, Demonstrations())
    rng = np.random.default_rng(0)
    rates = []
    for seed in range(15):
        round_ = play(policy, groups=8, size=8, seed=seed, turns=(2, 2))
        rates.append(float(round_.episodes.success.float().mean()))
        learner.update(learner.prepare(round_), rng)
    assert np.mean(rates[:2]) < 0.4 and np.mean(rates[-3:]) > 0.7, rates


def test_the_entropy_bonus_raises_entropy() -> None:
    policy = LinearPolicy(scale=2.0)
    learner = RlLearner(policy, CONFIG, compose(ObjectiveConfig(name="grpo", advantage="none", regularisers={"entropy": 1.0})))
    stats = [learner.update(learner.prepare(play(policy, 8, 8, seed)), np.random.default_rng(0)) for seed in range(8)]
    assert stats[-1]["policy/entropy"] > stats[0]["policy/entropy"] + 0.5


@pytest.mark.parametrize("kind", ["reverse", "forward", "js", "tv"])
def test_the_reference_draws_the_policy_back(kind: str) -> None:
    policy = LinearPolicy(scale=1.0)
    terms = {"reference": {"coefficient": 1.0, "kind": kind}}
    learner = RlLearner(policy, CONFIG, compose(ObjectiveConfig(name="grpo", advantage="none", regularisers=terms)))
    with torch.no_grad():
        policy.weight += torch.randn(policy.weight.shape, generator=torch.Generator().manual_seed(5))
    costs = [
        learner.update(learner.prepare(play(policy, 8, 8, seed)), np.random.default_rng(0))["policy/reference_cost"]
        for seed in range(10)
    ]
    assert costs[-1] < 0.5 * costs[0]

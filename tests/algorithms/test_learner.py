"""The learner on a small real policy: its gradient, its guards, and that PPO learns.

Legend: N turns, A = 2 actions of D = 2 tokens each.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_policy import small_policy

from vla_rl.algorithms.composition import compose
from vla_rl.algorithms.learner import RlLearner, split_units
from vla_rl.algorithms.mini_batch import TrainingError, accumulate_gradient
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.config import ObjectiveConfig, RlConfig
from vla_rl.distributed.ranks import Ranks
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.types import Observation

CONFIG = RlConfig(
    minibatch_turns=12, microbatch_turns=12, epochs=2, temperature=1.3, learning_rate=1e-3, value_learning_rate=1e-3
)
PPO = compose(ObjectiveConfig())

INSTRUCTIONS = ("go left", "please go to the right side now")


def observations(count: int, rng: np.random.Generator) -> Observation:
    return Observation(
        images={"front": rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)},
        proprio=rng.normal(size=(count, 3)).astype(np.float32),
        instruction=[INSTRUCTIONS[i % 2] for i in range(count)],
    )


def rollout(policy: OpenVLAPolicy, count: int, seed: int = 0) -> TurnBatch:
    """Turns that `policy` really acted in, one a trajectory, with made-up advantages."""
    rng = np.random.default_rng(seed)
    observation = observations(count, rng)
    chunk = policy.act(observation, CONFIG.temperature, torch.Generator().manual_seed(seed))
    executed = torch.ones(count, 2, dtype=torch.bool)
    executed[::3, 1] = False
    return TurnBatch(
        observation=observation,
        tokens=chunk.tokens,
        log_probs=torch.from_numpy(chunk.log_probs),
        values=torch.from_numpy(chunk.values),
        version=torch.full((count,), policy.version),
        trajectory=torch.arange(count),
        group=torch.arange(count),
        success=torch.ones(count, dtype=torch.bool),
        advantages=torch.from_numpy(rng.normal(size=count).astype(np.float32)),
        returns=torch.from_numpy(rng.normal(size=count).astype(np.float32)),
        executed=executed,
    )


def gradient(policy: OpenVLAPolicy, batch: TurnBatch, parts: list[np.ndarray]) -> torch.Tensor:
    """In micro-batches of the size of the first part."""
    for parameter in policy.parameters():
        parameter.grad = None
    config = CONFIG.model_copy(update={"microbatch_turns": len(parts[0])})
    accumulate_gradient(policy, config, PPO, batch.select(np.concatenate(parts)), None, train_policy=True, ranks=Ranks())
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("pieces", [2, 5, 12])
def test_accumulation_and_order_do_not_change_the_gradient(pieces: int) -> None:
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, 12)
    whole = gradient(policy, batch, [np.arange(12)])
    shuffled = np.random.default_rng(1).permutation(12)
    split = gradient(policy, batch, np.array_split(shuffled, pieces))
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)


def test_warm_up_trains_the_value_head_alone() -> None:
    policy = small_policy(instructions=INSTRUCTIONS, value_gradient=False)
    batch = rollout(policy, 24)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    stats = RlLearner(policy, CONFIG, PPO).update(batch, np.random.default_rng(0), train_policy=False)
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("value_head.") for name in changed)
    assert policy.version == 0, "the policy is the same, so its version is"
    assert "policy/ratio_mean" not in stats


def test_an_update_changes_the_policy_that_acts() -> None:
    """VLA-RL's code sent rollouts weights that never changed."""
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, 24)
    generator = torch.Generator()
    before = policy.act(batch.observation, 1.0, generator.manual_seed(1))
    stats = RlLearner(policy, CONFIG, PPO).update(batch, np.random.default_rng(0))
    after = policy.act(batch.observation, 1.0, generator.manual_seed(1))
    assert policy.version == 1 and after.policy_version == 1
    assert np.abs(after.log_probs - before.log_probs).max() > 1e-3
    assert stats["policy/ratio_deviation"] > 1e-3


def test_the_learning_rate_grows_over_the_first_steps() -> None:
    policy = small_policy(instructions=INSTRUCTIONS)
    learner = RlLearner(policy, CONFIG.model_copy(update={"learning_rate_warmup": 8}), PPO)
    batch = rollout(policy, 24)
    rates = []
    for _ in range(3):  # 2 mini-batches an epoch, 2 epochs: 4 steps an update
        fresh = rollout(policy, 24)
        learner.update(fresh if rates else batch, np.random.default_rng(0))
        rates.append(learner.optimizers["policy"].param_groups[0]["lr"])
    # After 4, 8 and 12 steps of a warm-up over 8 steps to 1e-3.
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3])


def test_a_ratio_that_stays_one_stops_the_run() -> None:
    """VLA-RL's code trained with a ratio that was identically 1."""
    policy = small_policy(instructions=INSTRUCTIONS)
    learner = RlLearner(policy, CONFIG, PPO)
    copies = [p.detach().clone().requires_grad_() for p in policy.policy_parameters()]
    learner.optimizers["policy"] = torch.optim.AdamW(copies, lr=1e-3)  # steps that reach nobody

    def mirrored_gradients(parameters: list[torch.Tensor], max_norm: float) -> torch.Tensor:
        return torch.tensor(1.0)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match="ratio is still 1"):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", mirrored_gradients)
        learner.update(rollout(policy, 24), np.random.default_rng(0))


def test_a_rollout_of_other_weights_stops_the_run() -> None:
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, 24)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    with pytest.raises(TrainingError, match="made by other weights"):
        RlLearner(policy, CONFIG, PPO).update(batch, np.random.default_rng(0))


def test_turns_of_an_earlier_version_are_no_alarm() -> None:
    """Surplus groups of dynamic sampling were drawn by the policy before the last update."""
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, 24)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    policy.version = 1
    RlLearner(policy, CONFIG, PPO).update(batch, np.random.default_rng(0))


def test_mini_batches_cut_no_unit_in_two() -> None:
    # Units of 1 to 9 rows, 45 in all, in 4 mini-batches: every row once, every unit in one of them, none far from 45/4 rows.
    units = np.repeat(np.arange(9), np.arange(1, 10))[np.random.default_rng(0).permutation(45)]
    batches = split_units(units, 4, np.random.default_rng(1))
    assert len(batches) == 4 and sorted(np.concatenate(batches)) == list(range(45))
    assert all(len({i for i, rows in enumerate(batches) if unit in units[rows]}) == 1 for unit in range(9))
    assert max(map(len, batches)) <= 45 / 4 + 9
    # More mini-batches than units: one for each unit.
    assert [len(rows) for rows in split_units(np.zeros(5, int), 3, np.random.default_rng(0))] == [5]
    # Single turns: sizes that differ by at most one.
    assert {len(rows) for rows in split_units(np.arange(10), 4, np.random.default_rng(0))} == {2, 3}


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = rollout(policy, 12)
    assert batch.returns is not None
    batch.returns[3] = float("nan")
    with pytest.raises(TrainingError, match="the loss is nan"):
        RlLearner(policy, CONFIG, PPO).update(batch, np.random.default_rng(0))


def test_a_large_divergence_ends_the_update_early() -> None:
    policy = small_policy(instructions=INSTRUCTIONS)
    config = CONFIG.model_copy(update={"target_kl": 1e-6, "epochs": 50})
    stats = RlLearner(policy, config, PPO).update(rollout(policy, 24), np.random.default_rng(0))
    assert stats["update/stopped_by_kl"] == 1 and stats["update/steps"] < 10


def test_ppo_learns_to_act_on_what_it_sees() -> None:
    """One-turn episodes: reward 1 where the first command has the sign that the picture shows. Chance is 50%."""
    policy = small_policy(instructions=INSTRUCTIONS)
    config = CONFIG.model_copy(update={"minibatch_turns": 64, "microbatch_turns": 64, "epochs": 4, "learning_rate": 3e-3})
    learner = RlLearner(policy, config, PPO)
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(25):
        bright = rng.random(128) < 0.5
        observation = observations(128, rng)
        observation.images["front"][...] = np.where(bright, 200, 50)[:, None, None, None]
        chunk = policy.act(observation, config.temperature, generator)
        rewards = torch.from_numpy(((chunk.actions[:, 0, 0] > 0) == bright).astype(np.float32))
        rates.append(float(rewards.mean()))
        values = torch.from_numpy(chunk.values)
        batch = TurnBatch(
            observation=observation,
            tokens=chunk.tokens,
            log_probs=torch.from_numpy(chunk.log_probs),
            values=values,
            version=torch.full((128,), policy.version),
            trajectory=torch.arange(128),
            group=torch.arange(128),
            success=rewards > 0,
            advantages=(rewards - values - (rewards - values).mean()) / (rewards - values).std(),
            returns=rewards,
            executed=torch.tensor([[True, False]]).expand(128, 2),
        )
        learner.update(batch, rng)
    assert np.mean(rates[:2]) < 0.65
    assert np.mean(rates[-3:]) > 0.9, rates


@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_do_not_change_what_is_logged(size: int) -> None:
    """With means within trajectories of 9 and of 3 turns, whose turns do not count the same."""
    policy = small_policy(instructions=INSTRUCTIONS)
    batch = replace(rollout(policy, 12), trajectory=torch.tensor([0] * 9 + [1] * 3))
    objective = compose(ObjectiveConfig(name="grpo", regularisers={"entropy": 0.1}))
    logged = [
        accumulate_gradient(policy, CONFIG.model_copy(update={"microbatch_turns": n}), objective, batch, None, True, Ranks())
        for n in (12, size)
    ]
    assert logged[1] == pytest.approx(logged[0], rel=1e-4, abs=1e-6)

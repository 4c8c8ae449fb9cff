import numpy as np
import pytest
import torch
from small_policy import small_policy

from vla_rl.algorithms.mini_batch import TrainingError
from vla_rl.algorithms.sft import SftLearner, learning_rate_at
from vla_rl.config import SftConfig
from vla_rl.types import Observation


def test_learning_rate_worked_out_by_hand() -> None:
    config = SftConfig(learning_rate=1.0, warmup_steps=4, steps=104)
    # Warm-up: 1/4 at step 0, 4/4 at step 3. Then a cosine from 1 to 0.1: half-way, at step 54, 0.1 + 0.45 = 0.55.
    assert [learning_rate_at(s, config) for s in (0, 3)] == [0.25, 1.0]
    assert learning_rate_at(4, config) == pytest.approx(1.0)
    assert learning_rate_at(54, config) == pytest.approx(0.55)
    assert learning_rate_at(104, config) == pytest.approx(0.1)


def test_actions_beyond_the_end_of_a_demonstration_teach_nothing() -> None:
    rng = np.random.default_rng(0)
    observation = Observation(
        {"front": rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)}, rng.normal(size=(6, 3)).astype(np.float32), ["go"] * 6
    )
    actions = rng.uniform(-1, 1, (6, 2, 2)).astype(np.float32)
    mask = np.array([[True, i % 2 == 0] for i in range(6)])
    other = np.where(mask[..., None], actions, -actions)
    weights = []
    for labels in (actions, other):
        policy = small_policy()
        SftLearner(policy, SftConfig()).update(0, observation, labels, mask, torch.Generator().manual_seed(0))
        weights.append(policy.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt() -> None:
    rng = np.random.default_rng(0)
    observation = Observation({"front": np.zeros((2, 16, 16, 3), np.uint8)}, np.full((2, 3), 1e30, np.float32), ["go"] * 2)
    policy = small_policy()
    weight = policy.model.language_model.lm_head.weight
    with torch.no_grad():
        weight[policy.action_tokens.first_token] = torch.nan
    before = weight.detach().clone()
    with pytest.raises(TrainingError, match="supervised step 7 is .*; lower sft.learning_rate"):
        actions, mask = rng.uniform(-1, 1, (2, 2, 2)).astype(np.float32), np.ones((2, 2), bool)
        SftLearner(policy, SftConfig()).update(7, observation, actions, mask, torch.Generator().manual_seed(0))
    assert torch.equal(weight.nan_to_num(), before.nan_to_num())


def test_cloning_learns_what_the_picture_shows_and_exact_zeros() -> None:
    """The brightness of the picture is the sign of the first command; the second command is always exactly 0."""
    policy = small_policy()
    learner = SftLearner(policy, SftConfig(steps=150, warmup_steps=10, learning_rate=3e-3))
    rng = np.random.default_rng(0)

    def sample(count: int) -> tuple[Observation, np.ndarray]:
        bright = rng.random(count) < 0.5
        image = np.where(bright, 200, 50)[:, None, None, None] + rng.integers(-30, 30, (count, 16, 16, 3))
        sign = np.where(bright, 0.5, -0.5)
        actions = np.stack([sign, np.zeros(count)], axis=-1)[:, None].repeat(2, axis=1).astype(np.float32)
        proprio = rng.normal(size=(count, 3)).astype(np.float32)
        return Observation({"front": image.astype(np.uint8)}, proprio, ["go"] * count), actions

    losses = []
    for step in range(150):
        observation, actions = sample(32)
        stats = learner.update(step, observation, actions, np.ones((32, 2), bool), torch.Generator().manual_seed(step))
        losses.append(stats["loss"])
    assert losses[0] == pytest.approx(np.log(256), rel=0.1)  # all 256 tokens alike
    assert losses[-1] < 0.3
    observation, actions = sample(64)
    answer = policy.act(observation, 0.0).actions
    assert np.mean(np.sign(answer[..., 0]) == np.sign(actions[..., 0])) > 0.95
    assert np.all(answer[..., 1] == 0.0)

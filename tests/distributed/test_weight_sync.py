"""A policy that follows another one's weights: it acts alike after a sync, and refuses what it must not act on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_policy import small_policy

from vla_rl.distributed.weight_sync import Probe, WeightFollower, WeightPublisher, WeightSyncError, WeightUpdate
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.types import Observation

Pair = tuple[WeightPublisher, WeightFollower]
ONE_LINE = "^[^\n]*{}[^\n]*$"


@pytest.fixture
def probe() -> Probe:
    draw = np.random.default_rng(0)
    observation = Observation(
        images={"front": draw.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)},
        proprio=draw.normal(size=(5, 3)).astype(np.float32),
        instruction=["go"] * 5,
    )
    return Probe(observation, torch.from_numpy(small_policy().act(observation, 1.0, torch.Generator().manual_seed(0)).tokens))


@pytest.fixture(params=["full", "LoRA"])
def pair(request: pytest.FixtureRequest, probe: Probe) -> Pair:
    learner = small_policy()
    if request.param == "LoRA":
        pytest.importorskip("peft")
        learner.adapt(4, 8, seed=0)
    return WeightPublisher(learner, probe), WeightFollower(small_policy(), probe)


def train(policy: OpenVLAPolicy, probe: Probe) -> None:
    """Two steps, after the first of which alone new adapters are still A = random and B = almost nothing."""
    optimizer = torch.optim.AdamW(policy.policy_parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        (-policy.evaluate_actions(probe.observation, probe.tokens, 1.0).log_probs.mean()).backward()
        optimizer.step()
    policy.version += 1


def test_after_a_sync_log_probs_agree_and_after_an_update_they_differ(pair: Pair, probe: Probe) -> None:
    publisher, follower = pair
    before = probe.log_probs(follower.policy)
    train(publisher.policy, probe)
    assert (probe.log_probs(publisher.policy) - before).abs().max() > 0.05
    torch.testing.assert_close(probe.log_probs(follower.policy), before, rtol=0, atol=0)
    follower.apply(WeightUpdate.from_bytes(publisher.publish().to_bytes()))
    torch.testing.assert_close(probe.log_probs(follower.policy), probe.log_probs(publisher.policy), rtol=0, atol=1e-5)
    assert (follower.policy.version, follower.serial) == (1, 1)
    train(publisher.policy, probe)
    assert (probe.log_probs(publisher.policy) - probe.log_probs(follower.policy)).abs().max() > 0.05


def test_the_frozen_weights_without_their_adapters_are_noticed(probe: Probe) -> None:
    """VLA-RL's bug: rollouts were sent the weights without the adapters, so that they never changed."""
    pytest.importorskip("peft")
    publisher, follower = WeightPublisher(small_policy().adapt(4, 8, seed=0), probe), WeightFollower(small_policy(), probe)
    train(publisher.policy, probe)
    publisher.policy.weights = lambda: iter(small_policy().model.state_dict().items())  # type: ignore[method-assign]
    with pytest.raises(WeightSyncError, match=ONE_LINE.format("log-probs on the probe differ")):
        follower.apply(publisher.publish())


def stale(update: WeightUpdate) -> WeightUpdate:
    return replace(update, serial=1)


def partial(update: WeightUpdate) -> WeightUpdate:
    return replace(update, weights=dict(list(update.weights.items())[:-3]))


def reshaped(update: WeightUpdate) -> WeightUpdate:
    return replace(update, weights=update.weights | {"projector.fc1.weight": torch.zeros(2, 2)})


def damaged(update: WeightUpdate) -> WeightUpdate:
    changed = update.weights["projector.fc1.weight"].clone()
    changed[0, 0] += 1e-3
    return replace(update, weights=update.weights | {"projector.fc1.weight": changed})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (stale, "stale weights were refused: update 1 is not newer than 1"),
        (partial, "a part of the weights[^\n]*3 of"),
        (reshaped, "1 of [^\n]*projector.fc1.weight"),
        (damaged, "damaged weights were refused"),
    ],
)
def test_what_must_not_be_acted_on_is_refused(
    spoil: Callable[[WeightUpdate], WeightUpdate], message: str, pair: Pair, probe: Probe
) -> None:
    publisher, follower = pair
    follower.apply(publisher.publish())
    train(publisher.policy, probe)
    before = probe.log_probs(follower.policy)
    with pytest.raises(WeightSyncError, match=ONE_LINE.format(message)):
        follower.apply(spoil(publisher.publish()))
    torch.testing.assert_close(probe.log_probs(follower.policy), before, rtol=0, atol=0)
    assert (follower.policy.version, follower.serial) == (0, 1)


@pytest.mark.parametrize("cut", [0, 5, 1000, -10])
def test_half_a_message_is_refused(cut: int) -> None:
    data = WeightPublisher(small_policy()).publish().to_bytes()
    with pytest.raises(WeightSyncError, match=ONE_LINE.format("no weight update, or a part of one")):
        WeightUpdate.from_bytes(data[:cut])

"""DSAC-T's formulas against numbers worked out by hand, and the learner against the plain structure of two critics."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from vla_rl.algorithms.dsac_t import (
    VARIANTS,
    Batch,
    DsacT,
    actor_loss,
    huber_gradients,
    paper_gradients,
    squared_gradients,
    target_returns,
    temperature_gradient,
)
from vla_rl.algorithms.twin_critic import TwinCritic
from vla_rl.bench.plain_dsac import PlainDsacT
from vla_rl.control_config import AlgorithmConfig


def settle(gradients, spread: float, steps: int = 1500) -> float:  # type: ignore[no-untyped-def]
    """Sigma of one critic (twice) that learns from targets N(0, spread), averaged over the last fifth of the steps.

    It begins at twice the spread. Q begins where it belongs and is slow, so that its own wandering does not add to the spread.
    """
    generator = torch.Generator().manual_seed(0)
    q, raw = torch.zeros(2, 1, requires_grad=True), torch.full((2, 1), math.log(math.expm1(2 * spread)), requires_grad=True)
    slow, fast = {"params": [q], "lr": 1e-3 * spread}, {"params": [raw], "lr": 0.015 * max(spread, 1.0)}
    optimizer = torch.optim.Adam([slow, fast])
    bound, found = softplus(raw.detach()).mean(1), []
    for step in range(steps):
        target = spread * torch.randn(256, generator=generator)
        mean, sigma = q.expand(2, 256), softplus(raw).expand(2, 256)
        bound = torch.lerp(bound, sigma.detach().mean(1), 0.05)
        optimizer.zero_grad()
        torch.autograd.backward((mean, sigma), gradients(mean.detach(), sigma.detach(), torch.zeros(256), target, bound))
        optimizer.step()
        if step >= steps * 4 // 5:
            found.append(float(softplus(raw.detach()).mean()))
    return float(np.mean(found))


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 20.0])
def test_sigma_settles_at_the_spread_of_the_targets(spread: float) -> None:
    assert settle(paper_gradients, spread) == pytest.approx(spread, rel=0.05)


def test_with_the_huber_form_sigma_settles_below_the_spread() -> None:
    """Where sigma^2 is the mean of half the squared error: at 1/sqrt(2) of the spread, a little less by the clip."""
    assert settle(huber_gradients, 1.0) == pytest.approx(0.69, abs=0.03)


def test_paper_gradients_are_those_worked_out_by_hand() -> None:
    # Critic 1: Q 1, sigma 2, B 1. Sample 1: y_q 3, y_z 10, which clips to Q + 3.
    #   dQ = -(1 + .1) (3 - 1) / (4 + .1) = -.536585; dsigma = -(1.1) (9 - 4) / (8 + .1) = -.679012
    # Sample 2: y_q 0, y_z 1.5. dQ = 1.1 / 4.1 = .268293; dsigma = -1.1 (.25 - 4) / 8.1 = .509259
    # Critic 2: Q 0, sigma 1, B 2. Scale 4.1. Sample 1: y_z 10 clips to 6.
    #   dQ = -4.1 * 3 / 1.1 = -11.181818; dsigma = -4.1 (36 - 1) / 1.1 = -130.454545
    # Sample 2: dQ = 0; dsigma = -4.1 (2.25 - 1) / 1.1 = -4.659091.       All halved, as the batch has two samples.
    mean, sigma = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    expected, sampled, bound = torch.tensor([3.0, 0.0]), torch.tensor([10.0, 1.5]), torch.tensor([1.0, 2.0])
    of_mean, of_sigma = paper_gradients(mean, sigma, expected, sampled, bound)
    torch.testing.assert_close(2 * of_mean, torch.tensor([[-0.536585, 0.268293], [-11.181818, 0.0]]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(2 * of_sigma, torch.tensor([[-0.679012, 0.509259], [-130.454545, -4.659091]]), rtol=1e-5, atol=0)


def test_huber_gradients_are_those_worked_out_by_hand() -> None:
    # Q 1, sigma 2, B 4: ratio 16 / 4.1 = 3.902439. y_q 3: dQ = ratio * (1 - 3) = -7.804878.
    #   y_z 6: half of 5^2 is 12.5; dsigma = ratio (4 - 12.5) / 2.1 = -15.795587
    # y_q 101: dQ = -50 ratio = -195.121951. y_z 1000 clips to Q + 12: 72; dsigma = ratio (4 - 72) / 2.1 = -126.364692
    one = torch.ones(2)
    of_mean, of_sigma = huber_gradients(
        one.expand(2, 2), 2 * one.expand(2, 2), torch.tensor([3.0, 101.0]), torch.tensor([6.0, 1000.0]), 4 * one
    )
    torch.testing.assert_close(2 * of_mean[0], torch.tensor([-7.804878, -195.121951]), rtol=1e-5, atol=0)
    torch.testing.assert_close(2 * of_sigma[0], torch.tensor([-15.795587, -126.364692]), rtol=1e-5, atol=0)
    # The ratio is bounded: B 100 gives 10 rather than 2439. And 60 away, Huber counts 50 (60 - 25) = 1750.
    of_mean, of_sigma = huber_gradients(
        one.expand(2, 2), 2 * one.expand(2, 2), torch.tensor([3.0, 3.0]), torch.tensor([61.0, 61.0]), 100 * one
    )
    assert float(2 * of_mean[0, 0]) == pytest.approx(-20.0)
    assert float(2 * of_sigma[0, 0]) == pytest.approx(10 * (4 - 1750) / 2.1)


def test_squared_gradients_are_those_of_half_the_mean_squared_error() -> None:
    mean = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    expected = torch.tensor([3.0, 5.0])
    (0.5 * (mean - expected).square().mean(1)).sum().backward()
    of_mean, of_sigma = squared_gradients(mean.detach(), torch.ones(2, 2), expected, expected, torch.ones(2))
    torch.testing.assert_close(of_mean, mean.grad)
    assert not of_sigma.any()


def test_targets_follow_the_critic_with_the_smaller_mean() -> None:
    # gamma .5, alpha .2, log pi -1, so that the entropy adds .2.
    # Sample 1: critic 2 is smaller: y_q = 1 + .5 (4 + .2) = 3.1; y_z = 3.1 + .5 * 3 * 1.5 = 5.35
    # Sample 2: critic 1: y_q = 2 + .5 (-1 + .2) = 1.6; noise 9 is clamped to 3: y_z = 1.6 + .5 * .1 * 3 = 1.75
    # Sample 3 ended: both are the reward.
    expected, sampled = target_returns(
        reward=torch.tensor([1.0, 2.0, 7.0]),
        terminated=torch.tensor([0.0, 0.0, 1.0]),
        next_mean=torch.tensor([[5.0, -1.0, 9.0], [4.0, 0.0, 8.0]]),
        next_sigma=torch.tensor([[1.0, 0.1, 5.0], [3.0, 2.0, 5.0]]),
        next_log_prob=torch.tensor([-1.0, -1.0, -1.0]),
        alpha=torch.tensor(0.2),
        gamma=0.5,
        noise=torch.tensor([1.5, 9.0, 1.0]),
    )
    torch.testing.assert_close(expected, torch.tensor([3.1, 1.6, 7.0]))
    torch.testing.assert_close(sampled, torch.tensor([5.35, 1.75, 7.0]))


def test_actor_loss_and_its_gradient() -> None:
    # alpha .5: ((.5 * 2 - 1) + (.5 * -1 - 3)) / 2 = -1.75; only the smaller Q has a gradient, -1/2 each.
    mean = torch.tensor([[1.0, 5.0], [4.0, 3.0]], requires_grad=True)
    log_prob = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = actor_loss(log_prob, mean, torch.tensor(0.5))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-1.75)
    torch.testing.assert_close(mean.grad, torch.tensor([[-0.5, 0.0], [0.0, -0.5]]))
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.25, 0.25]))


def test_the_temperature_rises_while_entropy_is_below_its_target() -> None:
    # mean log pi = 3, target -1: the gradient -(3 - 1) = -2 is negative, so that a descent raises log alpha.
    assert float(temperature_gradient(torch.tensor([2.0, 4.0]), -1.0)) == -2.0
    log_alpha = torch.tensor(0.3, requires_grad=True)
    (-log_alpha * (torch.tensor([2.0, 4.0]) - 1.0).mean()).backward()
    assert float(log_alpha.grad or 0) == -2.0


def batches(count: int, observation_dim: int = 5, action_dim: int = 2, size: int = 32) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        Batch(
            torch.cat((normal(size, observation_dim), torch.tanh(normal(size, action_dim))), 1),
            normal(size),
            (normal(size) > 1).float(),
            normal(size, observation_dim),
        )
        for _ in range(count)
    ]


def test_the_twin_critic_is_two_separate_networks() -> None:
    torch.manual_seed(0)
    twin = TwinCritic(7, (16, 16))
    inputs = torch.randn(9, 7, requires_grad=True)
    mean, sigma = twin(inputs)
    (mean.square().sum() + sigma.sum()).backward()
    of_inputs, inputs.grad = inputs.grad, None
    for k in range(2):
        layers = [(w[k].detach().clone().requires_grad_(), b[k].detach()) for w, b in zip(twin.weights, twin.biases, strict=True)]
        value = inputs
        for index, (weight, bias) in enumerate(layers):
            value = value @ weight.T + bias
            value = torch.nn.functional.gelu(value) if index < 2 else value
        torch.testing.assert_close(mean[k], value[:, 0])
        torch.testing.assert_close(sigma[k], softplus(value[:, 1]))
        (value[:, 0].square().sum() + softplus(value[:, 1]).sum()).backward()
        for (weight, _), stacked in zip(layers, twin.weights, strict=True):
            torch.testing.assert_close(stacked.grad[k], weight.grad)
    torch.testing.assert_close(of_inputs, inputs.grad)


def test_the_twin_critic_gives_the_gradient_of_the_inputs_alone() -> None:
    """As the actor's update asks for it: of the smaller mean of each sample; the full gradient is that of finite differences."""
    torch.manual_seed(0)
    twin = TwinCritic(7, (16, 16)).double()
    inputs = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():  # so that each critic is the smaller one in some samples
        mean, _ = twin(inputs)
        twin.biases[-1][0, 0] -= (mean[0] - mean[1]).median() + 1e-6
    mean, _ = twin(inputs, frozen=True)
    assert 0 < int((mean[0] < mean[1]).sum()) < 9
    mean.amin(0).sum().backward()
    alone, inputs.grad = inputs.grad, None
    assert all(parameter.grad is None for parameter in twin.parameters())
    (whole, _) = torch.autograd.grad(twin(inputs)[0].amin(0).sum(), (inputs, twin.weights[0]))
    torch.testing.assert_close(alone, whole)
    assert torch.autograd.gradcheck(lambda x: twin(x), (inputs,))


def copy_to_plain(learner: DsacT, plain: PlainDsacT) -> None:
    for k, networks in enumerate(zip(plain.critics, plain.target_critics, strict=True)):
        for network in networks:
            linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
            for layer, weight, bias in zip(linear, learner.critic.weights, learner.critic.biases, strict=True):
                layer.weight.data.copy_(weight[k])
                layer.bias.data.copy_(bias[k])
    plain.actor.load_state_dict(learner.actor.network.state_dict())
    plain.target_actor.load_state_dict(learner.actor.network.state_dict())


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Adam turns a gradient of rounding errors into a whole step, so that a few elements may differ."""
    assert float(((ours - theirs).abs() > 2e-6).float().mean()) < 0.01


@pytest.mark.parametrize("critic_learning_rate", [1e-4, 1e-12])
def test_the_learner_equals_the_plain_structure(monkeypatch: pytest.MonkeyPatch, critic_learning_rate: float) -> None:
    """Without noise all weights agree after six updates. In the plain structure the actor's gradient precedes the critics'
    step, so the actors are compared where the critics stand still."""
    learner = DsacT(AlgorithmConfig(hidden=(32, 32), critic_learning_rate=critic_learning_rate), 5, 2, seed=0)
    plain = PlainDsacT(5, 2, (32, 32))
    for optimizer in plain.critic_optimizers:
        optimizer.param_groups[0]["lr"] = critic_learning_rate
    copy_to_plain(learner, plain)
    chosen = batches(6)
    monkeypatch.setattr(torch, "randn", lambda *size, generator=None: torch.zeros(*size))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda shape, dtype, device: torch.zeros(shape))
    for batch in chosen:
        learner.update(batch, torch.Generator())
        plain.update(batch.inputs[:, :5], batch.inputs[:, 5:], batch.reward, batch.terminated, batch.next_observation)
    for k in range(2):
        linear = [layer for layer in plain.critics[k] if isinstance(layer, torch.nn.Linear)]
        slow = [layer for layer in plain.target_critics[k] if isinstance(layer, torch.nn.Linear)]
        for index, layer in enumerate(linear):
            assert_alike(learner.critic.weights[index][k], layer.weight)
            assert_alike(learner.critic.biases[index][k], layer.bias)
            assert_alike(learner.target_critic.weights[index][k], slow[index].weight)
        torch.testing.assert_close(learner.bound[k], plain.bounds[k], rtol=1e-5, atol=0)
    if critic_learning_rate < 1e-6:
        for ours, theirs in zip(learner.actor.network.parameters(), plain.actor.parameters(), strict=True):
            assert_alike(ours, theirs)
        torch.testing.assert_close(learner.log_alpha, plain.log_alpha, rtol=0, atol=1e-6)


def weights(learner: DsacT) -> dict[str, torch.Tensor]:
    assert learner.target_actor is not None
    return {
        "critic": learner.critic.weights[0].detach().clone(),
        "actor": learner.actor.network[0].weight.detach().clone(),
        "alpha": learner.log_alpha.detach().clone(),
        "target_critic": learner.target_critic.weights[0].clone(),
        "target_actor": learner.target_actor.network[0].weight.clone(),
    }


def test_actor_temperature_and_targets_move_at_every_second_update() -> None:
    learner, generator = DsacT(AlgorithmConfig(hidden=(16,)), 5, 2, seed=0), torch.Generator()
    changed = []
    for batch in batches(4):
        before = weights(learner)
        learner.update(batch, generator)
        after = weights(learner)
        changed.append({name for name in before if not torch.equal(before[name], after[name])})
    everything = {"critic", "actor", "alpha", "target_critic", "target_actor"}
    assert changed == [{"critic"}, everything, {"critic"}, everything]


def test_targets_move_by_tau_and_the_bound_by_its_rate() -> None:
    config = AlgorithmConfig(hidden=(16,), tau=0.25, bound_rate=0.5, delay=1)
    learner, generator = DsacT(config, 5, 2, seed=0), torch.Generator().manual_seed(0)
    first, second = batches(2)
    with torch.no_grad():
        sigma = learner.critic(first.inputs)[1].mean(1)
    before = learner.target_critic.weights[0].clone()
    learner.update(first, generator)
    torch.testing.assert_close(learner.bound, sigma)  # the average begins with the first batch
    torch.testing.assert_close(learner.target_critic.weights[0], 0.75 * before + 0.25 * learner.critic.weights[0].detach())
    with torch.no_grad():
        wanted = 0.5 * sigma + 0.5 * learner.critic(second.inputs)[1].mean(1)
    learner.update(second, generator)
    torch.testing.assert_close(learner.bound, wanted)


def test_the_next_action_comes_from_the_target_actor_in_dsac_t_and_from_the_actor_in_sac() -> None:
    for name in VARIANTS:
        learner = DsacT(AlgorithmConfig(name=name, hidden=(16,)), 5, 2, seed=0)
        [batch] = batches(1)
        before = learner.targets(batch, torch.Generator().manual_seed(0))[0]
        with torch.no_grad():
            learner.actor.network[-1].bias += 0.5
        same = torch.equal(before, learner.targets(batch, torch.Generator().manual_seed(0))[0])
        assert same == (name != "sac")


def test_truncation_bootstraps_and_termination_does_not() -> None:
    learner = DsacT(AlgorithmConfig(hidden=(16,)), 5, 2, seed=0)
    [batch] = batches(1)
    ended = batch._replace(terminated=torch.ones(32))
    expected, sampled = learner.targets(ended, torch.Generator())
    torch.testing.assert_close(expected, batch.reward)
    torch.testing.assert_close(sampled, batch.reward)
    expected, _ = learner.targets(batch._replace(terminated=torch.zeros(32)), torch.Generator())
    assert float((expected - batch.reward).abs().min()) > 0


def test_no_gradient_flows_through_targets_or_into_critics_from_the_actor() -> None:
    learner, generator = DsacT(AlgorithmConfig(hidden=(16,), delay=1), 5, 2, seed=0), torch.Generator()
    [batch] = batches(1)
    expected, sampled = learner.targets(batch, generator)
    assert not expected.requires_grad and not sampled.requires_grad
    learner.update(batch, generator)
    before = learner.critic.weights[0].grad
    assert before is not None
    kept = before.clone()
    learner._actor_gradient(batch, generator)
    torch.testing.assert_close(learner.critic.weights[0].grad, kept)


def test_sigma_calibration_and_clip_share() -> None:
    learner, generator = DsacT(AlgorithmConfig(hidden=(16,)), 5, 2, seed=0), torch.Generator().manual_seed(0)
    [batch] = batches(1, size=2048)
    ended = batch._replace(terminated=torch.ones(2048), reward=torch.zeros(2048))
    for index in range(2):  # Q = 0 and sigma = softplus(log(e - 1)) = 1 everywhere
        learner.critic.weights[index].data.zero_()
        learner.critic.biases[index].data.zero_()
    learner.critic.biases[1].data[:, 1] = math.log(math.e - 1)
    learner.bound.fill_(0.5)
    normal = torch.randn(2048, generator=generator)
    found = learner.diagnose(ended._replace(reward=2 * normal), generator)
    # Targets N(0, 2) against sigma 1: the ratio is 2. P(|2 z| > 1.5) = P(|z| > .75) = .453.
    assert found["critic/sigma_calibration"] == pytest.approx(2.0, rel=0.05)
    assert found["critic/clip_share"] == pytest.approx(0.453, abs=0.03)


def test_a_restored_learner_goes_on_like_the_first() -> None:
    config, generator = AlgorithmConfig(hidden=(16,)), torch.Generator()
    first, second = DsacT(config, 5, 2, seed=0), DsacT(config, 5, 2, seed=1)
    chosen = batches(5)
    for batch in chosen[:3]:
        first.update(batch, generator.manual_seed(1))
    second.actor.load_state_dict(first.actor.state_dict())
    second.load_state_dict(first.state_dict())
    for name, optimizer in second.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(first.optimizers[name].state_dict()))  # or both would share the moments
    for learner in (first, second):
        for batch in chosen[3:]:
            learner.update(batch, generator.manual_seed(2))
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name

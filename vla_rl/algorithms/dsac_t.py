"""DSAC-T: distributional soft actor-critic with three refinements (Duan et al., arXiv 2310.05858), and SAC beside it.

Written from the paper's equations. A critic predicts mean Q and standard deviation sigma of the soft return. The three
refinements: the mean learns from the expected target (expected value substitution), both critics learn from the target
critic with the smaller mean (twin value distribution learning), and the scale of gradients and the clip of targets follow
a moving average B of sigma (variance-based adjustment).

Legend: M = 2 critics, B samples, O observation size, D action size, I = O + D.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.algorithms.twin_critic import CRITICS, TwinCritic
from vla_rl.control_config import AlgorithmConfig
from vla_rl.policies.gaussian import GaussianPolicy

CLIP = 3.0
"""The target's noise is clamped to so many standard deviations, and the target to so many B around Q."""
EPSILON = 0.1
"""Keeps quotients by sigma finite."""
HUBER = 50.0
RATIO_RANGE = (0.1, 10.0)

Gradients = tuple[Float[Tensor, "M B"], Float[Tensor, "M B"]]


class Batch(NamedTuple):
    """Transitions drawn from the replay buffer."""

    inputs: Float[Tensor, "B I"]
    """Observation and action, side by side as the critics take them."""
    reward: Float[Tensor, "B"]
    terminated: Float[Tensor, "B"]
    """1 where the task ended, so that nothing is bootstrapped; 0 where it goes on or the time ran out."""
    next_observation: Float[Tensor, "B O"]


def target_returns(
    reward: Float[Tensor, "B"],
    terminated: Float[Tensor, "B"],
    next_mean: Float[Tensor, "M B"],
    next_sigma: Float[Tensor, "M B"],
    next_log_prob: Float[Tensor, "B"],
    alpha: Float[Tensor, ""],
    gamma: float,
    noise: Float[Tensor, "B"],
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """The expected soft return, which Q learns from, and one drawn from its distribution, which sigma learns from.

    y_q = r + gamma (1 - terminated) (Q_k - alpha log pi), y_z = y_q + gamma (1 - terminated) sigma_k z, with k the critic of the
    smaller mean at each sample, and z standard normal `noise` clamped to +-3.
    """
    smaller, k = next_mean.min(0)
    discount = gamma * (1.0 - terminated)
    expected = torch.addcmul(reward, discount, smaller - alpha * next_log_prob)
    spread = next_sigma.gather(0, k.unsqueeze(0)).squeeze(0)
    return expected, torch.addcmul(expected, discount, spread * noise.clamp(-CLIP, CLIP))


def paper_gradients(
    mean: Float[Tensor, "M B"],
    sigma: Float[Tensor, "M B"],
    expected: Float[Tensor, "B"],
    sampled: Float[Tensor, "B"],
    bound: Float[Tensor, "M"],
) -> Gradients:
    """Gradient of the critics' loss with respect to Q and sigma; `bound` is B.

    dL/dQ = -(B^2 + .1) (y_q - Q) / (sigma^2 + .1) and dL/dsigma = -(B^2 + .1) ((Q - y_b)^2 - sigma^2) / (sigma^3 + .1), with
    y_b = Q + clip(y_z - Q, -3 B, 3 B); averaged over the batch, summed over the critics.
    """
    b = bound.unsqueeze(1)
    scale = (b.square() + EPSILON) / mean.shape[1]
    variance = sigma.square()
    deviation = _clipped(mean, sampled, b).square()
    of_mean = scale * (mean - expected) / (variance + EPSILON)
    of_sigma = scale * (variance - deviation) / (variance * sigma + EPSILON)
    return of_mean, of_sigma


def huber_gradients(
    mean: Float[Tensor, "M B"],
    sigma: Float[Tensor, "M B"],
    expected: Float[Tensor, "B"],
    sampled: Float[Tensor, "B"],
    bound: Float[Tensor, "M"],
) -> Gradients:
    """As `paper_gradients`, in the form of the authors' later code: Huber losses and a bounded ratio B^2 / (sigma^2 + .1).

    Half of a squared error stands where the square would be, so sigma settles at 0.7 of the targets' spread.
    """
    b = bound.unsqueeze(1)
    variance = sigma.square()
    ratio = (b.square() / (variance + EPSILON)).clamp(*RATIO_RANGE) / mean.shape[1]
    size = _clipped(mean, sampled, b).abs()
    huber = torch.where(size < HUBER, 0.5 * size.square(), HUBER * (size - 0.5 * HUBER))
    return ratio * (mean - expected).clamp(-HUBER, HUBER), ratio * (variance - huber) / (sigma + EPSILON)


def squared_gradients(
    mean: Float[Tensor, "M B"],
    sigma: Float[Tensor, "M B"],
    expected: Float[Tensor, "B"],
    sampled: Float[Tensor, "B"],
    bound: Float[Tensor, "M"],
) -> Gradients:
    """SAC's critics: half the mean squared error of Q; sigma learns nothing."""
    return (mean - expected) / mean.shape[1], torch.zeros_like(sigma)


def actor_loss(log_prob: Float[Tensor, "B"], mean: Float[Tensor, "M B"], alpha: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """mean(alpha log pi - min_i Q_i)"""
    return (alpha * log_prob - mean.amin(0)).mean()


def temperature_gradient(log_prob: Float[Tensor, "B"], target_entropy: float) -> Float[Tensor, ""]:
    """Gradient of -log alpha * mean(log pi + target entropy) with respect to log alpha: alpha rises below the target."""
    return -(log_prob.mean() + target_entropy)


def _clipped(mean: Tensor, sampled: Tensor, bound: Tensor) -> Tensor:
    return (sampled - mean).clamp(-CLIP * bound, CLIP * bound)


@dataclass(frozen=True)
class Variant:
    """What distinguishes the algorithms of this file."""

    gradients: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Gradients]
    delay: int
    """Updates of the critics for one of everything else."""
    target_actor: bool
    """Whether the next action comes from a slowly moving copy of the actor, or from the actor."""


VARIANTS = {
    "dsac_t": Variant(paper_gradients, delay=2, target_actor=True),
    "dsac_t_huber": Variant(huber_gradients, delay=2, target_actor=True),
    "sac": Variant(squared_gradients, delay=1, target_actor=False),
}


class DsacT:
    """Actor, critics, temperature and their targets; `update` learns from one batch."""

    def __init__(
        self, config: AlgorithmConfig, observation_dim: int, action_dim: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.variant = VARIANTS[config.name]
        self.delay = config.delay or self.variant.delay
        self.target_entropy = -float(action_dim) if config.target_entropy is None else config.target_entropy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = GaussianPolicy(observation_dim, action_dim, config.hidden).to(device)
            self.critic = TwinCritic(observation_dim + action_dim, config.hidden).to(device)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False) if self.variant.target_actor else None
        self.log_alpha = torch.tensor(config.initial_temperature, device=device).log().requires_grad_()
        self.bound = torch.zeros(CRITICS, device=device)
        """B: the moving average of each critic's sigma."""
        self.updates = 0
        actor = {"params": list(self.actor.parameters()), "lr": config.actor_learning_rate}
        temperature = {"params": [self.log_alpha], "lr": config.temperature_learning_rate}
        # Fused: one call for all parameters, on the CPU too, where the plain form makes ten for each.
        self.optimizers = {
            "critic": torch.optim.Adam(self.critic.parameters(), lr=config.critic_learning_rate, fused=True),
            "actor": torch.optim.Adam([actor, temperature], fused=True),
        }

    def update(self, batch: Batch, generator: torch.Generator) -> None:
        """Improve the critics, and at every `delay`-th update the actor and the temperature; then the targets follow."""
        self._critic_gradient(batch, generator)
        self.optimizers["critic"].step()
        self.updates += 1
        if self.updates % self.delay == 0:
            self._actor_gradient(batch, generator)
            self.optimizers["actor"].step()
            self._move_targets()
            self.actor.version = self.updates

    def _critic_gradient(self, batch: Batch, generator: torch.Generator) -> None:
        expected, sampled = self.targets(batch, generator)
        mean, sigma = self.critic(batch.inputs)
        with torch.no_grad():
            # The average starts at the first batch's sigma, not at zero, which would clip every early target to Q.
            self.bound.lerp_(sigma.mean(1), self.config.bound_rate if self.updates else 1.0)
            gradients = self.variant.gradients(mean, sigma, expected, sampled, self.bound)
        self.optimizers["critic"].zero_grad()
        torch.autograd.backward((mean, sigma), gradients)

    @torch.no_grad()
    def targets(self, batch: Batch, generator: torch.Generator) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """`target_returns` of a batch, with the next action drawn from the target actor."""
        actor = self.actor if self.target_actor is None else self.target_actor
        next_action, next_log_prob = actor.sample(batch.next_observation, self._noise(batch, generator))
        next_mean, next_sigma = self.target_critic(torch.cat((batch.next_observation, next_action), 1))
        noise = torch.randn(len(batch.reward), generator=generator).to(self.device)
        return target_returns(
            batch.reward,
            batch.terminated,
            next_mean,
            next_sigma,
            next_log_prob,
            self.log_alpha.exp(),
            self.config.gamma,
            noise,
        )

    def _actor_gradient(self, batch: Batch, generator: torch.Generator) -> None:
        observation = batch.inputs[:, : self.actor.observation_dim]
        action, log_prob = self.actor.sample(observation, self._noise(batch, generator))
        mean, _ = self.critic(torch.cat((observation, action), 1), frozen=True)
        self.optimizers["actor"].zero_grad()
        actor_loss(log_prob, mean, self.log_alpha.detach().exp()).backward()
        self.log_alpha.grad = temperature_gradient(log_prob.detach(), self.target_entropy)

    @torch.no_grad()
    def _move_targets(self) -> None:
        pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = [(self.target_critic, self.critic)]
        if self.target_actor is not None:
            pairs.append((self.target_actor, self.actor))
        for target, source in pairs:
            torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), self.config.tau)

    def _noise(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "B D"]:
        return torch.randn(len(batch.reward), self.actor.action_dim, generator=generator).to(self.device)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        """What the critics and the actor make of a batch.

        `critic/sigma_calibration` is the root mean square of (y_z - Q) / sigma: 1 where sigma tells how far targets lie from
        Q, above where it is too small. `critic/clip_share` is the share of targets further than 3 B from Q.
        """
        expected, sampled = self.targets(batch, generator)
        mean, sigma = self.critic(batch.inputs)
        _, log_prob = self.actor.sample(batch.inputs[:, : self.actor.observation_dim], self._noise(batch, generator))
        away = sampled - mean
        values = {
            "critic/q_mean": mean.mean(),
            "critic/q_disagreement": (mean[0] - mean[1]).abs().mean(),
            "critic/td_error": (expected - mean).square().mean().sqrt(),
            "policy/entropy": -log_prob.mean(),
            "policy/alpha": self.log_alpha.exp(),
        }
        if self.variant.gradients is not squared_gradients:
            values |= {
                "critic/sigma_mean": sigma.mean(),
                "critic/sigma_calibration": (away / sigma).square().mean().sqrt(),
                "critic/clip_share": (away.abs() > CLIP * self.bound.unsqueeze(1)).float().mean(),
                "critic/bound": self.bound.mean(),
            }
        return {name: float(value) for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that `update` depends on, but for the actor's weights, which are the policy, and the optimisers."""
        return {
            "critic": self.critic.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "target_actor": None if self.target_actor is None else self.target_actor.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "bound": self.bound,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.target_critic.load_state_dict(state["target_critic"])
        if self.target_actor is not None:
            self.target_actor.load_state_dict(state["target_actor"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
            self.bound.copy_(state["bound"])
        self.updates = self.actor.version = int(state["updates"])

"""DSAC-T in the structure of the authors' published code, as the yardstick of `vla-rl bench dsac`; written for this project.

Two critics of their own with an optimiser each, separate passes for everything, actor and temperature gradients at every
update although they are used at every second only, targets moved tensor by tensor, and statistics read at every update. It
computes what `DsacT` computes, but that the actor's gradient is taken before the critics' step, as there.

Legend: B samples, O observation size, D action size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus


def network(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    sizes = (inputs, *hidden)
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class PlainDsacT:
    """Takes observation, action, reward, terminated and next observation as tensors of their own."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256, 256)) -> None:
        self.action_dim, self.gamma, self.tau, self.delay = action_dim, 0.99, 0.005, 2
        self.critics = [network(observation_dim + action_dim, hidden, 2) for _ in range(2)]
        self.actor = network(observation_dim, hidden, 2 * action_dim)
        self.target_critics, self.target_actor = copy.deepcopy(self.critics), copy.deepcopy(self.actor)
        for target in (*self.target_critics, self.target_actor):
            target.requires_grad_(False)
        self.log_alpha = torch.tensor(1.0, requires_grad=True)
        self.critic_optimizers = [torch.optim.Adam(critic.parameters(), lr=1e-4) for critic in self.critics]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=1e-4)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=3e-4)
        self.bounds: list[Tensor | None] = [None, None]
        self.updates = 0
        self.statistics: dict[str, float] = {}

    def update(self, observation: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_observation: Tensor) -> None:
        new_action, log_prob = self._sample(self.actor, observation)
        for optimizer in self.critic_optimizers:
            optimizer.zero_grad()
        critic_loss = self._critic_loss(observation, action, reward, terminated, next_observation)
        critic_loss.backward()
        for critic in self.critics:
            critic.requires_grad_(False)
        self.actor_optimizer.zero_grad()
        values = [self._value(critic, observation, new_action)[0] for critic in self.critics]
        actor_loss = (self.log_alpha.exp().item() * log_prob - torch.min(values[0], values[1])).mean()
        actor_loss.backward()
        for critic in self.critics:
            critic.requires_grad_(True)
        self.alpha_optimizer.zero_grad()
        (-self.log_alpha * (log_prob.detach() - self.action_dim).mean()).backward()
        self.statistics = {"critic": critic_loss.item(), "actor": actor_loss.item(), "entropy": -log_prob.mean().item()}
        self._step()

    def _step(self) -> None:
        for optimizer in self.critic_optimizers:
            optimizer.step()
        self.updates += 1
        if self.updates % self.delay == 0:
            self.actor_optimizer.step()
            self.alpha_optimizer.step()
            with torch.no_grad():
                pairs = [*zip(self.target_critics, self.critics, strict=True), (self.target_actor, self.actor)]
                for target, source in pairs:
                    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
                        slow.mul_(1 - self.tau)
                        slow.add_(self.tau * fast)

    def _critic_loss(
        self, observation: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_observation: Tensor
    ) -> Tensor:
        next_action, next_log_prob = self._sample(self.target_actor, next_observation)
        now = [self._value(critic, observation, action) for critic in self.critics]
        (mean_1, sigma_1), (mean_2, sigma_2) = (self._value(c, next_observation, next_action) for c in self.target_critics)
        drawn_1 = mean_1 + sigma_1 * torch.randn_like(mean_1).clamp(-3, 3)
        drawn_2 = mean_2 + sigma_2 * torch.randn_like(mean_2).clamp(-3, 3)
        discount = self.gamma * (1 - terminated)
        cost = self.log_alpha.exp().item() * next_log_prob
        expected = (reward + discount * (torch.min(mean_1, mean_2) - cost)).detach()
        sampled = (reward + discount * (torch.where(mean_1 < mean_2, drawn_1, drawn_2) - cost)).detach()
        loss = torch.zeros(())
        for index, (mean, sigma) in enumerate(now):
            seen, before = sigma.detach().mean(), self.bounds[index]
            bound = seen if before is None else (1 - self.tau) * before + self.tau * seen
            self.bounds[index] = bound
            q, s = mean.detach(), sigma.detach()
            clipped = q + torch.clamp(sampled - q, -3 * bound, 3 * bound)
            of_mean = -(expected - q) / (s.pow(2) + 0.1)
            of_sigma = -((q - clipped).pow(2) - s.pow(2)) / (s.pow(3) + 0.1)
            loss = loss + (bound.pow(2) + 0.1) * torch.mean(of_mean * mean + of_sigma * sigma)
        return loss

    def _sample(self, actor: nn.Module, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = torch.chunk(actor(observation), 2, dim=-1)
        distribution = Normal(mean, log_std.clamp(-20, 0.5).exp())
        before = distribution.rsample()
        stretch = 2 * (math.log(2) - before - softplus(-2 * before))
        return torch.tanh(before), (distribution.log_prob(before) - stretch).sum(-1)

    def _value(self, critic: nn.Module, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        out = critic(torch.cat([observation, action], dim=-1))
        return out[..., 0], softplus(out[..., 1])

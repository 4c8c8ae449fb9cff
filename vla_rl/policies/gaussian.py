"""A Gaussian policy squashed into [-1, 1] by tanh, for control from a state vector.

Legend: B observations, O observation size, D action size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import softplus

from vla_rl.policies.base import PolicyError
from vla_rl.policies.locate import check_files, policy_folder

LOG_STD_RANGE = (-20.0, 0.5)
KIND = "gaussian"
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class GaussianPolicy(nn.Module):
    """Action = tanh(mean + std * noise), with mean and log-std from one network of GELU layers."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256, 256)) -> None:
        """Weights come from torch's global generator."""
        super().__init__()
        self.observation_dim, self.action_dim, self.hidden = observation_dim, action_dim, tuple(hidden)
        self.version = 0
        """Counts the updates."""
        sizes = (observation_dim, *self.hidden)
        layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.GELU())]
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], 2 * action_dim))

    def forward(self, observation: Float[Tensor, "B O"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Mean and log-std before the tanh."""
        mean, log_std = self.network(observation).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def sample(
        self, observation: Float[Tensor, "B O"], noise: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B"]]:
        """Actions in [-1, 1] and their log-probs (nat), differentiable; `noise` is standard normal."""
        mean, log_std = self(observation)
        before = torch.addcmul(mean, log_std.exp(), noise)
        return torch.tanh(before), squashed_log_prob(before, log_std, noise)

    @torch.inference_mode()
    def act(
        self, observation: Float32[np.ndarray, "B O"], noise: Float32[np.ndarray, "B D"] | None = None
    ) -> Float32[np.ndarray, "B D"]:
        """Actions for a simulator or robot: sampled with standard normal `noise`, or without any, the middle of the Gaussian."""
        device = next(self.parameters()).device
        mean, log_std = self(torch.from_numpy(observation).to(device))
        if noise is not None:
            mean = mean + log_std.exp() * torch.from_numpy(noise).to(device)
        return torch.tanh(mean).cpu().numpy()

    def save(self, path: Path) -> None:
        """Write policy.json and model.safetensors into a folder."""
        record = {
            "kind": KIND,
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "hidden": list(self.hidden),
            "version": self.version,
        }
        (path / "policy.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        safetensors.torch.save_file(self.state_dict(), path / "model.safetensors")

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Self:
        """The policy of a run directory, a checkpoint or a policy's own folder. Raises `PolicyError` where there is none, or
        where it is damaged."""
        folder = policy_folder(Path(path))
        check_files(folder)
        try:
            record = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
            if record.get("kind") != KIND:
                raise PolicyError(f"the policy in {folder} is of kind {record.get('kind')!r}, not {KIND!r}")
            policy = cls(int(record["observation_dim"]), int(record["action_dim"]), tuple(record["hidden"]))
            policy.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
            policy.version = int(record["version"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            if isinstance(error, PolicyError):
                raise
            reason = str(error).splitlines()[0]
            raise PolicyError(f"there is no readable Gaussian policy in {folder}: {reason}") from error
        return policy.to(device).eval()


def squashed_log_prob(
    before: Float[Tensor, "B D"], log_std: Float[Tensor, "B D"], noise: Float[Tensor, "B D"]
) -> Float[Tensor, "B"]:
    """Log-prob (nat) of tanh(before), where before = mean + std * noise.

    log N(before) - log |d tanh(before)|; the second term is 2 (log 2 - before - softplus(-2 before)), exact far outside
    [-1, 1] too, where 1 - tanh^2 is a zero in float32.
    """
    gaussian = -0.5 * noise.square() - log_std - _HALF_LOG_2PI
    stretch = 2.0 * (math.log(2.0) - before - softplus(-2.0 * before))
    return (gaussian - stretch).sum(-1)
